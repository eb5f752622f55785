"""A picture of a page to what the text detector takes.

Promises: any 8-bit picture from one pixel up gives a valid input or `UnreadableImageError` with the reason; the input
is bounded (736 x 5888 or 1984 x 1984 at most), however the picture is shaped; what is found in the frame can be told
in the picture's own pixels. Called by `reading`, first of all.

The sizes are those of the config.yaml in the package that carries the models.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from examples.ocr.reader import Floats, Pixels, UnreadableImageError

LONGEST = 2000  # pixels: a larger page is scaled down first. `max_side_len`
SHORTER = 736  # pixels: the detector sees the shorter side at least so large. `limit_side_len`
STEP = 32  # the detector halves its input five times
FLATTEST = 8  # times as wide as high: beyond, bands are added, as the detector misses text that touches both edges
LOWEST = 30  # pixels: the same for a picture that is all one line. `min_height`
MAX_PAGE_PIXELS = 50_000_000  # A4 at 600 dots per inch is 35 million. Decoded: 150 MB


@dataclass(frozen=True, slots=True)
class Frame:
    """The picture as boxes are found in it and lines cut out of it: scaled down and given bands, where need be."""

    pixels: Pixels  # blue-green-red [height, width, 3]
    scale: tuple[float, float]  # pixels of the picture per pixel of the frame, across and down
    bands: tuple[int, int]  # left and top, in pixels of the frame
    picture: tuple[int, int]  # height and width of the picture itself

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def in_picture(self, points: Floats) -> Floats:
        """Points (x, y) of the frame [..., 2] in pixels of the picture, none outside of it."""
        height, width = self.picture
        moved = (points - np.array(self.bands, np.float32)) * np.array(self.scale, np.float32)
        return np.clip(moved, 0, np.array((width - 1, height - 1), np.float32)).astype(np.float32)


def prepare(image: npt.NDArray[Any]) -> tuple[Frame, Floats]:
    """A picture, uint8 blue-green-red [height, width, 3] or grey [height, width] or [height, width, 1], to its frame
    and the detector's input, FP32 [1, 3, height, width] in -1..1 with both sizes multiples of 32.

    Raises UnreadableImageError for other shapes and types, no pixels and too many of them.
    """
    frame = _frame(_colour(image))
    return frame, _detector_input(frame.pixels)


def detector_size(height: int, width: int) -> tuple[int, int]:
    """Height and width at which the detector sees a frame."""
    scale = max(1.0, SHORTER / min(height, width))
    return _in_steps(int(height * scale)), _in_steps(int(width * scale))


def _in_steps(length: int) -> int:
    return max(STEP, round(length / STEP) * STEP)


def _colour(image: npt.NDArray[Any]) -> Pixels:
    if image.dtype != np.uint8 or image.ndim not in {2, 3} or (image.ndim == 3 and image.shape[2] not in {1, 3}):
        raise UnreadableImageError(
            f"image: expected uint8 [height, width], [height, width, 1] or [height, width, 3], got {image.dtype.name}"
            f"{list(image.shape)}; convert it first"
        )
    height, width = image.shape[:2]
    if height * width == 0:
        raise UnreadableImageError(f"image: {width}x{height} has no pixels")
    if height * width > MAX_PAGE_PIXELS:
        raise UnreadableImageError(
            f"image: {width}x{height} is over {MAX_PAGE_PIXELS} pixels; scale it down before reading it"
        )
    if image.ndim == 3 and image.shape[2] == 3:
        return np.ascontiguousarray(image)
    return np.asarray(cv2.cvtColor(image.reshape(height, width), cv2.COLOR_GRAY2BGR), dtype=np.uint8)


def _frame(pixels: Pixels) -> Frame:
    height, width = picture = pixels.shape[0], pixels.shape[1]
    shrink = min(1.0, LONGEST / max(height, width))
    if shrink < 1.0:
        smaller = max(1, round(width * shrink)), max(1, round(height * shrink))
        pixels = np.asarray(cv2.resize(pixels, smaller, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    scale = width / pixels.shape[1], height / pixels.shape[0]
    height, width = pixels.shape[:2]
    top = _band(height, width) if height <= LOWEST or height * FLATTEST < width else 0
    height += 2 * top
    left = _band(width, height) if width * FLATTEST < height else 0
    if top or left:
        # Black: what the detector is given beside a picture wherever it is given something.
        pixels = np.asarray(cv2.copyMakeBorder(pixels, top, top, left, left, cv2.BORDER_CONSTANT), dtype=np.uint8)
    return Frame(pixels, scale, (left, top), picture)


def _band(short: int, long: int) -> int:
    """What is added on both sides of the short one: to a fourth of the long one, and to twice the lowest."""
    return max(0, max(long // FLATTEST, LOWEST) * 2 - short) // 2


def _detector_input(pixels: Pixels) -> Floats:
    height, width = detector_size(*pixels.shape[:2])
    if pixels.shape[:2] != (height, width):
        pixels = np.asarray(cv2.resize(pixels, (width, height)), dtype=np.uint8)
    planes = np.empty((1, 3, height, width), np.float32)
    for channel, plane in enumerate(planes[0]):
        # A third faster than converting and subtracting in two passes, and rounds the same but for the last bit.
        one = cv2.extractChannel(pixels, channel)
        cv2.addWeighted(one, 2 / 255, one, 0, -1, dst=plane, dtype=cv2.CV_32F)
    return planes
