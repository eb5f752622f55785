"""A 1 x 1 convolution and the depthwise one behind it, in one kernel: the wide map between them is never written.

Where a mobile network's block strides, the map that it expands is four times as large as what becomes of it, and moving
it there and back is most of the block's time. Here a block makes, for its output pixels, the expanded values of every
tap anew from the narrow map (a product of 16 to 64 channels each) and adds them up. Without strides each value would be
made as often as the filter has taps, and two kernels are better.
"""

# What Triton compiles has Triton's types, which are not Python's.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment, var-annotated"
# ruff: noqa: RUF005  (Triton knows no unpacking)

from dataclasses import dataclass
from typing import Final

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .activations import activate, expect_activation
from .epilogue import Epilogue
from .launching import Launch
from .rows import expect_contiguous, expect_shape, pitch, power_of_two

WIDEST: Final = 64
"""Channels of the narrow map."""
_SHARED: Final = 200 * 1024
_REGISTERS: Final = 32 * 210  # of a warp


@dataclass(frozen=True, slots=True)
class ExpandTile:
    block_m: int
    """Output pixels of one block."""
    block_h: int
    """Expanded channels of one step of its loop."""
    num_warps: int


def expand_tiles(pixels: int, channels: int, taps: int, multiprocessors: int = 132) -> list[ExpandTile]:
    """The cuts worth timing, most promising first."""
    found = [
        ExpandTile(64, 32, 4), ExpandTile(64, 16, 4), ExpandTile(128, 32, 8), ExpandTile(64, 64, 4),
        ExpandTile(128, 16, 8), ExpandTile(32, 32, 4), ExpandTile(16, 32, 4), ExpandTile(16, 16, 4),
    ]  # fmt: skip
    wide = power_of_two(channels, 16)
    # The products of all taps are in flight together, and their results in registers.
    most = _REGISTERS // taps
    found = [
        tile
        for tile in found
        if 2 * taps * tile.block_m * wide <= _SHARED and tile.block_m * tile.block_h <= most * tile.num_warps
    ]
    if pixels < 64 * multiprocessors:
        found.sort(key=lambda tile: tile.block_m)
    return found


def expand_depthwise_launch(
    x: torch.Tensor,
    first: torch.Tensor,
    first_bias: torch.Tensor | None,
    filters: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    out: torch.Tensor,
    config: ExpandTile,
    inner: Epilogue,
    outer: Epilogue,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
    pdl: bool = False,
) -> Launch:
    """x [N, H, W, C], first [E, C], filters [R, S, E], out [N, P, Q, E]; padding is above and to the left, and of zeros
    behind the first activation. Sums are FP32, expanded values are not rounded."""
    images, height, width, channels = x.shape
    _, out_high, out_wide, expanded = out.shape
    expect_shape(first, "first", expanded, channels)
    expect_shape(filters, "filters", filters.shape[0], filters.shape[1], expanded)
    expect_shape(out, "out", images, out_high, out_wide, expanded)
    if channels > WIDEST:
        raise ValueError(f"x: expected at most {WIDEST} channels, got {channels}")
    for name, each in (("first", first), ("filters", filters)):
        expect_contiguous(each, name, "contiguous weights")
    for name, each in (("first_bias", first_bias), ("bias", bias)):
        if each is not None:
            expect_shape(each, name, expanded)
    expect_activation(inner.activation)
    expect_activation(outer.activation)
    pixels = images * out_high * out_wide
    return Launch(
        expand_depthwise_kernel,
        (triton.cdiv(pixels, config.block_m), 1, 1),
        (x, first, first_bias, filters, bias, out),
        {
            "PIXELS": pixels,
            "HEIGHT": height,
            "WIDTH": width,
            "OUT_HEIGHT": out_high,
            "OUT_WIDTH": out_wide,
            "CHANNELS": channels,
            "EXPANDED": expanded,
            "TAPS_HIGH": filters.shape[0],
            "TAPS_WIDE": filters.shape[1],
            "STRIDE_HIGH": stride[0],
            "STRIDE_WIDE": stride[1],
            "PAD_TOP": padding[0],
            "PAD_LEFT": padding[1],
            "DILATION_HIGH": dilation[0],
            "DILATION_WIDE": dilation[1],
            "X_PITCH": pitch(x, "x"),
            "OUT_PITCH": pitch(out, "out"),
            "INNER": inner.activation,
            "INNER_ALPHA": inner.alpha,
            "INNER_BETA": inner.beta,
            "OUTER": outer.activation,
            "OUTER_ALPHA": outer.alpha,
            "OUTER_BETA": outer.beta,
            "BLOCK_M": config.block_m,
            "BLOCK_C": power_of_two(channels, 16),
            "BLOCK_H": config.block_h,
            "PDL": pdl,
        },
        config.num_warps,
        pdl=pdl,
    )


