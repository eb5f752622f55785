"""How fast a loaded model is on this machine, as trtexec measures it: the work behind `penstock time`.

Every stream is a thread with an instance of its own that calls again as soon as it is answered. What is timed is the
call as a server makes it: arrays in, arrays out, padding and reductions of an engine included. On the CPU nothing is
copied to a device, so latency is compute. Called by the command line.
"""

import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, cast, runtime_checkable

import numpy as np

from penstock.build.samples import Arrays
from penstock.engine import Engine, Runtime, retuning, runtimes, sealed
from penstock.engine.plan import CUDA, Region
from penstock.engine.roofline import Call, Ceilings, Verdict, verdict
from penstock.engine.runtimes.base import DeviceMemory
from penstock.errors import ExecutionError, InvalidArgument, Unsupported

# A context is asked for this many calls, of which the hand-over is timed; of slow models for fewer.
_ENQUEUES: Final = 50
_ENQUEUE_SECONDS: Final = 1.0
_PROFILE_CALLS: Final = 20
_PHASED_CALLS: Final = 100


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of the model. trtexec's defaults."""

    streams: int = 1
    warm_up_ms: float = 200.0
    duration_seconds: float = 3.0
    iterations: int = 10
    """At least so many calls of each stream, however long they take."""


@dataclass(frozen=True, slots=True)
class Times:
    """Of one step of a call, in milliseconds."""

    minimum: float
    maximum: float
    mean: float
    median: float
    percentiles: tuple[tuple[float, float], ...]
    """(percentile, the time that so many percent of the calls took at most), by nearest rank."""


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured."""

    calls: int
    wall_seconds: float
    latency: Times
    enqueue: Times | None
    """To hand a call over to a context; None for bare models, whose calls run on the thread that makes them."""

    phases: "Phases | None" = None
    """On a GPU, by its own clock; None on the CPU, where nothing is copied."""

    @property
    def calls_per_second(self) -> float:
        return self.calls / self.wall_seconds


@dataclass(frozen=True, slots=True)
class Phases:
    """Of calls one after the other, each part waited for: what a call with everything in flight takes is `latency`."""

    copy_in: Times
    compute: Times
    copy_out: Times


class _OfDevice(Protocol):
    """What programs on a GPU can be asked besides."""

    def phases(self, inputs: Arrays, calls: int) -> Any: ...

    def regions(self, inputs: Arrays, repeats: int = 20) -> tuple[Region, ...]: ...

    def device_memory(self) -> DeviceMemory: ...

    def ceilings(self) -> Ceilings: ...


@runtime_checkable
class _Profiled(Protocol):
    def regions(self, inputs: Arrays, repeats: int = 20) -> tuple[Region, ...]: ...


def measure(runtime: Runtime, inputs: Arrays, load: Load, percentiles: Sequence[float] = (90, 95, 99)) -> Report:
    """Call a model over and over with the same inputs. Load it with as many instances as there are streams.

    Raises InvalidArgument for a load that asks for nothing, and what the model raises.
    """
    if load.streams < 1 or load.iterations < 1 or load.duration_seconds < 0 or load.warm_up_ms < 0:
        raise InvalidArgument(
            f"expected at least 1 stream, 1 iteration and no negative times, got {load.streams} streams, "
            f"{load.iterations} iterations, {load.duration_seconds:g} s, {load.warm_up_ms:g} ms of warming up"
        )
    runtime(**inputs)  # checks names, types and shapes, which instances trust
    # The first barrier ends warming up, so that no stream is timed while another still warms.
    barrier = threading.Barrier(load.streams)
    streams = [_Stream(runtime, inputs, load, barrier) for _ in range(load.streams)]
    for stream in streams:
        stream.start()
    for stream in streams:
        stream.join()
    failures = [stream.failure for stream in streams if stream.failure is not None]
    if failures:
        raise next((each for each in failures if not isinstance(each, threading.BrokenBarrierError)), failures[0])
    latencies = [each for stream in streams for each in stream.seconds]
    return Report(
        calls=len(latencies),
        wall_seconds=max(stream.ended for stream in streams) - min(stream.started for stream in streams),
        latency=_times(latencies, percentiles),
        enqueue=_enqueue(runtime, inputs, percentiles) if isinstance(runtime, Engine) else None,
        phases=_phases(runtime, inputs, percentiles) if isinstance(runtime, Engine) else None,
    )


def _phases(engine: Engine, inputs: Arrays, percentiles: Sequence[float]) -> Phases | None:
    program, inputs = _longest(engine, inputs)
    if engine.manifest.programs[program].tactic.runtime != CUDA:
        return None
    device = cast("_OfDevice", engine.compiled(program))
    found = device.phases(inputs, _PHASED_CALLS)
    parts = (found.copy_in, found.compute, found.copy_out)
    return Phases(*(_times([each / 1000 for each in part], percentiles) for part in parts))


def _longest(engine: Engine, inputs: Arrays) -> tuple[int, Arrays]:
    """The program that runs most of the call's rows, and inputs of the shapes it runs."""
    route = engine.route(inputs)
    step = max(route.steps, key=lambda each: each.last - each.first)
    if route.batched:
        inputs = {name: np.resize(array, (step.rows, *array.shape[1:])) for name, array in inputs.items()}
    return step.program, inputs


