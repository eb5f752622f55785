"""Sets a flat page: a heading, then paragraphs and lists in one to three columns, with the place of every line.

Promises: the same generator state sets the same page; lines of one page never overlap and never leave it; a line's text
is what was drawn, words with single spaces between. Called by `documents`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from examples.ocr import fonts, texts

Pixels = npt.NDArray[np.uint8]

LEADING = 1.42  # distance of two lines in font sizes: what books and browsers use is 1.2 to 1.6
MOST_LINES = 36  # of one page: more show nothing new, and reading a line takes a network some 20 ms
_LISTED = (texts.item, texts.price, texts.date, texts.address, texts.person, texts.code, texts.measurement)


@dataclass(frozen=True, slots=True)
class SetLine:
    text: str
    box: tuple[float, float, float, float]  # left, top, right, bottom of its ink, pixels


@dataclass(frozen=True, slots=True)
class FlatPage:
    ink: Pixels  # [height, width]: how much of each pixel the letters cover, 0 to 255
    lines: tuple[SetLine, ...]


class _Sheet:
    """The page while it is set."""

    def __init__(self, width: int, height: int) -> None:
        self._picture = Image.new("L", (width, height), 0)
        self._draw = ImageDraw.Draw(self._picture)
        self._lines: list[SetLine] = []

    def write(self, left: float, top: float, text: str, font: ImageFont.FreeTypeFont) -> None:
        place = (round(left), round(top))
        self._draw.text(place, text, fill=255, font=font)
        x0, y0, x1, y1 = (int(edge) for edge in font.getbbox(text))
        # The font's own box begins at the pen and ends at the advance; the truth is the ink.
        around = place[0] + min(0, x0), place[1] + y0, place[0] + x1 + 1, place[1] + y1 + 1
        ink = self._picture.crop(around).getbbox()
        assert ink is not None, f"{text!r} has no ink"
        box = tuple(float(around[axis % 2] + edge) for axis, edge in enumerate(ink))
        self._lines.append(SetLine(text, (box[0], box[1], box[2], box[3])))

    def page(self) -> FlatPage:
        return FlatPage(np.asarray(self._picture, dtype=np.uint8), tuple(self._lines))


def flat_page(random: np.random.Generator) -> FlatPage:
    """700 to 1040 pixels wide, 640 to 1100 high; some 30 lines, 36 at most."""
    width, height = int(random.integers(700, 1041)), int(random.integers(640, 1101))
    columns = int(random.choice((1, 2, 3), p=(0.4, 0.4, 0.2)))
    size = int(random.integers(19, 27)) if columns < 3 else int(random.integers(16, 20))
    faces = fonts.paths_of(fonts.PAGES)
    body, title = (faces[int(index)] for index in random.choice(len(faces), size=2, replace=False))
    sheet = _Sheet(width, height)
    margin = 0.06 * width
    top = margin
    if random.random() < 0.8:
        top = _heading(sheet, margin, top, width - 2 * margin, _font(title, round(size * 1.7)), random)
    gutter = 2.2 * size
    column = (width - 2 * margin - (columns - 1) * gutter) / columns
    for index in range(columns):
        _fill(
            sheet,
            left=margin + index * (column + gutter),
            top=top,
            width=column,
            bottom=height - margin,
            faces=(_font(body, size), _font(title, round(size * 1.15))),
            most=MOST_LINES // columns - 1,
            random=random,
        )
    return sheet.page()


def _heading(
    sheet: _Sheet, left: float, top: float, width: float, font: ImageFont.FreeTypeFont, random: np.random.Generator
) -> float:
    """Writes it and returns where the columns may begin."""
    text = next(wrapped(texts.heading(random).split(), font, width))
    sheet.write(left, top, text, font)
    return top + 1.6 * font.size


def _fill(
    sheet: _Sheet,
    *,
    left: float,
    top: float,
    width: float,
    bottom: float,
    faces: tuple[ImageFont.FreeTypeFont, ImageFont.FreeTypeFont],
    most: int,
    random: np.random.Generator,
) -> None:
    """Blocks down one column, until it is full or has `most` lines."""
    body, title = faces
    written = 0
    while True:
        for text, font in _block(body, title, width, random):
            if written == most or top + LEADING * font.size > bottom:
                return
            sheet.write(left, top, text, font)
            top += LEADING * font.size
            written += 1
        top += 0.6 * body.size


def _block(
    body: ImageFont.FreeTypeFont, title: ImageFont.FreeTypeFont, width: float, random: np.random.Generator
) -> list[tuple[str, ImageFont.FreeTypeFont]]:
    """A paragraph or a list, sometimes under a title; without what is too wide for the column, a long word or two."""
    lines = []
    if random.random() < 0.4:
        lines.append((next(wrapped(texts.heading(random).split(), title, width)), title))
    if random.random() < 0.65:
        words = " ".join(texts.sentence(random) for _ in range(int(random.integers(2, 5)))).split()
        lines += [(text, body) for text in wrapped(words, body, width)]
    else:
        for _ in range(int(random.integers(2, 6))):
            make = _LISTED[int(random.integers(len(_LISTED)))]
            lines += [(text, body) for text in wrapped(make(random).split(), body, width)]
    return [(text, font) for text, font in lines if font.getlength(text) <= width]


def wrapped(words: Sequence[str], font: ImageFont.FreeTypeFont, width: float) -> Iterator[str]:
    """Lines as full as they can be; a word wider than the column has a line of its own."""
    line: list[str] = []
    for word in words:
        if line and font.getlength(" ".join((*line, word))) > width:
            yield " ".join(line)
            line = []
        line.append(word)
    yield " ".join(line)


def _font(face: Path, size: int) -> ImageFont.FreeTypeFont:
    # BASIC: the other engine comes with some builds of Pillow only and would move letters.
    return ImageFont.truetype(str(face), size, layout_engine=ImageFont.Layout.BASIC)
