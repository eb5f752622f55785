"""All steps of a lowered graph bound to a device: run eagerly, captured as CUDA graphs, or handed to torch.compile.

An `Executor` holds the weights once; every `capture` has its own stream, static inputs and outputs, and memory pool, so
that captures replay side by side. Nothing synchronises the device. FP32 means FP32: TF32 is used only where it was
asked for. Called by runtimes and tuners.
"""

import gc
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from threading import Lock, local
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from penstock.engine.cuda.choices import Choices
from penstock.engine.cuda.implementations import OURS, chosen
from penstock.engine.cuda.kernels.driver import OwnStream, launch_graph
from penstock.engine.cuda.kernels.replay import Launcher, Recorder, current, launching
from penstock.engine.cuda.lanes import Lanes, handed_over, plan
from penstock.engine.cuda.ranges import named
from penstock.engine.cuda.side import Side, beside, current_side
from penstock.engine.cuda.sites import DTYPES, Run, Site, capability, eight_bits, narrow, seen
from penstock.engine.cuda.workspace import Needs, Workspace, working_in
from penstock.engine.lowered import LoweredGraph, Operand
from penstock.engine.narrowing import narrowed, wide_weights
from penstock.errors import InvalidArgument

PRECISIONS: Final[Mapping[str, str]] = {
    "fp32": "FP32",
    "tf32": "FP32",
    "fp16": "FP16",
    "bf16": "BF16",
    "int8": "FP16",
    "fp8": "FP16",
}
"""Precision -> type of the values between the steps; of eight bits those that have no scale."""

Tensors = dict[str, torch.Tensor]
Compute = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]
Watch = Callable[[int, Sequence[torch.Tensor]], None]
"""Told each step's number and operands, before it runs."""

_of_thread = local()
_streams: dict[tuple[torch.device, int], list[OwnStream]] = {}
"""Those that no capture owns at the moment."""

_CAPTURES: Final = ThreadPoolExecutor(1, thread_name_prefix="penstock-capture")
"""Captures everything: torch remembers what cuDNN's search found for one thread alone, so that in threads of their own
each context of a bucket would search again, which takes most of a second."""

_capturing = Lock()  # CUDA allows one capture at a time to be begun and ended in peace
_WARM_RUNS: Final = 3  # libraries choose algorithms and allocate workspaces in the first; two more settle the pool


@dataclass(frozen=True, slots=True)
class Bound:
    """One step ready to run."""

    name: str
    kind: str
    implementation: str
    run: Run
    reads: tuple[tuple[int, Operand], ...]
    """Slot of each operand's value, and how it is seen."""

    writes: tuple[int, ...]
    frees: tuple[int, ...]
    """Slots that nothing reads after this step."""

    apart: tuple[int, ...] = ()
    """Of its launches those that wait for the kernel ahead to end."""


