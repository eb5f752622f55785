"""An engine against the model it was built from: the same inputs through both, answers and times.

Times are taken in turns, so that whatever else the machine does falls on both alike. Outputs are judged as the
builder's cosine gate judges them: the least cosine of a row of each floating-point output, the share of equal values of
others; what is NaN, or infinite in one only, never passes. Called by `accelerator` before an engine takes over.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from penstock.backends.base import Array, Instance
from penstock.backends.observed import Batch
from penstock.engine.likeness import cosine
from penstock.tensors import TensorSpec, bfloat16, numpy_dtype

# Turns for each batch: medians of five hold against a stall or two; more only while they are cheap.
_FEWEST_TURNS: Final = 5
_MOST_TURNS: Final = 101
_SECONDS: Final = 1.0

# Slower by this much is as fast: what a median of turns on a machine that serves can tell apart.
_AS_FAST: Final = 1.05


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came of it."""

    likeness: float
    """The least cosine or share of equal values."""

    plain_ms: float
    engine_ms: float
    """Of one batch, over the batches as often as they come."""

    problem: str = ""
    """Why the engine must not take over; empty when it may."""


def compare(
    plain: Instance, engine: Instance, batches: Sequence[Batch], outputs: Sequence[TensorSpec], least: float
) -> Comparison:
    """Run every batch through both. What a library raises passes through.

    outputs  of the model: tells BF16 from integers.
    least    the likeness that every output has to reach.
    """
    likeness = 1.0
    for batch in batches:
        expected, found = plain.execute(dict(batch.inputs)), engine.execute(dict(batch.inputs))
        for spec in outputs:
            if spec.name not in found or found[spec.name].shape != expected[spec.name].shape:
                return Comparison(0.0, 0.0, 0.0, f"output {spec.name!r} is missing, or has another shape")
            reached = _likeness(expected[spec.name], found[spec.name], spec)
            likeness = min(likeness, reached)
            if not reached >= least:
                problem = f"output {spec.name!r} has a likeness of {reached:.6f}, expected at least {least:g}"
                return Comparison(reached, 0.0, 0.0, problem)
    weights = sum(batch.count for batch in batches)
    times = [_in_turns(plain, engine, batch.inputs) for batch in batches]
    plain_ms, engine_ms = (
        1e3 * sum(batch.count * each[side] for batch, each in zip(batches, times, strict=True)) / weights
        for side in (0, 1)
    )
    slower = engine_ms > _AS_FAST * plain_ms
    problem = f"it is slower: {engine_ms:.3g} ms, the model takes {plain_ms:.3g} ms" if slower else ""
    return Comparison(likeness, plain_ms, engine_ms, problem)


def _in_turns(plain: Instance, engine: Instance, inputs: Mapping[str, Array]) -> tuple[float, float]:
    """Median seconds of a call of each."""
    samples: tuple[list[float], list[float]] = ([], [])
    end = time.monotonic() + _SECONDS
    for turn in range(_MOST_TURNS):
        if turn >= _FEWEST_TURNS and time.monotonic() > end:
            break
        # Who goes second finds the machine as the first left it: they take turns in that, too.
        for side in (0, 1) if turn % 2 else (1, 0):
            start = time.perf_counter()
            (plain, engine)[side].execute(dict(inputs))
            samples[side].append(time.perf_counter() - start)
    return statistics.median(samples[0]), statistics.median(samples[1])


def _likeness(expected: Array, found: Array, spec: TensorSpec) -> float:
    if spec.datatype == "BF16":
        expected, found = (array.view(bfloat16()) if array.dtype == np.uint16 else array for array in (expected, found))
    if spec.datatype not in ("FP64", "FP32", "FP16", "BF16"):
        return float(np.mean(expected == found)) if expected.size else 1.0
    a, b = expected.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)) or not np.array_equal(a[~finite], b[~finite], equal_nan=False):
        return 0.0
    return cosine(np.where(finite, a, 0.0), np.where(finite, b, 0.0))


def noise(inputs: Sequence[TensorSpec], max_batch_size: int, middle: int) -> list[Batch]:
    """For a model that nobody has asked yet: seeded, of the smallest, the middle and the largest batch.

    inputs  without the batch dimension when max_batch_size > 0, and with nothing free.
    """
    generator = np.random.default_rng(0)
    heads = sorted({1, middle, max_batch_size}) if max_batch_size else [None]
    made: list[Batch] = []
    for rows in heads:
        shapes = {spec.name: (*([rows] if rows else []), *spec.shape) for spec in inputs}
        arrays = {spec.name: _drawn(generator, spec, shapes[spec.name]) for spec in inputs}
        made.append(Batch(arrays, 1))
    return made


def _drawn(generator: np.random.Generator, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    dtype = numpy_dtype(spec.datatype)
    if spec.datatype in ("FP64", "FP32", "FP16"):
        return generator.standard_normal(shape).astype(dtype)
    return np.zeros(shape, dtype)  # ids and masks: which numbers the model takes is not known
