"""Which kernels are launched before the one ahead has ended: chosen by the time of the whole graph, after tuning.

Launched early a kernel begins sooner, and its blocks take the places that the one ahead leaves first: where it has few
of them they crowd on some multiprocessors while others stand idle. Which of both is more can't be told from a step
alone. So whole graphs are timed, half of the kernels early in each, by a Hadamard matrix: every graph tells something
of every kernel. What is chosen is timed again beside all and none of them. Called by tactics and probes after `tune`.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

import torch

from penstock.engine.cuda.choices import Choice, Choices
from penstock.engine.cuda.executor import Captured, Executor, Tensors
from penstock.engine.cuda.kernels.replay import Recorder

Mask = tuple[bool, ...]
"""Of each kernel that may be launched early, whether it is."""

Measure = Callable[[Mask], float]
"""Milliseconds of a replay."""

LEAST_SECONDS: Final = 0.5
"""In less nothing is learnt."""

_MOST_GRAPHS: Final = 256
_LEAST_GRAPHS: Final = 8
_ROUNDS: Final = 3  # of those that are compared at the end
_REPLAYS: Final = 7
_LONG: Final = 5.0  # milliseconds of a replay of which launches are nothing


@dataclass(frozen=True, slots=True)
class Found:
    mask: Mask
    milliseconds: float
    all_early: float
    none_early: float
    graphs: int
    """That were timed to find it."""


def best_mask(count: int, measure: Measure, seconds: float, clock: Callable[[], float] = time.monotonic) -> Found:
    """The fastest of all, none, and those that save time by themselves; about so many seconds of measurements."""
    everything, nothing = (True,) * count, (False,) * count
    started = clock()
    first = measure(everything), measure(nothing)
    each = max(1e-6, (clock() - started) / 2)
    candidates = [everything, nothing]
    graphs = _graphs(count, seconds - 2 * each * (1 + 3 * _ROUNDS / 2), each)
    if graphs:
        candidates.append(_by_effects(count, measure, graphs))
    rounds = [[measure(mask) for mask in candidates] for _ in range(_ROUNDS if graphs else 1)]
    times = [statistics.median(column) for column in zip(*rounds, strict=True)]
    if not graphs:
        times = [min(pair) for pair in zip(times, first, strict=True)]
    best = min(range(len(times)), key=times.__getitem__)
    return Found(candidates[best], times[best], times[0], times[1], graphs)


def _graphs(count: int, seconds: float, each: float) -> int:
    """A power of two: enough for one effect each where there is time; 0 where there is too little for any."""
    graphs = _LEAST_GRAPHS
    while graphs <= count and graphs < _MOST_GRAPHS and 2 * graphs * each <= seconds:
        graphs *= 2
    return graphs if count and graphs * each <= seconds else 0


def _by_effects(count: int, measure: Measure, graphs: int) -> Mask:
    """Kernels in a row share a column where there are more than columns."""
    columns = min(count, graphs - 1)
    column = [number * columns // count for number in range(count)]
    effects = [0.0] * columns
    for row in range(graphs):
        # Column 0 of the matrix is the same in all rows.
        signs = [(row & (each + 1)).bit_count() % 2 == 0 for each in range(columns)]
        time_ = measure(tuple(signs[column[number]] for number in range(count)))
        for each, sign in enumerate(signs):
            effects[each] += time_ if sign else -time_
    return tuple(effects[column[number]] < 0 for number in range(count))


def chosen_early(
    executor: Executor, choices: Choices, inputs: Tensors, seconds: float
) -> tuple[dict[str, Choice], Found | None]:
    """The choices, with the kernels that wait for the one ahead to end. None: there is nothing to choose.

    executor  bound with these choices, for early launch; its launches change while this lasts. Kernels of an executor
              that launches all of them early may be compiled already.
    """
    recorder = executor.launcher
    if not isinstance(recorder, Recorder) or seconds < LEAST_SECONDS:
        return dict(choices), None
    firsts: list[int] = []

    def watch(number: int, operands: Sequence[torch.Tensor]) -> None:
        del number, operands
        firsts.append(recorder.next)

    executor.run(inputs, watch)
    before = [each.pdl for each in recorder.kernels]
    places = [number for number, early in enumerate(before) if early]
    if not places:
        return dict(choices), None
    with _measuring(executor, recorder, inputs, before, places) as measure:
        if measure((True,) * len(places)) > _LONG:
            return dict(choices), None
        found = best_mask(len(places), measure, seconds)
    apart = {place for place, early in zip(places, found.mask, strict=True) if not early}
    return _with_apart(executor, choices, firsts, apart), found


def _with_apart(executor: Executor, choices: Choices, firsts: Sequence[int], apart: set[int]) -> dict[str, Choice]:
    made: dict[str, Choice] = dict(choices)
    for bound, first, end in zip(executor.program, firsts, (*firsts[1:], 1 << 30), strict=True):
        numbers = tuple(sorted(each - first for each in apart if first <= each < end))
        if bound.name in made:
            made[bound.name] = replace(made[bound.name], apart=numbers)
        elif numbers:
            made[bound.name] = Choice(bound.implementation, apart=numbers)
    return made


@contextmanager
def _measuring(
    executor: Executor, recorder: Recorder, inputs: Mapping[str, torch.Tensor], before: list[bool], places: list[int]
) -> Iterator[Measure]:
    kept: list[Captured] = []

    def measure(mask: Mask) -> float:
        early = list(before)
        for place, now in zip(places, mask, strict=True):
            early[place] = now
        recorder.relaunch(early)
        captured = executor.capture(sharing=kept[0] if kept else None)
        if not kept:
            kept.append(captured)  # its memory is that of all
            captured.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(captured.stream):
                for name, tensor in captured.inputs.items():
                    tensor.copy_(inputs[name])
        times = []
        for _ in range(_REPLAYS + 1):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record(captured.stream)
            captured.replay()
            end.record(captured.stream)
            end.synchronize()
            times.append(float(begin.elapsed_time(end)))
        return statistics.median(times[1:])

    try:
        yield measure
    finally:
        recorder.relaunch(before)
