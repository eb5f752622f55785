"""Which kernels take the least of a GPU on which several contexts compute at once: chosen after tuning, among those
that are not far behind the best alone.

The fastest kernel alone is one that spreads a step over the whole GPU, and it does more for that than a smaller one:
parts of a sum that others add, tiles that are half empty. Beside others the smaller one leaves them room. So
candidates are timed as they will run, several of the same abreast, on a stream each. Called by tuning.
"""

import time
from collections.abc import Callable
from typing import Final

import torch

from penstock.engine.cuda.candidates import Tuned
from penstock.engine.cuda.choices import Choice
from penstock.engine.cuda.kernels.replay import Recorder, launching
from penstock.engine.cuda.kernels.tuning import captured, replayed
from penstock.engine.cuda.sites import capability
from penstock.engine.cuda.trials import bound
from penstock.engine.cuda.tuner import Result
from penstock.engine.cuda.workspace import Needs, working_in

BEHIND: Final = 1.3
"""Times the best alone: what is slower than that is not chosen, however little of the GPU it takes."""

_MOST: Final = 6  # candidates of a step
_CALLS: Final = 6  # of each context in one graph
_REPLAYS: Final = 5

Measure = Callable[[Tuned, Choice], float]
"""Microseconds of the GPU that one call takes among others."""


def chosen_abreast(
    result: Result,
    contexts: int,
    seconds: float,
    measure: Measure | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Choice]:
    """The choices of a tuning anew, for so many contexts; steps that there is no time for keep theirs.

    Under `torch.no_grad()` and the arithmetic of the executor that was tuned.
    """
    chosen, until = dict(result.choices), clock() + seconds
    timed = measure or _Abreast(contexts)
    for row in result.rows:
        near = _near(row)
        if len(near) < 2:
            continue
        if clock() >= until:
            break
        times = {each: timed(row, each) for each in near}
        best = min(near, key=lambda each: times[each])
        chosen |= dict.fromkeys(row.steps, best)
    return chosen


def _near(row: Tuned) -> list[Choice]:
    """What may be chosen, the best alone first."""
    found = sorted(row.times, key=lambda each: row.times[each])
    return [each for each in found[:_MOST] if row.times[each] <= BEHIND * row.microseconds]


class _Abreast:
    """One graph of all contexts' calls, each on its own stream with a workspace of its own, as contexts are."""

    def __init__(self, contexts: int) -> None:
        self._first = torch.cuda.Stream()
        self._others = [torch.cuda.Stream() for _ in range(contexts - 1)]

    def __call__(self, row: Tuned, choice: Choice) -> float:
        """Infinite where it can't be captured so."""
        try:
            return self._timed(row, choice)
        except Exception:  # whatever a library or the driver raises: it ran alone, and stays among what may be chosen
            return float("inf")

    def _timed(self, row: Tuned, choice: Choice) -> float:
        needs, device = Needs(), row.site.device
        run, launcher = bound(row.site, choice, needs), Recorder(capability(device))
        streams = [self._first, *self._others]
        spaces = [needs.workspace(device) for _ in streams]

        def call(number: int) -> None:
            with torch.cuda.stream(streams[number]), working_in(spaces[number]), launching(launcher):
                run(row.operands)

        torch.cuda.synchronize()
        for number in range(len(streams)):
            call(number)  # seals and loads: neither may happen during capture
        torch.cuda.synchronize()
        with torch.cuda.stream(self._first):
            graph = captured(lambda: self._branches(call))
            return replayed(graph, _REPLAYS) / (_CALLS * len(streams))

    def _branches(self, call: Callable[[int], None]) -> None:
        begin = torch.cuda.Event()
        begin.record(self._first)
        for stream in self._others:
            stream.wait_event(begin)
        for _ in range(_CALLS):
            for number in range(1 + len(self._others)):
                call(number)
        for stream in self._others:
            end = torch.cuda.Event()
            end.record(stream)
            self._first.wait_event(end)
