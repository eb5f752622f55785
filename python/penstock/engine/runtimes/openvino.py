"""OpenVINO on the CPU. One compiled model for all instances, with a stream and an infer request for each.

FP32 is asked for by name: on CPUs with BF16 instructions the library uses them by default, and it may quantise the
activations of compressed weights. Narrower types come with a tactic only; where the processor lacks one the library
takes another without a word (FP16 becomes BF16), so what it took is compared with what was asked.

Threads are divided by the library: N streams of INFERENCE_NUM_THREADS / N threads each. Threads are not pinned, since
the data plane and other models run on the same cores.

The library's CPU kernels compute INT64 and UINT64 in 32 bits, silently, and FP64 as FP32. Inputs beyond 32 bits
are therefore refused; a model that makes such numbers inside, or needs FP64, belongs on ONNX Runtime.
"""

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import openvino

from penstock.engine import cores
from penstock.engine.plan import Region, Shapes, Tactic
from penstock.engine.runtimes import counters, onnx_file, openvino_wide, profiles, settings, signal_stack
from penstock.engine.runtimes.base import Array, Arrays, checked, library_message
from penstock.errors import ExecutionError, InvalidArgument, ModelLoadError, Unavailable, Unsupported
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

# From here on reading inputs where the caller has them is quicker than copying them: lending takes 5 us.
_LENT_BYTES: Final = 128 << 10

_PRECISIONS: Final[Mapping[str, str]] = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "i8": "int8", "u8": "int8"}
_CAPABILITIES: Final[Mapping[str, str]] = {"INT8": "int8", "FP16": "fp16", "BF16": "bf16", "FP32": "fp32"}
# Layers that stand for data, not for work.
_DATA: Final = frozenset({"Const", "Input", "Output"})

PLAIN: Final = Tactic("openvino", "fp32")
"""What an unbuilt model runs with."""

# The binding sets up its NumPy conversion at the first use, and hangs the process when two threads are first at once:
# one waits for the other's set-up with the GIL that the other needs. A module is imported by one thread.
openvino.Tensor(np.zeros(1, np.float32)).data  # noqa: B018  the use is the point


def features() -> tuple[str, ...]:
    """Precisions that the library computes in on this processor, by its own word; narrow ones first."""
    found = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return tuple(name for capability, name in _CAPABILITIES.items() if capability in found)


