"""ONNX Runtime on the CPU: FP32, or the INT8 that a model says itself (Q/DQ).

One session serves every instance: `run` is thread-safe and the weights exist once.

Threads: a session has one pool for all of its calls, and the calling thread works, too. With `instances` calls at once
and `threads` for each, the pool gets instances * (threads - 1) threads, so that callers and pool together are exactly
instances * threads: never more than asked for, and a call that runs alone may use all of the pool.

Spinning is off: idle pool threads that spin take cores from the data plane and from other models. Measured on two
cores with a text recogniser at batch 4: 80 lines/s without and 64 with at one instance, 75 and 33 at two.
"""

import ctypes
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import onnxruntime

from penstock.engine import cores
from penstock.engine.plan import Region, Shapes, Tactic
from penstock.engine.runtimes import onnx_file, profiles, settings
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

_LEVELS: Final[Mapping[str, Any]] = {
    "disabled": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
PLAIN: Final = Tactic("onnxruntime", "fp32")
"""What an unbuilt model runs with."""

_PRECISIONS: Final[Mapping[str, str]] = {
    "float": "fp32", "float16": "fp16", "bfloat16": "bf16", "int8": "int8", "uint8": "int8",
}  # fmt: skip
# Operators that compute with integers although what goes in first is a float.
_INTEGER: Final = ("DynamicQuantize", "QAttention", "QEmbed")
_KERNEL_TIME: Final = "_kernel_time"
# What the layout optimiser appends to the name of the tensor that a node computes.
_SUFFIXES: Final = ("_nchwc", "_nhwc")


def features() -> tuple[str, ...]:
    """Precisions with kernels worth having on any CPU; narrow ones first."""
    return ("int8", "fp32")


class OnnxRuntime:
    """A loaded session and its signature. Make it with `load`."""

    name = "onnxruntime"

    def __init__(self, session: onnxruntime.InferenceSession, path: Path, again: "_Again") -> None:
        self._session: onnxruntime.InferenceSession | None = session
        self._path = path
        self._again = again
        self.inputs = tuple(_spec(argument, path) for argument in session.get_inputs())
        self.outputs = tuple(_spec(argument, path) for argument in session.get_outputs())
        self._output_names = [spec.name for spec in self.outputs]
        self._bytes_inputs = [spec.name for spec in self.inputs if spec.datatype == "BYTES"]
        self._bytes_outputs = [spec.name for spec in self.outputs if spec.datatype == "BYTES"]
        self._bfloat16 = any(spec.datatype == "BF16" for spec in self.inputs + self.outputs)

    @classmethod
    def load(cls, path: Path, *, instances: int, threads: int | None) -> "OnnxRuntime":
        """A model as it is, for any shapes."""
        return cls.compile(path, PLAIN, shapes=None, instances=instances, threads=threads)

    @classmethod
    def compile(
        cls, path: Path, tactic: Tactic, *, shapes: Shapes | None, instances: int, threads: int | None
    ) -> "OnnxRuntime":
        """Compile a file as the tactic says. `shapes` change nothing: the library plans for each call's shapes."""
        onnx_file.inspect(path)
        again = _Again(path, tactic, instances, threads)
        try:
            session = onnxruntime.InferenceSession(str(path), again.options(), providers=["CPUExecutionProvider"])
        except Exception as error:  # the library's errors have no common base but Exception
            raise ModelLoadError(
                f"{path.name} can't be loaded by ONNX Runtime: {library_message(error, path)}"
            ) from error
        return cls(session, path, again)

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
    ) -> "OnnxRuntime":
        """What `export` gave: its graph is optimised already, for this library and CPU. `name` is for messages."""
        path = Path(name)
        again = _Again(artifact, tactic, instances, threads)
        try:
            session = onnxruntime.InferenceSession(again.source(), again.options(), providers=["CPUExecutionProvider"])
        except Exception as error:  # as above
            raise ModelLoadError(f"{name} can't be loaded by ONNX Runtime: {library_message(error, path)}") from error
        return cls(session, path, again)

    def export(self) -> bytes:
        """The graph as the library optimised it, as ONNX with all weights inside; a compilation of its own."""
        with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
            target = Path(folder) / "optimised.onnx"
            self._second(lambda options: setattr(options, "optimized_model_filepath", str(target)))
            return target.read_bytes()

    def regions(self, inputs: Arrays, repeats: int = 20) -> tuple[Region, ...]:
        """What the library executes for these inputs, by its own profile: a session of its own, with that on.

        Names of `nodes` are those of the compiled file where it is at hand, else of the library's own graph; times are
        medians over the calls after the first.
        """
        with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
            fused = Path(folder) / "fused.onnx"

            def profile(options: onnxruntime.SessionOptions) -> None:
                options.enable_profiling = True
                options.profile_file_prefix = str(Path(folder) / "profile")
                if self._again.file is not None:
                    options.optimized_model_filepath = str(fused)

            second = self._second(profile)
            for _ in range(max(1, repeats) + 1):
                second.execute(inputs)
            assert second._session is not None
            events = json.loads(Path(second._session.end_profiling()).read_text(encoding="utf-8"))
            nodes: Mapping[str, tuple[str, ...]] = {}
            if self._again.file is not None:
                nodes = profiles.ancestry(profiles.read(self._again.file), profiles.read(fused), _SUFFIXES)
        return _regions(events, nodes)

    def _second(self, change: Callable[[onnxruntime.SessionOptions], None]) -> "OnnxRuntime":
        """The same model once more, with other options."""
        if self._session is None:
            raise Unavailable(f"{self._path.name} is closed; load it again")
        options = self._again.options()
        change(options)
        try:
            source = self._again.source()
            session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ExecutionError(f"ONNX Runtime failed: {library_message(error, self._path)}") from error
        return OnnxRuntime(session, self._path, self._again)

    def instance(self, *, priority: int = 0) -> "OnnxInstance":
        del priority  # a CPU has no streams
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


