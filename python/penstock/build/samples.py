"""Inputs for timing and for the gate: the user's calibration data where there is any, else seeded noise.

Timing takes any numbers that are not special; accuracy is only as good as the data. So evidence says which was used.
Shapes that the data does not have are made from it by repeating and cutting rows, which keeps its statistics.

What an integer input stands for no signature says: a transformer takes ids of words beside masks of 0 and 1 and numbers
of sentences, and answers NaN to a mask of 57 and an error to sentence 3. So `Samples.settle` asks the model itself,
from the noise that says most to the one that is safest. Called by the driver, `timing` and `comparing`.
"""

import hashlib
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from penstock.engine.plan import Shape, Shapes
from penstock.errors import PenstockError
from penstock.tensors import TensorSpec, cut_to_bfloat16

Array = NDArray[Any]
Arrays = Mapping[str, Array]

_SEED = 20
# Those of what is timed, and of the first input that outputs are compared on.
_TRIED: Final = (_SEED, _SEED + 1)
# Integer inputs are ids, lengths or flags as a rule; small ones are valid for nearly every vocabulary.
_INTEGERS_BELOW = 100

_Integers = Literal["ids", "flags", "ones"]

# In the name of an input, between its parts: `attention_mask`, `token_type_ids`, `bert/segment_ids:0`.
_FLAGS: Final = re.compile(r"(?:^|[_./])(?:mask|token_type|segment)(?:_ids?)?(?:$|[./:])", re.IGNORECASE | re.ASCII)

# What integers are taken for, by name and place among the integer inputs. Only the last is safe for every length.
_TAKEN_FOR: Final[tuple[tuple[str, Callable[[str, int], _Integers]], ...]] = (
    ("", lambda name, at: "flags" if _FLAGS.search(name) else "ids"),
    ("all integer inputs but the first are flags", lambda name, at: "flags" if at else "ids"),
    ("all integer inputs are flags", lambda name, at: "flags"),
    ("all integer inputs are 1", lambda name, at: "ones"),
)


def noise(specs: Sequence[TensorSpec], shapes: Shapes, seed: int = _SEED, *, taken_for: int = 0) -> dict[str, Array]:
    """Standard normal floats, small integers, fair booleans; the same for the same names, shapes and seed.

    taken_for  what integers are: how far towards the safe, see `Samples.settle`.
    """
    made: dict[str, Array] = {}
    integers = [spec.name for spec in specs if _unknown(spec)]
    for spec in specs:
        key = hashlib.sha256(f"{seed} {spec.name} {shapes[spec.name]}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(key[:8], "little"))
        if spec.name in integers:
            kind = _TAKEN_FOR[taken_for][1](spec.name, integers.index(spec.name))
            made[spec.name] = _integers(kind, shapes[spec.name], rng).astype(spec.dtype)
        elif spec.datatype == "BOOL" and (taken_for or _FLAGS.search(spec.name)):
            last = taken_for == len(_TAKEN_FOR) - 1
            made[spec.name] = _integers("ones" if last else "flags", shapes[spec.name], rng).astype(bool)
        else:
            made[spec.name] = _of(spec, shapes[spec.name], rng)
    return made


def _unknown(spec: TensorSpec) -> bool:
    """Integers that may be anything; bytes are pictures."""
    return spec.datatype != "BF16" and spec.dtype.kind in "iu" and spec.datatype != "UINT8"


def _integers(kind: _Integers, shape: Shape, rng: np.random.Generator) -> Array:
    if kind == "ids":
        return rng.integers(0, _INTEGERS_BELOW, shape)
    made = np.ones(shape, np.int64)
    if kind == "flags" and len(shape) > 1:  # as a mask has them: the longer part of each row set, the rest not
        set_ = rng.integers(shape[-1] // 2, shape[-1], (*shape[:-1], 1)) + 1
        made[np.arange(shape[-1]) >= set_] = 0
    return made


def _of(spec: TensorSpec, shape: Shape, rng: np.random.Generator) -> Array:
    dtype = spec.dtype
    if spec.datatype == "BF16":
        return cut_to_bfloat16(rng.standard_normal(shape, np.float32))
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if spec.datatype == "UINT8":
        return rng.integers(0, 256, shape).astype(dtype)  # pictures
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


def _answered(run: Callable[[Arrays], Mapping[str, Array]], inputs: Iterator[Arrays], seconds: float) -> bool:
    """Whether the first of them, and all others that there is time for, are answered with numbers."""
    began = time.monotonic()
    for number, each in enumerate(inputs):
        if number and time.monotonic() - began > seconds:
            break
        try:
            answers = run(each)
        except PenstockError:
            return False
        if any(np.isnan(array).any() for array in answers.values() if array.dtype.kind == "f"):
            return False
    return True


class Samples:
    """Where timing and gate take their inputs from."""

    def __init__(self, specs: Sequence[TensorSpec], data: Sequence[Arrays] | None) -> None:
        self._specs = tuple(specs)
        self._data = list(data) if data else None
        self._taken_for = 0
        self._otherwise = 0

    def settle(
        self, run: Callable[[Arrays], Mapping[str, Array]], shapes: Sequence[Shapes], seconds: float = 2.0
    ) -> str:
        """Find noise that the model answers with numbers; what had to be assumed of it, empty where nothing had.

        Only where there are no data, and integers or booleans whose meaning is unknown. Tried at all shapes, the
        smallest first, as far as there is time: what will be drawn there, and once more. Where the model takes none of
        it nothing changes, and whoever runs it next is told why.
        """
        if self._data is not None or not any(_unknown(each) or each.datatype == "BOOL" for each in self._specs):
            return ""
        ordered = sorted(shapes, key=lambda each: sum(math.prod(shape) for shape in each.values()))
        for number, (assumed, _) in enumerate(_TAKEN_FOR):
            if _answered(run, self._drawn(ordered, number), seconds):
                self._taken_for = self._otherwise = number
                # Names need not tell of masks, and a mask without a 0 says nothing of what it hides.
                if number == 0 and _answered(run, self._drawn(ordered, 1), seconds):
                    self._otherwise = 1
                return assumed
        return ""

    def _drawn(self, shapes: Sequence[Shapes], taken_for: int) -> Iterator[dict[str, Array]]:
        return (noise(self._specs, each, seed, taken_for=taken_for) for each in shapes for seed in _TRIED)

    @property
    def real(self) -> bool:
        """From the user, not noise."""
        return self._data is not None

    def at(self, shapes: Shapes) -> dict[str, Array]:
        """One input of exactly these shapes."""
        if self._data is None:
            return noise(self._specs, shapes, taken_for=self._taken_for)
        rows = max((shape[0] for shape in shapes.values() if shape), default=1)
        fit = [each for each in self._data if all(each[name].shape[1:] == tuple(shapes[name][1:]) for name in shapes)]
        return fitted(joined(fit or self._data, rows), shapes)

    def held_out(self, shapes: Sequence[Shapes], count: int) -> Iterator[dict[str, Array]]:
        """Inputs to compare outputs on: the user's own (as they are), else noise of several seeds at these shapes."""
        if self._data is not None:
            yield from (dict(each) for each in self._data[:count])
            return
        for number in range(count):
            taken_for = self._otherwise if number % 2 else self._taken_for
            yield noise(self._specs, shapes[number % len(shapes)], _SEED + 1 + number, taken_for=taken_for)
