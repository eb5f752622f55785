"""Reductions beside a library call: the index and the value of the largest, instead of a huge output.

NumPy does it where that is faster than the library's own operators: measured when the engine is built. Called by the
engine after each run, and by the builder's gate.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.engine.plan import Reduction

Array = NDArray[Any]


def reduced(outputs: Mapping[str, Array], reductions: Iterable[Reduction]) -> dict[str, Array]:
    """`outputs` with each reduced output `y` replaced by `y_index` (INT64) and `y_value`, the axis gone from both.

    The first of equal values counts, as in ONNX ArgMax; NaN is larger than any number, as in NumPy.
    """
    found = dict(outputs)
    for each in reductions:
        values = found.pop(each.output)
        index = values.argmax(axis=each.axis)
        kept = np.expand_dims(index, each.axis)
        found[f"{each.output}_index"] = index.astype(np.int64, copy=False)
        found[f"{each.output}_value"] = np.take_along_axis(values, kept, each.axis).squeeze(each.axis)
    return found
