"""Depthwise convolution by threads that walk down rows with their filters in registers, in CUDA C++ (`depthwise.cu`).

Every pixel is loaded and widened once for all the results that it belongs to, where `depthwise.py` does so for each row
of taps; INT8 is multiplied in FP16, two at a time. Both are timed. `steady` makes what INT8 is multiplied by.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Final

import torch

from .cpp_launching import CppLaunch
from .epilogue import Epilogue, unfilled
from .rows import expect_contiguous, expect_shape, pitch
from .tiles import H200_MULTIPROCESSORS

ACTIVATIONS: Final = ("none", "relu", "relu6", "clip", "hard_swish", "silu")
BEYOND_BOUNDS: Final = {"hard_swish": 1, "silu": 2}
"""As the sources count them; all others do no more than `bounds`."""

_LARGEST: Final = 126.5  # what is not below is rounded to the largest of INT8, or saturates
_COLUMNS: Final = (1, 2, 4, 7, 8)
_ROWS: Final = (1, 2, 4, 7, 14, 28)
_AHEAD: Final = (1, 2)
_THREADS: Final = 64  # so few that multiprocessors get about as much
_REGISTERS: Final = 203  # of a thread, beyond which the compiler spills
_MULTIPROCESSOR_REGISTERS: Final = 65536
_WARP: Final = 32
# Clocks, roughly: of a load from the second cache, of what comes before the first row, of a store with what is done
# to a word of sums, of a word's load and conversion; warps that begin an instruction in one clock.
_LATENCY: Final = 700
_START: Final = 1500
_STORE: Final = 16
_LOAD: Final = 6
_ISSUE: Final = 2.8


@dataclass(frozen=True, slots=True)
class Layer:
    """What its cuts depend on."""

    out_shape: tuple[int, int, int, int]
    taps: tuple[int, int]
    stride: tuple[int, int]
    itemsize: int
    """Of what it reads."""

    @property
    def vector(self) -> int:
        """Channels of a thread."""
        return 4 // self.itemsize


@dataclass(frozen=True, slots=True)
class WalkTile:
    columns: int
    """Results beside each other that a thread makes."""
    rows: int
    """Below each other."""
    ahead: int
    """Rows that are loaded before they are wanted."""
    threads: int = _THREADS

    def walks(self, out_high: int, out_wide: int) -> int:
        """Of an image and a word of channels: the second dimension of `sums`."""
        return ceil(out_high / self.rows) * ceil(out_wide / self.columns)

    def registers(self, layer: Layer) -> int:
        kept, reach = self._kept(layer), self._reach(layer)
        taps = layer.taps[0] * layer.taps[1]
        return 2 * (kept * self.columns + taps + reach) + self.ahead * reach + 14

    def clocks(self, layer: Layer, multiprocessors: int) -> float:
        """Roughly, for telling cuts apart."""
        images, high, wide, channels = layer.out_shape
        walks, reach, rows = self.walks(high, wide), self._reach(layer), min(self.rows, high)
        read = (rows - 1) * layer.stride[0] + layer.taps[0]
        each_row = reach * _LOAD + 2 * self.columns * layer.taps[0] * layer.taps[1] / layer.stride[0]
        work = read * each_row + rows * self.columns * _STORE + 4 * layer.taps[0] * layer.taps[1] + 60
        warps = ceil(images * walks * channels / layer.vector / self.threads) / multiprocessors
        warps = ceil(warps) * self.threads // _WARP  # of the multiprocessor that has most
        resident = _MULTIPROCESSOR_REGISTERS // (self.registers(layer) * self.threads) * self.threads // _WARP
        at_once = min(warps, resident) / _ISSUE
        alone = _START + read * max(_LATENCY / self.ahead, each_row * max(1.0, at_once))
        return max(warps * work / _ISSUE, ceil(warps / resident) * alone)

    def _kept(self, layer: Layer) -> int:
        return ceil(layer.taps[0] / layer.stride[0])

    def _reach(self, layer: Layer) -> int:
        return (self.columns - 1) * layer.stride[1] + layer.taps[1]


def walk_tiles(layer: Layer, multiprocessors: int = H200_MULTIPROCESSORS, limit: int = 6) -> list[WalkTile]:
    """The cuts worth timing, most promising first."""
    return sorted(_sensible(layer), key=lambda tile: tile.clocks(layer, multiprocessors))[:limit]


def _sensible(layer: Layer) -> Iterator[WalkTile]:
    _, high, wide, _ = layer.out_shape
    for columns in _COLUMNS:
        for rows in _ROWS:
            for ahead in _AHEAD:
                tile = WalkTile(columns, min(rows, high), ahead)
                repeated = rows > high and min(rows // 2, high) == high
                if columns <= max(wide, 1) and not repeated and tile.registers(layer) <= _REGISTERS:
                    yield tile


def steady(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[R, S, C] -> FP16 weights whose sizes add up to at most one in each channel, and what was taken out of them.

    That is a power of two: no digit is lost of a weight that matters.
    """
    if weight.is_meta:
        return unfilled(weight, dtype=torch.float16), unfilled(weight, weight.shape[2:])
    size = weight.float().abs().sum((0, 1)).clamp(min=2.0**-40)
    factors = torch.exp2(torch.ceil(torch.log2(size)))
    return (weight.float() / factors).half().contiguous(), factors.contiguous()


