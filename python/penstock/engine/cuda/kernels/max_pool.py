"""The largest, or the mean, of a window for each channel of an NHWC feature map; NaN if the window holds one.

torch's kernel for channels_last reads 384 us for a 64 x 112 x 112 x 64 map on an H200, where moving it takes 30.
"""

# What Triton compiles has Triton's types, which are not Python's.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .activations import INTERPRETED
from .launching import Launch
from .rows import expect_shape, pitch, power_of_two

UNROLLED: tl.constexpr = tl.constexpr(25)
"""Pixels of a window that are all written out; more are a loop: 20 x 20 would take two minutes to compile."""
_BYTES = 2048  # of a block: 16 for each thread of 4 warps
_WARPS = 4


def max_pool2d_nhwc(
    x: torch.Tensor,
    *,
    window: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    out: torch.Tensor,
    dilation: tuple[int, int] = (1, 1),
    pdl: bool = False,
) -> None:
    """out[n, p, q, c] = max of x[n, p·stride + r·dilation - padding, ..., c]; what lies outside counts for nothing.

    padding  (top, left); the rest follows from the shape of `out`. ValueError for shapes that don't fit together.
    """
    max_pool2d_nhwc_launch(x, window=window, stride=stride, padding=padding, out=out, dilation=dilation, pdl=pdl).run()


