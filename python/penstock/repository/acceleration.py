"""What `optimization.execution_accelerators` of a configuration asks for: an engine, built while the model serves.

Names and parameters are those of Triton's ONNX Runtime backend; what steers TensorRT alone is understood and noted.
`calibration`, `accuracy`, `budget` and `shapes` are ours, with the meaning they have for `penstock build`. Whatever
else is asked for fails the load, with what is known. Since configurations come with load requests, too, nothing here
can name a file outside the model's directory, or a function. Read by `config`, carried out by the serve layer.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from penstock.errors import ConfigError
from penstock.repository.beneath import plain
from penstock.tensors import TensorSpec

TENSORRT: Final = "tensorrt"
OPENVINO: Final = "openvino"
CUDA: Final = "cuda"  # Triton's name for settings of ONNX Runtime on GPUs: nothing is built for it

_PRECISIONS: Final = ("FP32", "TF32", "BF16", "FP16", "FP8", "INT8", "AUTO")
_OURS: Final = ("precision_mode", "max_workspace_size_bytes", "accuracy", "budget", "calibration", "shapes")
_PROFILES: Final = {
    "trt_profile_min_shapes": "--minShapes",
    "trt_profile_opt_shapes": "--optShapes",
    "trt_profile_max_shapes": "--maxShapes",
}
# Triton's parameters that have no counterpart: they place files, or steer TensorRT's own search.
_NOTED: Final = frozenset(
    {
        *("device_type", "int8_calibration_table_name", "int8_use_native_calibration_table", "max_cached_engines"),
        *("minimum_segment_size", "trt_auxiliary_streams", "trt_build_heuristics_enable"),
        *("trt_builder_optimization_level", "trt_context_memory_sharing_enable", "trt_cuda_graph_enable"),
        *("trt_detailed_build_log", "trt_dla_core", "trt_dla_enable", "trt_dump_ep_context_model"),
        *("trt_dump_subgraphs", "trt_engine_cache_enable", "trt_engine_cache_path", "trt_engine_cache_prefix"),
        *("trt_ep_context_embed_mode", "trt_ep_context_file_path", "trt_extra_plugin_lib_paths"),
        *("trt_force_sequential_engine_build", "trt_force_timing_cache", "trt_layer_norm_fp32_fallback"),
        *("trt_max_partition_iterations", "trt_min_subgraph_size", "trt_sparsity_enable", "trt_tactic_sources"),
        *("trt_timing_cache_enable", "trt_timing_cache_path"),
    }
)
_TIME: Final = re.compile(r"(?:[0-9]{1,6}h)?(?:[0-9]{1,6}m)?(?:[0-9]{1,6}s)?", re.ASCII)
_COSINE: Final = re.compile(r"cosine\s*>=\s*(0(?:\.[0-9]{1,12})?|1(?:\.0*)?)", re.ASCII)
_SHAPES: Final = re.compile(r"[^;,]+:(?:[0-9]+(?:x[0-9]+)*|scalar)(?:[;,][^;,]+)*", re.ASCII)
_MAX_CHARS: Final = 4096  # of one value: shapes of dozens of inputs
_DEFAULT_SECONDS: Final = 300.0  # as `penstock build`
_MOST_CONTEXTS: Final = 16  # of `--contexts`
_UNITS: Final = {"h": 3600, "m": 60, "s": 1}


@dataclass(frozen=True, slots=True)
class Acceleration:
    """How the engine of one model is built."""

    precision: str = "fp32"
    """As `--precision` takes it. Triton's default: without a word of the operator nothing is computed more coarsely."""

    workspace_bytes: int | None = None
    cosine: float | None = None
    """Of `accuracy`; None: what `penstock build` holds to by itself."""

    budget_seconds: float = _DEFAULT_SECONDS
    calibration: str | None = None
    """A .npz file, as a path beneath the model's directory."""

    shape_flags: tuple[str, ...] = ()
    """`--shapes=...`, or trtexec's three; none: from the configuration's dims, or from what is served."""

    contexts: int = 1
    """Instances of the model."""

    def flags(self) -> list[str]:
        """For `penstock build`; calibration and default shapes are added by whoever knows the files and the model."""
        found = [f"--precision={self.precision}", f"--budget={self.budget_seconds:g}s", *self.shape_flags]
        if self.workspace_bytes is not None:
            found.append(f"--workspace={self.workspace_bytes}B")
        if self.cosine is not None:
            found.append(f"--accuracy=cosine>={self.cosine:.12g}")
        if self.contexts > 1:
            found.append(f"--contexts={self.contexts}")
        return found


def parse(message: Any, where: str, instances: int) -> Acceleration | None:
    """Of a ModelConfig message; None when it asks for no engine. Raises ConfigError.

    Models run on the CPU, so its accelerator goes before the GPU's where both are named; both must be well formed.
    """
    asked = message.optimization.execution_accelerators
    found: list[Acceleration] = []
    for accelerators, field, names in (
        (asked.cpu_execution_accelerator, "cpu_execution_accelerator", (OPENVINO,)),
        (asked.gpu_execution_accelerator, "gpu_execution_accelerator", (TENSORRT, CUDA)),
    ):
        for each in accelerators:
            place = f"{where}: {field} {each.name!r}"
            if each.name not in names:
                raise ConfigError(f"{place} is not known, expected {' or '.join(names)}")
            if each.name != CUDA:
                found.append(_one(dict(each.parameters), place))
    return replace(found[0], contexts=min(instances, _MOST_CONTEXTS)) if found else None


