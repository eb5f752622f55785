"""How numbers become eight bits: the choices that placement takes, and the ranges they are applied to.

Everything here is data. `Scheme` holds what differs between libraries; `SCHEMES` names the ones worth racing, with what
was measured about them. Called by place, recipe and sensitivity.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, Literal

# A scale below the smallest normal number would be flushed to zero by some kernels.
_LEAST_SCALE: Final = 2.0**-100


@dataclass(frozen=True, slots=True)
class Range:
    """What an activation is clipped to. Zero lies within: padding and ReLU need it exact."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= 0 <= self.high):
            raise ValueError(f"range [{self.low}, {self.high}] must be finite and hold zero")

    def union(self, other: "Range") -> "Range":
        return Range(min(self.low, other.low), max(self.high, other.high))


@dataclass(frozen=True, slots=True)
class Grid:
    """q = clip(round(x / scale) + zero_point) in `datatype`."""

    scale: float
    zero_point: int
    datatype: Literal["uint8", "int8"]


@dataclass(frozen=True, slots=True)
class Scheme:
    """What is quantized, and how. Weights are always int8, symmetric, one scale for each output channel."""

    name: str = "inputs"

    activations: Literal["uint8", "int8"] = "uint8"
    """uint8: zero point 0 where nothing is negative, else wherever zero falls (what VNNI's u8 x s8 takes as it is).
    int8: symmetric, zero point 0."""

    outputs: bool = False
    """Quantize what a layer answers, too, not only what it takes. ONNX Runtime makes an integer convolution only of
    one between DequantizeLinear and QuantizeLinear; OpenVINO needs the inputs alone."""

    int32_bias: bool = False
    """Store biases as int32 behind a DequantizeLinear (scale: input's times weight's)."""

    residual_adds: bool = True
    """Quantize both inputs of an Add that joins convolutions."""

    fused_adds: bool = False
    """An Add behind a convolution is computed in its kernel, in float: of what such an Add reads only the other side is
    quantized, and what it answers."""

    depthwise: bool = True
    """Quantize convolutions with a filter for each channel."""

    first_layer: bool = True
    """Quantize a convolution with fewer than MANY_CHANNELS input channels: the picture itself."""

    gates: bool = False
    """Quantize convolutions of a single position, as in squeeze-and-excitation. They cost next to nothing, and an error
    in one number of theirs scales a whole channel."""

    attention: bool = False
    """Quantize MatMuls of two activations."""

    weight_bits: Literal[7, 8] = 8
    """7 on processors without VNNI, whose u8 x s8 pairs are summed in 16 bits and would saturate."""

    def grid(self, span: Range) -> Grid:
        """Scale and zero point that cover a range."""
        if self.activations == "int8":
            return Grid(max(max(-span.low, span.high) / 127, _LEAST_SCALE), 0, "int8")
        scale = max((span.high - span.low) / 255, _LEAST_SCALE)
        return Grid(scale, min(255, max(0, round(-span.low / scale))), "uint8")


MANY_CHANNELS: Final = 4

# Without one of these, x86 kernels add pairs of u8 x s8 products in 16 bits (vpmaddubsw), which saturates.
_WIDE_SUMS: Final = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


def suited(scheme: Scheme, features: Collection[str]) -> Scheme:
    """The scheme with 7-bit weights where the processor needs them; features as the engine's fingerprint names them."""
    narrow = "avx2" in features and _WIDE_SUMS.isdisjoint(features)
    return replace(scheme, weight_bits=7) if narrow else scheme


GPU: Final = Scheme("gpu", activations="int8", fused_adds=True)
"""For kernels of our own: symmetric."""

SCHEMES: Final[Mapping[str, Scheme]] = MappingProxyType(
    {each.name: each for each in (Scheme(), Scheme("both", outputs=True, int32_bias=True))}
)
