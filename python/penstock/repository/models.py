"""A loaded model version, and the ways to one that need no repository: a bare file, a function, a runtime.

Every Model has a finished configuration and a backend that agree. Whoever holds it closes it once no instance uses it.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from penstock import engine, limits
from penstock.backends.accelerated import AcceleratedBackend
from penstock.backends.base import Backend, Concurrent, check_model_name
from penstock.backends.engine import NAME as ENGINE
from penstock.backends.engine import BorrowedEngineBackend, EngineBackend
from penstock.backends.function import FunctionBackend, ModelFunction
from penstock.backends.observed import ObservedBackend
from penstock.backends.runtime import BorrowedRuntimeBackend, RuntimeBackend
from penstock.backends.settings import DynamicBatching, QueuePolicy
from penstock.engine import ENGINE_SUFFIX, Engine, Runtime
from penstock.errors import ConfigError, InvalidArgument, ModelLoadError, Unavailable, UsageError
from penstock.repository import messages
from penstock.repository.acceleration import Acceleration, fixed_shapes
from penstock.repository.complete import BARE_FILE_MAX_BATCH, complete, reshaped
from penstock.repository.config import Config, validated
from penstock.repository.warmup import Sample
from penstock.tensors import TensorSpec, to_triton

log = logging.getLogger("penstock")

# File name ending -> the runtime that reads it when the configuration names none.
RUNTIME_OF_SUFFIX: Final = {ENGINE_SUFFIX: ENGINE, ".onnx": "onnxruntime", ".xml": "openvino"}
_BUILDABLE_SUFFIX: Final = ".onnx"
SUPPORTED: Final = f"model.engine ({ENGINE}), model.onnx (onnxruntime, openvino) or model.xml (openvino)"


def _nothing() -> None:
    """For models that hold no files of their own."""


@dataclass(frozen=True, slots=True)
class Buildable:
    """What an engine for a model is built from, and compared with."""

    path: Path
    """The ONNX file."""

    acceleration: Acceleration
    calibration: Path | None
    plain: ObservedBackend
    """The model as it is; the Model that this belongs to is one of its owners."""

    inputs: tuple[TensorSpec, ...]
    """As the model takes them and the configuration limits them, without the batch dimension when it batches."""

    @property
    def complete(self) -> bool:
        """Whether an engine can take every shape that the model may be asked."""
        return fixed_shapes(self.inputs, 0) is not None and not self.acceleration.shape_flags


@dataclass(slots=True)
class Model:
    """One version, ready for instances."""

    name: str
    version: int
    config: Config
    backend: Backend
    release: Callable[[], None] = _nothing
    """Called once, after the backend was closed: gives back what the files lay in."""

    buildable: Buildable | None = None
    """For models whose configuration asks for an engine."""

    concurrent: Concurrent | None = None
    """For models whose requests run side by side on the server's event loop; instances are not made then."""

    warmup: tuple[Sample, ...] = ()
    """What every instance runs before the model takes requests."""

    def close(self) -> None:
        """Close the backend; a second call does nothing."""
        release, self.release = self.release, _nothing
        self.backend.close()
        release()


def loaded(
    config: Config,
    version: int,
    path: Path,
    default_max_batch: int,
    release: Callable[[], None] = _nothing,
    calibration: Path | None = None,
) -> Model:
    """Load one file under a configuration as written, and finish the configuration from it.

    calibration  the file that the configuration's accelerator names, once it is certain where it lies.
    """
    runtime = config.message.backend or RUNTIME_OF_SUFFIX[path.suffix]
    if (runtime == ENGINE) != (path.suffix == ENGINE_SUFFIX):
        raise ConfigError(
            f"model {config.name!r}: backend {runtime!r} does not run {path.name!r}; {ENGINE} runs engines and nothing "
            "else does; leave the backend out"
        )
    backend: RuntimeBackend | EngineBackend | ObservedBackend
    if runtime == ENGINE:
        opened = engine.open_engine(path, threads=config.threads, instances=config.instance_count)
        backend = EngineBackend(opened)
        default_max_batch = opened.max_batch_size
    else:
        backend = RuntimeBackend(
            engine.load(path, runtime=runtime, threads=config.threads, instances=config.instance_count)
        )
        if config.acceleration is not None and path.suffix == _BUILDABLE_SUFFIX:
            backend = ObservedBackend(backend)
    if config.acceleration is not None and path.suffix != _BUILDABLE_SUFFIX:
        log.info("model %r: execution_accelerators has no effect: engines are built from .onnx files", config.name)
    try:
        config.message.default_model_filename = path.name
        finished = complete(config, backend, default_max_batch)
        made = Model(config.name, version, finished, reshaped(finished, backend), release)
    except BaseException:
        backend.close()
        raise
    if isinstance(backend, ObservedBackend) and config.acceleration is not None:
        made.buildable = Buildable(path, config.acceleration, calibration, backend, _model_inputs(finished))
    return made


def _model_inputs(config: Config) -> tuple[TensorSpec, ...]:
    """Of a finished configuration, on the model's side of any `reshape`."""
    return tuple(
        replace(spec, shape=tuple(item.reshape.shape)) if item.HasField("reshape") else spec
        for item, spec in zip(config.message.input, config.inputs, strict=True)
    )


def accelerated(model: Model, built: Engine) -> Model:
    """The same model version run by an engine that was built from it; owns the engine, also when this raises.

    The given model stays as it is, to be closed by whoever replaces it. Raises ConfigError when the engine's tensors
    are not the model's, Unavailable when the model was closed meanwhile.
    """
    backend = EngineBackend(built)
    try:
        buildable = model.buildable
        if buildable is None:
            raise ConfigError(f"model {model.name!r} asks for no engine")
        plain = buildable.plain
        if _tensors(backend) != _tensors(plain):
            raise ConfigError(f"model {model.name!r}: the engine has other tensors than the model")
        if not buildable.complete:
            if not plain.hold():
                raise Unavailable(f"model {model.name!r} is closed")
            backend = AcceleratedBackend(built, plain)
        seen = reshaped(model.config, backend, plain)
        return Model(model.name, model.version, model.config, seen, warmup=model.warmup)
    except BaseException:
        backend.close()
        raise


