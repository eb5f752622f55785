"""The contract between a model and whoever serves it.

A backend is one loaded model version. Instances are its workers: each is used by one thread at a time, several run at
once, and they share whatever the backend can share. The serve layer makes instances, calls `execute` once per batch
and closes them; it checks shapes before and after, so that an instance can trust its inputs.
"""

import re
from collections.abc import Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from penstock import limits
from penstock.errors import InvalidArgument
from penstock.tensors import TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]
else:
    Array = Any  # NumPy is imported by whoever makes arrays, not for their annotations

# Names become paths, metric labels and URL parts: nothing outside this set may be in one.
_NAME = re.compile(r"[A-Za-z0-9._-]+")


class Instance(Protocol):
    """One worker of a backend."""

    def execute(self, inputs: dict[str, Array]) -> Mapping[str, Array]:
        """Run one batch. Outputs may be views of the inputs or of anything else: the caller looks out for aliases."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class Lender(Protocol):
    """An instance that has memory of its own for its inputs, such as what a GPU copies from."""

    def input_memory(self) -> Mapping[str, Array]:
        """By input, writable bytes (uint8, one dimension); asked for once, before the first batch.

        A batch that fits is laid out at the beginning, and `execute` gets views of it; any other comes elsewhere. What
        lies there may be overwritten once `execute` has returned: nothing that it returns may share this memory.
        """
        ...


def input_memory(instance: "Instance") -> Mapping[str, Array]:
    """What an instance lends; empty for most."""
    return instance.input_memory() if isinstance(instance, Lender) else {}


@runtime_checkable
class DeviceInstance(Protocol):
    """An instance that takes rows where they lie on a GPU, and can leave its answers there."""

    def execute_on_device(
        self, inputs: Mapping[str, Sequence[Any]], parts: Sequence[tuple[int, int] | None], host: bool
    ) -> tuple[Mapping[str, Array] | None, list[Mapping[str, Any]]]:
        """Run one batch: of each input pieces in the order of the rows, arrays and what `device_calls.rows` gave.

        Answers on the host if `host` wants them, else None; and of each part, its first row and the one behind its
        last (None: everything), tensors on the device: written, and nobody else's.
        """
        ...


@runtime_checkable
class DeviceBackend(Protocol):
    """A backend that knows of GPUs."""

    @property
    def answers_on_device(self) -> bool:
        """Whether all its instances are such as `DeviceInstance`, for every batch."""
        ...


def answers_on_device(backend: "Backend") -> bool:
    """Whether answers of a backend can stay on a GPU; of most they can't."""
    return isinstance(backend, DeviceBackend) and backend.answers_on_device


class Concurrent(Protocol):
    """What answers many requests at once on the event loop of a server, rather than one batch after another.

    `request` and `loop` belong to the serve layer: `_core.Request` and `serve.event_loop.EventLoop`.
    """

    @property
    def max_concurrency(self) -> int:
        """Requests that may be under way."""
        ...

    def begin(self, request: Any, loop: Any) -> Coroutine[Any, Any, None]:
        """The coroutine that answers one request; called on the loop."""
        ...

    def statistics(self) -> Any:
        """What its requests did so far; from any thread."""
        ...


class Backend(Protocol):
    """One loaded model version."""

    @property
    def name(self) -> str:
        """The backend as configurations name it: `onnxruntime`, `openvino`, `python`."""
        ...

    @property
    def platform(self) -> str:
        """What model metadata reports: `onnxruntime_onnx`."""
        ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Full shapes as the library sees them: the batch dimension is included where there is one."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def fresh_outputs(self) -> bool:
        """Whether arrays that `execute` returned are never touched again, so that they can be sent without a copy."""
        ...

    def instance(self, index: int, count: int, threads: int | None) -> Instance:
        """Worker `index` of `count`, wishing for `threads` threads (None: a fair share).

        A library whose threads were fixed when the model was loaded may ignore the wish.
        """
        ...

    def close(self) -> None:
        """Give everything back. Called after every instance was closed."""
        ...


def check_model_name(name: str) -> str:
    """The name itself when it is fit to be a directory, a label and a part of a URL; raises InvalidArgument."""
    if not _NAME.fullmatch(name) or name in (".", "..") or len(name) > limits.NAME_BYTES:
        shown = ascii(name[:64])
        raise InvalidArgument(
            f"model name {shown} is not allowed: expected 1 to {limits.NAME_BYTES} of "
            "A-Z a-z 0-9 . _ - and not '.' or '..'"
        )
    return name