class Executor:
    """A lowered graph on one device in one precision."""

    def __init__(
        self,
        lowered: LoweredGraph,
        weights: Mapping[str, NDArray[Any] | torch.Tensor],
        device: str | torch.device = "cpu",
        precision: str = "fp32",
        preferred: Sequence[str] = (),
        choices: Choices | None = None,
        *,
        early_launch: bool = False,
        lanes: Lanes | None = None,
    ) -> None:
        """`choices`: what executes the steps named there; else what the step names itself, else the first of
        `preferred` that fits, else the reference. `early_launch`: of two of our kernels in a row, the second is
        launched while the first still runs, and waits for it on the device. `lanes`: which steps captures run beside
        the others; None: as it pays, where launches are early.
        """
        if precision not in PRECISIONS:
            raise InvalidArgument(f"no precision {precision!r}, expected one of {', '.join(PRECISIONS)}")
        self.device, self.precision = _numbered(torch.device(device)), precision
        datatype = PRECISIONS[precision]
        self.graph = narrowed(lowered, datatype)
        self.weights = upload(lowered, weights, self.device, DTYPES[datatype])
        self._slots = {name: number for number, name in enumerate((*self.graph.values, *self.weights))}
        self._constant = {self._slots[name]: tensor for name, tensor in self.weights.items()}
        self.sites: list[Site] = []
        """Of the steps, in order."""
        self.needs = Needs()
        if lanes is None:
            lanes = plan(self.graph) if early_launch and self.device.type == "cuda" else Lanes()
        self.lanes = lanes
        self._handed_over = {self._slots[name] for name in handed_over(self.graph, lanes)}
        with torch.no_grad():
            self.program = self._bind(tuple(preferred), choices or {}, early_launch)
        self._workspace = self.needs.workspace(self.device)
        self.launcher: Launcher | None = None
        """Launches our own kernels; None: Triton does."""
        if self.device.type == "cuda":
            self.launcher = Recorder(capability(self.device))

    def run(self, inputs: Mapping[str, torch.Tensor], watch: Watch | None = None) -> Tensors:
        """Once, on the current stream; inputs lie on the device and have the declared shapes and types.

        Two runs of one executor may not overlap; captures may.
        """
        self._check(inputs)
        with torch.no_grad(), self.arithmetic(), working_in(self._workspace), launching(self.launcher):
            outputs = self.compute([inputs[each.name] for each in self.graph.inputs], watch)
        return dict(zip((each.name for each in self.graph.outputs), outputs, strict=True))

    def compute(self, inputs: Sequence[torch.Tensor], watch: Watch | None = None) -> tuple[torch.Tensor, ...]:
        """A plain function of tensors, in the order of the graph's inputs and outputs; nothing is checked."""
        slots: dict[int, torch.Tensor] = dict(self._constant)
        for each, tensor in zip(self.graph.inputs, inputs, strict=True):
            slots[self._slots[each.name]] = tensor
        launcher, side = current(), current_side()
        for number, bound in enumerate(self.program):
            operands = [seen(slots[slot], operand) for slot, operand in bound.reads]
            if watch is not None:
                watch(number, operands)
            if launcher is not None:
                launcher.step(bound.apart)
            with named(bound.name), side.lane(number):
                outputs = bound.run(operands)
            for slot, output in zip(bound.writes, outputs, strict=True):
                slots[slot] = output
            for slot in bound.frees:
                tensor = slots.pop(slot, None)
                if slot in self._handed_over:
                    side.keep(tensor)
        side.end()
        return tuple(slots[self._slots[each.value]].reshape(each.shape) for each in self.graph.outputs)

    def capture(
        self,
        compute: Compute | None = None,
        *,
        search: bool = False,
        priority: int = 0,
        sharing: "Captured | None" = None,
        all_early: bool = False,
    ) -> "Captured":
        """One CUDA graph of everything; `search` lets cuDNN try its algorithms first, once in a process for each shape.
        `priority`: as CUDA counts, negative ones go first. `sharing`: whose stream and memory it takes, so that one of
        them at a time may be replayed. `all_early`: kernels that choices keep apart are launched early, too.

        `compute`: the same function in another form (what torch.compile made of `module`).
        """
        return Captured(self, compute or self.compute, search, priority, sharing, all_early)

    @property
    def keeps_apart(self) -> bool:
        """Whether choices have kernels of ours wait that could be launched early."""
        return any(bound.apart for bound in self.program)

    def module(self) -> torch.nn.Module:
        """The same function for torch.compile: forward(*inputs) -> tuple of outputs.

        Traced to ATen operators on blank inputs: Dynamo would guard on every closure of the steps, and give up.
        """
        from torch.fx.experimental.proxy_tensor import make_fx

        given = list(self.blank_inputs().values())
        with torch.no_grad(), self.arithmetic():
            traced: torch.nn.Module = make_fx(lambda *inputs: self.compute(inputs))(*given)
        return traced

    @contextmanager
    def arithmetic(self, search: bool = False) -> Iterator[None]:
        """TF32 where it was asked for and nowhere else. Process-wide in torch, so put back at the end."""
        if self.device.type != "cuda":
            yield
            return
        allowed, matmul = self.precision == "tf32", torch.backends.cuda.matmul
        before = matmul.allow_tf32
        matmul.allow_tf32 = allowed
        try:
            with torch.backends.cudnn.flags(enabled=True, benchmark=search, allow_tf32=allowed):
                yield
        finally:
            matmul.allow_tf32 = before

    def blank_inputs(self) -> Tensors:
        """Zeros of the declared shapes on the device."""
        return {
            each.name: torch.zeros(each.shape, dtype=DTYPES[each.datatype], device=self.device)
            for each in self.graph.inputs
        }

    def _bind(self, preferred: tuple[str, ...], choices: Choices, early_launch: bool) -> tuple[Bound, ...]:
        last: dict[int, int] = {}
        for number, step in enumerate(self.graph.steps):
            for operand in step.inputs:
                last[self._slots[operand.value]] = number
            for name in step.outputs:
                last.setdefault(self._slots[name], number)
        kept = {self._slots[each.value] for each in self.graph.outputs} | self._constant.keys()
        program: list[Bound] = []
        for number, step in enumerate(self.graph.steps):
            site = Site(step, self.graph, self.weights, self.device, self.precision, needs=self.needs)
            if choice := choices.get(step.name):
                named = replace(step, implementation=choice.implementation)
                site = replace(site, step=named, config=choice.config)
            name, implementation = chosen(site, preferred)
            ahead = self.lanes.behind(number)
            behind = ahead is not None and program[ahead].implementation.startswith(OURS)
            site = replace(site, early=early_launch, behind=behind)
            self.sites.append(site)
            touched = [self._slots[each.value] for each in step.inputs] + [self._slots[each] for each in step.outputs]
            program.append(
                Bound(
                    step.name,
                    step.kind,
                    name,
                    implementation.bind(site),
                    tuple((self._slots[operand.value], operand) for operand in step.inputs),
                    tuple(self._slots[each] for each in step.outputs),
                    tuple(slot for slot in dict.fromkeys(touched) if last[slot] == number and slot not in kept),
                    choice.apart if choice else (),
                )
            )
        return tuple(program)

    def _check(self, inputs: Mapping[str, torch.Tensor]) -> None:
        for each in self.graph.inputs:
            tensor = inputs.get(each.name)
            if tensor is None:
                raise InvalidArgument(f"input {each.name!r} is missing")
            if tuple(tensor.shape) != each.shape or tensor.dtype != DTYPES[each.datatype]:
                raise InvalidArgument(
                    f"input {each.name!r} is {each.datatype} {list(each.shape)}, "
                    f"got {tensor.dtype} {list(tensor.shape)}"
                )
            if tensor.device.type != self.device.type or not tensor.is_contiguous():
                raise InvalidArgument(f"input {each.name!r} must be contiguous and on {self.device}")


