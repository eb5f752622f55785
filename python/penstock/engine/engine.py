"""A loaded engine: call it from any thread, with any batch and shape of its profiles.

Weights exist once per program; each instance (a worker's handle) and each context holds what one batch in flight needs.
Calls from users' threads borrow an instance and give it back. Made by `penstock.engine.load` and by the builder; the
backend `engine` serves it.
"""

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from penstock.engine import cores, runtimes
from penstock.engine.check import Verdict, check
from penstock.engine.device_calls import DeviceWorker, lies_on_gpu
from penstock.engine.fitting import fitting
from penstock.engine.plan import CUDA, Manifest, Program, Shape
from penstock.engine.reducing import reduced
from penstock.engine.retuning import compiled_anew
from penstock.engine.routing import Route, Step, batched, route
from penstock.engine.runtimes.base import (
    Array,
    Arrays,
    Compiled,
    CompiledInstance,
    Lending,
    Memory,
    OnDevice,
    Shelf,
    address,
    checked,
    padded,
)
from penstock.engine.sealed import EVIDENCE, Sealed, graph_member
from penstock.engine.turns import Turns
from penstock.errors import ExecutionError, ModelLoadError, Unavailable, UsageError

_LOG = logging.getLogger(__name__)

ENGINE_SUFFIX: Final = ".engine"

Where = Literal["host", "device"]

# Routes kept, one for each combination of shapes met; a server meets a few dozen.
_ROUTES: Final = 4096


def open_engine(
    path: Path, *, instances: int = 1, threads: int | None = None, memory_bytes: int | None = None
) -> "Engine":
    """Load an engine file as `check` says: run it, compile it anew from the graphs inside, or refuse.

    instances     calls that will run at once; they share the weights. More calls work and wait for each other.
    threads       of each instance; None: as the programs were timed, else the cores divided among the instances.
    memory_bytes  what the programs may hold together, by what they held when they were built: those that don't fit
                  are left out while the others can answer everything; None: no limit.

    Raises NotFound, ResourceExhausted (no set of programs fits), and ModelLoadError with the reasons of a refusal.
    """
    verdict = check(path)
    if verdict.sealed is None or verdict.action == "refuse":
        raise ModelLoadError("; ".join(verdict.reasons))
    return from_sealed(verdict.sealed, verdict, instances=instances, threads=threads, memory_bytes=memory_bytes)


def from_sealed(
    sealed: Sealed,
    verdict: Verdict,
    *,
    instances: int = 1,
    threads: int | None = None,
    memory_bytes: int | None = None,
) -> "Engine":
    """Programs of a file that was read; compiled anew where the verdict is `retune`."""
    indices = fitting(sealed.manifest, memory_bytes, instances)
    anew = [at for at in indices if sealed.manifest.programs[at].tactic.runtime in verdict.anew]
    programs: dict[int, Compiled] = {}
    if anew:
        _LOG.warning("%s is compiled anew: %s", sealed.name, "; ".join(verdict.reasons))
        programs |= compiled_anew(sealed, anew, instances=instances, threads=threads)
    shelf = Shelf(lambda form: sealed.members[graph_member(form)])
    for at in indices:
        if at not in programs:
            programs[at] = _reopened(sealed, sealed.manifest.programs[at], instances, threads, shelf)
    shelf.kept.clear()  # the programs hold what they use
    return Engine(sealed, programs, instances)


def _reopened(sealed: Sealed, program: Program, instances: int, threads: int | None, shelf: Shelf) -> Compiled:
    found = runtimes.reopen(
        sealed.members[program.artifact],
        program.tactic,
        output_names=program.outputs,
        name=sealed.name,
        instances=instances,
        threads=threads,
        shelf=shelf,
    )
    if program.tactic.runtime == CUDA:  # whose graphs are read from the file, and not by a library that knows the model
        _check_signature(sealed, found)
    return found


def _check_signature(sealed: Sealed, program: Compiled) -> None:
    """Raises ModelLoadError where a program takes or answers something else than the engine."""
    for expected, given in ((sealed.manifest.inputs, program.inputs), (sealed.manifest.outputs, program.outputs)):
        found = {spec.name: spec for spec in given}
        fits = all(
            (own := found.get(spec.name)) is not None and own.datatype == spec.datatype and spec.accepts(own.shape)
            for spec in expected
        )
        if not fits or len(given) != len(expected):
            shown = ", ".join(map(str, given))
            raise ModelLoadError(f"{sealed.name}: a program has {shown}, not what the engine says; build it again")


