"""Where each entry of a resized axis lies among those that are read, as ONNX's Resize defines it.

Used by `graph.lowering`, which makes products of it, and by `engine.cuda`, whose steps compute it again.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


def places(coordinates: str, size: int, out: int, scale: float) -> Numbers:
    """Of `out` entries among `size`; coordinates  ONNX's coordinate_transformation_mode, but for tf_crop_and_resize."""
    x = np.arange(out, dtype=np.float64)
    if coordinates == "asymmetric":
        return x / scale
    if coordinates == "align_corners":
        return x * (size - 1) / (out - 1) if out > 1 else np.zeros(1)
    if coordinates == "pytorch_half_pixel" and out == 1:
        return np.zeros(1)
    if coordinates == "half_pixel_symmetric":
        offset = size / 2 * (1 - out / (scale * size))
        return offset + (x + 0.5) / scale - 0.5
    return (x + 0.5) / scale - 0.5


ROUND: Final[dict[str, Callable[[Numbers], Numbers]]] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
}
"""ONNX's nearest_mode -> the entry that is nearest."""
