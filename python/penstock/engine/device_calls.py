"""Calls of an engine whose arrays lie on the GPU: routed over its programs like any other, without crossing the host.

What the arrays are made of is the runtime's affair (`runtimes.base.OnDevice`); no framework is imported here. Made by
engine contexts, and used by one call at a time.
"""

from collections.abc import Mapping
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


class DeviceWorker:
    """An instance of each program that its calls met."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._instances: dict[int, DeviceInstance] = {}
        if engine.manifest.reductions:
            raise Unsupported("an engine that reduces its outputs answers on the host; pass arrays there")

    def taken(self, arrays: Mapping[str, Any]) -> Any:
        """A call, made on the caller's thread. Raises InvalidArgument for arrays that do not fit."""
        return self._first().taken(self._engine.inputs, arrays)

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
        for each in self._instances.values():
            each.close()
        self._instances.clear()

    def _instance(self, program: int) -> DeviceInstance:
        if program not in self._instances:
            self._instances[program] = self._on_device(program).device_instance()
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