class _Place:
    """Where graphs are replayed, one at a time: streams, inputs, and what sums are shared in. Nobody else's."""

    def __init__(self, executor: Executor, priority: int) -> None:
        self.stream = self._own_stream(executor.device, priority)
        self.inputs: Tensors = executor.blank_inputs()
        self.workspace = executor.needs.workspace(executor.device)
        self.second: torch.cuda.Stream | None = None
        self.second_workspace: Workspace | None = None
        if executor.lanes.side:
            self.second = self._own_stream(executor.device, priority)
            self.second_workspace = executor.needs.workspace(executor.device)

    def _own_stream(self, device: torch.device, priority: int) -> torch.cuda.Stream:
        own = _stream(device, priority)
        weakref.finalize(self, _given_back, own, device, priority).atexit = False
        return torch.cuda.ExternalStream(own.handle, device)

    @property
    def nbytes(self) -> int:
        spaces = [each for each in (self.workspace, self.second_workspace) if each is not None]
        tensors = (*self.inputs.values(), *(one for each in spaces for one in (each.partial_sums, each.counters)))
        return sum(int(tensor.nbytes) for tensor in tensors)


class Captured:
    """A captured graph: write into `inputs`, `replay`, read `outputs`. Used by one call at a time."""

    def __init__(
        self,
        executor: Executor,
        compute: Compute,
        search: bool,
        priority: int,
        sharing: "Captured | None",
        all_early: bool,
    ) -> None:
        torch.cuda.set_device(executor.device)
        self._kept = executor, compute  # their tensors are read wherever the graph is replayed
        self._place: _Place = _Place(executor, priority) if sharing is None else sharing._place
        self._pool = None if sharing is None else sharing._graph.pool()
        self.stream, self.inputs = self._place.stream, self._place.inputs
        self._graph: torch.cuda.CUDAGraph = torch.cuda.CUDAGraph()
        self.stream.wait_stream(torch.cuda.current_stream(executor.device))
        answers = _CAPTURES.submit(self._record, executor, compute, search, all_early).result()
        self.outputs: Tensors = dict(zip((each.name for each in executor.graph.outputs), answers, strict=True))
        self._launch = _launcher(self._graph)

    def _record(self, executor: Executor, compute: Compute, search: bool, all_early: bool) -> Sequence[torch.Tensor]:
        """In the thread of captures."""
        torch.cuda.set_device(executor.device)
        given = [self.inputs[each.name] for each in executor.graph.inputs]
        with (
            _capturing,
            torch.no_grad(),
            torch.cuda.stream(self.stream),
            executor.arithmetic(search),
            working_in(self._place.workspace),
            beside(Side(executor.lanes, self._place.second, self._place.second_workspace)),
        ):
            for _ in range(_WARM_RUNS if self._pool is None else 0):  # where another was captured all is settled
                with launching(executor.launcher):
                    compute(given)
            self.stream.synchronize()
            with _without_collections(), launching(executor.launcher, all_early=all_early):
                # Not torch.cuda.graph, which waits for the whole device and empties everyone's cache.
                self._graph.capture_begin(self._pool, capture_error_mode="thread_local")
                try:
                    answers = compute(given)
                except BaseException:
                    with suppress(RuntimeError):  # that it failed is known, and why is what counts
                        self._graph.capture_end()
                    raise
                self._graph.capture_end()
        return answers

    def device_bytes(self) -> int:
        """What it holds of the device's memory: what was captured, its inputs, and where sums are shared."""
        pool = tuple(self._graph.pool())
        segments = torch.cuda.memory_snapshot()
        captured = sum(int(each["total_size"]) for each in segments if tuple(each.get("segment_pool_id", ())) == pool)
        return captured + self._place.nbytes

    def replay(self) -> None:
        """On the context's own stream; whoever reads the outputs waits for it. While others capture, too."""
        self._launch(self.stream)


