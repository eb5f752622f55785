"""The runtime `cuda`: a lowered form on one NVIDIA GPU, each bucket as one CUDA graph of few kernels.

`compile` takes a form's file, and tunes where the tactic says so: what was chosen lies beside the form, so that a
second compilation takes it over. `reopen` takes an artifact and compiles nothing: choices and machine code are inside.
Programs of one engine share the weights on the device. TF32 is used only where the tactic says so.

A program at one bucket takes its shapes alone; compiled without shapes it holds every bucket and fits any number of
rows to them, as the accuracy gate wants it.
"""

import gc
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penstock.engine import gpus
from penstock.engine.cuda import artifact as artifacts
from penstock.engine.cuda import form as forms
from penstock.engine.cuda import tuning
from penstock.engine.cuda.buckets import Bucket, Model
from penstock.engine.cuda.ceilings import measured
from penstock.engine.cuda.contexts import Context, GraphContext, InputMemory, Phases, phases
from penstock.engine.cuda.device_arrays import DeviceCall, DeviceContext, taken
from penstock.engine.cuda.device_rows import Pieces, joined, lay
from penstock.engine.cuda.executor import PRECISIONS
from penstock.engine.cuda.kernels.driver import OUT_OF_MEMORY
from penstock.engine.cuda.kernels.replay import Player
from penstock.engine.cuda.lanes import beside
from penstock.engine.cuda.timeline import Span, timeline
from penstock.engine.lowered import LoweredGraph
from penstock.engine.plan import CUDA, PLAIN_STEPS, TUNED_STEPS, Region, Shapes, Tactic
from penstock.engine.roofline import Ceilings
from penstock.engine.routing import beyond_rows
from penstock.engine.runtimes.base import Array, Arrays, DeviceMemory, Memory, Shelf, checked, library_message, padded
from penstock.errors import (
    ExecutionError,
    InvalidArgument,
    ModelLoadError,
    PenstockError,
    ResourceExhausted,
    Unavailable,
)
from penstock.tensors import TensorSpec

_models: "weakref.WeakValueDictionary[tuple[Path, int, torch.device], Model]" = weakref.WeakValueDictionary()


