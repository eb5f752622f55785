"""The fastest of several ways to do one thing, timed as they will be run: many times over inside a CUDA graph.

Nothing flushes the cache: in an engine a layer's input was written by the layer before. A candidate that fails to
compile, to fit or to run is passed over and named in the result, never fatal.
"""

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Generic, TypeVar

import torch

from .launching import Launch

C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class Timing(Generic[C]):
    best: C | None
    """None if no candidate runs."""
    microseconds: float
    """Of one call of the best; infinite if there is none."""
    all: Mapping[C, float] = field(default_factory=dict)
    failed: Mapping[C, str] = field(default_factory=dict)


def microseconds(call: Callable[[], object], *, calls: int = 50, replays: int = 7) -> float:
    """The median time of one of `calls` calls in a row in one CUDA graph, over `replays` replays of it.

    Launching the graph itself is in it: some 10 microseconds divided by `calls`.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()  # compiles and loads: neither may happen during capture
        stream.synchronize()
        graph = captured(lambda: [call() for _ in range(calls)])
        found = replayed(graph, replays) / calls
    torch.cuda.current_stream().wait_stream(stream)
    return found


def captured(record: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """What it launches on the current stream, and on others that meet it again. Everything is compiled and loaded."""
    graph = torch.cuda.CUDAGraph()
    # A collection that frees device memory in the middle of a capture would spoil it. Not torch's own context
    # manager, which empties its cache of memory each time.
    collecting = gc.isenabled()
    gc.disable()
    graph.capture_begin(capture_error_mode="thread_local")
    try:
        record()
    finally:
        graph.capture_end()
        if collecting:
            gc.enable()
    return graph


def replayed(graph: torch.cuda.CUDAGraph, replays: int) -> float:
    """The median time of a replay on the current stream, in microseconds, after one that does not count."""
    graph.replay()
    times: list[float] = []
    for _ in range(replays):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1000)
    return median(times)


def tune(candidates: Sequence[C], launch: Callable[[C], Launch], *, calls: int = 50, replays: int = 7) -> Timing[C]:
    """Time `launch(candidate).run()` for each and name the fastest.

    An illegal access would poison the process's CUDA context and make every later candidate fail too; that is a bug in
    a kernel, not a candidate, and shows in `failed`.
    """
    times: dict[C, float] = {}
    failed: dict[C, str] = {}
    for candidate in candidates:
        try:
            times[candidate] = microseconds(launch(candidate).run, calls=calls, replays=replays)
        except Exception as error:  # whatever the compiler or the driver raises
            failed[candidate] = f"{type(error).__name__}: {error}"[:200]
    best = min(times, key=lambda each: times[each], default=None)
    return Timing(best, float("inf") if best is None else times[best], times, failed)
