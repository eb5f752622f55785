"""Fills in what a configuration leaves out from what the loaded model says, and refuses what the two disagree on.

As Triton does for ONNX: missing tensors, types and dims come from the file; a model whose tensors all start with a free
dimension batches, with a default size and dynamic batching, unless a size was written (a written 0 counts). Called
after a backend was loaded, before anything serves it.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from penstock.backends.base import Backend
from penstock.backends.engine import EngineBackend
from penstock.backends.reshape import Reshape, ReshapedBackend
from penstock.errors import ConfigError
from penstock.repository.config import Config, data_type_name, validated
from penstock.tensors import TensorSpec, from_triton, to_triton

DEFAULT_MAX_BATCH: Final = 4  # Triton's default for a model that batches and has no size
BARE_FILE_MAX_BATCH: Final = 64  # for a file without a repository around it

_INVALID: Final = 0  # inference.DataType.TYPE_INVALID: not written
_KIND_CPU: Final = 2


def complete(config: Config, backend: Backend, default_max_batch: int = DEFAULT_MAX_BATCH) -> Config:
    """The finished configuration of a loaded model; raises ConfigError where it contradicts the model."""
    message = type(config.message).FromString(config.message.SerializeToString())
    where = f"model {config.name!r}"
    _complete_batching(message, config, backend, default_max_batch, where)
    batched = message.max_batch_size > 0
    _complete_tensors(message.input, backend.inputs, batched, "input", where)
    _complete_tensors(message.output, backend.outputs, batched, "output", where)
    _complete_defaults(message, backend)
    finished = validated(replace(config, message=message))
    _ = finished.padding  # checked here, where a bad rule still fails the load
    return finished


def reshaped(config: Config, backend: Backend, model: Backend | None = None) -> Backend:
    """The backend as clients see it: itself, or wrapped when the configuration reshapes tensors.

    model  whose shapes the configuration was completed from, when it was not this backend.
    """
    model = model or backend
    batch = (-1,) if config.max_batch_size > 0 else ()

    def pairs(items: Any, specs: Sequence[TensorSpec]) -> dict[str, Reshape]:
        shapes = {spec.name: spec.shape for spec in specs}
        return {
            item.name: Reshape(batch + tuple(item.dims), shapes[item.name])
            for item in items
            if item.HasField("reshape")
        }

    inputs = pairs(config.message.input, model.inputs)
    outputs = pairs(config.message.output, model.outputs)
    return ReshapedBackend(backend, inputs, outputs) if inputs or outputs else backend


def _complete_batching(message: Any, config: Config, backend: Backend, default: int, where: str) -> None:
    fixed = [spec for spec in (*backend.inputs, *backend.outputs) if not spec.shape or spec.shape[0] != -1]
    if message.max_batch_size > 0:
        if fixed:
            raise ConfigError(
                f"{where} does not support batching, but max_batch_size is {message.max_batch_size}: {fixed[0]} does "
                "not start with a dimension of any size; set max_batch_size: 0"
            )
        return
    if fixed or "max_batch_size" in config.written or _has_full_shapes(message, backend):
        return
    message.max_batch_size = default
    if default > 1:
        message.dynamic_batching.SetInParent()


def _has_full_shapes(message: Any, backend: Backend) -> bool:
    """Whether the tensors written down include the batch dimension: their author meant a model without batches."""
    ranks = {("in", spec.name): len(spec.shape) for spec in backend.inputs}
    ranks |= {("out", spec.name): len(spec.shape) for spec in backend.outputs}
    written = [(("in", item.name), item) for item in message.input] + [
        (("out", item.name), item) for item in message.output
    ]
    return any(len(_model_dims(item)) == ranks.get(key) for key, item in written)


def _model_dims(item: Any) -> tuple[int, ...]:
    return tuple(item.reshape.shape if item.HasField("reshape") else item.dims)


def _complete_tensors(items: Any, specs: Sequence[TensorSpec], batched: bool, kind: str, where: str) -> None:
    known = {spec.name: spec for spec in specs}
    if not items:
        for spec in specs:
            items.add().name = spec.name
    for item in items:
        if item.name not in known:
            raise ConfigError(f"{where}: unexpected {kind} {item.name!r}, the model has {', '.join(known)}")
        _complete_tensor(item, known[item.name], batched, kind, where)
    if kind == "input":
        missing = [spec.name for spec in specs if not spec.optional and spec.name not in {item.name for item in items}]
        if missing:
            raise ConfigError(
                f"{where}: the configuration has {len(items)} inputs, the model needs {len(known)}: "
                f"{', '.join(missing)} missing"
            )


def _complete_tensor(item: Any, spec: TensorSpec, batched: bool, kind: str, where: str) -> None:
    shape = spec.shape[1:] if batched else spec.shape
    values = item.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_name
    if item.data_type == _INVALID:
        item.data_type = values[to_triton(spec.datatype)].number
    if not item.dims and not item.HasField("reshape"):
        item.dims.extend(shape)
    if kind == "input" and spec.optional:
        item.optional = True
    datatype = _datatype(item, where)
    if datatype != spec.datatype:
        raise ConfigError(
            f"{where}: {kind} {spec.name!r} has data_type {to_triton(datatype)} in the configuration and "
            f"{to_triton(spec.datatype)} in the model"
        )
    dims = _model_dims(item)
    if len(dims) != len(shape) or any(size not in (-1, given) for given, size in zip(dims, shape, strict=True)):
        hint = " (max_batch_size > 0: dims leave the batch dimension out)" if batched else ""
        raise ConfigError(
            f"{where}: {kind} {spec.name!r} has dims {list(dims)} in the configuration, the model has "
            f"{list(shape)}{hint}"
        )


def _datatype(item: Any, where: str) -> str:
    try:
        return from_triton(data_type_name(item))
    except ValueError as error:
        raise ConfigError(f"{where}: {item.name!r}: {error}") from None


def _complete_defaults(message: Any, backend: Backend) -> None:
    """What Triton prints for a model that said nothing: backend, one instance on the CPU, the latest version.

    An engine on a GPU gets as many instances as keep it busy.
    """
    message.backend = backend.name
    message.platform = message.platform or backend.platform
    if not message.version_policy.WhichOneof("policy_choice"):
        message.version_policy.latest.num_versions = 1
    if not message.instance_group:
        count = backend.default_instances if isinstance(backend, EngineBackend) else 1
        message.instance_group.add(name=message.name, count=count)
    for index, group in enumerate(message.instance_group):
        group.name = group.name or f"{message.name}_{index}"
        group.count = group.count or 1
        group.kind = _KIND_CPU
    if message.HasField("dynamic_batching") and message.max_batch_size > 0:
        block = message.dynamic_batching
        if not block.preferred_batch_size:
            block.preferred_batch_size.append(message.max_batch_size)
