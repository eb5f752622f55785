"""One batch in flight at the shapes of one bucket: pinned buffers, a stream, and one CUDA graph of everything.

Copying in, all steps and copying out are captured together, so that a call is two copies by the host and one replay,
or one copy where the rows were laid out in the instance's `InputMemory` to begin with. Graphs that fill the GPU take
turns instead, with the copies apart (`turns.py`). Smaller ones compute side by side: kernels that are faster alone when
they wait for the one ahead would keep places empty that another context could use, so there is a second graph of the
same kernels, in company all launched early. Nobody waits for the device, only for the call's own event.
`HostContext` is the same without a GPU, for tests. Made and used by the runtime; a context is used by one call at a
time.
"""

import itertools
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from penstock.engine import cores
from penstock.engine.cuda.executor import Captured, Compute, Executor
from penstock.engine.cuda.ranges import named
from penstock.engine.cuda.sites import DTYPES
from penstock.engine.cuda.turns import InTurns, Turns
from penstock.engine.runtimes.base import address

Array = NDArray[Any]
Arrays = dict[str, Array]

# Waiting in a loop answers some 30 us sooner and keeps a core: worth it for short calls, while cores are idle.
_SPIN_BELOW_MS: Final = 0.5
_SPINNERS: Final = threading.Semaphore(max(1, cores.available() // 2))
_TIMED_REPLAYS: Final = 5
_COMPANY: Final = 3
"""Contexts that compute at once, from which on a place that stands empty costs more than a kernel that is not at its
fastest; two leave some empty anyway.
"""


class Context(Protocol):
    def run(self, inputs: "dict[str, Array]") -> Arrays:
        """Inputs of exactly the bucket's shapes; what comes back is overwritten by the next call."""
        ...


class InputMemory:
    """Where the inputs of an instance lie, for all its buckets: each reads as much of the beginning as it needs.

    Pinned for a GPU, so that it copies from there itself. Satisfies `penstock.engine.runtimes.base.Memory`.
    """

    def __init__(self, sizes: Mapping[str, int], device: torch.device) -> None:
        pinned = device.type == "cuda"
        self._tensors = {
            name: torch.zeros(max(1, size), dtype=torch.uint8, pin_memory=pinned) for name, size in sizes.items()
        }
        self.bytes: Mapping[str, Array] = {name: tensor.numpy() for name, tensor in self._tensors.items()}

    @classmethod
    def of(cls, executors: Sequence[Executor]) -> "InputMemory":
        """Large enough for each of them."""
        sizes: dict[str, int] = {}
        for executor in executors:
            for each in executor.graph.inputs:
                size = math.prod(each.shape) * DTYPES[each.datatype].itemsize
                sizes[each.name] = max(size, sizes.get(each.name, 0))
        return cls(sizes, executors[0].device)

    def tensors(self, executor: Executor) -> dict[str, torch.Tensor]:
        """The inputs of a bucket, in that memory. Raises KeyError or RuntimeError where it was made for others."""
        found = {}
        for each in executor.graph.inputs:
            dtype = DTYPES[each.datatype]
            size = math.prod(each.shape) * dtype.itemsize
            found[each.name] = self._tensors[each.name][:size].view(dtype).view(tuple(each.shape))
        return found


class GraphContext:
    """On the GPU. Raises torch.cuda.OutOfMemoryError where its buffers find no place."""

    def __init__(
        self,
        executor: Executor,
        memory: InputMemory,
        priority: int = 0,
        turns: Turns | None = None,
        computing: set[int] | None = None,
    ) -> None:
        """`computing`: of all contexts of an engine those that compute now, by their ids, kept by themselves."""
        graph = executor.graph
        self._executor, self._turns = executor, turns
        self._given = memory.tensors(executor)
        answers = self.answers = pinned_outputs(executor)
        """Pinned, and overwritten by the next call."""
        read, written = list(self._given.values()), list(answers.values())

        shapes = " ".join(f"{each.name}:{'x'.join(map(str, each.shape))}" for each in graph.inputs)
        self._name = f"penstock {executor.precision} {shapes}"
        with named(f"{self._name} capture"):
            whole = round_trip(executor, read, written) if turns is None else None
            self._captured = executor.capture(whole, priority=priority)
            self._start = self._in_company = self._captured.replay
            if turns is not None:
                self._start = self._in_company = InTurns(self._captured, self._given, answers, turns).start
            elif executor.keeps_apart:
                self._in_company = executor.capture(whole, sharing=self._captured, all_early=True).replay
        self._computing = computing if computing is not None else set()
        self._inputs = {name: as_numpy(tensor) for name, tensor in self._given.items()}
        self._outputs = {name: as_numpy(tensor) for name, tensor in answers.items()}
        self.milliseconds = self._timed()
        """Of one replay, copies included where they are captured."""
        self.device_bytes = self._captured.device_bytes()
        self._sleeping, self._spinning = torch.cuda.Event(blocking=True), torch.cuda.Event()

    def run(self, inputs: Arrays) -> Arrays:
        with named(self._name):
            return self._run(inputs)

    def _run(self, inputs: Arrays) -> Arrays:
        for name, array in self._inputs.items():
            _placed(array, inputs[name])
        self._computing.add(id(self))
        spins = self.milliseconds < _SPIN_BELOW_MS and _SPINNERS.acquire(blocking=False)
        try:
            (self._start if len(self._computing) < _COMPANY else self._in_company)()
            event = self._spinning if spins else self._sleeping
            event.record(self._captured.stream)
            event.synchronize()
        finally:
            self._computing.discard(id(self))
            if spins:
                _SPINNERS.release()
        return self._outputs

    def without_copies(self) -> tuple[Captured, Turns | None]:
        """The steps alone, in this context's memory and on its stream, and what they wait for before they compute: to
        be replayed while this context does not run. Where copies are captured with them this captures once more.
        """
        if self._turns is not None:
            return self._captured, self._turns
        return self._executor.capture(sharing=self._captured), None

    def _timed(self) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self._captured.replay()
        begin.record(self._captured.stream)
        for _ in range(_TIMED_REPLAYS):
            self._captured.replay()
        end.record(self._captured.stream)
        end.synchronize()
        return float(begin.elapsed_time(end)) / _TIMED_REPLAYS


def waited_for(stream: torch.cuda.Stream, milliseconds: float) -> None:
    """Until the stream has done what takes about so long. No other stream is waited for."""
    spins = milliseconds < _SPIN_BELOW_MS and _SPINNERS.acquire(blocking=False)
    try:
        event = torch.cuda.Event(blocking=not spins)
        event.record(stream)
        event.synchronize()
    finally:
        if spins:
            _SPINNERS.release()


def round_trip(
    executor: Executor,
    read: Sequence[torch.Tensor],
    written: Sequence[torch.Tensor],
    mark: Callable[[int], None] = lambda _: None,
) -> Compute:
    """Copying in from `read`, all steps, copying out to `written`, to be captured as one; `mark` is told the four
    moments around these three.
    """

    def whole(inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        mark(0)
        for device, host in zip(inputs, read, strict=True):
            device.copy_(host, non_blocking=True)
        mark(1)
        found = executor.compute(inputs)
        mark(2)
        for host, tensor in zip(written, found, strict=True):
            host.copy_(tensor, non_blocking=True)
        mark(3)
        return found

    return whole


class HostContext:
    """The same steps on the CPU."""

    def __init__(self, executor: Executor, memory: InputMemory) -> None:
        self._executor = executor
        self._given = memory.tensors(executor)
        self._inputs = {name: as_numpy(tensor) for name, tensor in self._given.items()}

    def run(self, inputs: Arrays) -> Arrays:
        for name, array in self._inputs.items():
            _placed(array, inputs[name])
        return {name: as_numpy(tensor.contiguous()) for name, tensor in self._executor.run(self._given).items()}


def _placed(own: Array, given: Array) -> None:
    """Copies an input to where the bucket reads it, unless it lies there already."""
    if address(own) != address(given) or not given.flags.c_contiguous:
        np.copyto(own, given)


@dataclass(frozen=True, slots=True)
class Phases:
    """Milliseconds of each call."""

    copy_in: list[float]
    compute: list[float]
    copy_out: list[float]


def phases(executor: Executor, inputs: Arrays, calls: int) -> Phases:
    """The three parts of a call one after the other, with events between: together longer than one captured whole."""
    captured = executor.capture()
    given = {name: pinned(tensor.shape, tensor.dtype) for name, tensor in captured.inputs.items()}
    answers = {name: pinned(tensor.shape, tensor.dtype) for name, tensor in captured.outputs.items()}
    for name, tensor in given.items():
        np.copyto(as_numpy(tensor), inputs[name])
    found = Phases([], [], [])
    stream = captured.stream
    for _ in range(calls):
        events = [torch.cuda.Event(enable_timing=True) for _ in range(4)]
        with torch.cuda.stream(stream):
            events[0].record(stream)
            for name, tensor in given.items():
                captured.inputs[name].copy_(tensor, non_blocking=True)
            events[1].record(stream)
            captured.replay()
            events[2].record(stream)
            for name, tensor in answers.items():
                tensor.copy_(captured.outputs[name], non_blocking=True)
            events[3].record(stream)
        events[3].synchronize()
        for times, (begin, end) in zip(
            (found.copy_in, found.compute, found.copy_out), itertools.pairwise(events), strict=True
        ):
            times.append(float(begin.elapsed_time(end)))
    return found


def pinned_outputs(executor: Executor) -> dict[str, torch.Tensor]:
    """Where the host finds a call's answers."""
    graph = executor.graph
    return {each.name: pinned(each.shape, DTYPES[graph.stored(each.value).datatype]) for each in graph.outputs}


def pinned(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Zeros that the device can copy while the host goes on."""
    return torch.zeros(tuple(shape), dtype=dtype, pin_memory=True)


def as_numpy(tensor: torch.Tensor) -> Array:
    """The tensor's memory; bfloat16 as it travels, in uint16."""
    if tensor.dtype == torch.bfloat16:
        travels: Array = tensor.view(torch.int16).numpy().view(np.uint16)
        return travels
    found: Array = tensor.numpy()
    return found
