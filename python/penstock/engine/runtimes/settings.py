"""What a tactic means to each library, as tables: the settings to ask for, and what is refused beforehand. Pure.

Called by the runtime modules; no library is imported here, so that a tactic can be checked without one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from penstock.engine.plan import Tactic
from penstock.errors import InvalidArgument, Unsupported

# OpenVINO's name of the type to compute in, by our precision. INT8 is in the form (Q/DQ); the hint is for the rest.
_HINTS: Final = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}
PRECISION_HINT: Final = "INFERENCE_PRECISION_HINT"

# ONNX Runtime's own option, the one that is no session configuration entry, and its values.
LEVEL: Final = "graph_optimization_level"
LEVELS: Final = ("disabled", "basic", "extended", "all")
# Options of tactics that say who runs an ONNX Runtime session on a GPU, and how, by the library's own names.
PROVIDER: Final = "provider"
CUDA_PROVIDER: Final = "CUDAExecutionProvider"
TENSORRT: Final = "TensorrtExecutionProvider"
CPU: Final = "CPUExecutionProvider"
"""As a provider it stands in for the others where there is no GPU."""

_OF_PROVIDERS: Final[Mapping[str, tuple[str, ...]]] = {
    CUDA_PROVIDER: ("cudnn_conv_algo_search", "cudnn_conv_use_max_workspace", "fuse_conv_bias", "prefer_nhwc"),
    TENSORRT: ("trt_builder_optimization_level", "trt_fp16_enable"),
    CPU: (),
}
_ENTRY_PREFIXES: Final = ("session.", "optimization.", "mlas.")


def openvino(tactic: Tactic) -> dict[str, str]:
    """Plug-in settings for the precision, with the tactic's own options on top.

    Raises Unsupported for a precision the library has no form of.
    """
    hint = _HINTS.get(tactic.precision)
    if hint is None:
        raise Unsupported(f"OpenVINO on a CPU computes in {', '.join(_HINTS)}; {tactic.precision} is not among them")
    found = {PRECISION_HINT: hint, "EXECUTION_MODE_HINT": "ACCURACY" if tactic.precision == "fp32" else "PERFORMANCE"}
    return {**found, **dict(tactic.options)}


def onnxruntime(tactic: Tactic) -> tuple[str, dict[str, str]]:
    """The optimisation level and the session configuration entries.

    Raises Unsupported for a precision the library has no kernels of on a CPU, InvalidArgument for unknown options.
    """
    if tactic.precision not in ("fp32", "int8"):
        raise Unsupported(
            f"ONNX Runtime on a CPU computes in fp32, or in int8 where the model says so; got {tactic.precision}"
        )
    level, entries = "all", {}
    for key, value in tactic.options:
        if key == LEVEL:
            if value not in LEVELS:
                raise InvalidArgument(f"{LEVEL}={value}: expected one of {', '.join(LEVELS)}")
            level = value
        elif key.startswith(_ENTRY_PREFIXES):
            entries[key] = value
        else:
            raise InvalidArgument(
                f"option {key!r} is none of ONNX Runtime, expected {LEVEL} or one of {' '.join(_ENTRY_PREFIXES)}"
            )
    return level, entries


@dataclass(frozen=True, slots=True)
class Provider:
    """Who runs a session, and its options."""

    name: str
    options: Mapping[str, str]


def on_gpu(tactic: Tactic) -> bool:
    """Whether it is ONNX Runtime with a provider of its own."""
    return tactic.runtime == "onnxruntime" and any(key == PROVIDER for key, _ in tactic.options)


def provider(tactic: Tactic) -> Provider:
    """Raises InvalidArgument for unknown providers and options, Unsupported for a precision that none has."""
    options = dict(tactic.options)
    name = options.pop(PROVIDER, "")
    if name not in _OF_PROVIDERS:
        raise InvalidArgument(f"{PROVIDER}={name!r}: expected one of {', '.join(_OF_PROVIDERS)}")
    unknown = sorted(options.keys() - set(_OF_PROVIDERS[name]))
    if unknown:
        raise InvalidArgument(f"{name} has no option {unknown[0]!r}, expected of {', '.join(_OF_PROVIDERS[name])}")
    if tactic.precision not in ("fp32", "tf32", "fp16"):
        raise Unsupported(f"{name} computes in fp32, tf32 and fp16; {tactic.precision} is not among them")
    if name == CUDA_PROVIDER:
        options = {"use_tf32": "1" if tactic.precision == "tf32" else "0", **options}
    if name == TENSORRT:
        options = {"trt_fp16_enable": "1" if tactic.precision == "fp16" else "0", **options}
    return Provider(name, options)
