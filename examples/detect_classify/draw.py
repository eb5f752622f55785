"""Draws pictures with the boxes of what was found in them, side by side: what a person checks. Called by `__main__`."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from examples.detect_classify.asking import Thing

COLOURS = ("#ff7f0e", "#2ca9e1", "#7bd14c", "#e45bb4", "#ffd92f", "#b78cf2", "#f05050", "#50d0c0")
INK, PAPER = "#101418", "#787c82"
HEIGHT = 360  # pixels of every picture on the sheet
COLUMNS = 3
GAP = 10


def draw(pictures: Sequence[tuple[Path, Sequence[Thing]]], path: Path) -> None:
    """Writes a PNG. Pictures that Pillow can't read are left out: the server has said so."""
    parts = [drawn(picture, things) for picture, things in pictures]
    rows = [parts[at : at + COLUMNS] for at in range(0, len(parts), COLUMNS)]
    width = max(sum(part.width + GAP for part in row) for row in rows) + GAP
    sheet = Image.new("RGB", (width, len(rows) * (HEIGHT + GAP) + GAP), PAPER)
    for number, row in enumerate(rows):
        left = GAP
        for part in row:
            sheet.paste(part, (left, GAP + number * (HEIGHT + GAP)))
            left += part.width + GAP
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def drawn(picture: Path, things: Sequence[Thing]) -> Image.Image:
    with Image.open(picture) as opened:
        whole = opened.convert("RGB")
    zoom = HEIGHT / whole.height
    shown = whole.resize((max(1, round(whole.width * zoom)), HEIGHT))
    ink = ImageDraw.Draw(shown)
    font = ImageFont.load_default(size=15)
    for number, thing in reversed(list(enumerate(things))):  # the surest on top
        colour = COLOURS[number % len(COLOURS)]
        left, top, right, bottom = (zoom * each for each in thing.corners)
        ink.rectangle((left, top, right, bottom), outline=colour, width=3)
        text = f"{thing.label} {100 * thing.class_score:.0f} %"
        place = (left + 4, max(top + 2, 0))
        ink.rectangle(ink.textbbox(place, text, font=font), fill=colour)
        ink.text(place, text, fill=INK, font=font)
    return shown