@dataclass(frozen=True, slots=True)
class OfDevice:
    """What a GPU says of the program that runs most of a call's rows."""

    regions: tuple[Region, ...]
    ceilings: Ceilings
    verdict: Verdict
    memory: DeviceMemory


def of_device(runtime: Runtime, inputs: Arrays, report: Report) -> OfDevice | None:
    """Why a call on a GPU takes what `report` says; None where it is computed on the CPU."""
    if not isinstance(runtime, Engine) or report.phases is None:
        return None
    program, inputs = _longest(runtime, inputs)
    device = cast("_OfDevice", runtime.compiled(program))
    regions, ceilings, phases = device.regions(inputs), device.ceilings(), report.phases
    call = Call(report.latency.median, phases.copy_in.median, phases.compute.median, phases.copy_out.median)
    return OfDevice(regions, ceilings, verdict(regions, ceilings, call), device.device_memory())


class _Stream(threading.Thread):
    """One caller."""

    def __init__(self, runtime: Runtime, inputs: Arrays, load: Load, barrier: threading.Barrier) -> None:
        super().__init__(name="penstock-stream", daemon=True)
        self._runtime = runtime
        self._inputs = inputs
        self._load = load
        self._barrier = barrier
        self.seconds: list[float] = []
        self.started = self.ended = 0.0
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            self._run()
        except Exception as error:  # whatever it is, the thread that waits raises it
            self.failure = error
            self._barrier.abort()

    def _run(self) -> None:
        instance = self._runtime.instance()
        try:
            warm = time.perf_counter() + self._load.warm_up_ms / 1000
            while True:
                instance.execute(self._inputs)
                if time.perf_counter() >= warm:
                    break
            self._barrier.wait()
            self.started = before = time.perf_counter()
            until = before + self._load.duration_seconds
            while before < until or len(self.seconds) < self._load.iterations:
                instance.execute(self._inputs)
                after = time.perf_counter()
                self.seconds.append(after - before)
                before = after
            self.ended = before
        finally:
            instance.close()


def _enqueue(engine: Engine, inputs: Arrays, percentiles: Sequence[float]) -> Times:
    seconds: list[float] = []
    until = time.perf_counter() + _ENQUEUE_SECONDS
    with engine.context() as context:
        while not seconds or (len(seconds) < _ENQUEUES and time.perf_counter() < until):
            before = time.perf_counter()
            future = context.enqueue(**inputs)
            seconds.append(time.perf_counter() - before)
            future.result()
    return _times(seconds, percentiles)


def _times(seconds: Sequence[float], percentiles: Sequence[float]) -> Times:
    if not seconds:
        raise ExecutionError("no call was timed")
    found = np.sort(np.asarray(seconds)) * 1000
    ranks: Any = np.percentile(found, list(percentiles), method="inverted_cdf") if percentiles else []
    return Times(
        minimum=float(found[0]),
        maximum=float(found[-1]),
        mean=float(found.mean()),
        median=float(np.median(found)),
        percentiles=tuple(zip(percentiles, map(float, ranks), strict=True)),
    )


def profile(path: Path, runtime: Runtime, inputs: Arrays) -> tuple[Region, ...]:
    """What the library executes for these inputs, by its own counters, in a compilation of its own.

    Of an engine: the program that runs most of the call's rows, compiled from the graph inside the file.
    """
    if not isinstance(runtime, Engine):
        if not isinstance(runtime, _Profiled):
            raise Unsupported(f"{path.name}: {runtime.name} has no profile")
        return runtime.regions(inputs, _PROFILE_CALLS)
    index, inputs = _longest(runtime, inputs)
    program = runtime.manifest.programs[index]
    if program.tactic.runtime == CUDA:  # is asked as it is: another compilation would tune again
        return cast("_OfDevice", runtime.compiled(index)).regions(inputs)
    with tempfile.TemporaryDirectory(prefix="penstock-time-") as name:
        folder = Path(name)
        retuning.unpack(sealed.read(path), folder)
        graph = folder / Path(retuning.graph_member(program.tactic.form)).name
        made = runtimes.compile(graph, program.tactic, shapes=program.shapes or None)
        try:
            return made.regions(inputs, _PROFILE_CALLS)
        finally:
            made.close()
