"""The configuration of one model: a typed view of the protobuf message, and what makes it valid.

`parse` reads config.pbtxt or the JSON of a load request and refuses what contradicts itself, what Penstock can't do yet
and would answer differently without; settings that only tune another server are noted in `Config.notes` and left
alone. `complete.py` then fills in what the model file knows. The serve layer reads the finished Config.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from penstock import limits
from penstock.backends.base import check_model_name
from penstock.backends.settings import DynamicBatching, QueuePolicy
from penstock.errors import ConfigError
from penstock.repository import acceleration, messages
from penstock.repository.acceleration import Acceleration
from penstock.repository.padding import Padding
from penstock.repository.padding import parse as parse_padding
from penstock.repository.supported import notes, refuse_unsupported
from penstock.tensors import TensorSpec, from_triton

Batching = Literal["auto", "triton"]


@dataclass(frozen=True, slots=True)
class Latest:
    """Serve the newest `count` versions."""

    count: int = 1


@dataclass(frozen=True, slots=True)
class Specific:
    """Serve these versions."""

    versions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class All:
    """Serve every version."""


VersionPolicy = Latest | Specific | All


@dataclass(frozen=True)
class Config:
    """One model's settings. `message` is the protobuf; everything else is read from it."""

    message: Any
    """An `inference.ModelConfig`; not changed once the Config is in use."""

    written: frozenset[str] = frozenset()
    """Top-level fields that were written down, zeros included."""

    notes: tuple[str, ...] = field(default=())
    """Settings that were understood and have no effect here: one sentence each, for the log."""

    @property
    def name(self) -> str:
        return str(self.message.name)

    @property
    def max_batch_size(self) -> int:
        """Rows of the largest batch; 0: the model has no batch dimension."""
        return int(self.message.max_batch_size)

    @cached_property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """As clients send them, without the batch dimension when max_batch_size > 0."""
        return tuple(_spec(item, optional=item.optional) for item in self.message.input)

    @cached_property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return tuple(_spec(item, optional=False) for item in self.message.output)

    @property
    def instance_count(self) -> int:
        """Instances of all groups; one when none is configured."""
        return sum(group.count or 1 for group in self.message.instance_group) or 1

    @cached_property
    def dynamic_batching(self) -> DynamicBatching | None:
        """None without a block. A block that only repeats the defaults reads as the empty one."""
        if not self.message.HasField("dynamic_batching"):
            return None
        block = self.message.dynamic_batching
        preferred = tuple(block.preferred_batch_size)
        if block.max_queue_delay_microseconds == 0 and preferred == (self.max_batch_size,):
            preferred = ()  # what an empty block is printed back as
        return DynamicBatching(
            max_queue_delay_us=block.max_queue_delay_microseconds,
            preferred_batch_sizes=preferred,
            preserve_ordering=block.preserve_ordering,
            priority_levels=block.priority_levels,
            default_priority_level=block.default_priority_level,
            default_queue_policy=_queue_policy(block.default_queue_policy),
            priority_queue_policies={
                level: _queue_policy(block.priority_queue_policy[level]) for level in block.priority_queue_policy
            },
        )

    @property
    def version_policy(self) -> VersionPolicy:
        policy = self.message.version_policy
        match policy.WhichOneof("policy_choice"):
            case "all":
                return All()
            case "specific":
                return Specific(tuple(policy.specific.versions))
            case "latest":
                return Latest(policy.latest.num_versions or 1)
            case _:
                return Latest()

    @cached_property
    def parameters(self) -> dict[str, str]:
        return {key: self.message.parameters[key].string_value for key in self.message.parameters}

    @property
    def batching(self) -> Batching | None:
        """The parameter `batching`: "triton" follows Triton to the letter; None leaves it to the server."""
        value = self.parameters.get("batching")
        match value:
            case None | "auto" | "triton":
                return value
        raise ConfigError(f"model {self.name!r}: parameter batching is {value!r}, expected auto or triton")

    @property
    def threads(self) -> int | None:
        """The parameter `intra_op_thread_count`: threads of each instance; None (or 0) is a fair share."""
        value = self.parameters.get("intra_op_thread_count", "0")
        if not (value.isascii() and value.isdigit() and len(value) <= 4):
            raise ConfigError(
                f"model {self.name!r}: parameter intra_op_thread_count is {value!r}, expected a number of threads"
            )
        return int(value) or None

    @cached_property
    def acceleration(self) -> Acceleration | None:
        """The engine that `optimization.execution_accelerators` asks for."""
        return acceleration.parse(self.message, f"model {self.name!r}", self.instance_count)

    @cached_property
    def padding(self) -> Padding | None:
        """The parameter `padding`, checked against this configuration's tensors."""
        text = self.parameters.get("padding")
        if text is None:
            return None
        batch = (-1,) if self.max_batch_size > 0 else ()
        inputs, outputs = ([_batched(spec, batch) for spec in specs] for specs in (self.inputs, self.outputs))
        return parse_padding(text, self.max_batch_size, inputs, outputs, f"model {self.name!r}")

    def to_json(self) -> str:
        """The answer of the configuration endpoint."""
        return messages.to_json(self.message)

    def to_bytes(self) -> bytes:
        """An encoded `inference.ModelConfig`."""
        return bytes(self.message.SerializeToString(deterministic=True))


