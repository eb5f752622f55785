"""An encoded picture to the detector's input, and boxes in it to the classifier's.

Promises: what is no picture, or has too many pixels, is `InvalidArgument` with the reason; both inputs have one size
whatever the picture's, so that pictures of any size share batches. Called by `service`, in its pool.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from penstock.errors import InvalidArgument

MOST_PIXELS = 50_000_000  # decoded: 150 MB
MARGIN = 114  # grey beside a picture that is not square: what detectors of the YOLO family are trained with
CROP = 224  # pixels of the classifier's input
# (x - 127) / 128: what EfficientNet-Lite was trained with.
MIDDLE, HALF = 127.0, 128.0

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Frame:
    """A picture, and where it lies in the detector's square input."""

    pixels: Pixels  # blue-green-red [height, width, 3]
    scale: float  # pixels of the input per pixel of the picture
    corner: tuple[int, int]  # left and top of the picture, in pixels of the input

    def in_picture(self, corners: Floats) -> Floats:
        """Boxes (left, top, right, bottom) [n, 4] of the input in pixels of the picture, none beyond its edges."""
        height, width = self.pixels.shape[:2]
        moved = (corners - np.array(self.corner * 2, np.float32)) / np.float32(self.scale)
        inside: Floats = np.clip(moved, 0, np.array((width, height) * 2, np.float32)).astype(np.float32)
        return inside


def decoded(image: bytes) -> Pixels:
    """A PNG, a JPEG, or whatever else OpenCV reads: blue-green-red [height, width, 3]. Raises InvalidArgument."""
    found = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR) if image else None
    if found is None:
        raise InvalidArgument(f"image: {len(image)} bytes are no picture; send a PNG or a JPEG")
    height, width = found.shape[:2]
    if height * width > MOST_PIXELS:
        raise InvalidArgument(f"image: {width}x{height} is over {MOST_PIXELS} pixels; scale it down first")
    return np.asarray(found, np.uint8)


def letterboxed(pixels: Pixels, side: int) -> tuple[Frame, Floats]:
    """Scaled to fit and put in the middle of a grey square: FP32 [1, 3, side, side], red-green-blue in 0..1."""
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    inner = _resized(pixels, max(1, round(height * scale)), max(1, round(width * scale)))
    top, left = (side - inner.shape[0]) // 2, (side - inner.shape[1]) // 2
    square = np.full((side, side, 3), MARGIN, np.uint8)
    square[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    planes = _planes(square)
    planes /= np.float32(255)
    return Frame(pixels, scale, (left, top)), planes[None]


def crops(frame: Frame, corners: Floats) -> list[Floats]:
    """Each box [n, 4] of the picture as the classifier takes it: FP32 [3, 224, 224]. A box has a pixel at least."""
    return [_crop(frame.pixels, box) for box in corners]


def _crop(pixels: Pixels, box: Floats) -> Floats:
    height, width = pixels.shape[:2]
    left, top = min(int(box[0]), width - 1), min(int(box[1]), height - 1)
    right, bottom = max(left + 1, int(np.ceil(box[2]))), max(top + 1, int(np.ceil(box[3])))
    planes = _planes(_resized(pixels[top:bottom, left:right], CROP, CROP))
    planes -= np.float32(MIDDLE)
    planes /= np.float32(HALF)
    return planes


def _resized(pixels: Pixels, height: int, width: int) -> Pixels:
    """Averages where it shrinks, so that fine patterns don't turn into coarse ones."""
    shrinks = height * width < pixels.shape[0] * pixels.shape[1]
    way = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=way), np.uint8)


def _planes(pixels: Pixels) -> Floats:
    """Red-green-blue [3, height, width]; a plane at a time, since one pass over all that turns the axes takes twice as
    long. What is done to them next is done in place: a new megabyte for each step costs more than the arithmetic.
    """
    planes = np.empty((3, *pixels.shape[:2]), np.float32)
    for plane, colour in zip(planes, reversed(cv2.split(pixels)), strict=True):
        plane[:] = colour
    return planes