class OpenVinoRuntime:
    """A compiled model and its signature. Make it with `load`, `compile` or `reopen`."""

    name = "openvino"

    def __init__(
        self,
        model: openvino.CompiledModel,
        path: Path,
        output_names: tuple[str, ...],
        asked: Mapping[str, Any],
        artifact: openvino.Tensor | None = None,
    ) -> None:
        self._model: openvino.CompiledModel | None = model
        self._path = path
        self._asked = asked
        self._artifact = artifact
        _check_precision(model, asked, path)
        self.inputs = tuple(_spec(port, _input_name(port, path), path) for port in model.inputs)
        names = _output_names(model, output_names)
        self.outputs = tuple(_spec(port, name, path) for port, name in zip(model.outputs, names, strict=True))
        # Requests for calls from users' threads: taken and put back, made when none is idle. deque is thread-safe.
        self._idle: deque[OpenVinoInstance] = deque()

    @classmethod
    def load(cls, path: Path, *, instances: int, threads: int | None) -> "OpenVinoRuntime":
        """A model as it is, in FP32, for any shapes."""
        return cls.compile(path, PLAIN, shapes=None, instances=instances, threads=threads)

    @classmethod
    def compile(
        cls, path: Path, tactic: Tactic, *, shapes: Shapes | None, instances: int, threads: int | None
    ) -> "OpenVinoRuntime":
        """Compile a file as the tactic says, for `shapes` alone where they are given."""
        # An ONNX output may lose its name among those of the nodes folded into it, so the file is asked.
        file = onnx_file.inspect(path) if path.suffix == ".onnx" else onnx_file.OnnxFile((), frozenset())
        asked = _settings(tactic, instances, threads)
        try:
            core = _core()
            source = core.read_model(str(path))
            if file.wide and asked[settings.PRECISION_HINT] != "f32":
                source = openvino_wide.marked(core, source, file.wide)
            _name_inputs(source, file.inputs)
            if shapes:
                source.reshape({name: list(shape) for name, shape in shapes.items()})
            model = core.compile_model(source, "CPU", asked)
        except Exception as error:  # the library raises RuntimeError and its own kinds
            raise ModelLoadError(f"{path.name} can't be loaded by OpenVINO: {library_message(error, path)}") from error
        return cls(model, path, file.outputs, asked)

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
    ) -> "OpenVinoRuntime":
        """What `export` gave, on a machine and with a library that are the same; `name` is for messages."""
        path = Path(name)
        asked = _settings(tactic, instances, threads)
        try:
            # The tensor holds a copy, and the library's weights are views of it.
            blob = openvino.Tensor(np.frombuffer(artifact, np.uint8))
            model = _core().import_model(blob, "CPU", asked)
        except Exception as error:
            raise ModelLoadError(f"{name} can't be loaded by OpenVINO: {library_message(error, path)}") from error
        return cls(model, path, output_names, asked, blob)

    def export(self) -> bytes:
        """The compiled model as OpenVINO writes it: optimised graph and weights, good for this library and CPU."""
        model = self._open()
        if self._artifact is not None:  # what the library exports of an imported model can't be imported
            return bytes(self._artifact.data)
        try:
            return bytes(model.export_model().getbuffer())
        except RuntimeError as error:
            raise ExecutionError(f"OpenVINO can't export: {library_message(error, self._path)}") from error

    def regions(self, inputs: Arrays, repeats: int = 20) -> tuple[Region, ...]:
        """What the library executes for these inputs, by its own counters: a second copy of the model, with them on.

        Names of `nodes` are those of the compiled file; times are those of the calls after the first, without what
        held up a few of them.
        """
        blob = openvino.Tensor(np.frombuffer(self.export(), np.uint8))
        counted = _core().import_model(blob, "CPU", {**self._asked, "PERF_COUNT": True})
        instance = OpenVinoInstance(counted.create_infer_request(), self.inputs, self.outputs, self._path)
        averages: dict[str, list[tuple[int, float]]] = {}
        calls = 0
        for more in (1, *counters.groups(max(1, repeats))):  # kernels are made in the first call
            for _ in range(more):
                instance.views(inputs)
            calls += more
            for name, average in instance.profile():
                averages.setdefault(name, []).append((calls, average))
        times = {name: counters.typical(own) for name, own in averages.items()}
        # After the calls, in which kernels that depend on shapes are chosen.
        layers = counted.get_runtime_model().get_ordered_ops()
        found = [(each, times.get(each.get_friendly_name())) for each in layers]
        names = profiles.node_names(self._path)
        return tuple(
            _region(each, own, names) for each, own in found if own is not None and _layer_type(each) not in _DATA
        )

    def instance(self, *, priority: int = 0) -> "OpenVinoInstance":
        del priority  # a CPU has no streams
        return OpenVinoInstance(self._open().create_infer_request(), self.inputs, self.outputs, self._path)

    def _open(self) -> openvino.CompiledModel:
        if self._model is None:
            raise Unavailable(f"{self._path.name} is closed; load it again")
        return self._model

    def __call__(self, **arrays: Any) -> dict[str, Array]:
        inputs = checked(self.inputs, arrays)
        self._open()
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


@dataclass(slots=True, eq=False)
class _Input:
    """Of a request: its own tensor for one input, and what is known of it."""

    spec: TensorSpec
    tensor: openvino.Tensor
    dtype: np.dtype[Any]
    known_as: np.dtype[Any]
    """What the library calls the type."""
    shape: tuple[int, ...] | None
    """Asking the tensor takes 13 us. None while it got no memory for another one."""

    @classmethod
    def of(cls, spec: TensorSpec, tensor: openvino.Tensor) -> "_Input":
        return cls(spec, tensor, spec.dtype, tensor.data.dtype, tuple(tensor.shape))


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
        self._inputs = tuple(_Input.of(spec, request.get_input_tensor(index)) for index, spec in enumerate(inputs))
        self._outputs = tuple((spec.name, index, spec.dtype) for index, spec in enumerate(outputs))
        self._wide = tuple(spec.name for spec in inputs if spec.datatype in ("INT64", "UINT64"))
        self._path = path

    def execute(self, inputs: Arrays) -> dict[str, Array]:
        return {name: array.copy() for name, array in self.views(inputs).items()}

    def views(self, inputs: Arrays) -> dict[str, Array]:
        """The request's own output tensors, which the next call overwrites; perhaps an input, where it is an output."""
        request = self._request
        if request is None:
            raise Unavailable(f"{self._path.name} is closed; load it again")
        for name in self._wide:
            _check_range(name, inputs[name])
        lent: list[tuple[int, openvino.Tensor]] = []
        try:
            try:
                self._give(request, inputs, lent)
                request.infer(share_outputs=True)
                # Viewed, for types that the library knows by another name (BF16).
                return {name: request.get_output_tensor(index).data.view(dtype) for name, index, dtype in self._outputs}
            finally:
                # The library does not keep the caller's memory, and it may be a slot that the next batch waits for.
                for index, own in lent:
                    request.set_input_tensor(index, own)
        except Exception as error:
            raise ExecutionError(f"OpenVINO failed: {library_message(error, self._path)}") from error

    def _give(self, request: openvino.InferRequest, inputs: Arrays, lent: list[tuple[int, openvino.Tensor]]) -> None:
        """Large inputs as the library can read them where they lie, the others copied.

        lent  gets the place of each of the former, and the tensor that belongs there.
        """
        for index, own in enumerate(self._inputs):
            array = inputs[own.spec.name]
            if array.nbytes >= _LENT_BYTES and array.dtype == own.known_as and array.flags.carray:
                lent.append((index, own.tensor))
                request.set_input_tensor(index, openvino.Tensor(array, shared_memory=True))
                continue
            if own.shape != array.shape:
                if not own.spec.accepts(array.shape):  # the tensor could not be put back
                    raise ValueError(f"input {own.spec.name!r} is {own.spec}, got {list(array.shape)}")
                own.shape = None
                own.tensor.shape = array.shape
                own.shape = array.shape
            np.copyto(own.tensor.data.view(own.dtype), array)

    def profile(self) -> list[tuple[str, float]]:
        """Of each layer that the last call executed, microseconds on average of all calls so far.

        For models compiled to count them.
        """
        assert self._request is not None
        return [
            (layer.node_name, layer.real_time.total_seconds() * 1e6)
            for layer in self._request.profiling_info
            if layer.status == openvino.ProfilingInfo.Status.EXECUTED
        ]

    def close(self) -> None:
        self._request = None
        self._inputs = ()