class _Again:
    """What made a session, to make another from: with profiling, or with its graph written out."""

    def __init__(self, model: Path | memoryview, tactic: Tactic, instances: int, threads: int | None) -> None:
        self._model = model
        self._level, self._entries = settings.onnxruntime(tactic)
        self._threads = instances * (cores.per_instance(instances, threads or tactic.threads or None) - 1) + 1

    @property
    def file(self) -> Path | None:
        """The model as it was given; None for an artifact, whose graph is the library's own."""
        return self._model if isinstance(self._model, Path) else None

    def source(self) -> str | bytes:
        return str(self._model) if isinstance(self._model, Path) else bytes(self._model)

    def options(self) -> onnxruntime.SessionOptions:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.enable_mem_pattern = False  # one plan is kept per input shape, without bound; no time was lost without
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # An artifact is optimised already.
        options.graph_optimization_level = _LEVELS[self._level if self.file is not None else "disabled"]
        for key, value in self._entries.items():
            options.add_session_config_entry(key, value)
        return options


def _regions(events: list[dict[str, Any]], nodes: Mapping[str, tuple[str, ...]]) -> tuple[Region, ...]:
    """Kernel events of a profile, one region for each node, in the order they first ran."""
    found: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(_KERNEL_TIME):
            found.setdefault(name.removesuffix(_KERNEL_TIME), []).append(event)
    return tuple(_region(name, kernels, nodes.get(name, () if nodes else (name,))) for name, kernels in found.items())


def _region(name: str, kernels: list[dict[str, Any]], nodes: tuple[str, ...]) -> Region:
    arguments = kernels[-1].get("args", {})
    operator = str(arguments.get("op_name", ""))
    types = [str(kind) for entry in arguments.get("input_type_shape", []) for kind in entry]
    integer = ["int8"] if operator.startswith(_INTEGER) else []
    layout = next((suffix[1:] for suffix in _SUFFIXES if name.endswith(suffix)), "")
    return Region(
        name=name,
        kind=operator.lower(),
        nodes=nodes,
        precision=next((_PRECISIONS[kind] for kind in [*integer, *types] if kind in _PRECISIONS), ""),
        # The first call of a node sets its memory up.
        microseconds=float(median([float(event["dur"]) for event in kernels[1:] or kernels])),
        tactic=f"{operator} {layout}".strip(),
    )


class OnnxInstance:
    """Every instance uses the same session; a call needs nothing of its own."""

    def __init__(self, runtime: OnnxRuntime) -> None:
        self.execute = runtime.execute
        self.views = runtime.execute  # arrays are new for each call anyway

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
