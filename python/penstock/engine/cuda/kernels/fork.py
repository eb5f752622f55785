"""Where a text model's stem forks: a pool and two convolutions of the same map, side by side, in one kernel.

out[..., :C] is the largest of each 2 x 2 window of x, out[..., C:] a 2 x 2 convolution of a 2 x 2 convolution of it,
all of stride 1 and with windows that overhang below and to the right. Four kernels and a concatenation move the widest
maps of the network seven times; here they are read once and written once. The values between the convolutions are made
anew for each of the four pixels that look at them: few channels make that cheap.
"""

# What Triton compiles has Triton's types, which are not Python's.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment, var-annotated, misc, unreachable"
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
"""Channels of each of the maps."""


@dataclass(frozen=True, slots=True)
class ForkTile:
    block_m: int
    """Pixels of one block."""
    num_warps: int


def fork_tiles(pixels: int, multiprocessors: int = 132) -> list[ForkTile]:
    """The cuts worth timing, most promising first."""
    found = [ForkTile(64, 4), ForkTile(128, 8), ForkTile(128, 4), ForkTile(32, 4), ForkTile(16, 4), ForkTile(32, 2)]
    if pixels < 128 * multiprocessors:
        found.sort(key=lambda tile: tile.block_m)
    return found


def fork_launch(
    x: torch.Tensor,
    first: torch.Tensor,
    first_bias: torch.Tensor | None,
    second: torch.Tensor,
    second_bias: torch.Tensor | None,
    *,
    out: torch.Tensor,
    config: ForkTile,
    inner: Epilogue,
    outer: Epilogue,
    pdl: bool = False,
) -> Launch:
    """x [N, H, W, C]; first [K, 2, 2, C], second [O, 2, 2, K]; out [N, H, W, C + O]. Sums are FP32; what is between is
    rounded to x's type."""
    images, height, width, channels = x.shape
    between, made = first.shape[0], second.shape[0]
    expect_shape(first, "first", between, 2, 2, channels)
    expect_shape(second, "second", made, 2, 2, between)
    expect_shape(out, "out", images, height, width, channels + made)
    if max(channels, between, made) > WIDEST:
        raise ValueError(f"x, first, second: expected at most {WIDEST} channels, got {channels}, {between} and {made}")
    for name, each in (("first", first), ("second", second)):
        expect_contiguous(each, name, "contiguous weights")
    for name, bias, size in (("first_bias", first_bias, between), ("second_bias", second_bias, made)):
        if bias is not None:
            expect_shape(bias, name, size)
    expect_activation(inner.activation)
    expect_activation(outer.activation)
    pixels = images * height * width
    return Launch(
        fork_kernel,
        (triton.cdiv(pixels, config.block_m), 1, 1),
        (x, first, first_bias, second, second_bias, out),
        {
            "PIXELS": pixels,
            "HEIGHT": height,
            "WIDTH": width,
            "CHANNELS": channels,
            "BETWEEN": between,
            "MADE": made,
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
            "BLOCK_K": power_of_two(between, 16),
            "BLOCK_O": power_of_two(made, 16),
            "PDL": pdl,
        },
        config.num_warps,
        pdl=pdl,
    )


@triton.jit
def fork_kernel(
    x,
    first,
    first_bias,
    second,
    second_bias,
    out,
    PIXELS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    BETWEEN: tl.constexpr,
    MADE: tl.constexpr,
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
    BLOCK_K: tl.constexpr,
    BLOCK_O: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (blocks of pixels,)."""
    at = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = at % WIDTH
    row = at // WIDTH % HEIGHT
    channels = tl.arange(0, BLOCK_C)
    between = tl.arange(0, BLOCK_K)
    made = tl.arange(0, BLOCK_O)
    exists = channels < CHANNELS
    # Weights that are not there are 0, so what padded channels hold is of no matter as long as it is finite.
    firsts = ()
    for tap in tl.static_range(4):
        weights = tl.load(
            first + (between * (4 * CHANNELS) + tap * CHANNELS)[None, :] + channels[:, None],
            mask=exists[:, None] & (between < BETWEEN)[None, :],
            other=0.0,
        )
        firsts = firsts + (weights,)
    bias = tl.zeros((BLOCK_K,), dtype=tl.float32)
    if first_bias is not None:
        bias += tl.load(first_bias + between, mask=between < BETWEEN, other=0.0).to(tl.float32)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    # The nine pixels that a pixel of the result sees.
    seen = ()
    for p in tl.static_range(3):
        for q in tl.static_range(3):
            inside = (at < PIXELS) & (row + p < HEIGHT) & (column + q < WIDTH)
            values = tl.load(
                x + (at * X_PITCH)[:, None] + ((p * WIDTH + q) * X_PITCH + channels)[None, :],
                mask=inside[:, None] & exists[None, :],
                other=0.0,
            )
            seen = seen + (values,)
    largest = seen[0].to(tl.float32)
    for other in tl.static_range(1, 4):
        there = (row + other // 2 < HEIGHT) & (column + other % 2 < WIDTH)
        values = seen[other // 2 * 3 + other % 2].to(tl.float32)
        values = tl.where(there[:, None], values, float("-inf"))
        largest = tl.maximum(largest, values, propagate_nan=tl.PropagateNan.ALL)
    rows = (at * OUT_PITCH)[:, None]
    tl.store(
        out + rows + channels[None, :],
        largest.to(out.dtype.element_ty),
        mask=(at < PIXELS)[:, None] & exists[None, :],
    )
    total = tl.zeros((BLOCK_M, BLOCK_O), dtype=tl.float32)
    for tap in tl.static_range(4):
        made_here = tl.zeros((BLOCK_M, BLOCK_K), dtype=tl.float32)
        for inner in tl.static_range(4):
            values = seen[(tap // 2 + inner // 2) * 3 + tap % 2 + inner % 2]
            made_here = tl.dot(values, firsts[inner], made_here, input_precision="ieee")
        made_here = activate(made_here + bias[None, :], INNER, INNER_ALPHA, INNER_BETA)
        # The second convolution is padded with zeros, not with what the first would make of its padding.
        there = (row + tap // 2 < HEIGHT) & (column + tap % 2 < WIDTH)
        made_here = tl.where(there[:, None], made_here, 0.0).to(x.dtype.element_ty)
        weights = tl.load(
            second + (made * (4 * BETWEEN) + tap * BETWEEN)[None, :] + between[:, None],
            mask=(between < BETWEEN)[:, None] & (made < MADE)[None, :],
            other=0.0,
        )
        total = tl.dot(made_here, weights, total, input_precision="ieee")
    if second_bias is not None:
        total += tl.load(second_bias + made, mask=made < MADE, other=0.0).to(tl.float32)[None, :]
    total = activate(total, OUTER, OUTER_ALPHA, OUTER_BETA)
    tl.store(
        out + rows + (CHANNELS + made)[None, :],
        total.to(out.dtype.element_ty),
        mask=(at < PIXELS)[:, None] & (made < MADE)[None, :],
    )
