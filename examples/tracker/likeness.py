"""How far two libraries' answers to the same arrays are apart. Called by `__main__` and by the benches."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Likeness:
    """Of one output."""

    cosine: float
    """The least of its rows; NaN where either side has one."""

    error: float
    """The largest absolute difference; NaN likewise."""

    largest: float
    """Of the reference, in absolute value: what the error is to be seen beside."""


def likeness(found: Arrays, right: Arrays) -> dict[str, Likeness]:
    """By output. Raises ValueError for other names or shapes than the reference's."""
    if found.keys() != right.keys():
        raise ValueError(f"answers {sorted(found)}, expected {sorted(right)}")
    return {name: _of(name, found[name], right[name]) for name in right}


def _of(name: str, found: npt.NDArray[Any], right: npt.NDArray[Any]) -> Likeness:
    if found.shape != right.shape:
        raise ValueError(f"{name}: answers of shape {list(found.shape)}, expected {list(right.shape)}")
    one, other = (each.reshape(len(each), -1).astype(np.float64) for each in (found, right))
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    cosines = (one * other).sum(1) / np.where(lengths > 0, lengths, math.nan)
    return Likeness(float(cosines.min()), float(np.abs(one - other).max()), float(np.abs(other).max()))
