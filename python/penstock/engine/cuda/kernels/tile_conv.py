"""Convolutions of few filters over large maps, in CUDA C++ (`tile_conv.cu`): windows overlap in shared memory.

For layers of some dozens of channels, which libraries pad to a hundred and read anew for each tap.
"""

from dataclasses import dataclass
from math import ceil
from typing import Final

import torch

from .cpp_launching import CppLaunch
from .epilogue import Epilogue, unfilled
from .rows import expect_aligned, expect_contiguous, expect_shape, pitch

ACTIVATIONS: Final = {"none": 0, "relu": 1}
_WARP: Final = 32
_GROUP: Final = 8  # channels
_MOST_FILTERS: Final = 48
_BYTES: Final = 220 * 1024  # of a multiprocessor
_SUMS: Final = 72  # of a lane


@dataclass(frozen=True, slots=True)
class ConvCut:
    high: int
    wide: int
    """Pixels of the result, of one block."""
    warps: int
    tall: int
    """Times sixteen pixels that a warp has at a time."""


@dataclass(frozen=True, slots=True)
class Window:
    high: int
    wide: int
    stride: tuple[int, int]
    pads: tuple[int, int]
    """Above and to the left."""

    def shared_bytes(self, cut: ConvCut, channels: int, filters: int) -> int:
        high, wide = (
            (pixels - 1) * stride + taps
            for pixels, stride, taps in zip((cut.high, cut.wide), self.stride, (self.high, self.wide), strict=True)
        )
        pairs = ceil(self.high * self.wide * (channels // _GROUP) / 4)
        return high * wide * 16 * (channels // _GROUP | 1) + pairs * (filters // _GROUP) * _WARP * 16


def conv_cuts(
    images: int, height: int, width: int, channels: int, filters: int, window: Window, multiprocessors: int = 132
) -> list[ConvCut]:
    """The cuts worth timing for a result of height x width, most promising first; none for other layers."""
    if channels % _GROUP or filters % _GROUP or filters > _MOST_FILTERS or window.high * window.wide == 1:
        return []
    found: list[tuple[float, ConvCut]] = []
    for high, wide in ((8, 16), (4, 16), (8, 8), (4, 8), (2, 16), (8, 12), (4, 20), (8, 20), (6, 16), (12, 16), (2, 8)):
        tiles = ceil(high * wide / 16)
        for warps in (4, 8):
            tall = min(4, ceil(tiles / warps))
            cut = ConvCut(high, wide, warps, tall)
            size = window.shared_bytes(cut, channels, filters)
            if size > _BYTES or warps > tiles or tall * filters // 2 > _SUMS:
                continue
            resident = min(_BYTES // (size + 1024), 16 // warps)
            if resident < 2:  # nobody multiplies while a block loads
                continue
            blocks = images * ceil(height / high) * ceil(width / wide)
            waves = ceil(blocks / (multiprocessors * resident))
            # What a wave takes: loading, and multiplying, which blocks of a multiprocessor share.
            pixels = 16 * tall * warps * ceil(tiles / (tall * warps))
            multiplied = window.high * window.wide * channels * filters * pixels
            found.append((waves * (1.5 + resident * (multiplied / 1.2e6 + size / 1e5)), cut))
    found.sort(key=lambda each: each[0])
    return [cut for _, cut in found[:3]]


def packed(weight: torch.Tensor) -> torch.Tensor:
    """[filters, R, S, C] as lanes multiply by it: [pair of sixteens of the depth][eight filters][lane][2][2][2]."""
    filters, high, wide, channels = weight.shape
    depth, columns = high * wide * channels, filters // _GROUP
    pairs = ceil(depth / 32)
    shape = (pairs, columns, _WARP, 8)
    if weight.is_meta:
        return unfilled(weight, shape, weight.dtype)
    whole = weight.new_zeros(columns, _GROUP, pairs * 32)
    whole[..., :depth] = weight.reshape(columns, _GROUP, depth)
    # Depth: pairs, steps, halves of eight, four lanes, two numbers.
    return whole.reshape(columns, _GROUP, pairs, 2, 2, 4, 2).permute(2, 0, 1, 5, 3, 4, 6).reshape(shape).contiguous()


def tile_conv_launch(
    x: torch.Tensor,
    w: torch.Tensor,
    *,
    out: torch.Tensor,
    config: ConvCut,
    window: Window,
    bias: torch.Tensor | None = None,
    epilogue: Epilogue | None = None,
    pdl: bool = False,
) -> CppLaunch:
    """x [N, H, W, C], w `packed`, out [N, P, Q, K]; sums and bias are FP32."""
    images, height, width, channels = x.shape
    _, high, wide, filters = out.shape
    if channels % _GROUP or filters % _GROUP or not 0 < filters <= _MOST_FILTERS:
        raise ValueError(f"expected eights of channels, at most {_MOST_FILTERS} filters, got {channels} and {filters}")
    expect_shape(out, "out", images, high, wide, filters)
    pairs = ceil(window.high * window.wide * channels / 32)
    expect_shape(w, "w", pairs, filters // _GROUP, _WARP, 8)
    expect_contiguous(w, "w", "packed weights")
    for name, each in (("x", x), ("w", w), ("out", out)):
        expect_aligned(each, name, 16 if name != "out" else 4)
        if each.dtype != x.dtype or x.dtype not in (torch.float16, torch.bfloat16):
            raise ValueError(f"{name}: expected sixteen bits like x, got {each.dtype}")
    if bias is not None:
        expect_shape(bias, "bias", filters)
        if bias.dtype != torch.float32:
            raise ValueError(f"bias: expected FP32, got {bias.dtype}")
    epilogue = epilogue or Epilogue()
    if epilogue.activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {epilogue.activation!r}")
    x_pitch, out_pitch = pitch(x, "x"), pitch(out, "out")
    if x_pitch % _GROUP or out_pitch % 2:
        raise ValueError(f"expected pixels of whole groups of {_GROUP}, got {x_pitch} and {out_pitch}")
    constants = {
        "HEIGHT": height,
        "WIDTH": width,
        "OUT_HEIGHT": high,
        "OUT_WIDTH": wide,
        "CHANNELS": channels,
        "FILTERS": filters,
        "TAPS_HIGH": window.high,
        "TAPS_WIDE": window.wide,
        "STRIDE_HIGH": window.stride[0],
        "STRIDE_WIDE": window.stride[1],
        "PAD_TOP": window.pads[0],
        "PAD_LEFT": window.pads[1],
        "X_PITCH": x_pitch,
        "OUT_PITCH": out_pitch,
        "HIGH": config.high,
        "WIDE": config.wide,
        "WARPS": config.warps,
        "TALL": config.tall,
        "ACTIVATION": ACTIVATIONS[epilogue.activation],
        "HAS_BIAS": int(bias is not None),
    }
    if x.dtype == torch.bfloat16:
        constants["BFLOAT16"] = 1
    return CppLaunch(
        "tile_conv.cu",
        "tile_conv",
        (images * ceil(high / config.high) * ceil(wide / config.wide), 1, 1),
        _WARP * config.warps,
        (x, w, bias, out),
        constants,
        window.shared_bytes(config, channels, filters),
        pdl=pdl,
    )
