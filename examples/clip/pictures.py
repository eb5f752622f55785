"""Real pictures to ask with: windows of the photographs that scikit-image carries, encoded as clients send them.

Promises: the same bytes for the same count, seed and versions of the packages; no two windows are alike; sizes differ,
as those of real clients do. Called by the demo, by tests and by the stories of the benches.
"""

import importlib.util
import io
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

# Faces, animals, things, textures, the sky, microscopes: what differs makes embeddings differ.
PHOTOGRAPHS: Final = (
    "astronaut.png", "brick.png", "chelsea.png", "coffee.png", "coins.png", "color.png", "grass.png", "gravel.png",
    "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip
_QUALITY: Final = 90


def encoded_pictures(count: int, seed: int = 0) -> list[bytes]:
    """JPEGs, and every fourth a PNG, of 180 to 400 pixels a side."""
    return [_encoded(index, seed) for index in range(count)]


def _encoded(index: int, seed: int) -> bytes:
    random = np.random.default_rng((seed, index))
    photograph = _photograph(PHOTOGRAPHS[index % len(PHOTOGRAPHS)])
    width, height = (int(random.integers(180, 1 + min(400, side))) for side in photograph.size)
    left = int(random.integers(0, photograph.width - width + 1))
    top = int(random.integers(0, photograph.height - height + 1))
    window = photograph.crop((left, top, left + width, top + height))
    written = io.BytesIO()
    if index % 4 == 3:
        window.save(written, "PNG", compress_level=1)
    else:
        window.save(written, "JPEG", quality=_QUALITY)
    return written.getvalue()


@lru_cache(maxsize=len(PHOTOGRAPHS))
def _photograph(name: str) -> Image.Image:
    found = importlib.util.find_spec("skimage")  # its folder only: importing the package takes a second and a half
    if found is None or not found.submodule_search_locations:
        raise RuntimeError("the pictures of scikit-image are not installed; fix: pip install scikit-image")
    with Image.open(Path(found.submodule_search_locations[0]) / "data" / name) as picture:
        return picture.convert("RGB")
