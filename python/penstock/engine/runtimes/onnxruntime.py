"""ONNX Runtime on the CPU, FP32. One session serves every instance: `run` is thread-safe and the weights exist once.

Threads: a session has one pool for all of its calls, and the calling thread works, too. With `instances` calls at once
and `threads` for each, the pool gets instances * (threads - 1) threads, so that callers and pool together are exactly
instances * threads: never more than asked for, and a call that runs alone may use all of the pool.

Spinning is off: idle pool threads that spin take cores from the data plane and from other models. Measured on two
cores with a text recogniser at batch 4: 80 lines/s without and 64 with at one instance, 75 and 33 at two.
"""

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from penstock.engine import cores
from penstock.engine.runtimes import onnx_file
from penstock.engine.runtimes.base import Array, Arrays, checked, library_message
from penstock.errors import ExecutionError, InvalidArgument, ModelLoadError, Unavailable
from penstock.tensors import TensorSpec

_FATAL = 4  # log severity: everything below is in the exception already, and would print host paths

# Element types as ONNX Runtime names them. What is not here is not in the v2 protocol.
_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": "BF16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
_ONNX_BFLOAT16 = 16  # TensorProto.DataType.BFLOAT16


class OnnxRuntime:
    """A loaded session and its signature. Make it with `load`."""

    name = "onnxruntime"

    def __init__(self, session: onnxruntime.InferenceSession, path: Path) -> None:
        self._session: onnxruntime.InferenceSession | None = session
        self._path = path
        self.inputs = tuple(_spec(argument, path) for argument in session.get_inputs())
        self.outputs = tuple(_spec(argument, path) for argument in session.get_outputs())
        self._output_names = [spec.name for spec in self.outputs]
        self._bytes_inputs = [spec.name for spec in self.inputs if spec.datatype == "BYTES"]
        self._bytes_outputs = [spec.name for spec in self.outputs if spec.datatype == "BYTES"]
        self._bfloat16 = any(spec.datatype == "BF16" for spec in self.inputs + self.outputs)

    @classmethod
    def load(cls, path: Path, *, instances: int, threads: int | None) -> "OnnxRuntime":
        onnx_file.inspect(path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL
        options.intra_op_num_threads = instances * (cores.per_instance(instances, threads) - 1) + 1
        options.inter_op_num_threads = 1
        options.enable_mem_pattern = False  # one plan is kept per input shape, without bound; no time was lost without
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library's errors have no common base but Exception
            raise ModelLoadError(
                f"{path.name} can't be loaded by ONNX Runtime: {library_message(error, path)}"
            ) from error
        return cls(session, path)

    def instance(self) -> "OnnxInstance":
        return OnnxInstance(self)

    def __call__(self, **arrays: Any) -> dict[str, Array]:
        return self.execute(checked(self.inputs, arrays))

    def execute(self, inputs: Arrays) -> dict[str, Array]:
        session = self._session
        if session is None:
            raise Unavailable(f"{self._path.name} is closed; load it again")
        if self._bytes_inputs:
            inputs = {**inputs, **{name: _as_text(name, inputs[name]) for name in self._bytes_inputs if name in inputs}}
        try:
            if self._bfloat16:
                return self._execute_bfloat16(session, inputs)
            answers = session.run(self._output_names, inputs)
        except Exception as error:
            raise ExecutionError(f"ONNX Runtime failed: {library_message(error, self._path)}") from error
        found: dict[str, Array] = dict(zip(self._output_names, answers, strict=True))
        for name in self._bytes_outputs:
            found[name] = _as_bytes(found[name])
        return found

    def _execute_bfloat16(self, session: onnxruntime.InferenceSession, inputs: Arrays) -> dict[str, Array]:
        """NumPy has no bfloat16, so values are handed over and read back as the 16-bit words they are."""
        make = onnxruntime.OrtValue
        values = {
            spec.name: make.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(inputs[spec.name]), _ONNX_BFLOAT16)
            if spec.datatype == "BF16"
            else make.ortvalue_from_numpy(inputs[spec.name])
            for spec in self.inputs
            if spec.name in inputs
        }
        answers = session.run_with_ort_values(self._output_names, values)
        return {
            spec.name: _words(value) if spec.datatype == "BF16" else np.array(value.numpy())
            for spec, value in zip(self.outputs, answers, strict=True)
        }

    def close(self) -> None:
        self._session = None


class OnnxInstance:
    """Every instance uses the same session; a call needs nothing of its own."""

    def __init__(self, runtime: OnnxRuntime) -> None:
        self.execute = runtime.execute

    def close(self) -> None:
        """Nothing is held."""


def _spec(argument: Any, path: Path) -> TensorSpec:
    datatype = _DATATYPES.get(argument.type)
    if datatype is None:
        raise ModelLoadError(
            f"{path.name}: {argument.name!r} is {argument.type}, expected a tensor of a v2 "
            "datatype; export the model without it"
        )
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in argument.shape)
    axes = tuple(size if isinstance(size, str) else None for size in argument.shape)
    return TensorSpec(argument.name, datatype, shape, axes=axes)


def _as_text(name: str, array: Array) -> Array:
    """ONNX strings are UTF-8 text; the library would store `repr` of bytes objects."""
    try:
        flat = [item.decode() if isinstance(item, bytes) else str(item) for item in array.reshape(-1)]
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"input {name!r}: ONNX strings must be UTF-8, got a byte sequence that is not") from error
    text = np.empty(len(flat), dtype=object)
    text[:] = flat
    return text.reshape(array.shape)


def _as_bytes(array: Array) -> Array:
    flat = np.empty(array.size, dtype=object)
    flat[:] = [item if isinstance(item, bytes) else str(item).encode() for item in array.reshape(-1)]
    return flat.reshape(array.shape)


def _words(value: Any) -> Array:
    shape = tuple(value.shape())
    count = int(np.prod(shape, dtype=np.int64))
    if count == 0:
        return np.empty(shape, dtype=np.uint16)
    words = ctypes.string_at(value.data_ptr(), 2 * count)  # copies, while `value` still holds the memory
    found: Array = np.frombuffer(bytearray(words), dtype=np.uint16).reshape(shape)
    return found
