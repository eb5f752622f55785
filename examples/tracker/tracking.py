"""The loop around a SiamRPN's network: crops, anchors, penalties and boxes for several objects at once, in NumPy.

As Li et al. (2018) describe it: a template with context around the object, a search region twice as wide around where
the object was, scores damped by a cosine window and by changes of size and shape, and a size that follows slowly.
Which library runs the network is the caller's: `Network` is two functions on arrays. Called by `__main__` and benches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]  # [height, width, 3]
Floats = npt.NDArray[np.float32]
Boxes = npt.NDArray[np.float64]  # [objects, 4]: centre x, centre y, width, height, in pixels of the frame

TEMPLATE_SIZE: Final = 127
SEARCH_SIZE: Final = 255
STRIDE: Final = 8
PLACES: Final = 17  # along each side of the map of scores
_RATIOS: Final = (1 / 3, 1 / 2, 1.0, 2.0, 3.0)  # height by width
_SIDE: Final = 64.0  # of the square anchor, in pixels of the search region

PENALTY: Final = 0.16
WINDOW: Final = 0.4
RATE: Final = 0.3
"""As the family's AlexNet trackers have them: of changes of size and shape, of the cosine window, of a new size."""

_LEAST_SIDE: Final = 8.0  # pixels: below, a crop shows nothing


@dataclass(frozen=True)
class Network:
    """Both branches, on arrays in FP32."""

    template: Callable[[Floats], Sequence[Floats]]
    """[n, 3, 127, 127] to kernels, whatever they are: rows first."""

    search: Callable[[Floats, Sequence[Floats]], tuple[Floats, Floats]]
    """[n, 3, 255, 255] and those kernels to scores [n, 10, 17, 17] and boxes [n, 20, 17, 17]."""


class Tracking:
    """Follows the objects of one moving picture."""

    def __init__(self, network: Network, frame: Pixels, boxes: Boxes) -> None:
        """`boxes`: where the objects are in this frame. Raises ValueError for what is no box."""
        boxes = np.array(boxes, np.float64)
        if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all() or (boxes[:, 2:] <= 0).any():
            raise ValueError(f"expected boxes [n, 4] of centre and size, sizes above 0, got shape {list(boxes.shape)}")
        self._network, self.boxes = network, boxes
        crops = cropped(frame, boxes[:, :2], _context(boxes), TEMPLATE_SIZE)
        # Light and contrast are those of the object's first picture; the search is seen through the same.
        self._mean = crops.mean((1, 2, 3), keepdims=True)
        self._deviation = np.maximum(crops.std((1, 2, 3), keepdims=True), 1.0)
        self.template = self._normalised(crops)
        """What the template branch was given: [n, 3, 127, 127]."""
        self._kernels = network.template(self.template)
        self._anchors, self._window = anchors(), window()

    @property
    def kernels(self) -> Sequence[Floats]:
        return self._kernels

    def regions(self, frame: Pixels) -> Floats:
        """What the search branch gets for this frame: [n, 3, 255, 255]."""
        sides = _context(self.boxes) * SEARCH_SIZE / TEMPLATE_SIZE
        return self._normalised(cropped(frame, self.boxes[:, :2], sides, SEARCH_SIZE))

    def follow(self, frame: Pixels) -> Boxes:
        """The next frame's boxes."""
        scores, deltas = self._network.search(self.regions(frame), self._kernels)
        self.boxes = self.moved(scores, deltas, frame.shape[:2])
        return self.boxes

    def moved(self, scores: Floats, deltas: Floats, limits: tuple[int, ...]) -> Boxes:
        """The boxes that these answers choose, inside of a frame of `limits` (height, width)."""
        scale = TEMPLATE_SIZE / _context(self.boxes)
        chances, found = probabilities(scores), decoded(deltas, self._anchors)
        sizes = self.boxes[:, 2:] * scale[:, None]
        damped = penalties(found[:, 2:], sizes)
        rows = np.arange(len(found))
        best = np.argmax(damped * chances * (1 - WINDOW) + self._window * WINDOW, axis=1)
        chosen = found[rows, :, best] / scale[:, None]
        rate = (damped[rows, best] * chances[rows, best] * RATE)[:, None]
        centres = self.boxes[:, :2] + chosen[:, :2]
        size = self.boxes[:, 2:] * (1 - rate) + chosen[:, 2:] * rate
        height, width = limits
        most = np.array([width, height], np.float64)
        boxes = [np.clip(centres, 0, most), np.clip(size, _LEAST_SIDE, most)]
        return np.asarray(np.concatenate(boxes, axis=1), np.float64)

    def _normalised(self, crops: Floats) -> Floats:
        return np.ascontiguousarray((crops - self._mean) / self._deviation, np.float32)


