"""Draws a page with the box of every line and word, and beside it the words where they stand: what a person checks.

Called by `demo` and by `compare_pages` (`--draw`); the picture opens in anything.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from examples.ocr import fonts
from examples.ocr.page.words import Line, Word

Pixels = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

PAPER: Colour = (250, 250, 248)
LINE_COLOUR: Colour = (28, 110, 200)
# From sure to unsure: the score of a word picks one.
SCORES: tuple[tuple[float, Colour], ...] = ((0.95, (16, 92, 44)), (0.8, (176, 112, 0)), (0.0, (190, 24, 24)))
LEAST_HEIGHT = 30  # pixels: of the drawing's lines at least, so that its words can be read
GAP = 12
DESK: Colour = (120, 124, 130)
WIDEST = 1800  # pixels of a sheet of several pages


def draw_page(pixels: Pixels, lines: Sequence[Line], path: Path) -> None:
    """Writes `drawn_page` as a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn_page(pixels, lines).save(path)


def draw_pages(pages: Sequence[tuple[Pixels, Sequence[Line]]], path: Path) -> None:
    """Writes several pages below each other, all of one width, as a PNG."""
    drawn = [drawn_page(pixels, lines) for pixels, lines in pages]
    width = min(WIDEST, max(each.width for each in drawn))
    drawn = [each.resize((width, round(each.height * width / each.width))) for each in drawn]
    sheet = Image.new("RGB", (width, sum(each.height for each in drawn)), DESK)
    top = 0
    for each in drawn:
        sheet.paste(each, (0, top))
        top += each.height
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def drawn_page(pixels: Pixels, lines: Sequence[Line]) -> Image.Image:
    """Left the page (blue-green-red [height, width, 3]) with boxes, right its words alone.

    Words are green where the reader is sure of them (95 % and more), ochre from 80 %, red below.
    """
    zoom = _zoom(lines)
    page = Image.fromarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
    page = page.resize((round(page.width * zoom), round(page.height * zoom)))
    words = Image.new("RGB", page.size, PAPER)
    ink = ImageDraw.Draw(page)
    for line in lines:
        for word in line.words:
            _outline(ink, word.corners * zoom, colour_of(word.score), 1)
            _write(words, word, zoom)
        _outline(ink, line.corners * zoom, LINE_COLOUR, 2)
    sheet = Image.new("RGB", (2 * page.width + 3 * GAP, page.height + 2 * GAP), DESK)
    sheet.paste(page, (GAP, GAP))
    sheet.paste(words, (page.width + 2 * GAP, GAP))
    return sheet


def colour_of(score: float) -> Colour:
    return next((colour for least, colour in SCORES if score >= least), SCORES[-1][1])


def _zoom(lines: Sequence[Line]) -> float:
    """Whole, and at most 4: small pages have small letters."""
    if not lines:
        return 1.0
    height = float(np.median([np.linalg.norm(line.corners[3] - line.corners[0]) for line in lines]))
    return float(np.clip(np.ceil(LEAST_HEIGHT / max(height, 1.0)), 1, 4))


def _outline(ink: ImageDraw.ImageDraw, corners: npt.NDArray[np.float32], colour: Colour, width: int) -> None:
    points = [(float(x), float(y)) for x, y in (*corners, corners[0])]
    ink.line(points, fill=colour, width=width)


def _write(sheet: Image.Image, word: Word, zoom: float) -> None:
    """The word, as wide and as tilted as its box."""
    corners = word.corners * zoom
    width, height = (float(np.linalg.norm(corners[index] - corners[0])) for index in (1, 3))
    if width < 1 or height < 1:
        return
    font = _font(max(6, round(0.62 * height)))
    left, _, right, _ = font.getbbox(word.text)
    label = Image.new("L", (max(1, round(right - left)), round(1.25 * font.size)), 0)
    ImageDraw.Draw(label).text((-left, 0), word.text, fill=255, font=font)
    across, down = (corners[1] - corners[0]) / label.width, (corners[3] - corners[0]) / label.height
    place = np.column_stack((across, down, corners[0])).astype(np.float64)
    mask = cv2.warpAffine(np.asarray(label), place, sheet.size, flags=cv2.INTER_AREA)
    sheet.paste(colour_of(word.score), mask=Image.fromarray(mask))


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(fonts.paths_of(fonts.PRINT)[0]), size)