def checked_name(path: str | Path) -> Path:
    """Where an engine may go: only NAME.engine is taken for one when it is loaded. Raises UsageError."""
    found = Path(path)
    if found.suffix != ENGINE_SUFFIX:
        raise UsageError.of("output", found.name, f"a name that ends in {ENGINE_SUFFIX}")
    return found


class Engine:
    """An engine in memory. Satisfies `penstock.engine.Runtime`."""

    name = "engine"

    def __init__(self, sealed: Sealed, programs: Mapping[int, Compiled], instances: int) -> None:
        """`programs` by their place in the manifest; those that are missing are done without."""
        self._sealed = sealed
        self._programs = programs
        self._available = frozenset(programs)
        self._routes: dict[tuple[Shape, ...], Route] = {}
        # Instances for calls from users' threads: taken and put back, made when none is idle. deque is thread-safe.
        self._idle: deque[EngineInstance] = deque()
        # What a call holds grows with its batch: calls beyond what the cores can run wait instead.
        self._turns = Turns(max(instances, cores.available()))
        self._closed = False
        self.inputs = sealed.manifest.inputs
        self.outputs = sealed.manifest.outputs

    @property
    def manifest(self) -> Manifest:
        """What was chosen, for which shapes, on which machine."""
        return self._sealed.manifest

    @property
    def evidence(self) -> dict[str, Any]:
        """What the build measured: timings, accuracy, what was lost and why."""
        return self._sealed.evidence

    @property
    def content_hash(self) -> str:
        """sha256 over everything in the file: two engines with the same are the same."""
        return self._sealed.content_hash

    @property
    def max_batch_size(self) -> int:
        """The most rows that run at once; 0 when the engine has no batch dimension. Calls with more rows are split."""
        manifest = self.manifest
        if not batched(manifest.inputs, manifest.outputs):
            return 0
        return max(min(shape[0] for shape in profile.maximum.values()) for profile in manifest.profiles)

    def save(self, path: str | Path) -> None:
        """Write the engine file, NAME.engine; one that is there is replaced in one step.

        Raises OSError, and UsageError for another name, under which it would not be loaded.
        """
        self._sealed.save(checked_name(path))

    def with_evidence_of(self, sealed: Sealed) -> "Engine":
        """This engine, from a file that says something else in its evidence alone. For the builder, before it is used
        by anyone; raises ModelLoadError for any other file.
        """
        others = [found.members.keys() - {EVIDENCE} for found in (self._sealed, sealed)]
        if self._sealed.manifest != sealed.manifest or others[0] != others[1]:
            raise ModelLoadError(f"{sealed.name} is another engine than the one that was loaded; build it again")
        self._sealed = sealed
        return self

    def instance(self, *, priority: int = 0) -> "EngineInstance":
        """A worker's handle, used by one call at a time."""
        self._check_open()
        return EngineInstance(self, priority)

    def context(self, *, priority: int = 0, outputs: Where = "host") -> "EngineContext":
        """An execution context: buffers of its own, and a queue of calls that it runs in order.

        priority  of its stream on a GPU, as CUDA counts: 0 is the usual one, work of negative ones goes first. A CPU
                  has no streams and takes no notice.
        outputs   "device": of an engine on a GPU, leave answers there, as torch tensors.
        """
        return EngineContext(self.instance(priority=priority), outputs)

    def __call__(self, **arrays: Any) -> dict[str, Array]:
        """Run on arrays whose shapes lie in one of the profiles; more rows than the largest batch are split.

        Raises InvalidArgument (names, types, shapes) and ExecutionError (a library failed).
        """
        return self._turns.run(self._borrowed, checked(self.inputs, arrays))

    def _borrowed(self, inputs: Arrays) -> dict[str, Array]:
        try:
            instance = self._idle.pop()
        except IndexError:
            instance = self.instance()
        try:
            return instance.execute(inputs)
        finally:
            self._idle.append(instance)
            if self._closed:  # perhaps since this call began: nothing may be kept then
                self._idle.clear()

    def close(self) -> None:
        """Give the weights back. Later calls raise Unavailable."""
        self._closed = True
        self._idle.clear()
        for program in self._programs.values():
            program.close()

    def route(self, inputs: Arrays) -> Route:
        """How a call with these inputs is run."""
        key = tuple(inputs[spec.name].shape for spec in self.inputs)
        found = self._routes.get(key)
        if found is None:
            shapes = {spec.name: inputs[spec.name].shape for spec in self.inputs}
            found = route(self.manifest, shapes, self._available)
            if len(self._routes) >= _ROUTES:
                self._routes.clear()
            self._routes[key] = found
        return found

    @property
    def available(self) -> frozenset[int]:
        """The programs that are loaded, by their place in the manifest."""
        return self._available

    @property
    def on_device(self) -> tuple[int, ...]:
        """The programs that copy their inputs to a device, the largest first: what runs out of memory does so early."""
        found = (at for at, program in self._programs.items() if isinstance(program, Lending))
        return tuple(sorted(found, key=lambda at: -self._elements(at)))

    @property
    def answers_on_device(self) -> bool:
        """Whether every call can have its arrays on a GPU, both ways."""
        whole = all(isinstance(program, OnDevice) for program in self._programs.values())
        return whole and not self.manifest.reductions

    def compiled(self, index: int) -> Compiled:
        """One program itself, for those who look at how it runs."""
        self._check_open()
        return self._programs[index]

    def program(self, index: int, memory: Memory | None = None, *, priority: int = 0) -> CompiledInstance:
        """A new instance of one program, which reads its inputs from this memory if it copies them at all."""
        self._check_open()
        program = self._programs[index]
        if isinstance(program, Lending):
            return program.instance(memory, priority=priority)
        return program.instance(priority=priority)

    def memory(self) -> Memory | None:
        """For the inputs of the largest program that copies them to a device; None where none does."""
        self._check_open()
        found: Lending | None = None
        sizes: dict[str, int] = {}
        for at in self.on_device:
            shapes, program = self.manifest.programs[at].shapes, self._programs[at]
            if not isinstance(program, Lending) or not shapes:
                continue
            found = program
            for spec in self.inputs:
                size = math.prod(shapes[spec.name]) * spec.dtype.itemsize
                sizes[spec.name] = max(size, sizes.get(spec.name, 0))
        return found.memory(sizes) if found is not None else None

    def _elements(self, index: int) -> int:
        return sum(map(math.prod, (self.manifest.programs[index].shapes or {}).values()))

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable(f"{self._sealed.name} is closed; load it again")