_CORE: dict[str, Any] = {}
_CORE_LOCK = threading.Lock()


def _core() -> Any:
    """One for the process: making one reads the plug-ins' list, and compiled models keep it alive anyway."""
    with _CORE_LOCK:
        if "core" not in _CORE:
            with signal_stack.kept():
                core = openvino.Core()
                core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")  # loads the plug-in, here and not later
            _CORE["core"] = core
        return _CORE["core"]


def _settings(tactic: Tactic, instances: int, threads: int | None) -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": instances,
        "INFERENCE_NUM_THREADS": instances * cores.per_instance(instances, threads or tactic.threads or None),
        "ENABLE_CPU_PINNING": False,
        **settings.openvino(tactic),
    }


def _check_precision(model: openvino.CompiledModel, asked: Mapping[str, Any], path: Path) -> None:
    wanted = str(asked[settings.PRECISION_HINT])
    taken = model.get_property(settings.PRECISION_HINT).get_type_name()
    if taken != wanted:
        raise Unsupported(
            f"{path.name}: this processor has no {wanted} arithmetic and OpenVINO would take {taken} in its place; "
            f"expected one of {', '.join(features())}"
        )


def _layer_type(node: Any) -> str:
    return _information(node, "layerType")


def _information(node: Any, key: str) -> str:
    info = node.get_rt_info()
    return str(info[key].value) if key in info else ""


def _region(node: Any, microseconds: float, names: Mapping[str, str]) -> Region:
    """One executed layer of the runtime model. The library calls a node that makes an output after that output."""
    nodes = tuple(names.get(name, name) for name in _information(node, "originalLayersNames").split(",") if name)
    return Region(
        name=node.get_friendly_name(),
        kind=_layer_type(node).lower(),
        nodes=nodes,
        # Integers that are no quantized values (shapes, indices) are no precision of the model.
        precision=_PRECISIONS.get(_information(node, "runtimePrecision"), ""),
        microseconds=microseconds,
        tactic=_information(node, "primitiveType"),
    )


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


def _name_inputs(source: Any, wanted: tuple[str, ...]) -> None:
    """Inputs go by the file's names, where the library has that of a Dropout which does nothing."""
    names = [port.get_names() for port in source.inputs]
    other = set().union(*names)
    if len(names) != len(wanted):
        return
    for port, name, own in zip(source.inputs, wanted, names, strict=True):
        if name in own or name not in other:
            port.get_tensor().set_names({name})
            port.get_node().set_friendly_name(name)


def _input_name(port: Any, path: Path) -> str:
    """Of several, as where a Cast turns out to do nothing, the port's first one by the alphabet is not the input's. The
    library's own format has names of nodes besides those of inputs.
    """
    return str(port.any_name if path.suffix == ".xml" else port.get_node().get_friendly_name())


def _output_names(model: openvino.CompiledModel, wanted: tuple[str, ...]) -> list[str]:
    """A name for each output: the one the ONNX file gives where it is among the port's, else the port's own."""
    names: list[str] = []
    for index, port in enumerate(model.outputs):
        if index < len(wanted) and wanted[index] in port.get_names():
            names.append(wanted[index])
        else:
            names.append(port.any_name if port.get_names() else f"output_{index}")
    return names
