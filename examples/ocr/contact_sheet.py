"""Draws lines of text with what was read below each: one picture that a person can judge the reader by.

Called by `demo`, which leaves it in `build/ocr-lines.png`.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from examples.ocr import fonts
from examples.ocr.lines import Line

CELL_WIDTH, LINE_HEIGHT, CAPTION_HEIGHT, GAP, COLUMNS = 620, 44, 22, 10, 2
PAPER = (246, 246, 244)


def write_contact_sheet(lines: Sequence[Line], readings: Sequence[str], path: Path) -> None:
    """Writes a PNG of two columns; a reading that differs from the truth is set in red with the truth after it."""
    rows = -(-len(lines) // COLUMNS)
    cell_height = LINE_HEIGHT + CAPTION_HEIGHT + GAP
    sheet = Image.new("RGB", (COLUMNS * (CELL_WIDTH + GAP) + GAP, rows * cell_height + GAP), PAPER)
    font = ImageFont.truetype(str(fonts.paths_of(fonts.PRINT)[0]), 14)
    for index, (line, reading) in enumerate(zip(lines, readings, strict=True)):
        left = GAP + (index % COLUMNS) * (CELL_WIDTH + GAP)
        top = GAP + (index // COLUMNS) * cell_height
        picture = _fitted(line.encoded)
        sheet.paste(picture, (left, top + LINE_HEIGHT - picture.height))  # at the bottom, next to its caption
        good = reading == line.text
        caption = reading if good else f"{reading or '(nothing)'}   truth: {line.text}"
        cell = Image.new("RGB", (CELL_WIDTH, CAPTION_HEIGHT), PAPER)  # its own picture, so that long captions end here
        ImageDraw.Draw(cell).text((0, 2), caption, fill=(20, 90, 40) if good else (170, 30, 30), font=font)
        sheet.paste(cell, (left, top + LINE_HEIGHT))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _fitted(encoded: bytes) -> Image.Image:
    pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        raise ValueError(f"expected an encoded picture, got {len(encoded)} bytes that do not decode")
    picture = Image.fromarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
    picture.thumbnail((CELL_WIDTH, LINE_HEIGHT))
    return picture