class EngineInstance:
    """What one batch in flight needs: an instance of each program that it met."""

    def __init__(self, engine: Engine, priority: int = 0) -> None:
        self._engine, self._priority = engine, priority
        self._instances: dict[int, CompiledInstance] = {}
        self._memory: Memory | None = None
        self._device: DeviceWorker | None = None
        self._reductions = engine.manifest.reductions
        self._beside = [bool(self._reductions) and program.beside for program in engine.manifest.programs]

    def input_memory(self) -> Mapping[str, Array]:
        """Bytes by input, from which programs copy to a device; empty where none does. To be asked for before any call.

        A batch at the beginning of it is not copied by the host; it may be overwritten once the call has returned.
        """
        if self._memory is None and not self._instances:
            self._memory = self._engine.memory()
        return self._memory.bytes if self._memory is not None else {}

    def prepare(self) -> None:
        """Make what calls on a device need, for every bucket: the first calls would wait for it otherwise.

        Raises ResourceExhausted where the device has no memory for all of them.
        """
        self.input_memory()
        for index in self._engine.on_device:
            self._instance(index)

    def execute(self, inputs: Arrays) -> dict[str, Array]:
        """Inputs that fit the signature in; outputs of the same rows out, which belong to the caller."""
        found = self._engine.route(inputs)
        if not found.batched:
            return self._run(found.steps[0].program, inputs)
        if len(found.steps) == 1:
            step = found.steps[0]
            count = step.last - step.first
            if count == step.rows:
                return self._run(step.program, inputs)
            # Nothing comes after these rows that filling up could overwrite.
            filled = {name: self._filled(name, array, step.rows) for name, array in inputs.items()}
            return self._cut(step, self._run(step.program, filled))
        parts = [self._step(step, inputs) for step in found.steps]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def execute_on_device(
        self, inputs: Mapping[str, Sequence[Any]], parts: Sequence[tuple[int, int] | None], host: bool
    ) -> tuple[dict[str, Array] | None, list[dict[str, Any]]]:
        """A batch of which some rows lie on the GPU, or some answers stay there; `DeviceWorker.execute_rows` says how.

        For engines whose `answers_on_device` is true.
        """
        if self._device is None:
            self._device = DeviceWorker(self._engine, self._instance)
        return self._device.execute_rows(inputs, parts, host)

    def close(self) -> None:
        self._device = None
        for each in self._instances.values():
            each.close()
        self._instances.clear()

    def _step(self, step: Step, inputs: Arrays) -> dict[str, Array]:
        rows = {name: padded(array[step.first : step.last], step.rows) for name, array in inputs.items()}
        return self._cut(step, self._run(step.program, rows))

    def _cut(self, step: Step, outputs: Arrays) -> dict[str, Array]:
        count = step.last - step.first
        return {name: _cut(name, array, count, step.rows) for name, array in outputs.items()}

    def _filled(self, name: str, array: Array, rows: int) -> Array:
        """Padded; where it lies, if that is the beginning of our own memory and there is room behind it."""
        memory = self._memory.bytes.get(name) if self._memory is not None else None
        size = array.nbytes // len(array) * rows
        if memory is None or size > memory.nbytes or not array.flags.c_contiguous or address(array) != address(memory):
            return padded(array, rows)
        whole: Array = memory[:size].view(array.dtype).reshape(rows, *array.shape[1:])
        whole[len(array) :] = array[:1]
        return whole

    def _instance(self, program: int) -> CompiledInstance:
        if program not in self._instances:
            self._instances[program] = self._engine.program(program, self._memory, priority=self._priority)
        return self._instances[program]

    def _run(self, program: int, inputs: Arrays) -> dict[str, Array]:
        instance = self._instance(program)
        if not self._beside[program]:
            return instance.execute(inputs)
        # What is reduced is huge and not needed afterwards: no copy of it is made.
        outputs = instance.views(inputs)
        found = reduced(outputs, self._reductions)
        return {name: array.copy() if name in outputs else array for name, array in found.items()}


