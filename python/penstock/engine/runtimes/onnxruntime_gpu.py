"""ONNX Runtime on an NVIDIA GPU: its CUDA provider, and TensorRT through it, as rivals of our own steps.

What is installed decides: `available` names the providers. A program at one bucket's shapes has inputs and outputs
bound on the device and runs as a CUDA graph where the provider can; for any shapes it is a plain session. FP16 is
converted by ONNX Runtime's own converter for the CUDA provider, and asked of TensorRT, whose engine is in the artifact.

Promises: a session that falls back to another provider is no program, but a ModelLoadError. Options are those that the
library documents. TensorRT has not been run by us.
"""

import itertools
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from penstock.engine import gpus
from penstock.engine.plan import Region, Shapes, Tactic
from penstock.engine.runtimes import onnx_file, settings
from penstock.engine.runtimes.base import Array, Arrays, checked, library_message
from penstock.errors import ExecutionError, ModelLoadError, Unavailable

_FATAL: Final = 4  # log severity
_DEVICES: Final[Mapping[str, str]] = {settings.CUDA_PROVIDER: "cuda", settings.TENSORRT: "cuda", settings.CPU: "cpu"}
_GRAPHS: Final[Mapping[str, str]] = {
    settings.CUDA_PROVIDER: "enable_cuda_graph",
    settings.TENSORRT: "trt_cuda_graph_enable",
}
"""The option by which a provider captures what it runs."""

_BEHIND: Final[Mapping[str, tuple[str, ...]]] = {
    settings.TENSORRT: (settings.CUDA_PROVIDER, settings.CPU),
    settings.CUDA_PROVIDER: (settings.CPU,),
    settings.CPU: (),
}
"""What runs the nodes that a provider has no kernel for."""


def available() -> tuple[str, ...]:
    """Providers for a GPU that the installed library was built with; whether they work shows when a session is made."""
    import onnxruntime

    return tuple(each for each in _GRAPHS if each in onnxruntime.get_available_providers())


class OnnxRuntimeOnGpu:
    """A session with a provider for the GPU."""

    name = "onnxruntime"

    def __init__(self, model: bytes, tactic: Tactic, title: str) -> None:
        self._title, self._model, self._tactic = title, model, tactic
        self._provider = settings.provider(tactic)
        self._context = b""
        fixed, self._shapes = _output_shapes(model)
        self._bound = fixed and None not in self._shapes.values()
        self._session: Any = self._made()
        path = Path(title)
        from penstock.engine.runtimes.onnxruntime import spec_of

        self.inputs = tuple(spec_of(argument, path) for argument in self._session.get_inputs())
        self.outputs = tuple(spec_of(argument, path) for argument in self._session.get_outputs())
        self._turns = threading.Lock()  # a captured graph is replayed by one call at a time
        self._graphs = itertools.count(1)

    @classmethod
    def compile(
        cls, path: Path, tactic: Tactic, *, shapes: Shapes | None, instances: int, threads: int | None
    ) -> "OnnxRuntimeOnGpu":
        del instances, threads  # calls take turns, and the GPU has threads of its own
        onnx_file.inspect(path)
        return cls(_prepared(path, tactic, shapes), tactic, path.name)

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
    ) -> "OnnxRuntimeOnGpu":
        del output_names, instances, threads
        return cls(bytes(artifact), tactic, name)

    @staticmethod
    def prepare(tactic: Tactic) -> None:
        """Nothing can be done before there is a model."""

    def export(self) -> bytes:
        """The model as it was given to the library; of TensorRT the one with its engine inside."""
        return self._context or self._model

    def regions(self, inputs: Arrays, repeats: int = 20) -> tuple[Region, ...]:
        """None: the library's profile has times of launches, not of kernels."""
        del inputs, repeats
        return ()

    def instance(self) -> "_Plain | _Bound":
        session = self._session
        if session is None:
            raise Unavailable(f"{self._title} is closed; load it again")
        if not self._bound:
            return _Plain(self, session)
        return _Bound(self, session, self._shapes, _DEVICES[self._provider.name], next(self._graphs), self._turns)

    def __call__(self, **arrays: Any) -> dict[str, Array]:
        return self.instance().execute(checked(self.inputs, arrays))

    def failed(self, error: Exception) -> ExecutionError:
        return ExecutionError(f"ONNX Runtime failed: {library_message(error, Path(self._title))}")

    def close(self) -> None:
        self._session = None

    def _made(self) -> Any:
        graph = _GRAPHS.get(self._provider.name)
        wanted = [{graph: "1"}, {}] if self._bound and graph else [{}]
        for number, more in enumerate(wanted):
            try:
                return self._with(more)
            except ModelLoadError:
                if number == len(wanted) - 1:  # without capture, too
                    raise
                self._bound = False
        raise AssertionError("one attempt at least")

    def _with(self, more: Mapping[str, str]) -> Any:
        import onnxruntime

        provider = self._provider
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL
        with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
            context = Path(folder) / "context.onnx"
            asked = {**provider.options, **more}
            if provider.name != settings.CPU:
                asked["device_id"] = gpus.chosen().rpartition(":")[2]
            if provider.name == settings.TENSORRT:
                asked |= {
                    "trt_dump_ep_context_model": "1",
                    "trt_ep_context_embed_mode": "1",
                    "trt_ep_context_file_path": str(context),
                }
            providers = [(provider.name, asked), *_BEHIND[provider.name]]
            try:
                session = onnxruntime.InferenceSession(self._model, options, providers=providers)
            except Exception as error:  # the library's errors have no common base but Exception
                raise ModelLoadError(
                    f"{self._title} can't be loaded by {provider.name}: {library_message(error, Path(self._title))}"
                ) from error
            self._context = context.read_bytes() if context.is_file() else b""
        if session.get_providers()[0] != provider.name:
            raise ModelLoadError(
                f"{self._title}: expected {provider.name}, ONNX Runtime fell back to {session.get_providers()[0]}; "
                "its libraries are not all installed"
            )
        session.disable_fallback()
        return session


