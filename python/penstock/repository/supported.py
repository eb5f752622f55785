"""Settings of a Triton configuration that Penstock refuses, or notes and ignores, each with the reason.

The rule: a setting whose absence would change an answer, or the route a request takes, is refused by name; one that
only tunes a server is noted. A row leaves its table when the feature is built.
"""

from collections.abc import Callable
from typing import Any, Final

from penstock.errors import ConfigError

_KIND_GPU: Final = 1  # inference.ModelInstanceGroup.Kind; 0 AUTO, 2 CPU, 3 MODEL

Test = Callable[[Any], bool]

_REFUSED: Final[tuple[tuple[str, Test, str], ...]] = (
    ("sequence_batching", lambda m: m.HasField("sequence_batching"), "sequences are not served yet"),
    ("ensemble_scheduling", lambda m: m.HasField("ensemble_scheduling"), "ensembles are not served yet"),
    ("platform: ensemble", lambda m: m.platform == "ensemble", "ensembles are not served yet"),
    (
        "model_transaction_policy.decoupled",
        lambda m: m.model_transaction_policy.decoupled,
        "models that answer more than once are not served yet",
    ),
    (
        "response_cache",
        lambda m: m.response_cache.enable,
        "there is no response cache yet; remove it or set enable: false",
    ),
    ("batch_input", lambda m: len(m.batch_input) > 0, "ragged batches are not served yet"),
    ("batch_output", lambda m: len(m.batch_output) > 0, "ragged batches are not served yet"),
    (
        "input.allow_ragged_batch",
        lambda m: any(item.allow_ragged_batch for item in m.input),
        "ragged batches are not served yet; the parameter padding joins inputs of near shapes",
    ),
    (
        "is_shape_tensor",
        lambda m: any(item.is_shape_tensor for item in [*m.input, *m.output]),
        "shape tensors belong to TensorRT engines, which are not served",
    ),
    (
        "is_non_linear_format_io",
        lambda m: any(item.is_non_linear_format_io for item in [*m.input, *m.output]),
        "vector formats belong to TensorRT engines, which are not served",
    ),
    (
        "model_repository_agents",
        lambda m: len(m.model_repository_agents.agents) > 0,
        "agents change the files of a model; prepare the directory before it is loaded",
    ),
    (
        "model_operations",
        lambda m: len(m.model_operations.op_library_filename) > 0,
        "libraries of custom operators are not loaded",
    ),
    (
        "instance_group kind KIND_GPU",
        lambda m: any(group.kind == _KIND_GPU or group.gpus for group in m.instance_group),
        "models run on the CPU; use KIND_CPU and leave gpus out",
    ),
    (
        "instance_group.passive",
        lambda m: any(group.passive for group in m.instance_group),
        "an instance that takes no requests has no use here",
    ),
    ("runtime", lambda m: bool(m.runtime), "a library of one's own can't be loaded; choose by backend"),
)

_NOTED: Final[tuple[tuple[str, Test, str], ...]] = (
    (
        "rate_limiter",
        lambda m: any(group.HasField("rate_limiter") for group in m.instance_group),
        "rate limiting is off, as is Triton's default",
    ),
    ("optimization.cuda", lambda m: m.optimization.HasField("cuda"), "models run on the CPU"),
    (
        "host_policy, profile or secondary_devices",
        lambda m: any(group.host_policy or group.profile or group.secondary_devices for group in m.instance_group),
        "they place instances on other hardware",
    ),
    (
        "label_filename",
        lambda m: any(item.label_filename for item in m.output),
        "the classification extension is not offered",
    ),
    (
        "model_warmup with batch_size 0",
        lambda m: any(sample.batch_size == 0 for sample in m.model_warmup),
        "such a sample is skipped, as by Triton",
    ),
    ("cc_model_filenames", lambda m: len(m.cc_model_filenames) > 0, "models run on the CPU"),
    ("metric_tags", lambda m: len(m.metric_tags) > 0, "metrics carry model and version"),
    ("model_metrics", lambda m: m.HasField("model_metrics"), "histograms have the server's own buckets"),
)

# Parameters of Triton's onnxruntime and openvino backends that have no counterpart here.
_NOTED_PARAMETERS: Final = frozenset(
    {
        "inter_op_thread_count",
        "execution_mode",
        "enable_mem_arena",
        "enable_mem_pattern",
        "memory.enable_memory_arena_shrinkage",
        "INFERENCE_NUM_THREADS",
        "NUM_STREAMS",
        "PERFORMANCE_HINT",
        "ENABLE_BATCH_PADDING",
        "RESHAPE_IO_LAYERS",
    }
)


def refuse_unsupported(message: Any, where: str) -> None:
    """Raise ConfigError for the first setting that can't be honoured."""
    for setting, test, reason in _REFUSED:
        if test(message):
            raise ConfigError(f"{where}: {setting} is not supported: {reason}")


def table() -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...], tuple[str, ...]]:
    """For the documentation: what is refused, what has no effect, each with the reason, and parameters without one."""
    refused, noted = (tuple((name, reason) for name, _, reason in rows) for rows in (_REFUSED, _NOTED))
    return refused, noted, tuple(sorted(_NOTED_PARAMETERS))


def notes(message: Any) -> tuple[str, ...]:
    """One sentence for each setting that has no effect."""
    found = [f"{setting} has no effect: {reason}" for setting, test, reason in _NOTED if test(message)]
    found += [f"parameter {key} has no effect" for key in sorted(_NOTED_PARAMETERS & set(message.parameters))]
    return tuple(found)
