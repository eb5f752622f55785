"""A loaded model as the data plane needs it. `_core` reads these dataclasses attribute by attribute."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from penstock import limits
from penstock.backends.base import answers_on_device
from penstock.backends.settings import DynamicBatching, QueuePolicy
from penstock.repository import Model
from penstock.serve.options import Batching as Preference


@dataclass(frozen=True, slots=True)
class Tensor:
    """`dims` leave the batch dimension out when the model batches."""

    name: str
    datatype: str
    dims: list[int]
    optional: bool


@dataclass(frozen=True, slots=True)
class InputPadding:
    name: str
    axis: int
    multiple: int
    value: float


@dataclass(frozen=True, slots=True)
class OutputPadding:
    name: str
    axis: int
    divisor: int


@dataclass(frozen=True, slots=True)
class Policy:
    """How requests of one priority level wait."""

    delay_expired: bool
    default_timeout_us: int
    allow_override: bool
    max_queue_size: int


@dataclass(frozen=True, slots=True)
class Batching:
    """`mode` is auto, triton or off."""

    mode: str
    preferred: list[int]
    max_delay_us: int
    preserve_ordering: bool
    priority_levels: int
    default_priority_level: int
    default_policy: Policy
    priority_policies: Mapping[int, Policy]
    max_queue_requests: int = limits.QUEUE_REQUESTS
    max_queue_bytes: int = limits.QUEUE_BYTES


@dataclass(frozen=True, slots=True)
class Specification:
    name: str
    version: int
    platform: str
    max_batch_size: int
    instances: int
    inputs: list[Tensor]
    outputs: list[Tensor]
    batching: Batching
    config_json: bytes
    config_proto: bytes
    load_seconds: float
    fresh_outputs: bool
    """The backend never touches memory that it has returned, so it may be sent without a copy."""
    on_device: bool
    """Instances take rows that lie on a GPU where they are, and can leave answers there."""
    input_padding: list[InputPadding] = field(default_factory=list)
    output_padding: list[OutputPadding] = field(default_factory=list)


def specification(model: Model, preference: Preference, load_seconds: float) -> Specification:
    """`preference` is the server's; a model's own parameter `batching` goes before it."""
    config = model.config
    padding = config.padding
    return Specification(
        name=model.name,
        version=model.version,
        platform=model.backend.platform,
        max_batch_size=config.max_batch_size,
        instances=config.instance_count,
        inputs=[Tensor(spec.name, spec.datatype, list(spec.shape), spec.optional) for spec in config.inputs],
        outputs=[Tensor(spec.name, spec.datatype, list(spec.shape), optional=False) for spec in config.outputs],
        batching=batching(config.dynamic_batching, config.batching or preference),
        config_json=config.to_json().encode(),
        config_proto=config.to_bytes(),
        load_seconds=load_seconds,
        fresh_outputs=model.backend.fresh_outputs,
        # Rows are padded, and answers cut back, on the host.
        on_device=padding is None and answers_on_device(model.backend),
        input_padding=[InputPadding(r.name, r.axis, r.multiple, r.value) for r in padding.inputs] if padding else [],
        output_padding=[OutputPadding(r.name, r.axis, r.divisor) for r in padding.outputs] if padding else [],
    )


def batching(block: DynamicBatching | None, preference: Preference) -> Batching:
    """What a `dynamic_batching` block means.

    One that names a delay or preferred sizes is Triton's policy; an empty one, or none, is automatic. To the letter
    (`preference` triton), none is no batching across requests and an empty one is a delay of 0.
    """
    settings = block if block is not None else DynamicBatching()
    if preference == "triton":
        mode = "off" if block is None else "triton"
    else:
        mode = "auto" if settings.automatic else "triton"
    automatic = mode == "auto"
    return Batching(
        mode=mode,
        preferred=list(settings.preferred_batch_sizes),
        max_delay_us=settings.max_queue_delay_us,
        preserve_ordering=settings.preserve_ordering,
        priority_levels=settings.priority_levels,
        default_priority_level=settings.default_priority_level,
        default_policy=_policy(settings.default_queue_policy, automatic=automatic),
        priority_policies={
            level: _policy(policy, automatic=automatic) for level, policy in settings.priority_queue_policies.items()
        },
    )


def _policy(policy: QueuePolicy, *, automatic: bool) -> Policy:
    """Without a policy by hand a request's own timeout counts: who sends one means it."""
    return Policy(
        delay_expired=policy.timeout_action == "delay",
        default_timeout_us=policy.default_timeout_us,
        allow_override=automatic or policy.allow_timeout_override,
        max_queue_size=policy.max_queue_size,
    )
