"""Real pictures for models: crops of the photographs that scikit-image carries, and pages and lines of rendered text.

Promises: the same arrays for the same seed and library versions; `Side.CALIBRATION` and `Side.HELD_OUT` share no pixel,
since each photograph is cut in two and each side crops its own part. Statistics are those of real pictures (neighbours
alike, channels correlated, strong edges), which noise has not. Called by the makers of models and by `benches.inputs`.
"""

import importlib.util
from enum import Enum
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from examples.ocr.lines import Line, rendered_lines

Pixels = npt.NDArray[np.uint8]  # [height, width, 3], red-green-blue
Floats = npt.NDArray[np.float32]

# Things, faces, animals, places, textures, the sky and two microscopes: what differs makes logits differ. Of the
# stereo pair one is left out, since both would show the two sides the same scene.
PHOTOGRAPHS = (
    "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "color.png", "grass.png",
    "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip

# Where a photograph is cut: most of it goes to the side that needs more samples.
_CUT = 0.6

IMAGENET = (np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32))
"""Mean and deviation per channel that classifiers of the torchvision kind were trained with."""

CLIP = (
    np.array([0.48145466, 0.4578275, 0.40821073], np.float32),
    np.array([0.26862954, 0.26130258, 0.27577711], np.float32),
)
"""The same for CLIP (its preprocessing, Radford et al. 2021)."""

SIGNED = (np.full(3, 127 / 255, np.float32), np.full(3, 128 / 255, np.float32))
"""(x - 127) / 128, what EfficientNet-Lite was trained with."""


class Side(Enum):
    """Which samples may be seen while an engine is made, and which judge it."""

    CALIBRATION = 1
    HELD_OUT = 2


def crops(side: Side, count: int, size: tuple[int, int], seed: int = 0) -> list[Pixels]:
    """`count` augmented crops of `size` (height, width), one photograph after the other."""
    return [
        _crop(PHOTOGRAPHS[index % len(PHOTOGRAPHS)], side, size, np.random.default_rng((seed, side.value, index)))
        for index in range(count)
    ]


def normalised(pictures: list[Pixels], statistics: tuple[Floats, Floats]) -> Floats:
    """FP32 [n, 3, height, width]: scaled to 0..1, mean and deviation of the training set taken out."""
    mean, deviation = statistics
    scaled = (np.stack(pictures).astype(np.float32) / 255 - mean) / deviation
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), np.float32)


def text_lines(side: Side, count: int, seed: int = 0) -> list[Line]:
    """Rendered lines, plain and hard in turn; no line of one side is one of the other, as their seeds differ."""
    return rendered_lines(count, seed=10_000 * side.value + seed)


def decoded(line: Line) -> Pixels:
    """The line's picture, blue-green-red as OpenCV gives it."""
    return np.asarray(cv2.imdecode(np.frombuffer(line.encoded, np.uint8), cv2.IMREAD_COLOR), np.uint8)


def text_windows(side: Side, count: int, height: int, width: int, seed: int = 0) -> Floats:
    """FP32 [count, 1, height, width] in -1..1: windows of lines scaled to the height, grey, a word or two each."""
    found = np.zeros((count, 1, height, width), np.float32)
    for index, line in enumerate(text_lines(side, count, seed)):
        random = np.random.default_rng((seed, side.value, index))
        grey = cv2.cvtColor(decoded(line), cv2.COLOR_BGR2GRAY)
        scaled = cv2.resize(grey, (max(width, round(height * grey.shape[1] / grey.shape[0])), height))
        left = int(random.integers(0, scaled.shape[1] - width + 1))
        found[index, 0] = scaled[:, left : left + width].astype(np.float32) / 127.5 - 1
    return found


def page(side: Side, index: int, size: int, seed: int = 0) -> Pixels:
    """A square page: about twenty lines of text on one paper, a photograph in one corner. Blue-green-red."""
    random = np.random.default_rng((seed, side.value, index, 7))
    canvas = np.full((size, size, 3), random.integers(200, 250), np.uint8)
    picture = crops(side, index + 1, (size // 3, size // 3), seed)[index]
    top, left = (int(place) for place in random.integers(0, 2 * size // 3, 2))
    canvas[top : top + size // 3, left : left + size // 3] = picture[:, :, ::-1]
    row = int(random.integers(4, 24))
    for line in text_lines(side, 24, seed + 100 * (index + 1)):
        pixels = decoded(line)
        height = int(random.integers(16, 40))
        scaled = cv2.resize(pixels, (max(8, height * pixels.shape[1] // pixels.shape[0]), height))
        if row + height > size:
            break
        start = int(random.integers(0, max(1, size - scaled.shape[1])))
        shown = scaled[:, : size - start]
        canvas[row : row + height, start : start + shown.shape[1]] = shown
        row += height + int(random.integers(4, 16))
    return canvas


def _crop(name: str, side: Side, size: tuple[int, int], random: np.random.Generator) -> Pixels:
    photograph = _photograph(name)
    cut = int(photograph.shape[1] * _CUT)
    part = photograph[:, :cut] if side is Side.CALIBRATION else photograph[:, cut:]
    height, width = part.shape[:2]
    # A window of the wanted shape, between 40 % and all of what fits: objects at several scales.
    largest = min(height / size[0], width / size[1])
    scale = largest * float(random.uniform(0.4, 1.0))
    rows, columns = max(8, int(size[0] * scale)), max(8, int(size[1] * scale))
    top = int(random.integers(0, height - rows + 1))
    left = int(random.integers(0, width - columns + 1))
    window = part[top : top + rows, left : left + columns]
    shrinks = rows > size[0]
    resized = cv2.resize(window, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return _augmented(np.asarray(resized, np.uint8), random)


def _augmented(pixels: Pixels, random: np.random.Generator) -> Pixels:
    """Mirrored or not, and with other light: no two crops of a place are alike."""
    if random.random() < 0.5:
        pixels = pixels[:, ::-1]
    contrast, light = float(random.uniform(0.7, 1.3)), float(random.uniform(-25, 25))
    tint = random.uniform(0.9, 1.1, 3)
    changed = (pixels.astype(np.float32) - 128) * contrast * tint + 128 + light
    return np.clip(np.rint(changed), 0, 255).astype(np.uint8)


@lru_cache(maxsize=len(PHOTOGRAPHS))
def _photograph(name: str) -> Pixels:
    found = importlib.util.find_spec("skimage")  # its folder only: importing the package takes a second and a half
    if found is None or not found.submodule_search_locations:
        raise RuntimeError("the pictures of scikit-image are not installed; fix: pip install scikit-image")
    with Image.open(Path(found.submodule_search_locations[0]) / "data" / name) as picture:
        return np.asarray(picture.convert("RGB"), np.uint8)