class CudaRuntime:
    """One or several buckets of a form in one precision."""

    name = CUDA

    def __init__(
        self, title: str, tactic: Tactic, buckets: Sequence[Bucket], output_names: tuple[str, ...] = ()
    ) -> None:
        self._title, self._tactic = title, tactic
        self._buckets: tuple[Bucket, ...] = tuple(sorted(buckets, key=lambda each: each.rows))
        graphs = [each.executor.graph for each in self._buckets]
        self.inputs = tuple(_spec([graph.inputs[at] for graph in graphs]) for at in range(len(graphs[0].inputs)))
        outputs = [_outputs(graph) for graph in graphs]
        self.outputs = tuple(_spec([each[at] for each in outputs]) for at in range(len(outputs[0])))
        if output_names and output_names != tuple(spec.name for spec in self.outputs):
            raise ModelLoadError(f"{title}: a program answers {self.outputs}, expected {', '.join(output_names)}")
        self._idle: deque[CudaInstance] = deque()
        self._open = True

    @classmethod
    def compile(
        cls,
        path: Path,
        tactic: Tactic,
        *,
        shapes: Shapes | None,
        instances: int,
        threads: int | None,
        device: torch.device | None = None,
    ) -> "CudaRuntime":
        """A form's file at the shapes of one bucket, or at all of them. Instances are streams; threads mean nothing."""
        del instances, threads
        if tactic.options not in ((), PLAIN_STEPS, TUNED_STEPS):
            raise InvalidArgument(f"{path.name}: options {dict(tactic.options)}, expected steps=plain or steps=tuned")
        with _loading(path.name):
            model = _model(path, device or _device(path.name))
            known = tuning.Tuning(path) if tactic.options == TUNED_STEPS else None
            buckets: list[Bucket] = []
            for each in model.form.at(shapes):
                # Of several buckets at once none is tuned: that would take as many times as long as was said.
                search = shapes is not None
                choices = known.choices(model, each, tactic.precision, search=search) if known else {}
                buckets.append(Bucket(model, each, tactic.precision, choices, early_launch=known is not None))
                tuning.build_early(buckets[-1].executor)
            if known and shapes is not None:
                tuning.go_on(path, model.form, tactic.precision)
            return cls(path.name, tactic, buckets)

    @staticmethod
    def prepare(tactic: Tactic, path: Path | None, device: torch.device | None = None) -> None:
        """What a process can do before it is asked for anything: the GPU's context, and for a form that is there and
        will be tuned, whoever compiles.
        """
        if device is None and not torch.cuda.is_available():
            return
        where = device or _device(tactic.name)
        torch.zeros(1, device=where)
        if tactic.options == TUNED_STEPS and path is not None:
            tuning.prepare(path, where, tactic.precision, lambda: _model(path, where))

    @classmethod
    def reopen(
        cls,
        artifact: memoryview,
        tactic: Tactic,
        output_names: tuple[str, ...],
        name: str,
        *,
        instances: int,
        threads: int | None,
        shelf: Shelf | None,
        device: torch.device | None = None,
    ) -> "CudaRuntime":
        """What `export` gave; the form comes from the shelf, once for all programs."""
        del instances, threads
        if shelf is None:
            raise ModelLoadError(f"{name}: a program for a GPU needs its form beside it")
        found = artifacts.from_bytes(artifact, name)
        if found.precision != tactic.precision or found.precision not in PRECISIONS:
            raise ModelLoadError(f"{name}: a program in {found.precision:.20}, its tactic is {tactic.name}")
        with _loading(name):
            where = device or _device(name)
            key = f"cuda {tactic.form} {where}"
            if key not in shelf.kept:
                shelf.kept[key] = Model(forms.read(shelf.form(tactic.form), name), where)
            model: Model = shelf.kept[key]
            (prepared,) = model.form.at(found.shapes)
            lanes = beside(prepared.graph, frozenset(found.side))
            bucket = Bucket(
                model, prepared, found.precision, found.choices, early_launch=found.early_launch, lanes=lanes
            )
            if found.kernels:
                bucket.executor.launcher = Player(found.kernels)
            return cls(name, tactic, [bucket], output_names)

    def export(self) -> bytes:
        """Choices and machine code of the one bucket it was compiled for."""
        self._check_open()
        if len(self._buckets) != 1:
            raise ExecutionError(
                f"{self._title}: expected a program of one bucket to export, it has {len(self._buckets)}"
            )
        return artifacts.to_bytes(self._buckets[0].sealed())

    def regions(self, inputs: Arrays, repeats: int = 20) -> tuple[Region, ...]:
        """Steps with the time each takes alone in a CUDA graph, after itself: the cache is as warm as it gets."""
        del repeats  # the tuner's timer knows how many are enough
        self._check_open()
        with _running(self._title):
            return self._fitting(inputs).regions(self._tactic.precision)

    def ceilings(self) -> Ceilings:
        """What this GPU could do in the program's precision, measured now or earlier in this process."""
        self._check_open()
        with _running(self._title):
            return measured(self._buckets[0].executor.device, self._tactic.precision)

    def phases(self, inputs: Arrays, calls: int) -> Phases:
        """Copying in, computing and copying out, timed apart by the GPU's clock."""
        self._check_open()
        with _running(self._title):
            return phases(self._fitting(inputs).executor, dict(inputs), calls)

    def timeline(self, inputs: Arrays, contexts: int, calls: int) -> list[Span]:
        """When each part of the calls of several contexts ran, on one clock."""
        self._check_open()
        with _running(self._title):
            bucket = self._fitting(inputs)
            return timeline(bucket.executor, dict(inputs), contexts, calls, bucket.turns())

    def device_memory(self) -> DeviceMemory:
        weights = {id(tensor): tensor.nbytes for bucket in self._buckets for tensor in bucket.weights.values()}
        return DeviceMemory(
            sum(weights.values()),
            sum(bucket.prepared_bytes for bucket in self._buckets),
            sum(bucket.context_bytes for bucket in self._buckets),
        )

    def memory(self, sizes: Mapping[str, int]) -> InputMemory:
        self._check_open()
        with _running(self._title):
            return InputMemory(sizes, self._buckets[0].executor.device)

    def instance(self, memory: Memory | None = None, *, priority: int = 0) -> "CudaInstance":
        buckets = self._buckets  # once: closing takes them away
        if not buckets:
            self._check_open()
        if memory is not None and not isinstance(memory, InputMemory):
            raise InvalidArgument(f"{self._title}: expected memory that this runtime made")
        return CudaInstance(self._title, buckets, memory, priority=priority)

    def device_instance(self) -> "CudaInstance":
        """A worker for calls with tensors on the device; of a program of one bucket."""
        self._check_open()
        return CudaInstance(self._title, self._buckets, on_device=True)

    def taken(self, specs: Sequence[TensorSpec], arrays: Mapping[str, Any]) -> DeviceCall:
        """Inputs of a call of the engine that this is a program of. Raises InvalidArgument."""
        self._check_open()
        return taken(specs, arrays, self._buckets[0].executor.device)

    def joined(self, specs: Sequence[TensorSpec], pieces: Pieces) -> DeviceCall:
        """Inputs of a batch of the engine that this is a program of."""
        self._check_open()
        with _running(self._title):
            return joined(specs, pieces, self._buckets[0].executor.device)

    def __call__(self, **arrays: Any) -> dict[str, Array]:
        inputs = checked(self.inputs, arrays)
        self._check_open()
        try:
            instance = self._idle.pop()
        except IndexError:
            instance = self.instance()
        try:
            return instance.execute(inputs)
        finally:
            self._idle.append(instance)
            if not self._open:  # perhaps since this call began: nothing may be kept then
                self._idle.clear()

    def close(self) -> None:
        """What calls under way need goes with the last of them."""
        self._open = False
        self._idle.clear()
        self._buckets = ()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def _fitting(self, inputs: Arrays) -> Bucket:
        shapes = {name: array.shape for name, array in inputs.items()}
        for bucket in self._buckets:
            if bucket.shapes == shapes:
                return bucket
        raise InvalidArgument(f"{self._title}: shapes {shapes} are not prepared")

    def _check_open(self) -> None:
        if not self._open:
            raise Unavailable(f"{self._title} is closed; load it again")