def max_pool2d_nhwc_launch(
    x: torch.Tensor,
    *,
    window: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    out: torch.Tensor,
    dilation: tuple[int, int] = (1, 1),
    mean: tuple[int, int, int, int] | None = None,
    pdl: bool = False,
) -> Launch:
    """mean  in place of the largest number the mean, summed in FP32; (top, left, bottom, right): as much of what lies
    around the map counts as so many zeros, the rest for nothing.
    """
    batch, height, width, channels = x.shape
    out_height, out_width = out.shape[1:3]
    expect_shape(out, "out", batch, out_height, out_width, channels)
    if mean is not None and dilation != (1, 1):
        raise ValueError(f"mean: expected no dilation, got {dilation}")
    inside = padding == (0, 0) and _inside(x, window, stride, out)
    top, left, bottom, right = mean or (0, 0, 0, 0)
    block_channels = min(power_of_two(channels), 128)
    block_spots = max(1, _BYTES // x.element_size() // block_channels)
    spots = batch * out_height * out_width
    return Launch(
        max_pool_kernel,
        (triton.cdiv(spots, block_spots), triton.cdiv(channels, block_channels), 1),
        (x, out),
        {
            "SPOTS": spots,
            "CHANNELS": channels,
            "HEIGHT": height,
            "WIDTH": width,
            "OUT_HEIGHT": out_height,
            "OUT_WIDTH": out_width,
            "TAPS_HIGH": window[0],
            "TAPS_WIDE": window[1],
            "STRIDE_HIGH": stride[0],
            "STRIDE_WIDE": stride[1],
            "PAD_TOP": padding[0],
            "PAD_LEFT": padding[1],
            "DILATION_HIGH": dilation[0],
            "DILATION_WIDE": dilation[1],
            "X_PITCH": pitch(x, "x"),
            "OUT_PITCH": pitch(out, "out"),
            "MEAN": mean is not None,
            "COUNTED": mean is not None and not inside,
            "COUNTED_TOP": top,
            "COUNTED_LEFT": left,
            "COUNTED_BOTTOM": bottom,
            "COUNTED_RIGHT": right,
            "BLOCK_SPOTS": block_spots,
            "BLOCK_CHANNELS": block_channels,
            "PDL": pdl,
        },
        num_warps=_WARPS,
        pdl=pdl,
    )


def _inside(x: torch.Tensor, window: tuple[int, int], stride: tuple[int, int], out: torch.Tensor) -> bool:
    return all((out.shape[1 + n] - 1) * stride[n] + window[n] <= x.shape[1 + n] for n in (0, 1))


@triton.jit
def _larger(a, b):
    """Of INT8, four at a time: as the upper halves of 16-bit numbers, whose lower halves decide nothing."""
    if INTERPRETED:
        return tl.maximum(a, b)
    return tl.inline_asm_elementwise(
        """{
            .reg .b32 odd, even, a, b;
            shl.b32 a, $1, 8;
            shl.b32 b, $2, 8;
            max.s16x2 odd, $1, $2;
            max.s16x2 even, a, b;
            prmt.b32 $0, even, odd, 0x7351;
            }""",
        "=r,r,r",
        [a, b],
        dtype=tl.int8,
        is_pure=True,
        pack=4,
    )


@triton.jit
def _with_tap(
    result,
    x,
    row,
    column,
    picture,
    channels,
    exists,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    X_PITCH: tl.constexpr,
    MEAN: tl.constexpr,
    NOTHING: tl.constexpr,
):
    """The largest number, or the sum, with one pixel of the window more."""
    inside = (row >= 0) & (row < HEIGHT) & (column >= 0) & (column < WIDTH)
    place = ((picture * HEIGHT + row) * WIDTH + column) * X_PITCH
    seen = tl.load(x + place[:, None] + channels[None, :], mask=exists & inside[:, None], other=NOTHING)
    if result.dtype == tl.int8:
        return _larger(result, seen)
    if MEAN:
        return result + seen.to(tl.float32)
    return tl.maximum(result, seen.to(tl.float32), propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def max_pool_kernel(
    x,
    out,
    SPOTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    OUT_HEIGHT: tl.constexpr,
    OUT_WIDTH: tl.constexpr,
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
    MEAN: tl.constexpr,
    COUNTED: tl.constexpr,
    COUNTED_TOP: tl.constexpr,
    COUNTED_LEFT: tl.constexpr,
    COUNTED_BOTTOM: tl.constexpr,
    COUNTED_RIGHT: tl.constexpr,
    BLOCK_SPOTS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (blocks of spots of all pictures, blocks of channels)."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    spots = tl.program_id(0) * BLOCK_SPOTS + tl.arange(0, BLOCK_SPOTS)
    channels = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    column = spots % OUT_WIDTH * STRIDE_WIDE - PAD_LEFT
    row = spots // OUT_WIDTH % OUT_HEIGHT * STRIDE_HIGH - PAD_TOP
    picture = spots // (OUT_WIDTH * OUT_HEIGHT)
    exists = (spots < SPOTS)[:, None] & (channels < CHANNELS)[None, :]
    EIGHT: tl.constexpr = x.dtype.element_ty == tl.int8
    start: tl.constexpr = 0.0 if MEAN else (-128 if EIGHT else float("-inf"))
    result = tl.full((BLOCK_SPOTS, BLOCK_CHANNELS), start, tl.int8 if EIGHT else tl.float32)
    if TAPS_HIGH * TAPS_WIDE <= UNROLLED:
        for high in tl.static_range(TAPS_HIGH):
            for wide in tl.static_range(TAPS_WIDE):
                result = _with_tap(
                    result, x, row + high * DILATION_HIGH, column + wide * DILATION_WIDE, picture, channels, exists,
                    HEIGHT, WIDTH, X_PITCH, MEAN, start,
                )  # fmt: skip
    else:
        for high in range(TAPS_HIGH):
            for wide in range(TAPS_WIDE):
                result = _with_tap(
                    result, x, row + high * DILATION_HIGH, column + wide * DILATION_WIDE, picture, channels, exists,
                    HEIGHT, WIDTH, X_PITCH, MEAN, start,
                )  # fmt: skip
    if COUNTED:
        rows = tl.minimum(row + TAPS_HIGH, HEIGHT + COUNTED_BOTTOM) - tl.maximum(row, -COUNTED_TOP)
        columns = tl.minimum(column + TAPS_WIDE, WIDTH + COUNTED_RIGHT) - tl.maximum(column, -COUNTED_LEFT)
        result = result / (rows * columns).to(tl.float32)[:, None]
    elif MEAN:
        result = result / (TAPS_HIGH * TAPS_WIDE)
    tl.store(out + spots[:, None] * OUT_PITCH + channels[None, :], result.to(out.dtype.element_ty), mask=exists)
