"""A moving picture whose objects' paths are known: pieces of photographs on another photograph, each on a curve.

The pictures are those that scikit-image carries. The light changes from frame to frame and every frame has its own
noise, so that no object looks the same twice. The same frames for the same seed. Called by `__main__` and the benches.
"""

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt
from skimage import data

Pixels = npt.NDArray[np.uint8]  # [height, width, 3], red-green-blue
Floats = npt.NDArray[np.float64]

OBJECT: Final = 64  # pixels of each side
OBJECTS: Final = 8
_ROOM: Final = 300, 400  # pixels each object has to itself, across and down: paths never cross
_ROUND: Final = 100  # frames in which a path comes back to its beginning
_NOISE: Final = 4.0  # deviation, of 255 levels
_LIGHT: Final = 0.15  # the most that the light changes either way
# Of which photograph, left and top: faces, a flag, an eye, fur, a buckle, cells.
_PIECES: Final = (
    ("astronaut", 190, 60), ("chelsea", 130, 80), ("astronaut", 330, 160), ("immunohistochemistry", 200, 120),
    ("chelsea", 210, 90), ("astronaut", 60, 300), ("immunohistochemistry", 400, 330), ("astronaut", 210, 380),
)  # fmt: skip
_NORMS: Final = ("rocket", "camera", "hubble_deep_field", "retina")
"""Photographs that no scene shows."""


@dataclass(frozen=True)
class Scene:
    """Frames, and where the objects are in them."""

    frames: tuple[Pixels, ...]
    boxes: Floats
    """[frames, objects, 4]: centre x, centre y, width, height, in pixels."""


def scene(objects: int = 1, frames: int = 60, seed: int = 1) -> Scene:
    """Up to eight objects. Raises ValueError for other numbers."""
    if not 1 <= objects <= OBJECTS or frames < 1:
        raise ValueError(f"expected 1 to {OBJECTS} objects and a frame at least, got {objects} and {frames}")
    background = cv2.resize(_photograph("coffee"), (4 * _ROOM[0], 2 * _ROOM[1]), interpolation=cv2.INTER_CUBIC)
    pieces = [_piece(*each) for each in _PIECES[:objects]]
    centres = np.stack([_path(number, frames) for number in range(objects)], axis=1)
    random = np.random.default_rng(seed)
    shown = tuple(_frame(np.asarray(background, np.uint8), pieces, centres[at], at, random) for at in range(frames))
    return Scene(shown, np.concatenate([centres, np.full_like(centres, OBJECT)], axis=2))


def norm_crops(size: int, count: int = 8, seed: int = 1) -> Pixels:
    """[count, size, size, 3] of other photographs than a scene's."""
    random = np.random.default_rng(seed)
    found = []
    for number in range(count):
        picture = _photograph(_NORMS[number % len(_NORMS)])
        top, left = (int(random.integers(0, side - size + 1)) for side in picture.shape[:2])
        found.append(picture[top : top + size, left : left + size])
    return np.stack(found)


def _photograph(name: str) -> Pixels:
    picture = np.asarray(getattr(data, name)(), np.uint8)
    return picture if picture.ndim == 3 else np.repeat(picture[:, :, None], 3, axis=2)


def _piece(name: str, left: int, top: int) -> Pixels:
    return _photograph(name)[top : top + OBJECT, left : left + OBJECT]


def _path(number: int, frames: int) -> Floats:
    """[frames, 2]: whole pixels on a Lissajous curve in the object's own room, begun elsewhere by each."""
    phase = 2 * np.pi * (np.arange(frames) / _ROUND + number / OBJECTS)
    middle = np.array([(number % 4 + 0.5) * _ROOM[0], (number // 4 + 0.5) * _ROOM[1]])
    reach = np.array(_ROOM) / 2 - OBJECT
    return np.asarray(np.rint(middle + reach * np.stack([np.sin(phase), np.sin(2 * phase)], axis=1)), np.float64)


def _frame(background: Pixels, pieces: list[Pixels], centres: Floats, at: int, random: np.random.Generator) -> Pixels:
    shown = background.copy()
    for piece, (x, y) in zip(pieces, centres.astype(int), strict=True):
        shown[y - OBJECT // 2 : y + OBJECT // 2, x - OBJECT // 2 : x + OBJECT // 2] = piece
    light = 1 + _LIGHT * np.sin(2 * np.pi * at / _ROUND)
    noise = random.normal(0, _NOISE, shown.shape).astype(np.float32)
    return np.asarray(np.clip(np.rint(shown * np.float32(light) + noise), 0, 255), np.uint8)
