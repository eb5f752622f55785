"""A bare runtime as a backend: one model file, FP32 on the CPU, weights shared by all instances."""

from typing import Final

from penstock.backends.base import Instance
from penstock.engine import Runtime
from penstock.tensors import TensorSpec

# Triton's platform strings where it has one; elsewhere the library's own name.
_PLATFORMS: Final = {"onnxruntime": "onnxruntime_onnx"}


class RuntimeBackend:
    """Wraps a loaded runtime and owns it from then on."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.name = runtime.name
        self.platform = _PLATFORMS.get(runtime.name, runtime.name)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._runtime.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._runtime.outputs

    @property
    def fresh_outputs(self) -> bool:
        """What every runtime promises (`engine/runtimes/base.py`)."""
        return True

    def instance(self, index: int, count: int, threads: int | None) -> Instance:
        """Threads and streams were divided when the model was loaded (`engine.load(instances=, threads=)`)."""
        return self._runtime.instance()

    def close(self) -> None:
        self._runtime.close()


class BorrowedRuntimeBackend(RuntimeBackend):
    """Wraps a runtime that stays its maker's: closing the backend leaves it usable."""

    def close(self) -> None:
        """The runtime is not ours to close."""