@triton.jit
def expand_depthwise_kernel(
    x,
    first,
    first_bias,
    filters,
    bias,
    out,
    PIXELS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    OUT_HEIGHT: tl.constexpr,
    OUT_WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    EXPANDED: tl.constexpr,
    TAPS_HIGH: tl.constexpr,
    TAPS_WIDE: tl.constexpr,
    STRIDE_HIGH: tl.constexpr,
    STRIDE_WIDE: tl.constexpr,
    PAD_TOP: tl.constexpr,
    PAD_LEFT: tl.constexpr,
    DILATION_HIGH: tl.constexpr,
    DILATION_WIDE: tl.constexpr,
    X_PITCH: tl.constexpr,
    OUT_PITCH: tl.constexpr,
    INNER: tl.constexpr,
    INNER_ALPHA: tl.constexpr,
    INNER_BETA: tl.constexpr,
    OUTER: tl.constexpr,
    OUTER_ALPHA: tl.constexpr,
    OUTER_BETA: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (blocks of output pixels,)."""
    at = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    above = at // OUT_WIDTH
    top = (above % OUT_HEIGHT) * STRIDE_HIGH - PAD_TOP
    left = (at % OUT_WIDTH) * STRIDE_WIDE - PAD_LEFT
    place = ((above // OUT_HEIGHT * HEIGHT + top) * WIDTH + left) * X_PITCH
    channels = tl.arange(0, BLOCK_C)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    seen = ()
    for r in tl.static_range(TAPS_HIGH):
        for s in tl.static_range(TAPS_WIDE):
            row = top + r * DILATION_HIGH
            column = left + s * DILATION_WIDE
            # As unsigned numbers what is negative is large.
            there = (row.to(tl.uint32, bitcast=True) < HEIGHT) & (column.to(tl.uint32, bitcast=True) < WIDTH)
            values = tl.load(
                x + place[:, None] + ((r * DILATION_HIGH * WIDTH + s * DILATION_WIDE) * X_PITCH + channels)[None, :],
                mask=(there & (at < PIXELS))[:, None] & (channels < CHANNELS)[None, :],
                other=0.0,
            )
            seen = seen + (values,)
    for start in range(0, EXPANDED, BLOCK_H):
        h = start + tl.arange(0, BLOCK_H)
        used = h < EXPANDED
        weights = tl.load(
            first + h[None, :] * CHANNELS + channels[:, None],
            mask=used[None, :] & (channels < CHANNELS)[:, None],
            other=0.0,
        )
        added = tl.zeros((BLOCK_H,), dtype=tl.float32)
        if first_bias is not None:
            added += tl.load(first_bias + h, mask=used, other=0.0).to(tl.float32)
        total = tl.zeros((BLOCK_M, BLOCK_H), dtype=tl.float32)
        if bias is not None:
            total += tl.load(bias + h, mask=used, other=0.0).to(tl.float32)[None, :]
        for r in tl.static_range(TAPS_HIGH):
            for s in tl.static_range(TAPS_WIDE):
                y = tl.dot(seen[r * TAPS_WIDE + s], weights, input_precision="ieee")
                y = activate(y + added[None, :], INNER, INNER_ALPHA, INNER_BETA)
                # Padding is of zeros, not of what the first layer would make of zeros; most taps never meet it.
                if (
                    r * DILATION_HIGH < PAD_TOP
                    or (OUT_HEIGHT - 1) * STRIDE_HIGH - PAD_TOP + r * DILATION_HIGH >= HEIGHT
                ):
                    row = top + r * DILATION_HIGH
                    y = tl.where((row.to(tl.uint32, bitcast=True) < HEIGHT)[:, None], y, 0.0)
                if (
                    s * DILATION_WIDE < PAD_LEFT
                    or (OUT_WIDTH - 1) * STRIDE_WIDE - PAD_LEFT + s * DILATION_WIDE >= WIDTH
                ):
                    column = left + s * DILATION_WIDE
                    y = tl.where((column.to(tl.uint32, bitcast=True) < WIDTH)[:, None], y, 0.0)
                tap = tl.load(filters + (r * TAPS_WIDE + s) * EXPANDED + h, mask=used, other=0.0).to(tl.float32)
                total += y * tap[None, :]
        total = activate(total, OUTER, OUTER_ALPHA, OUTER_BETA)
        tl.store(
            out + (at * OUT_PITCH)[:, None] + h[None, :],
            total.to(out.dtype.element_ty),
            mask=(at < PIXELS)[:, None] & used[None, :],
        )