def notes(message: Any) -> tuple[str, ...]:
    """One sentence for each thing said that has no effect."""
    asked = message.optimization.execution_accelerators
    every = [*asked.cpu_execution_accelerator, *asked.gpu_execution_accelerator]
    found = [
        f"execution_accelerators parameter {key} has no effect"
        for each in every if each.name != CUDA
        for key in sorted(_NOTED & set(each.parameters))
    ]  # fmt: skip
    found += ["gpu_execution_accelerator cuda has no effect: models run on the CPU" for e in every if e.name == CUDA]
    ours = [each.name for each in every if each.name != CUDA]
    found += [f"execution_accelerators {name!r} has no effect: {ours[0]!r} goes before it" for name in ours[1:]]
    return tuple(found)


def _one(parameters: Mapping[str, str], where: str) -> Acceleration:
    for key, value in parameters.items():
        if key not in _OURS and key not in _PROFILES and key not in _NOTED:
            raise ConfigError(
                f"{where}: unknown parameter {key[:64]!r}, expected one of {', '.join((*_OURS, *_PROFILES))}"
            )
        if len(value) > _MAX_CHARS or not value.isprintable():
            raise ConfigError(f"{where}: {key} has {len(value)} characters, expected up to {_MAX_CHARS} printable ones")
    mode = parameters.get("precision_mode", "FP32")
    if mode.upper() not in _PRECISIONS:
        raise ConfigError(f"{where}: precision_mode is {mode!r}, expected one of {', '.join(_PRECISIONS)}")
    accuracy = parameters.get("accuracy")
    cosine = _COSINE.fullmatch(accuracy.strip()) if accuracy is not None else None
    if accuracy is not None and cosine is None:
        # A metric is a function that a build would import: not for what may come over the network.
        raise ConfigError(f"{where}: accuracy is {accuracy!r}, expected a cosine from 0 to 1, as in cosine>=0.999")
    return Acceleration(
        precision=mode.lower(),
        workspace_bytes=_workspace(parameters.get("max_workspace_size_bytes"), where),
        cosine=float(cosine[1]) if cosine is not None else None,
        budget_seconds=_seconds(parameters.get("budget"), where),
        calibration=_calibration(parameters.get("calibration"), where),
        shape_flags=_shape_flags(parameters, where),
    )


def _workspace(text: str | None, where: str) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 18 and int(text) > 0):
        raise ConfigError(f"{where}: max_workspace_size_bytes is {text!r}, expected a number of bytes from 1")
    return int(text)


def _seconds(text: str | None, where: str) -> float:
    if text is None:
        return _DEFAULT_SECONDS
    parts = re.findall(r"([0-9]+)([hms])", text) if _TIME.fullmatch(text) else []
    seconds = sum(int(number) * _UNITS[unit] for number, unit in parts)
    if not 1 <= seconds <= 86400:
        raise ConfigError(f"{where}: budget is {text!r}, expected a time from 1s to 24h, as in 90s, 5m or 1h30m")
    return float(seconds)


def _calibration(text: str | None, where: str) -> str | None:
    if text is None:
        return None
    if not plain(text) or not text.endswith(".npz"):
        raise ConfigError(
            f"{where}: calibration is {text!r}, expected a .npz file beneath the model's directory, as in inputs.npz"
        )
    return text


def _shape_flags(parameters: Mapping[str, str], where: str) -> tuple[str, ...]:
    given = {key: parameters[key] for key in ("shapes", *_PROFILES) if key in parameters}
    for key, value in given.items():
        if _SHAPES.fullmatch(value) is None:
            raise ConfigError(f"{where}: {key} is {value!r}, expected shapes with the batch, as in x:1x3x224x224")
    profiles = [key for key in _PROFILES if key in given]
    if "shapes" in given and profiles:
        raise ConfigError(f"{where}: shapes and {profiles[0]} say the same; leave one out")
    if profiles and len(profiles) != len(_PROFILES):
        raise ConfigError(f"{where}: {profiles[0]} needs the others, too: {', '.join(_PROFILES)}")
    if "shapes" in given:
        return (f"--shapes={given['shapes']}",)
    return tuple(f"{_PROFILES[key]}={given[key]}" for key in profiles)


def middle(largest: int) -> int:
    """The batch to be fastest at: 8 of 64, 2 of 4. Servers that batch by load are seldom at either end."""
    return max(1, round(math.sqrt(largest)))


def fixed_shapes(inputs: Iterable[TensorSpec], max_batch_size: int) -> str | None:
    """`--shapes` for inputs whose dims leave nothing free but the batch; None for others.

    inputs  without the batch dimension when max_batch_size > 0.
    """
    specs = list(inputs)
    if any(-1 in spec.shape or spec.optional for spec in specs):
        return None
    return shapes_text({spec.name: (spec.shape,) * 3 for spec in specs}, max_batch_size)


def shapes_text(sides: Mapping[str, tuple[tuple[int, ...], ...]], max_batch_size: int) -> str:
    """`x:1x4,2x4,4x4;mask:...` of min, opt and max without the batch dimension, put in front when there is one."""
    batches = [(size,) for size in (1, middle(max_batch_size), max_batch_size)] if max_batch_size else [()] * 3
    return ";".join(
        f"{name}:"
        + ",".join(
            "x".join(map(str, (*batch, *shape))) or "scalar" for batch, shape in zip(batches, shapes, strict=True)
        )
        for name, shapes in sides.items()
    )
