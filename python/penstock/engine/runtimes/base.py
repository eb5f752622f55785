"""What a runtime is: one loaded model, weights held once, executed from any number of instances.

Promises of every runtime: arithmetic in FP32 on the CPU unless a tactic says otherwise (a faster precision is a build's
decision, never a default); arrays that come back belong to the caller and never share memory with a later call; arrays
that went in are not kept. Called by backends for serving, through `penstock.load` by users, and by the builder.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from penstock.engine.plan import Region
from penstock.engine.roofline import Ceilings
from penstock.errors import InvalidArgument
from penstock.tensors import TensorSpec, datatype_of

Array = NDArray[Any]
Arrays = Mapping[str, Array]

_MESSAGE_CHARS = 500  # a library's message is quoted; some quote whole graphs


@dataclass(frozen=True, slots=True)
class Shelf:
    """What the programs of one engine share while they are loaded."""

    form: Callable[[str], bytes | memoryview]
    """A form's file by its name; checked as it is read."""

    kept: dict[str, Any] = field(default_factory=dict)
    """What a runtime made of it once for all of them, under a name of its own."""


class RuntimeInstance(Protocol):
    """One worker's handle. Used by one call at a time; the inputs are trusted to fit the signature."""

    def execute(self, inputs: Arrays) -> dict[str, Array]:
        """Run once; raises ExecutionError when the library fails."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class Runtime(Protocol):
    """A loaded model. Calling it is safe from any thread."""

    @property
    def name(self) -> str:
        """The library: `onnxruntime`, `openvino`."""
        ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    def instance(self) -> RuntimeInstance:
        """A new worker's handle; as many as were announced at load run at once without sharing threads."""
        ...

    def __call__(self, **arrays: Any) -> dict[str, Array]:
        """Check the arrays against the signature and run; raises InvalidArgument or ExecutionError."""
        ...

    def close(self) -> None:
        """Give the weights back. Later calls raise Unavailable."""
        ...


class CompiledInstance(RuntimeInstance, Protocol):
    """One worker's handle of a runtime that was made from a tactic."""

    def views(self, inputs: Arrays) -> dict[str, Array]:
        """As `execute`, but what comes back may be the library's own memory, which the next call overwrites.

        For callers that make something smaller of an output at once.
        """
        ...


class Memory(Protocol):
    """Where inputs of one instance lie. Whoever holds it may write there while the instance does not run."""

    @property
    def bytes(self) -> Mapping[str, Array]:
        """By input, uint8 in one dimension. A batch at the beginning of it is not copied by the host any more."""
        ...


@runtime_checkable
class Lending(Protocol):
    """A runtime that copies inputs to a device, from memory that it wants to know beforehand."""

    def memory(self, sizes: Mapping[str, int]) -> Memory:
        """As many bytes by input. Raises ResourceExhausted."""
        ...

    def instance(self, memory: Memory | None = None, *, priority: int = 0) -> CompiledInstance:
        """With this memory, which several instances of one worker may share; None: its own."""
        ...


class DeviceInstance(Protocol):
    """A worker whose calls have their arrays on a device."""

    def on_device(self, call: Any, rows: int | None) -> dict[str, Any]:
        """Rows of a `OnDevice.taken` call, up to the program's own; None: everything. Answers stay there."""
        ...

    def on_device_rows(
        self,
        specs: Sequence[TensorSpec],
        pieces: Mapping[str, Sequence[Any]],
        rows: int | None,
        *,
        stays: bool,
        host: bool,
    ) -> tuple[dict[str, Any], dict[str, Array] | None]:
        """As many rows in pieces, in their order. Answers that stay there, if any are wanted, and those on the host."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class OnDevice(Protocol):
    """A program that takes arrays that are on its device already. What they are made of is the runtime's affair."""

    def taken(self, specs: Sequence[TensorSpec], arrays: Mapping[str, Any]) -> Any:
        """A call, on the caller's thread. Raises InvalidArgument."""
        ...

    def joined(self, specs: Sequence[TensorSpec], pieces: Mapping[str, Sequence[Any]]) -> Any:
        """As `taken`, of what an instance runs together: of each input pieces in the order of the rows."""
        ...

    def device_instance(self) -> DeviceInstance: ...


