"""Calls of an engine whose arrays lie on the GPU: routed over its programs like any other, without crossing the host.

What the arrays are made of is the runtime's affair (`runtimes.base.OnDevice`); no framework is imported here. Made by
engine contexts, and used by one call at a time.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from penstock.engine.runtimes.base import DeviceInstance, OnDevice
from penstock.errors import Unsupported

if TYPE_CHECKING:
    from penstock.engine.engine import Engine

# Of dlpack.h: kDLCUDA, kDLCUDAManaged.
_GPU: Final = (2, 13)


def lies_on_gpu(array: Any) -> bool:
    """Whether it says through DLPack that its memory is an NVIDIA GPU's."""
    asked = getattr(array, "__dlpack_device__", None)
    return asked is not None and int(asked()[0]) in _GPU


def rows(array: Any, row: bool) -> Any:
    """An array on a GPU as an instance takes it later, from another thread: `cuda.device_rows.Rows`.

    `row`: it is passed without the batch dimension. Raises InvalidArgument for types that no model takes, and
    Unsupported without the library that can hold it.
    """
    return _rows_type()(array, row=row)


@cache
def _rows_type() -> Any:
    try:
        from penstock.engine.cuda.device_rows import Rows
    except ImportError as error:
        raise Unsupported(f"arrays on a GPU need torch ({error}); pip install torch") from error
    return Rows


@dataclass(frozen=True, slots=True)
class _Shaped:
    """What routing looks at."""

    shape: tuple[int, ...]


class DeviceWorker:
    """An instance of each program that its calls met."""

    def __init__(self, engine: "Engine", shared: "Callable[[int], Any] | None" = None) -> None:
        """`shared`: gives the instance of a program that calls from the host use, too; None: it has its own."""
        self._engine = engine
        self._shared = shared
        self._instances: dict[int, DeviceInstance] = {}
        if engine.manifest.reductions:
            raise Unsupported("an engine that reduces its outputs answers on the host; pass arrays there")

    def taken(self, arrays: Mapping[str, Any]) -> Any:
        """A call, made on the caller's thread. Raises InvalidArgument for arrays that do not fit."""
        return self._first().taken(self._engine.inputs, arrays)

    def execute_rows(
        self, inputs: Mapping[str, Sequence[Any]], parts: Sequence[tuple[int, int] | None], host: bool
    ) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
        """A batch: of each input pieces in the order of the rows, arrays and `Rows`.

        Answers on the host, if `host` wants them, and of each part (its first row and the one behind its last; None:
        everything) those on the device. Parts share the memory of their batch's answers and nothing else.
        """
        shaped: Any = {name: _Shaped(_shape(several)) for name, several in inputs.items()}
        found = self._engine.route(shaped)
        if found.batched and len(found.steps) > 1:
            call = self._first().joined(self._engine.inputs, inputs)
            answers = self.execute(call)
            on_host = dict(call.on_host(answers)) if host else None
        else:
            step = found.steps[0]
            count = step.last - step.first if found.batched else None
            answers, on_host = self._instance(step.program).on_device_rows(
                self._engine.inputs, inputs, count, stays=bool(parts), host=host
            )
        return on_host, _cut(answers, parts)

    def execute(self, call: Any) -> dict[str, Any]:
        """Answers on the device, written when this returns. Raises what calling the engine raises."""
        found = self._engine.route(call.tensors)
        if not found.batched:
            return self._instance(found.steps[0].program).on_device(call, None)
        parts = []
        for step in found.steps:
            rows = call if len(found.steps) == 1 else call.rows(step.first, step.last)
            parts.append(self._instance(step.program).on_device(rows, step.last - step.first))
        return dict(call.joined(parts))

    def close(self) -> None:
        for each in self._instances.values() if self._shared is None else ():
            each.close()
        self._instances.clear()

    def _instance(self, program: int) -> DeviceInstance:
        if program not in self._instances:
            found = self._on_device(program)
            self._instances[program] = self._shared(program) if self._shared else found.device_instance()
        return self._instances[program]

    def _first(self) -> OnDevice:
        for index in sorted(self._engine.available):
            if isinstance(program := self._engine.compiled(index), OnDevice):
                return program
        raise Unsupported(f"engine {self._engine.manifest.name!r} runs on the CPU; pass NumPy arrays")

    def _on_device(self, index: int) -> OnDevice:
        program = self._engine.compiled(index)
        if isinstance(program, OnDevice):
            return program
        engine = self._engine.manifest.name
        raise Unsupported(f"engine {engine!r}: these shapes are run by {program.name} on the CPU; pass NumPy arrays")


def _shape(pieces: Sequence[Any]) -> tuple[int, ...]:
    """Of all of them one after the other."""
    shape = tuple(pieces[0].shape)
    return shape if len(pieces) == 1 else (sum(piece.shape[0] for piece in pieces), *shape[1:])


def _cut(answers: Mapping[str, Any], parts: Sequence[tuple[int, int] | None]) -> list[dict[str, Any]]:
    return [
        dict(answers) if part is None else {name: tensor[part[0] : part[1]] for name, tensor in answers.items()}
        for part in parts
    ]