class CudaInstance:
    """A worker's handle: a context of each bucket that it met, all of which read the same memory."""

    def __init__(
        self,
        title: str,
        buckets: Sequence[Bucket],
        memory: InputMemory | None = None,
        *,
        priority: int = 0,
        on_device: bool = False,
    ) -> None:
        """`on_device`: calls will come with tensors on the device."""
        self._title, self._priority = title, priority
        self._memory = memory
        self._buckets = {_key(bucket.shapes): bucket for bucket in buckets}
        self._contexts: dict[tuple[Any, ...], Context] = {}
        self._device_context: DeviceContext | None = None
        self._closed = False
        # Capturing takes seconds where a library searches: not in the first call.
        if len(buckets) == 1 and not on_device:
            self._context(_key(buckets[0].shapes))

    def input_memory(self) -> Mapping[str, Array]:
        """Bytes by input; a batch at the beginning of it, of a bucket's rows, is not copied by the host."""
        return self._own_memory().bytes

    def _own_memory(self) -> InputMemory:
        if self._memory is None:
            with _running(self._title):
                self._memory = InputMemory.of([each.executor for each in self._buckets.values()])
        return self._memory

    def execute(self, inputs: Arrays) -> dict[str, Array]:
        shapes = {name: array.shape for name, array in inputs.items()}
        if _key(shapes) in self._buckets:
            return {name: array.copy() for name, array in self.views(inputs).items()}
        return self._by_rows(inputs)

    def views(self, inputs: Arrays) -> dict[str, Array]:
        """The context's own pinned memory, which the next call overwrites."""
        key = _key({name: array.shape for name, array in inputs.items()})
        if key not in self._buckets:
            return self._by_rows(inputs)
        context = self._context(key)
        with _running(self._title):
            return context.run(dict(inputs))

    def on_device(self, call: DeviceCall, rows: int | None) -> dict[str, torch.Tensor]:
        """Of this instance's one bucket: up to its rows, from tensors on the device; answers stay there.

        rows  None: everything as it is, for a bucket without rows.
        """
        with _running(self._title):
            return self._on_device_context().run(call, rows)

    def on_device_rows(
        self, specs: Sequence[TensorSpec], pieces: Pieces, rows: int | None, *, stays: bool, host: bool
    ) -> tuple[dict[str, torch.Tensor], dict[str, Array] | None]:
        """As `on_device`, of rows that lie on the host and on the device; answers as they are wanted."""
        with _running(self._title):
            return self._on_device_context().run_laid(partial(lay, specs, pieces), rows, stays=stays, host=host)

    def _on_device_context(self) -> DeviceContext:
        if self._closed:
            raise Unavailable(f"{self._title} is closed; load it again")
        if self._device_context is None:
            (bucket,) = self._buckets.values()
            beside = self._contexts.get(_key(bucket.shapes))
            self._device_context = DeviceContext(bucket.executor, beside if isinstance(beside, GraphContext) else None)
        return self._device_context

    def _context(self, key: tuple[Any, ...]) -> Context:
        if key not in self._contexts:
            memory = self._own_memory()
            with _running(self._title):
                self._contexts[key] = self._buckets[key].context(memory, self._priority)
        return self._contexts[key]

    def close(self) -> None:
        self._closed = True
        self._contexts.clear()
        self._device_context = None
        self._buckets = {}

    def _by_rows(self, inputs: Arrays) -> dict[str, Array]:
        """Of another number of rows than any bucket has: padded with the first row, or in pieces.

        For whoever knows that axis 0 is the batch.
        """
        if self._closed:
            raise Unavailable(f"{self._title} is closed; load it again")
        counts = {array.shape[0] if array.ndim else 0 for array in inputs.values()}
        rows = counts.pop() if len(counts) == 1 else 0
        shapes = {name: array.shape for name, array in inputs.items()}
        able = [
            bucket
            for bucket in self._buckets.values()
            if rows and bucket.has_rows and beyond_rows(bucket.shapes) == beyond_rows(shapes)
        ]
        if not able:
            raise InvalidArgument(
                f"{self._title}: shapes { {name: array.shape for name, array in inputs.items()} } are not prepared"
            )
        pieces: list[dict[str, Array]] = []
        at = 0
        while at < rows:
            bucket = next((each for each in able if each.rows >= rows - at), able[-1])
            taken = min(bucket.rows, rows - at)
            piece = {name: padded(array[at : at + taken], bucket.rows) for name, array in inputs.items()}
            found = self.views(piece)
            pieces.append({name: array[: len(array) * taken // bucket.rows].copy() for name, array in found.items()})
            at += taken
        return {name: np.concatenate([each[name] for each in pieces]) for name in pieces[0]}


def _device(name: str) -> torch.device:
    if not torch.cuda.is_available():
        raise ModelLoadError(f"{name}: torch {torch.__version__} finds no NVIDIA GPU here; build for the CPU instead")
    asked, numbers = gpus.chosen(), range(torch.cuda.device_count())
    if asked not in {f"cuda:{number}" for number in numbers}:
        raise ModelLoadError(f"{name}: {gpus.DEVICE}={asked}, expected cuda:0 to cuda:{numbers[-1]}")
    device = torch.device(asked)
    torch.cuda.set_device(device)
    return device


def _model(path: Path, device: torch.device) -> Model:
    """The form of a file on a device, once for all programs that are compiled from it while one of them lives."""
    key = path.resolve(), path.stat().st_mtime_ns, device
    found = _models.get(key)
    if found is None:
        found = _models[key] = Model(forms.read(path.read_bytes(), path.name), device)
    return found


@contextmanager
def _loading(name: str) -> Iterator[None]:
    short = ""
    try:
        yield
    except PenstockError:
        raise
    except Exception as error:  # a file is to be trusted in nothing, and libraries raise anything
        if not _out_of_memory(error):
            raise ModelLoadError(f"{name} can't be loaded on the GPU: {library_message(error, Path(name))}") from error
        short = _first_line(error)
    if short:
        _give_back()
        raise ResourceExhausted(f"{name}: the GPU has no memory left for the weights ({short})")


@contextmanager
def _running(title: str) -> Iterator[None]:
    short = ""
    try:
        yield
    except PenstockError:
        raise
    except Exception as error:  # whatever a kernel, the driver or torch raises
        if not _out_of_memory(error):
            raise ExecutionError(f"{title}: {library_message(error, Path(title))}") from error
        short = _first_line(error)
    if short:
        _give_back()
        raise ResourceExhausted(
            f"{title}: the GPU has no memory left for another context, or for answers that stay there ({short}); "
            "serve fewer instances or smaller buckets, or keep fewer tensors at a time"
        )


def _out_of_memory(error: Exception) -> bool:
    """Of the device, or of the memory that is pinned for it."""
    known = isinstance(error, torch.cuda.OutOfMemoryError) or getattr(error, "status", 0) == OUT_OF_MEMORY
    return known or (isinstance(error, RuntimeError) and "out of memory" in str(error))


def _give_back() -> None:
    """Outside of `except`: what failed is held by the exception's frames until then."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200] or type(error).__name__


def _key(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Any, ...]:
    return tuple(sorted(shapes.items()))


def _outputs(graph: LoweredGraph) -> list[TensorSpec]:
    return [TensorSpec(each.name, graph.stored(each.value).datatype, each.shape) for each in graph.outputs]


def _spec(several: Sequence[Any]) -> TensorSpec:
    """Of the same input or output in every bucket: sizes that differ are free."""
    first = several[0]
    shape = tuple(
        size if all(each.shape[axis] == size for each in several) else -1 for axis, size in enumerate(first.shape)
    )
    return TensorSpec(first.name, first.datatype, shape)