def parse(name: str, text: str | None, override: str | None = None) -> Config:
    """The configuration of model `name` as written: its config.pbtxt, or the JSON that a load request sent instead.

    Without either it is empty but for the name. Raises ConfigError.
    """
    check_model_name(name)
    if override is not None:
        where = f"configuration sent for model {name!r}"
        message, written = messages.from_json(override, where), messages.names_in_json(override)
    elif text is not None:
        where = f"config.pbtxt of model {name!r}"
        message, written = messages.from_text(text, where), messages.names_in_text(text)
    else:
        message, written = messages.new(), frozenset()
    if message.name not in ("", name):
        raise ConfigError(
            f"unexpected name {message.name!r} in the configuration of model {name!r}, expected "
            "the name of its directory"
        )
    message.name = name
    return validated(Config(message, written, (*notes(message), *acceleration.notes(message))))


def validated(config: Config) -> Config:
    """The same Config once it is free of contradictions; raises ConfigError that names the field."""
    message = config.message
    where = f"model {config.name!r}"
    refuse_unsupported(message, where)
    if not 0 <= message.max_batch_size <= limits.MAX_BATCH_SIZE:
        raise ConfigError(f"{where}: max_batch_size is {message.max_batch_size}, expected 0 to {limits.MAX_BATCH_SIZE}")
    _check_tensors(message.input, "input", where)
    _check_tensors(message.output, "output", where)
    _check_instances(message.instance_group, where)
    _check_batching(message, where)
    if isinstance(policy := config.version_policy, Specific) and not policy.versions:
        raise ConfigError(f"{where}: version_policy specific names no versions")
    _ = config.batching, config.threads, config.acceleration
    return config


def _check_tensors(items: Any, kind: str, where: str) -> None:
    seen: set[str] = set()
    for item in items:
        if not item.name or len(item.name.encode()) > limits.NAME_BYTES:
            raise ConfigError(f"{where}: an {kind} needs a name of 1 to {limits.NAME_BYTES} bytes")
        if item.name in seen:
            raise ConfigError(f"{where}: {kind} {item.name!r} is configured twice")
        seen.add(item.name)
        sizes = [*item.dims, *(item.reshape.shape if item.HasField("reshape") else ())]
        if len(item.dims) > limits.TENSOR_DIMS or any(size == 0 or size < -1 for size in sizes):
            raise ConfigError(
                f"{where}: {kind} {item.name!r} has dims {list(item.dims)}, expected at most "
                f"{limits.TENSOR_DIMS} sizes, "
                "each at least 1, or -1 for any"
            )


def _check_instances(groups: Any, where: str) -> None:
    for group in groups:
        if group.count < 0:
            raise ConfigError(f"{where}: instance_group count is {group.count}, expected at least 1")
    if sum(group.count or 1 for group in groups) > limits.INSTANCES:
        raise ConfigError(f"{where}: more than {limits.INSTANCES} instances are configured")


def _check_batching(message: Any, where: str) -> None:
    if not message.HasField("dynamic_batching"):
        return
    block = message.dynamic_batching
    for size in block.preferred_batch_size:
        # Checked against the size again once it is completed from the model.
        if size < 1 or (message.max_batch_size > 0 and size > message.max_batch_size):
            raise ConfigError(
                f"{where}: dynamic_batching preferred_batch_size {size} is not within 1 to max_batch_size "
                f"{message.max_batch_size}"
            )
    levels = block.priority_levels
    if levels and not 1 <= block.default_priority_level <= levels:
        raise ConfigError(f"{where}: default_priority_level is {block.default_priority_level}, expected 1 to {levels}")
    for level in block.priority_queue_policy:
        if not 1 <= level <= levels:
            raise ConfigError(f"{where}: priority_queue_policy {level} is not within priority_levels {levels}")


def _queue_policy(message: Any) -> QueuePolicy:
    return QueuePolicy(
        timeout_action="delay" if message.timeout_action == 1 else "reject",
        default_timeout_us=message.default_timeout_microseconds,
        allow_timeout_override=message.allow_timeout_override,
        max_queue_size=message.max_queue_size,
    )


def data_type_name(item: Any) -> str:
    """`TYPE_FP32` of a tensor message."""
    values = item.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
    known = values.get(item.data_type)
    return known.name if known is not None else str(item.data_type)


def _spec(item: Any, optional: bool) -> TensorSpec:
    try:
        datatype = from_triton(data_type_name(item))
    except ValueError as error:
        raise ConfigError(f"{item.name!r}: {error}") from None
    return TensorSpec(item.name, datatype, tuple(item.dims), optional)


def _batched(spec: TensorSpec, batch: tuple[int, ...]) -> TensorSpec:
    return TensorSpec(spec.name, spec.datatype, batch + spec.shape, spec.optional)