def cropped(frame: Pixels, centres: Boxes, sides: npt.NDArray[np.float64], size: int) -> Floats:
    """Square regions of `sides` pixels around `centres` [n, 2], as [n, 3, size, size]: bilinear, and the frame's mean
    colour outside of it.
    """
    height, width = frame.shape[:2]
    mean = frame.mean((0, 1)).astype(np.float32)
    found = np.empty((len(centres), 3, size, size), np.float32)
    for one, centre, side in zip(found, centres, sides, strict=True):
        across, down = (_samples(middle, side, size) for middle in centre)
        rows = _between(frame, down, height)
        one[...] = np.moveaxis(_between(rows.swapaxes(0, 1), across, width), 2, 0).swapaxes(1, 2)
        outside = ((down < 0) | (down > height - 1))[:, None] | ((across < 0) | (across > width - 1))[None]
        one[:, outside] = mean[:, None]
    return found


def _samples(middle: float, side: float, size: int) -> npt.NDArray[np.float64]:
    """Where pixels of a crop lie, counted from the middle of the frame's first one."""
    return middle - 0.5 + (np.arange(size) + 0.5 - size / 2) * (side / size)


def _between(picture: npt.NDArray[np.generic], places: npt.NDArray[np.float64], limit: int) -> Floats:
    """Rows at fractional places, each of the two beside it by how near it is."""
    lower = np.clip(np.floor(places), 0, limit - 1).astype(int)
    upper = np.minimum(lower + 1, limit - 1)
    share = np.clip(places - lower, 0, 1).astype(np.float32)[:, None, None]
    return np.asarray(picture[lower] * (1 - share) + picture[upper] * share, np.float32)


def _context(boxes: Boxes) -> npt.NDArray[np.float64]:
    """Sides of the template's squares: the object and half of its mean side around it, on each side."""
    margin = boxes[:, 2:].sum(1) / 2
    found: npt.NDArray[np.float64] = np.sqrt((boxes[:, 2] + margin) * (boxes[:, 3] + margin))
    return found


def anchors() -> npt.NDArray[np.float64]:
    """[4, 5 * 17 * 17]: centre from the middle of the search region, and size; in its pixels, shape by shape."""
    ratios = np.sqrt(_RATIOS)
    steps = (np.arange(PLACES) - PLACES // 2) * float(STRIDE)
    y, x = np.meshgrid(steps, steps, indexing="ij")
    shape = (len(_RATIOS), PLACES, PLACES)
    width, height = (np.broadcast_to(side[:, None, None], shape) for side in (_SIDE / ratios, _SIDE * ratios))
    return np.stack([np.broadcast_to(each, shape).ravel() for each in (x, y, width, height)])


def window() -> npt.NDArray[np.float64]:
    """[5 * 17 * 17]: what is far from where the object was counts less."""
    line = np.hanning(PLACES)
    return np.tile(np.outer(line, line).ravel(), len(_RATIOS))


def probabilities(scores: Floats) -> npt.NDArray[np.float64]:
    """[n, 10, 17, 17] logits, background first, to [n, anchors] of the object."""
    pairs = scores.reshape(len(scores), 2, -1).astype(np.float64)
    found: npt.NDArray[np.float64] = 1 / (1 + np.exp(np.clip(pairs[:, 0] - pairs[:, 1], -60, 60)))
    return found


def decoded(deltas: Floats, given: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """[n, 20, 17, 17] and anchors to boxes [n, 4, anchors] from the middle of the search region."""
    moved = deltas.reshape(len(deltas), 4, -1).astype(np.float64)
    size = np.exp(np.clip(moved[:, 2:], -4, 4)) * given[2:]
    return np.concatenate([moved[:, :2] * given[2:] + given[:2], size], axis=1)


def penalties(found: npt.NDArray[np.float64], sizes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Of sizes [n, 2, anchors] beside the last ones [n, 2]: 1 for the same size and shape, less for others."""

    def area(width: npt.NDArray[np.float64], height: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        margin = (width + height) / 2
        return np.asarray(np.sqrt((width + margin) * (height + margin)))

    grown = _change(area(found[:, 0], found[:, 1]) / area(sizes[:, 0], sizes[:, 1])[:, None])
    turned = _change(found[:, 0] / found[:, 1] / (sizes[:, 0] / sizes[:, 1])[:, None])
    return np.asarray(np.exp(-(grown * turned - 1) * PENALTY))


def _change(ratio: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.maximum(ratio, 1 / ratio)


def overlap(one: Boxes, other: Boxes) -> npt.NDArray[np.float64]:
    """Intersection over union of boxes [..., 4]."""
    low = np.maximum(one[..., :2] - one[..., 2:] / 2, other[..., :2] - other[..., 2:] / 2)
    high = np.minimum(one[..., :2] + one[..., 2:] / 2, other[..., :2] + other[..., 2:] / 2)
    shared = np.prod(np.maximum(high - low, 0), axis=-1)
    return np.asarray(shared / (np.prod(one[..., 2:], axis=-1) + np.prod(other[..., 2:], axis=-1) - shared))