def depthwise_walk_launch(
    x: torch.Tensor,
    w: torch.Tensor,
    *,
    out: torch.Tensor,
    config: WalkTile,
    factors: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    sums: torch.Tensor | None = None,
    epilogue: Epilogue | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    scale: float = 1.0,
    pdl: bool = False,
) -> CppLaunch:
    """Convolve x [N, H, W, C] with w [R, S, C], channel by channel, into out [N, P, Q, C].

    w        of x's type; for INT8 of `steady`, with `factors` of it.
    bias     [C], FP32.
    padding  rows above and columns to the left; what is missing below and to the right follows from out's shape.
    sums     FP32 [N, config.walks(P, Q), C], of what is stored in out before it is rounded.
    scale    what one step of x is worth where it is INT8.
    """
    images, height, width, channels = x.shape
    out_high, out_wide = out.shape[1:3]
    epilogue, eight = epilogue or Epilogue(), x.dtype == torch.int8
    expect_shape(w, "w", w.shape[0], w.shape[1], channels)
    expect_shape(out, "out", images, out_high, out_wide, channels)
    expect_contiguous(w, "w", "contiguous weights [R, S, C]")
    sixteen = (torch.float16, torch.bfloat16)
    if w.dtype not in ((torch.float16,) if eight else (x.dtype,)) or w.dtype not in sixteen:
        raise ValueError(f"w: expected sixteen bits, of x's type or FP16 for INT8, got {w.dtype} for {x.dtype}")
    if out.dtype not in ((torch.int8, *sixteen) if eight else (torch.int8, x.dtype)):
        raise ValueError(f"out: expected {x.dtype} like x or INT8, got {out.dtype}")
    if eight != (factors is not None):
        raise ValueError("factors: expected them for INT8, and for nothing else")
    for name, row in (("factors", factors), ("bias", bias)):
        if row is not None:
            expect_shape(row, name, channels)
            if row.dtype != torch.float32 or not row.is_contiguous():
                raise ValueError(f"{name}: expected a row in FP32, got {row.dtype}")
    if sums is not None:
        if out.dtype == torch.int8:
            raise ValueError("sums: expected none beside an INT8 result")
        expect_shape(sums, "sums", images, config.walks(out_high, out_wide), channels)
        expect_contiguous(sums, "sums")
    vector = 4 // x.itemsize
    pitches = pitch(x, "x"), pitch(out, "out")
    for name, each in (("x", x), ("out", out)):
        if channels % vector or any(number % vector for number in pitches):
            raise ValueError(f"{name}: expected whole words of {vector} channels, got {channels} and {pitches}")
        if each.data_ptr() % 8 or each.storage_offset() * each.itemsize % 8:
            raise ValueError(f"{name}: expected an address that is a multiple of 8")
    if epilogue.activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {epilogue.activation!r}")
    low, high = bounds(epilogue)
    threads = images * config.walks(out_high, out_wide) * channels // vector
    constants = {
        "IMAGES": images,
        "HEIGHT": height,
        "WIDTH": width,
        "CHANNELS": channels,
        "OUT_HEIGHT": out_high,
        "OUT_WIDTH": out_wide,
        "TAPS_HIGH": w.shape[0],
        "TAPS_WIDE": w.shape[1],
        "STRIDE_HIGH": stride[0],
        "STRIDE_WIDE": stride[1],
        "PAD_TOP": padding[0],
        "PAD_LEFT": padding[1],
        "X_PITCH": pitches[0],
        "OUT_PITCH": pitches[1],
        "EIGHT_IN": int(eight),
        "EIGHT_OUT": int(out.dtype == torch.int8),
        "COLUMNS": config.columns,
        "ROWS": config.rows,
        "AHEAD": config.ahead,
        "THREADS": config.threads,
        "BLOCKS": ceil(threads / config.threads),
        "HAS_BIAS": int(bias is not None),
        "HAS_SUMS": int(sums is not None),
        "X_SCALE_BITS": bits(scale),
        "OUT_INVERSE_BITS": bits(1.0 / epilogue.out_scale),
        "ACTIVATION": BEYOND_BOUNDS.get(epilogue.activation, 0),
        "LOW_BITS": bits(low),
        "HIGH_BITS": bits(high),
        "HIGH_MATTERS": high_matters(epilogue),
    }
    if torch.bfloat16 in (x.dtype, out.dtype):
        constants["BFLOAT16"] = 1
    return CppLaunch(
        "depthwise.cu",
        "depthwise_walk",
        (constants["BLOCKS"], 1, 1),
        config.threads,
        (x, w, factors, bias, out, sums),
        constants,
        pdl=pdl,
    )


def bounds(epilogue: Epilogue) -> tuple[float, float]:
    """Between which an activation holds a number; infinite where it does not."""
    infinite = float("inf")
    if epilogue.activation == "clip":
        return epilogue.alpha, epilogue.beta
    return {"relu": (0.0, infinite), "relu6": (0.0, 6.0)}.get(epilogue.activation, (-infinite, infinite))


def high_matters(epilogue: Epilogue) -> int:
    """Whether the upper bound is below what INT8 ends with."""
    return int(bounds(epilogue)[1] / epilogue.out_scale < _LARGEST)


def bits(number: float) -> int:
    """FP32 as it lies in memory."""
    return int(struct.unpack("<I", struct.pack("<f", number))[0])