@contextmanager
def _without_collections() -> Iterator[None]:
    """A collection that frees device memory while something is captured breaks the capture."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _stream(device: torch.device, priority: int) -> OwnStream:
    try:
        return _streams[device, priority].pop()
    except (KeyError, IndexError):
        return OwnStream(priority)


def _given_back(stream: OwnStream, device: torch.device, priority: int) -> None:
    """For another capture: torch's memory remembers the stream it was used on, so it may not be destroyed."""
    _streams.setdefault((device, priority), []).append(stream)


def _launcher(graph: torch.cuda.CUDAGraph) -> Callable[[torch.cuda.Stream], None]:
    """Launches a captured graph. Not torch's `replay` where there is another way: it refuses while any thread captures,
    for the sake of random numbers, of which there are none here.
    """
    handle = getattr(graph, "raw_cuda_graph_exec", None)
    if handle is None:

        def replay(stream: torch.cuda.Stream) -> None:
            with _capturing, torch.cuda.stream(stream):
                graph.replay()

        return replay
    executable = int(handle())

    def launch(stream: torch.cuda.Stream) -> None:
        if not getattr(_of_thread, "ready", False):
            torch.cuda.set_device(stream.device)  # a thread that the driver has not met has no context
            _of_thread.ready = True
        launch_graph(executable, stream.cuda_stream)

    return launch


def _numbered(device: torch.device) -> torch.device:
    """`cuda` is the current one, by its number: streams want to know."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def upload(
    graph: LoweredGraph,
    weights: Mapping[str, NDArray[Any] | torch.Tensor],
    device: torch.device,
    dtype: torch.dtype,
) -> Tensors:
    """The weights on the device: floats in this type, but for those that FP16 can't hold (masks with -3e38).

    Raises InvalidArgument where one is missing or has another shape.
    """
    found: Tensors = {}
    wide = wide_weights(graph)
    for name, expected in graph.weights.items():
        given = weights.get(name)
        if given is None or tuple(given.shape) != expected.shape:
            shape = "nothing" if given is None else list(given.shape)
            raise InvalidArgument(f"weight {name!r} has shape {list(expected.shape)}, got {shape}")
        found[name] = placed(given, device, torch.float32 if name in wide else dtype)
    return found


def placed(given: NDArray[Any] | torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """A weight on the device, in `dtype` where it is a float that fits there; the same tensor where it is already."""
    if isinstance(given, torch.Tensor):
        tensor = given
    elif given.dtype.name == "bfloat16":  # which torch knows and NumPy does not
        tensor = torch.from_numpy(np.array(given, order="C").view(np.int16)).view(torch.bfloat16)
    elif given.dtype.name == "float8_e4m3fn":
        tensor = torch.from_numpy(np.array(given, order="C").view(np.uint8)).view(torch.float8_e4m3fn)
    else:
        tensor = torch.from_numpy(np.array(given, order="C"))
    tensor = tensor.to(device)  # which converts faster than the CPU
    if tensor.is_floating_point() and tensor.dtype != dtype and not eight_bits(tensor.dtype):
        wide = narrow(dtype) and bool((tensor.float().abs() > torch.finfo(dtype).max).any())
        tensor = tensor.to(torch.float32 if wide else dtype)
    return tensor.contiguous()