class _Plain:
    """For any shapes: arrays in, arrays out, through the session's own copies."""

    def __init__(self, runtime: OnnxRuntimeOnGpu, session: Any) -> None:
        self._runtime, self._session = runtime, session
        self._names = [each.name for each in runtime.outputs]

    def execute(self, inputs: Arrays) -> dict[str, Array]:
        try:
            return dict(zip(self._names, self._session.run(self._names, dict(inputs)), strict=True))
        except Exception as error:
            raise self._runtime.failed(error) from error

    views = execute

    def close(self) -> None:
        """Nothing is held."""


class _Bound:
    """At one set of shapes: inputs and outputs lie on the device where the captured graph finds them."""

    def __init__(
        self,
        runtime: OnnxRuntimeOnGpu,
        session: Any,
        shapes: Mapping[str, tuple[int, ...] | None],
        device: str,
        graph: int,
        turns: threading.Lock,
    ) -> None:
        import onnxruntime

        self._runtime, self._session, self._turns = runtime, session, turns
        number = int(gpus.chosen().rpartition(":")[2]) if device == "cuda" else 0
        make = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        try:
            self._given = {each.name: make(each.shape, each.dtype, device, number) for each in runtime.inputs}
            self._answers = {each.name: make(shapes[each.name], each.dtype, device, number) for each in runtime.outputs}
            self._binding = session.io_binding()
            for name, value in self._given.items():
                self._binding.bind_ortvalue_input(name, value)
            for name, value in self._answers.items():
                self._binding.bind_ortvalue_output(name, value)
        except Exception as error:
            raise runtime.failed(error) from error
        self._options = onnxruntime.RunOptions()
        self._options.add_run_config_entry("gpu_graph_id", str(graph))

    def execute(self, inputs: Arrays) -> dict[str, Array]:
        try:
            for name, value in self._given.items():
                value.update_inplace(np.ascontiguousarray(inputs[name]))
            with self._turns:
                self._session.run_with_iobinding(self._binding, self._options)
            return {name: np.array(value.numpy()) for name, value in self._answers.items()}
        except Exception as error:
            raise self._runtime.failed(error) from error

    views = execute

    def close(self) -> None:
        """What is bound goes with this."""


def _prepared(path: Path, tactic: Tactic, shapes: Shapes | None) -> bytes:
    """The model with its weights inside, at these shapes, in the precision where the provider does not convert it."""
    import onnx

    model = onnx.load(path)
    if shapes:
        for given in model.graph.input:
            for dimension, size in zip(given.type.tensor_type.shape.dim, shapes.get(given.name, ()), strict=False):
                dimension.dim_value = size
        del model.graph.value_info[:]  # what it says of free sizes is of no use now
        model = onnx.shape_inference.infer_shapes(model)
    if tactic.precision == "fp16" and settings.provider(tactic).name == settings.CUDA_PROVIDER:
        from onnxruntime.transformers.float16 import convert_float_to_float16

        model = convert_float_to_float16(model, keep_io_types=True)
    made: bytes = model.SerializeToString()
    return made


def _output_shapes(model: bytes) -> tuple[bool, dict[str, tuple[int, ...] | None]]:
    """Whether all inputs have one shape, and those of the outputs, None where the model does not say."""
    import onnx

    graph = onnx.load_from_string(model).graph
    constants = {each.name for each in graph.initializer}
    inputs = [_sizes(each) for each in graph.input if each.name not in constants]
    return None not in inputs, {each.name: _sizes(each) for each in graph.output}


def _sizes(value: Any) -> tuple[int, ...] | None:
    if not value.type.tensor_type.HasField("shape"):
        return None
    sizes: Sequence[Any] = value.type.tensor_type.shape.dim
    found = tuple(int(each.dim_value) if each.HasField("dim_value") else -1 for each in sizes)
    return None if -1 in found else found
