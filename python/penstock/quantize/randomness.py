"""Does an input look like it came out of a random number generator? A test that real pictures and sounds do not pass.

Two properties together make noise, each improbable for real data:
    neighbours know nothing of each other: along every axis after the batch, the lag-1 autocorrelation of all samples
    together is within four standard errors of zero (1 / sqrt(n) for independent values: Box & Jenkins, "Time Series
    Analysis", 2.1.6) every value comes from the uniform or from the normal distribution: the Kolmogorov-Smirnov
    distance is below the one that 1 % of such samples exceed (1.63 / sqrt(n): Massey, JASA 46, 1951)

Channels (axis 1) are standardised first, so that noise with ImageNet's mean and deviation is seen, too. Only signals
are tested: two axes of 8 or more after the batch, or a single one of 4096 or more. Token ids, features and embeddings
are not: there, neighbours need not resemble each other. Latents that are noise by nature need `allow_random`.
Called by data.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_LEAST_AXIS: Final = 8
_LEAST_LENGTH: Final = 4096
_LEAST_VALUES: Final = 1024
_ERRORS: Final = 4.0
_KS_1_PERCENT: Final = 1.63
_KS_VALUES: Final = 4096


def looks_random(samples: Sequence[Array]) -> str:
    """Why one input's samples look like noise; empty when they do not, or when nothing can be said."""
    signals = [array for array in samples if array.dtype.kind in "fiu" and _is_signal(array)]
    if not signals or sum(array.size for array in signals) < _LEAST_VALUES:
        return ""
    standard = [_standardised(array) for array in signals]
    axes = range(1, standard[0].ndim)
    for axis in axes:
        pairs, products = 0, 0.0
        for array in standard:
            if axis < array.ndim and array.shape[axis] >= _LEAST_AXIS:
                along = np.moveaxis(array, axis, 0)
                pairs += along[1:].size
                products += float(np.sum(along[1:] * along[:-1]))
        if pairs and abs(products / pairs) > _ERRORS / math.sqrt(pairs):
            return ""
    values = np.concatenate([array.reshape(-1) for array in standard])
    if not values.any():
        return ""
    shape = _distribution(values)
    return f"neighbours are independent, values are {shape}" if shape else ""


def _is_signal(array: Array) -> bool:
    long = [size for size in array.shape[1:] if size >= _LEAST_AXIS]
    return len(long) >= 2 or any(size >= _LEAST_LENGTH for size in long)


def _standardised(array: Array) -> NDArray[np.float64]:
    values = array.astype(np.float64)
    axes = tuple(axis for axis in range(array.ndim) if axis != 1 or array.ndim < 4)
    deviation = values.std(axis=axes, keepdims=True)
    standard: NDArray[np.float64] = (values - values.mean(axis=axes, keepdims=True)) / np.where(
        deviation > 0, deviation, 1
    )
    return standard


def _distribution(values: NDArray[np.float64]) -> str:
    step = max(1, len(values) // _KS_VALUES)
    ordered = np.sort(values[::step][:_KS_VALUES])
    count = len(ordered)
    critical = _KS_1_PERCENT / math.sqrt(count)
    low, high = float(values.min()), float(values.max())
    normal = NormalDist()
    # A distribution of its own steps (integers) is off by half a step, which both bounds below allow for.
    for name, expected in (
        ("uniform", (ordered - low) / (high - low)),
        ("normal", np.array([normal.cdf(value) for value in ordered.tolist()])),
    ):
        above = np.arange(1, count + 1) / count - expected
        below = expected - np.arange(count) / count
        if max(float(above.max()), float(below.max())) < critical:
            return name
    return ""
