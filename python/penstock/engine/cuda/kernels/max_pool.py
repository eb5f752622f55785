"""The largest, or the mean, of a window for each channel of an NHWC feature map; NaN if the window holds one.

torch's kernel for channels_last reads 384 us for a 64 x 112 x 112 x 64 map on an H200, where moving it takes 30.
"""

# What Triton compiles has Triton's types, which are not Python's.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .launching import Launch
from .rows import expect_shape, pitch, power_of_two

_ELEMENTS = 1024  # of a block: 8 of 16 bit for each thread of 4 warps
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
    mean: bool = False,
    pdl: bool = False,
) -> Launch:
    """`mean`: of windows that lie inside altogether, summed in FP32, in place of the largest."""
    batch, height, width, channels = x.shape
    out_height, out_width = out.shape[1:3]
    expect_shape(out, "out", batch, out_height, out_width, channels)
    if mean and (padding != (0, 0) or dilation != (1, 1) or not _inside(x, window, stride, out)):
        raise ValueError("mean: expected windows that lie inside the map")
    block_channels = min(power_of_two(channels), 128)
    block_spots = max(1, _ELEMENTS // block_channels)
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
            "MEAN": mean,
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
    start: tl.constexpr = 0.0 if MEAN else float("-inf")
    result = tl.full((BLOCK_SPOTS, BLOCK_CHANNELS), start, tl.float32)
    for high in tl.static_range(TAPS_HIGH):
        for wide in tl.static_range(TAPS_WIDE):
            at_row = row + high * DILATION_HIGH
            at_column = column + wide * DILATION_WIDE
            inside = (at_row >= 0) & (at_row < HEIGHT) & (at_column >= 0) & (at_column < WIDTH)
            place = ((picture * HEIGHT + at_row) * WIDTH + at_column) * X_PITCH
            seen = tl.load(x + place[:, None] + channels[None, :], mask=exists & inside[:, None], other=start).to(
                tl.float32
            )
            if MEAN:
                result += seen
            else:
                result = tl.maximum(result, seen, propagate_nan=tl.PropagateNan.ALL)
    if MEAN:
        result = result / (TAPS_HIGH * TAPS_WIDE)
    tl.store(out + spots[:, None] * OUT_PITCH + channels[None, :], result.to(out.dtype.element_ty), mask=exists)
