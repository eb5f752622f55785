"""Whether a contender's answers are accurate enough to count: held-out inputs against the reference, at one batch.

Two kinds of gate, the builder's own, so that engines and single candidates are held to the same: a least cosine over
held-out samples, or a task's metric whose drop stays within a limit (95 % upper bound, `penstock.build.paired`).
Cosines are told in either case. Called by `contest`.
"""

import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from penstock.build.paired import drop_of

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]
Answer = Callable[[Arrays], Sequence[Array]]
"""One call of a contender: inputs of exactly one batch to its outputs, in the model's order."""


class DifferentError(Exception):
    """The answers have other shapes than the reference's: there is nothing to compare."""


@dataclass(frozen=True)
class Gate:
    """`cosine` at the least; or, with a metric, at most that drop of its score."""

    cosine: float
    metric: str = ""
    """`module:function`, as `penstock build` takes it."""
    drop: float = 0.0

    @property
    def text(self) -> str:
        """As `--accuracy` takes it."""
        return f"{self.metric} drop<={self.drop:g}" if self.metric else f"cosine>={self.cosine:g}"


@dataclass(frozen=True)
class Judged:
    accurate: bool
    least_cosine: float
    """Of a sample's outputs with the reference's, the worst; NaN where an output holds one."""
    same_top: float
    """Share of places where the same index is the largest along the last axis."""
    drop: float = math.nan
    """Mean drop of the metric's score; NaN without a metric."""


class Judge:
    """Knows what the reference answered; asks each contender the same."""

    def __init__(self, gate: Gate, held_out: Arrays, batch: int, reference: Answer) -> None:
        self._gate = gate
        self._batch = batch
        self._pieces = list(pieces(held_out, batch))
        self._expected = [reference(piece) for piece in self._pieces]
        self._scores = self._scored(reference) if gate.metric else np.zeros(0)

    def judge(self, answer: Answer) -> Judged:
        """Raises DifferentError, and what the contender raises."""
        least, same = likeness(self._expected, [answer(piece) for piece in self._pieces])
        if not self._gate.metric:
            return Judged(least >= self._gate.cosine, least, same)
        drop = drop_of(self._scores, self._scored(answer))
        return Judged(drop.upper <= self._gate.drop, least, same, drop.mean)

    def _scored(self, answer: Answer) -> npt.NDArray[np.float64]:
        module, _, name = self._gate.metric.partition(":")
        metric: Callable[[Any], npt.NDArray[np.float64]] = getattr(importlib.import_module(module), name)

        def run(inputs: Arrays) -> dict[str, Array]:
            """Any number of rows, by calls of the batch under test; what is missing to a whole one is repeated."""
            rows = len(next(iter(inputs.values())))
            missing = -rows % self._batch
            whole = {name: np.concatenate([each, each[:1].repeat(missing, 0)]) for name, each in inputs.items()}
            outputs = zip(*(answer(piece) for piece in pieces(whole, self._batch)), strict=True)
            return {f"y{index}": np.concatenate(parts)[:rows] for index, parts in enumerate(outputs)}

        return metric(run)


def pieces(arrays: Arrays, batch: int) -> Iterator[dict[str, Array]]:
    """Whole batches only."""
    count = min(len(array) for array in arrays.values())
    for start in range(0, count - batch + 1, batch):
        yield {name: array[start : start + batch] for name, array in arrays.items()}


def likeness(expected: Sequence[Sequence[Array]], found: Sequence[Sequence[Array]]) -> tuple[float, float]:
    """Least cosine over samples and outputs, and the share of equal largest indices; raises DifferentError."""
    cosines: list[float] = []
    same: list[float] = []
    for wanted, got in zip(expected, found, strict=True):
        if [each.shape for each in wanted] != [each.shape for each in got]:
            shapes = [[list(each.shape) for each in side] for side in (got, wanted)]
            raise DifferentError(f"answers of shapes {shapes[0]}, expected {shapes[1]}")
        for one, other in zip(wanted, got, strict=True):
            left, right = (each.reshape(len(each), -1).astype(np.float64) for each in (one, other))
            norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
            cosines += (np.einsum("ij,ij->i", left, right) / np.where(norms > 0, norms, np.nan)).tolist()
            same.append(float(np.mean(one.argmax(axis=-1) == other.argmax(axis=-1))))
    return math.nan if any(map(math.isnan, cosines)) else min(cosines), float(np.mean(same))
