"""When each part of each call ran, on one clock: contexts side by side, with marks inside their captured graphs.

The marks are events that the graph itself records, so the graphs run as they always do, and what overlaps on the
device is seen to overlap; those of graphs that take turns lie between them. Called by the runtime, for those who draw
it.
"""

import itertools
import threading
import time
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from penstock.engine.cuda.contexts import InputMemory, as_numpy, pinned_outputs, round_trip
from penstock.engine.cuda.executor import Executor
from penstock.engine.cuda.turns import MARKS, InTurns, Turns

PARTS: Final = ("host copy in", "copy in", "compute", "copy out", "host copy out")


@dataclass(frozen=True, slots=True)
class Span:
    """One part of one call; milliseconds since the clock began."""

    context: int
    call: int
    part: str
    begin: float
    end: float


def timeline(
    executor: Executor, inputs: dict[str, NDArray[Any]], contexts: int, calls: int, turns: Turns | None = None
) -> list[Span]:
    """The parts of `calls` calls of each of several contexts, each in a thread of its own, in no order."""
    marked = [_Marked(executor, turns) for _ in range(contexts)]
    for each in marked:
        each.call(inputs)
    clock = torch.cuda.Event(enable_timing=True)
    stream = torch.cuda.Stream(executor.device)
    clock.record(stream)
    clock.synchronize()
    began, start = time.perf_counter(), threading.Barrier(contexts)
    found: list[list[Span]] = [[] for _ in range(contexts)]
    failed: list[Exception] = []

    def work(number: int) -> None:
        try:
            start.wait()
            for call in range(calls):
                moments = [time.perf_counter()]
                moments += marked[number].call(inputs)
                host = [1e3 * (moment - began) for moment in moments]
                device = [clock.elapsed_time(event) for event in marked[number].events]
                # Between copying in and a turn nothing runs.
                parts = [(device[0], device[1]), *itertools.pairwise(device[-3:])]
                found[number].append(Span(number, call, PARTS[0], host[0], host[1]))
                found[number] += [
                    Span(number, call, part, begin, end) for part, (begin, end) in zip(PARTS[1:4], parts, strict=True)
                ]
                found[number].append(Span(number, call, PARTS[4], host[2], host[3]))
        except Exception as error:
            failed.append(error)
            start.abort()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(contexts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return list(itertools.chain.from_iterable(found))


class _Marked:
    """A context whose graph says when copying in, computing and copying out began and ended."""

    def __init__(self, executor: Executor, turns: Turns | None) -> None:
        self._given = InputMemory.of([executor]).tensors(executor)
        answers = pinned_outputs(executor)
        self._answers = list(answers.values())
        self._done = torch.cuda.Event(blocking=True)
        if turns is not None:
            self.events = [torch.cuda.Event(enable_timing=True) for _ in range(MARKS)]
            self._captured = executor.capture()
            self._start = InTurns(self._captured, self._given, answers, turns, self._mark).start
            return
        self.events = [torch.cuda.Event(enable_timing=True, external=True) for _ in range(4)]
        self._captured = executor.capture(round_trip(executor, list(self._given.values()), self._answers, self._mark))
        self._start = self._captured.replay

    def _mark(self, moment: int) -> None:
        self.events[moment].record()

    def call(self, inputs: dict[str, NDArray[Any]]) -> tuple[float, float, float]:
        """When the host had copied in, when it knew that the graph was done, and when it had copied out."""
        for name, tensor in self._given.items():
            np.copyto(as_numpy(tensor), inputs[name])
        copied = time.perf_counter()
        self._start()
        self._done.record(self._captured.stream)
        self._done.synchronize()
        answered = time.perf_counter()
        for tensor in self._answers:
            as_numpy(tensor).copy()
        return copied, answered, time.perf_counter()
