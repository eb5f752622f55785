"""Quadrilaterals of a page to upright pictures of lines, and those to the inputs of the two networks that look at them.

Promises: a crop is straight, 48 pixels high and at most 3200 wide, cut and scaled in one step; it remembers where it
was cut, corner by corner in the direction it reads, through every turn. Called by `reading`, between the networks.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from examples.ocr.page.boxes import Quadrilaterals
from examples.ocr.page.frame import Frame
from examples.ocr.reader import (
    ANY_WIDTH,
    HEIGHT,
    MAX_WIDTH,
    MIN_WIDTH,
    Calls,
    Floats,
    Pixels,
    as_batch,
    groups_of_near_width,
)

# Columns: every 32 up to 320, every 64 up to 1024, then every 128. A line is scaled to the largest that its own width
# reaches, in place of being padded to the next: libraries that make kernels for each shape meet few, and nothing is
# padded. Of 15,321 words of rendered pages 247 were wrong with these steps and 253 with 32 throughout, which has twice
# the widths and 3 % more columns; with steps of 64 from the first on 271, with a fifth more each time 273. Of 7,548, 90
# were wrong with 32 throughout and 97 padded to 64, with a tenth more columns.
WIDTHS = (*range(MIN_WIDTH, 320, 32), *range(320, 1024, 64), *range(1024, MAX_WIDTH + 1, 128))
# For such libraries: a line a call, so one shape for each width.
FEW_WIDTHS = Calls(step=32, rows=1)  # all of them are multiples of it, and so nothing is padded
TALL = 1.5  # times as high as wide: lines that run up or down. What the models were trained with
DIRECTION_WIDTH = 192  # columns of the direction classifier's input. `cls_image_shape`
# A longer line is looked at in its middle. Of 699 lines of rendered pages, 98 were over 600 columns wide; of those the
# classifier knew 68 % upside down when they were squeezed as a whole, and so 89 %.
LOOK = 384
# How much the other lines of a page count, in parts of their mean log odds; and the log odds of standing on its head
# between which a line is read both ways. Of those 699, 3 % are in doubt and none is turned unread; a bare threshold
# (0.9, `cls_thresh`) on whole lines turns 8. On a page that stands on its head 0.4 % are left so, in place of 10 %; of
# lines that alone on their page stand on their heads 2 %, in place of 10 %.
COMPANY = 0.25
DOUBT = -1.0, 5.0
UPSIDE_DOWN = 1  # the class of lines turned by 180 degrees. `label_list`


@dataclass(frozen=True, slots=True)
class Crop:
    pixels: Pixels  # blue-green-red [48, width, 3]
    corners: Floats  # [4, 2]: (x, y) in the frame, clockwise from where its text begins
    line: int  # which of the page, in reading order

    def turned(self) -> "Crop":
        """By 180 degrees."""
        return Crop(np.ascontiguousarray(self.pixels[::-1, ::-1]), np.roll(self.corners, -2, axis=0), self.line)


@dataclass(frozen=True, slots=True)
class Batch:
    """Crops of near width as the recogniser takes them."""

    members: tuple[int, ...]  # places in the list of crops
    pictures: Floats  # FP32 [n, 3, 48, width] in -1..1


def crops(frame: Frame, quadrilaterals: Quadrilaterals) -> list[Crop]:
    """Cut out of the frame, in order."""
    return [_crop(frame.pixels, corners, line) for line, corners in enumerate(quadrilaterals)]


def directions(lines: Sequence[Crop]) -> Floats:
    """FP32 [n, 3, 48, 192]: the direction classifier's input, wide lines squeezed into it. At least one line."""
    return as_batch([_look(line.pixels) for line in lines], DIRECTION_WIDTH)


def _look(pixels: Pixels) -> Pixels:
    width = pixels.shape[1]
    if width > LOOK:
        start = (width - LOOK) // 2
        pixels, width = pixels[:, start : start + LOOK], LOOK
    return np.asarray(cv2.resize(pixels, (min(DIRECTION_WIDTH, width), HEIGHT)), dtype=np.uint8)


def upright(lines: Sequence[Crop], chances: npt.NDArray[Any]) -> list[Crop]:
    """The lines as they read, by the classifier's chances, FP [n, 2]: as it should be, and upside down.

    One in doubt is there both ways; `words` takes the one that reads better.
    """
    low, high = DOUBT
    found = []
    for line, odds in zip(lines, _odds_of_upside_down(chances), strict=True):
        if odds <= high:
            found.append(line)
        if odds > low:
            found.append(line.turned())
    return found


def _odds_of_upside_down(chances: npt.NDArray[Any]) -> list[float]:
    """The classifier's own, their logarithms, moved by those of the other lines: a page is mostly held one way."""
    down = np.clip(chances[:, UPSIDE_DOWN].astype(np.float64), 1e-4, 1 - 1e-4)  # the answers saturate
    odds = np.log(down / (1 - down))
    others = (odds.sum() - odds) / max(1, len(odds) - 1)
    return [float(one) for one in odds + COMPANY * others]


def batches(lines: Sequence[Crop], calls: Calls = ANY_WIDTH) -> list[Batch]:
    """All lines once, grouped so that little is padded."""
    widths = [line.pixels.shape[1] for line in lines]
    return [
        Batch(
            tuple(members),
            as_batch([lines[member].pixels for member in members], calls.width(max(widths[one] for one in members))),
        )
        for members in groups_of_near_width(widths, calls)
    ]


def _crop(pixels: Pixels, corners: Floats, line: int) -> Crop:
    across, down = _sides(corners)
    if down >= TALL * across:
        corners = np.roll(corners, -1, axis=0)  # it begins at the top right and runs down
        across, down = down, across
    width = _width(HEIGHT * across / max(1.0, down))
    edges = np.array(((0, 0), (width, 0), (width, HEIGHT), (0, HEIGHT)), np.float32)
    # A pixel's place is its middle on both sides, as in resizing. Without it lines lie a fraction of a pixel lower.
    edges += (HEIGHT / max(1.0, down) - 1) / 2
    straighten = cv2.getPerspectiveTransform(corners, edges)
    # Linear: of 1,336 words of rendered pages 15 were wrong, with cubic sampling 16, with that and then scaling 17.
    cut = cv2.warpPerspective(
        pixels, straighten, (width, HEIGHT), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return Crop(np.asarray(cut, dtype=np.uint8), corners, line)


def _width(natural: float) -> int:
    """Of a line that at its own proportions would be so wide; narrow ones keep theirs, and are padded."""
    width = min(MAX_WIDTH, max(1, math.ceil(natural)))
    return width if width <= MIN_WIDTH else WIDTHS[bisect_right(WIDTHS, width) - 1]


def _sides(corners: Floats) -> tuple[float, float]:
    """The longer of both edges across, and of both down."""
    top, right, bottom, left = np.linalg.norm(np.roll(corners, -1, axis=0) - corners, axis=1).tolist()
    return max(top, bottom), max(right, left)