def _tensors(backend: Backend) -> tuple[list[tuple[str, str, int]], ...]:
    """What must agree: sizes may be known better by one than by the other."""
    return tuple(
        sorted((spec.name, spec.datatype, len(spec.shape)) for spec in specs)
        for specs in (backend.inputs, backend.outputs)
    )


def bare(
    path: str | Path, *, name: str | None = None, runtime: str | None = None, instances: int | None = None
) -> Model:
    """A model file without a repository: named after its stem, version 1, batches of up to 64 where it can.

    An engine batches as it was built for. Raises NotFound, ModelLoadError, InvalidArgument (a stem that is no model
    name: pass `name`).
    """
    path = Path(path)
    if path.suffix not in RUNTIME_OF_SUFFIX:
        raise ModelLoadError(
            f"{path.name!r} is not a model file that can be served, expected *.engine, *.onnx or *.xml"
        )
    message = messages.new()
    message.name = check_model_name(name if name is not None else path.stem)
    message.backend = runtime or RUNTIME_OF_SUFFIX[path.suffix]
    _write_instances(message, instances)
    return loaded(validated(Config(message)), 1, path, BARE_FILE_MAX_BATCH)


def from_runtime(
    runtime: Runtime, name: str, *, max_batch_size: int = BARE_FILE_MAX_BATCH, instances: int | None = None
) -> Model:
    """A runtime or an engine that a program loaded with `penstock.load`; its threads were divided there (`instances=`).

    Closing the model leaves the runtime open: it stays the program's. An engine batches as it was built for.
    """
    message = messages.new()
    message.name = check_model_name(name)
    _write_instances(message, instances)
    if isinstance(runtime, Engine):
        built = BorrowedEngineBackend(runtime)
        return Model(name, 1, complete(validated(Config(message)), built, built.max_batch_size), built)
    backend = BorrowedRuntimeBackend(runtime)
    return Model(name, 1, complete(validated(Config(message)), backend, max_batch_size), backend)


def from_function(function: ModelFunction) -> Model:
    """A function made a model by `@ps.model`."""
    backend = FunctionBackend(function)
    message = _signed(function.name, backend, function.max_batch_size, function.parameters)
    _write_instances(message, function.instances)
    if function.padding is not None:
        message.parameters["padding"].string_value = _json(function)
    if function.dynamic_batching is not None:
        _write_batching(message.dynamic_batching, function.dynamic_batching)
    elif function.max_batch_size > 1:
        message.dynamic_batching.SetInParent()  # automatic, and clients see in the configuration that it batches
    config = validated(Config(message, frozenset({"max_batch_size"})))
    return Model(function.name, 1, complete(config, backend), backend)


def from_signature(*, name: str, backend: Backend, parameters: Mapping[str, str]) -> Model:
    """A model that takes and returns what its backend says, without a batch dimension."""
    message = _signed(name, backend, 0, parameters)
    config = validated(Config(message, frozenset({"max_batch_size"})))
    return Model(name, 1, complete(config, backend), backend)


def _signed(name: str, backend: Backend, max_batch_size: int, parameters: Mapping[str, str]) -> Any:
    """A configuration with the tensors of a backend."""
    message = messages.new()
    message.name = name
    message.backend = backend.name
    message.max_batch_size = max_batch_size
    batch = 1 if max_batch_size > 0 else 0
    for items, specs in ((message.input, backend.inputs), (message.output, backend.outputs)):
        for spec in specs:
            item = items.add()
            item.name = spec.name
            item.data_type = (
                item.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_name[to_triton(spec.datatype)].number
            )
            item.dims.extend(spec.shape[batch:])
    for key, value in parameters.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InvalidArgument(f"model {name!r}: parameter {key!r} must be text, got {value!r}")
        message.parameters[key].string_value = value
    return message


def _json(function: ModelFunction) -> str:
    try:
        return json.dumps(function.padding)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"model {function.name!r}: padding can't be written as JSON: {error}") from None


def checked_instances(count: int | None) -> int | None:
    """Of a model without a configuration; None: as many as the backend is best served with. Raises UsageError."""
    if count is None:
        return None
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= limits.INSTANCES:
        raise UsageError.of("instances", count, f"an integer from 1 to {limits.INSTANCES}")
    return count


def _write_instances(message: Any, count: int | None) -> None:
    if (checked := checked_instances(count)) is not None:
        message.instance_group.add(name=message.name, count=checked)


def _write_batching(block: Any, settings: DynamicBatching) -> None:
    block.SetInParent()
    block.max_queue_delay_microseconds = settings.max_queue_delay_us
    block.preferred_batch_size.extend(settings.preferred_batch_sizes)
    block.preserve_ordering = settings.preserve_ordering
    block.priority_levels = settings.priority_levels
    block.default_priority_level = settings.default_priority_level
    _write_policy(block.default_queue_policy, settings.default_queue_policy)
    for level, policy in settings.priority_queue_policies.items():
        _write_policy(block.priority_queue_policy[level], policy)


def _write_policy(message: Any, policy: QueuePolicy) -> None:
    message.timeout_action = 1 if policy.timeout_action == "delay" else 0
    message.default_timeout_microseconds = policy.default_timeout_us
    message.allow_timeout_override = policy.allow_timeout_override
    message.max_queue_size = policy.max_queue_size