class EngineContext:
    """Calls run one after the other, in the order of `enqueue`, apart from those of other contexts.

    Close it, or use it in `with`: calls under way are finished.
    """

    def __init__(self, instance: EngineInstance, outputs: Where = "host") -> None:
        self._instance = instance
        self._engine = instance._engine
        self._outputs = outputs
        self._device: DeviceWorker | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="penstock-context")
        self._lock = threading.Lock()
        self._open = True
        if outputs == "device":
            self._worker()  # so that an engine that can't is told at once

    def __enter__(self) -> "EngineContext":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def enqueue(self, **arrays: Any) -> "Future[dict[str, Any]]":
        """Start a call; its `result()` is what calling the engine gives, or raises. The arrays must stay as they are.

        Arrays that lie on the engine's GPU (torch tensors, and whatever speaks DLPack) are taken there, behind what
        this thread has enqueued on torch's current stream. Raises InvalidArgument at once, for arrays that do not fit,
        and Unsupported for arrays on a GPU where the engine has none.
        """
        if self._outputs == "device" or any(map(lies_on_gpu, arrays.values())):
            worker = self._worker()
            return self._submit(self._on_device, worker, worker.taken(arrays))
        inputs: Mapping[str, Array] = checked(self._engine.inputs, arrays)
        return self._submit(self._instance.execute, inputs)

    def _worker(self) -> DeviceWorker:
        with self._lock:
            if self._device is None:
                self._device = DeviceWorker(self._engine)
            return self._device

    def _on_device(self, worker: DeviceWorker, call: Any) -> dict[str, Any]:
        answers = worker.execute(call)
        return answers if self._outputs == "device" else dict(call.on_host(answers))

    def _submit(self, work: Callable[..., dict[str, Any]], *given: Any) -> "Future[dict[str, Any]]":
        with self._lock:
            if not self._open:
                raise Unavailable("the context is closed; make another with engine.context()")
            return self._pool.submit(work, *given)

    def close(self) -> None:
        with self._lock:
            self._open = False
        self._pool.shutdown(wait=True)
        self._instance.close()
        if self._device is not None:
            self._device.close()


def _cut(name: str, array: Array, count: int, rows: int) -> Array:
    """The rows that were asked for, of an output that may have several for each of the input."""
    if count == rows:
        return array
    each, rest = divmod(len(array), rows)
    if rest:
        raise ExecutionError(f"output {name!r} has {len(array)} rows for a batch of {rows}: it can't be padded")
    return array[: count * each]
