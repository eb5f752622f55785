"""Inputs for timing and for the gate: the user's calibration data where there is any, else seeded noise.

Timing takes any numbers that are not special; accuracy is only as good as the data. So evidence says which was used.
Shapes that the data does not have are made from it by repeating and cutting rows, which keeps its statistics.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.engine.plan import Shape, Shapes
from penstock.tensors import TensorSpec, cut_to_bfloat16

Array = NDArray[Any]
Arrays = Mapping[str, Array]

_SEED = 20
# Integer inputs are ids, lengths or flags as a rule; small ones are valid for nearly every vocabulary.
_INTEGERS_BELOW = 100


def noise(specs: Sequence[TensorSpec], shapes: Shapes, seed: int = _SEED) -> dict[str, Array]:
    """Standard normal floats, small integers, fair booleans; the same for the same names, shapes and seed."""
    made: dict[str, Array] = {}
    for spec in specs:
        key = hashlib.sha256(f"{seed} {spec.name} {shapes[spec.name]}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(key[:8], "little"))
        made[spec.name] = _of(spec, shapes[spec.name], rng)
    return made


def _of(spec: TensorSpec, shape: Shape, rng: np.random.Generator) -> Array:
    dtype = spec.dtype
    if spec.datatype == "BF16":
        return cut_to_bfloat16(rng.standard_normal(shape, np.float32))
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.kind == "u" and dtype.itemsize == 1:
        return rng.integers(0, 256, shape).astype(dtype)  # pictures
    if dtype.kind in "iu":
        return rng.integers(0, _INTEGERS_BELOW, shape).astype(dtype)
    words = np.empty(shape, object)
    words.reshape(-1)[:] = [b"%d" % number for number in rng.integers(0, 1000, words.size)]
    return words


def fitted(sample: Arrays, shapes: Shapes) -> dict[str, Array]:
    """A sample brought to other shapes: axes repeated as often as needed and cut."""
    made: dict[str, Array] = {}
    for name, given in sample.items():
        array = given
        for axis, size in enumerate(shapes[name]):
            if array.shape[axis] < size:
                times = -(-size // max(1, array.shape[axis]))
                array = np.concatenate([array] * times, axis=axis)
            if array.shape[axis] > size:
                array = np.take(array, range(size), axis=axis)
        made[name] = np.ascontiguousarray(array)
    return made


def joined(samples: Sequence[Arrays], rows: int) -> dict[str, Array]:
    """The first rows of several samples as one batch, where their other axes agree; else those of the first."""
    first = samples[0]
    alike = [each for each in samples if all(each[name].shape[1:] == first[name].shape[1:] for name in first)]
    return {name: np.concatenate([each[name] for each in alike], axis=0)[:rows] for name in first}


class Samples:
    """Where timing and gate take their inputs from."""

    def __init__(self, specs: Sequence[TensorSpec], data: Sequence[Arrays] | None) -> None:
        self._specs = tuple(specs)
        self._data = list(data) if data else None

    @property
    def real(self) -> bool:
        """From the user, not noise."""
        return self._data is not None

    def at(self, shapes: Shapes) -> dict[str, Array]:
        """One input of exactly these shapes."""
        if self._data is None:
            return noise(self._specs, shapes)
        rows = max((shape[0] for shape in shapes.values() if shape), default=1)
        fit = [each for each in self._data if all(each[name].shape[1:] == tuple(shapes[name][1:]) for name in shapes)]
        return fitted(joined(fit or self._data, rows), shapes)

    def held_out(self, shapes: Sequence[Shapes], count: int) -> Iterator[dict[str, Array]]:
        """Inputs to compare outputs on: the user's own (as they are), else noise of several seeds at these shapes."""
        if self._data is not None:
            yield from (dict(each) for each in self._data[:count])
            return
        for number in range(count):
            yield noise(self._specs, shapes[number % len(shapes)], seed=_SEED + 1 + number)
