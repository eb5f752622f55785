"""OpenVINO on the CPU, FP32. One compiled model for all instances, with a stream and an infer request for each.

FP32 is asked for by name: on CPUs with BF16 instructions the library uses them by default, and it may quantise the
activations of compressed weights. Threads are divided by the library: N streams of INFERENCE_NUM_THREADS / N threads
each. Threads are not pinned, since the data plane and other models run on the same cores.

The library's CPU kernels compute INT64 and UINT64 in 32 bits, silently, and FP64 as FP32. Inputs beyond 32 bits
are therefore refused; a model that makes such numbers inside, or needs FP64, belongs on ONNX Runtime.
"""

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from penstock.engine import cores
from penstock.engine.runtimes import onnx_file
from penstock.engine.runtimes.base import Array, Arrays, checked, library_message
from penstock.errors import ExecutionError, InvalidArgument, ModelLoadError, Unavailable
from penstock.tensors import TensorSpec

# Element types as OpenVINO names them. Strings are left out: its CPU plug-in has next to no operator for them.
_DATATYPES = {
    "boolean": "BOOL",
    "u8": "UINT8",
    "u16": "UINT16",
    "u32": "UINT32",
    "u64": "UINT64",
    "i8": "INT8",
    "i16": "INT16",
    "i32": "INT32",
    "i64": "INT64",
    "f16": "FP16",
    "bf16": "BF16",
    "f32": "FP32",
    "f64": "FP64",
}

_INT32 = np.iinfo(np.int32)

# The binding sets up its NumPy conversion at the first use, and hangs the process when two threads are first at once:
# one waits for the other's set-up with the GIL that the other needs. A module is imported by one thread.
openvino.Tensor(np.zeros(1, np.float32)).data  # noqa: B018  the use is the point


class OpenVinoRuntime:
    """A compiled model and its signature. Make it with `load`."""

    name = "openvino"

    def __init__(self, model: openvino.CompiledModel, path: Path, output_names: tuple[str, ...]) -> None:
        self._model: openvino.CompiledModel | None = model
        self._path = path
        self.inputs = tuple(_spec(port, port.any_name, path) for port in model.inputs)
        names = _output_names(model, output_names)
        self.outputs = tuple(_spec(port, name, path) for port, name in zip(model.outputs, names, strict=True))
        # Requests for calls from users' threads: taken and put back, made when none is idle. deque is thread-safe.
        self._idle: deque[OpenVinoInstance] = deque()

    @classmethod
    def load(cls, path: Path, *, instances: int, threads: int | None) -> "OpenVinoRuntime":
        # An ONNX output may lose its name among those of the nodes folded into it, so the file is asked.
        output_names = onnx_file.inspect(path).outputs if path.suffix == ".onnx" else ()
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "EXECUTION_MODE_HINT": "ACCURACY",
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": instances,
            "INFERENCE_NUM_THREADS": instances * cores.per_instance(instances, threads),
            "ENABLE_CPU_PINNING": False,
        }
        try:
            core = openvino.Core()
            model = core.compile_model(core.read_model(str(path)), "CPU", settings)
        except Exception as error:  # the library raises RuntimeError and its own kinds
            raise ModelLoadError(f"{path.name} can't be loaded by OpenVINO: {library_message(error, path)}") from error
        return cls(model, path, output_names)

    def instance(self) -> "OpenVinoInstance":
        if self._model is None:
            raise Unavailable(f"{self._path.name} is closed; load it again")
        return OpenVinoInstance(self._model.create_infer_request(), self.inputs, self.outputs, self._path)

    def __call__(self, **arrays: Any) -> dict[str, Array]:
        inputs = checked(self.inputs, arrays)
        if self._model is None:
            raise Unavailable(f"{self._path.name} is closed; load it again")
        try:
            instance = self._idle.pop()
        except IndexError:
            instance = self.instance()
        try:
            return instance.execute(inputs)
        finally:
            self._idle.append(instance)

    def close(self) -> None:
        self._idle.clear()
        self._model = None


class OpenVinoInstance:
    """One infer request: its own activations, the shared weights."""

    def __init__(
        self,
        request: openvino.InferRequest,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        path: Path,
    ) -> None:
        self._request: openvino.InferRequest | None = request
        self._inputs = tuple(
            (spec.name, request.get_input_tensor(index), spec.dtype) for index, spec in enumerate(inputs)
        )
        self._outputs = tuple((spec.name, index, spec.dtype) for index, spec in enumerate(outputs))
        self._wide = tuple(spec.name for spec in inputs if spec.datatype in ("INT64", "UINT64"))
        self._path = path

    def execute(self, inputs: Arrays) -> dict[str, Array]:
        request = self._request
        if request is None:
            raise Unavailable(f"{self._path.name} is closed; load it again")
        for name in self._wide:
            _check_range(name, inputs[name])
        try:
            for name, tensor, dtype in self._inputs:
                array = inputs[name]
                if tuple(tensor.shape) != array.shape:
                    tensor.shape = array.shape
                np.copyto(tensor.data.view(dtype), array)
            request.infer(share_outputs=True)
            # Views, for types that the library knows by another name (BF16); copies, as promised above.
            return {
                name: request.get_output_tensor(index).data.view(dtype).copy() for name, index, dtype in self._outputs
            }
        except Exception as error:
            raise ExecutionError(f"OpenVINO failed: {library_message(error, self._path)}") from error

    def close(self) -> None:
        self._request = None
        self._inputs = ()


def _check_range(name: str, array: Array) -> None:
    if array.size and (array.min() < _INT32.min or array.max() > _INT32.max):
        raise InvalidArgument(
            f"input {name!r} holds integers beyond 32 bits, which OpenVINO can't compute with; use runtime onnxruntime"
        )


def _spec(port: Any, name: str, path: Path) -> TensorSpec:
    kind = port.element_type.get_type_name()
    datatype = _DATATYPES.get(kind)
    if datatype is None:
        raise ModelLoadError(
            f"{path.name}: {name!r} has element type {kind}, which is not served through OpenVINO; use "
            "runtime onnxruntime"
        )
    shape = port.partial_shape
    if shape.rank.is_dynamic:
        raise ModelLoadError(f"{path.name}: {name!r} has no fixed number of dimensions; export the model with one")
    return TensorSpec(name, datatype, tuple(-1 if size.is_dynamic else size.get_length() for size in shape))


def _output_names(model: openvino.CompiledModel, wanted: tuple[str, ...]) -> list[str]:
    """A name for each output: the one the ONNX file gives where it is among the port's, else the port's own."""
    names: list[str] = []
    for index, port in enumerate(model.outputs):
        if index < len(wanted) and wanted[index] in port.get_names():
            names.append(wanted[index])
        else:
            names.append(port.any_name if port.get_names() else f"output_{index}")
    return names