class Compiled(Runtime, Protocol):
    """A runtime that can be sealed: what `penstock.engine.runtimes.compile` gives."""

    def instance(self, *, priority: int = 0) -> CompiledInstance:
        """`priority` is for devices with streams, as CUDA counts: 0 is the usual one, negative ones go first."""
        ...

    def export(self) -> bytes:
        """An artifact for `penstock.engine.runtimes.reopen`, good for this library version and this processor."""
        ...

    def regions(self, inputs: Arrays, repeats: int = 20) -> tuple[Region, ...]:
        """What the library executes for these inputs, by its own profile."""
        ...


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes on a device that a program takes."""

    weights: int
    """Once for all programs of an engine."""

    program: int
    """What its kernels prepared of them, once for all contexts."""

    context: int
    """Values between the steps and captured graphs, for each context."""

    @property
    def total(self) -> int:
        """With one context, and no other program."""
        return self.weights + self.program + self.context


@runtime_checkable
class InDeviceMemory(Protocol):
    """A runtime whose programs lie in the memory of a device."""

    def device_memory(self) -> DeviceMemory:
        """By the device's own count, of the contexts that were made; an estimate before there is one."""
        ...

    def ceilings(self) -> Ceilings:
        """What the device could do in the program's precision."""
        ...


def address(array: Array) -> int:
    """Where its first element lies."""
    return int(array.__array_interface__["data"][0])


def padded(array: Array, rows: int) -> Array:
    """More rows, all like the first: numbers that the model takes, whatever they mean."""
    missing = rows - len(array)
    return array if missing == 0 else np.concatenate([array, np.repeat(array[:1], missing, axis=0)])


def checked(specs: Sequence[TensorSpec], arrays: Mapping[str, Any]) -> dict[str, Array]:
    """The arrays as NumPy arrays once names, element types and shapes fit; raises InvalidArgument otherwise."""
    expected = {spec.name: spec for spec in specs}
    for name in arrays:
        if name not in expected:
            raise InvalidArgument(f"unexpected input {name!r}, the model has {', '.join(map(str, specs))}")
    found: dict[str, Array] = {}
    for spec in specs:
        if spec.name not in arrays:
            if spec.optional:
                continue
            raise InvalidArgument(f"input {spec.name!r} is missing, the model has {', '.join(map(str, specs))}")
        array = np.asarray(arrays[spec.name])
        wanted = spec.dtype
        if array.dtype != wanted:
            # Names of types are slow to ask for, and nearly every array is of the right one.
            if array.dtype.kind in "SU" and spec.datatype == "BYTES":
                array = array.astype(object)
            elif array.dtype.name == "bfloat16":
                array = array.view(np.uint16)
        if array.dtype != wanted:
            raise InvalidArgument(f"input {spec.name!r} is {spec.datatype}, got an array of {_kind(array)}; convert it")
        if not spec.accepts(array.shape):
            raise InvalidArgument(f"input {spec.name!r} has shape {list(spec.shape)}, got {list(array.shape)}")
        found[spec.name] = array
    return found


def _kind(array: Array) -> str:
    try:
        return datatype_of(array.dtype)
    except ValueError:
        return array.dtype.name


def library_message(error: BaseException, path: Path) -> str:
    """What a library said, fit for a client: one line, without host or build paths, of bounded length."""
    text = str(error)
    for place in {str(path), str(path.resolve())}:
        text = text.replace(place, path.name)
    for place in {str(path.parent), str(path.parent.resolve())} - {".", "/"}:
        text = text.replace(place, "")
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"(Exception from|Check .* failed at) \S+:\d+:", "", text)
    text = re.sub(r"(?<![\w.])/(?:[\w.+-]+/)+[\w.+-]+(?::\d+)?", "", text)
    text = " ".join(text.split())
    return text if len(text) <= _MESSAGE_CHARS else text[:_MESSAGE_CHARS] + " ..."
