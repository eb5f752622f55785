"""Shows a picture of a text line in a terminal, in half-height blocks.

Promises: 24-bit colour only where a person looks at a terminal that has it, blocks only where the encoding has them,
and plain `#` otherwise; never wider than asked. Called by `demo`.
"""

import os
from enum import Enum
from typing import TextIO

import cv2
import numpy as np
import numpy.typing as npt

MAX_PIXEL_ROWS = 18  # nine rows of text: enough to recognise letters, few enough for seven pictures on a screen
DARK_ROWS = " \u2580\u2584\u2588"  # which of two stacked pixels is ink: none, upper, lower, both


class Style(Enum):
    COLOUR = "colour"
    BLOCKS = "blocks"
    ASCII = "ascii"


def style_of(stream: TextIO) -> Style:
    if "utf" not in (stream.encoding or "").lower():
        return Style.ASCII
    plain = "NO_COLOR" in os.environ or os.environ.get("TERM", "dumb") == "dumb"
    return Style.BLOCKS if plain or not stream.isatty() else Style.COLOUR


def picture_rows(encoded: bytes, columns: int, style: Style) -> list[str]:
    """The picture as rows of text at most `columns` wide, each without a line end."""
    pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        raise ValueError(f"expected an encoded picture, got {len(encoded)} bytes that do not decode")
    height, width = pixels.shape[:2]
    scale = min(columns / width, MAX_PIXEL_ROWS / height)
    # Two pixels in a row of text, so an even number of them.
    size = (max(1, int(width * scale)), max(2, 2 * round(height * scale / 2)))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    if style is Style.COLOUR:
        return [_colour_row(upper, lower) for upper, lower in zip(small[::2], small[1::2], strict=True)]
    ink = _ink(small)
    if style is Style.BLOCKS:
        return ["".join(DARK_ROWS[index] for index in row) for row in ink[::2] + 2 * ink[1::2]]
    return ["".join(" #"[index] for index in row) for row in ink[::2] | ink[1::2]]


def _colour_row(upper: npt.NDArray[np.generic], lower: npt.NDArray[np.generic]) -> str:
    cells = (
        f"\x1b[38;2;{above[2]};{above[1]};{above[0]}m\x1b[48;2;{below[2]};{below[1]};{below[0]}m\u2580"
        for above, below in zip(upper.tolist(), lower.tolist(), strict=True)
    )
    return "".join(cells) + "\x1b[0m"


def _ink(pixels: npt.NDArray[np.generic]) -> npt.NDArray[np.int64]:
    """1 where there is ink, by Otsu's threshold on evenly lit pixels; ink is whatever covers the smaller part."""
    grey = cv2.cvtColor(np.asarray(pixels, dtype=np.uint8), cv2.COLOR_BGR2GRAY).astype(np.float32)
    lighting = cv2.GaussianBlur(grey, (0, 0), grey.shape[0])
    shade = np.asarray(grey - lighting, dtype=np.float32)
    even = ((shade - shade.min()) * (255 / max(1.0, float(np.ptp(shade))))).astype(np.uint8)
    _, dark = cv2.threshold(even, 0, 1, cv2.THRESH_BINARY_INV | cv2.THRESH_OTSU)
    ink = np.asarray(dark, dtype=np.int64)
    return ink if ink.mean() <= 0.5 else 1 - ink
