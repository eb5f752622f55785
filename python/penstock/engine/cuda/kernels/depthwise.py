"""Depthwise convolution over NHWC: every channel with its own small filter, bound by memory when it is done well.

Each thread keeps eight or so channels of a few neighbouring output columns in registers, so that an input pixel is
loaded and widened once for all the taps that look at it. `sums` takes, for a squeeze-and-excite that follows, the sum
of every channel over each block of pixels, before rounding: a later kernel adds the blocks in order.
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

from .activations import activate, stored_as, whole_to_float
from .epilogue import Epilogue
from .launching import Launch
from .ranking import diverse
from .rows import expect_contiguous, expect_shape, pitch, power_of_two
from .tiles import H200_MULTIPROCESSORS

# As 13 layers of 3 x 3 on an H200 rank cuts: the first is 4 % off the best; 0.7, tried before, was 21 % off.
_IDLING: Final = 0.5
_UNROLLED: Final = 49
"""Taps that are all written out; of more, the rows are a loop: 9 x 9 would take a quarter of a minute to compile."""
_VECTOR: Final = 8  # FP16 channels in one 16-byte access
# Channels of a block -> what their accesses cost: 128 bytes in a row are as good as more, and a line that is read in
# four pieces is asked for four times.
_WIDTHS: Final = {128: 1.0, 64: 1.0, 32: 1.05, 16: 1.2}


@dataclass(frozen=True, slots=True)
class DepthwiseTile:
    """A block makes `block_spots` runs of `columns` output pixels of one image, `block_channels` wide."""

    block_spots: int
    block_channels: int
    columns: int
    num_warps: int

    def blocks(self, out_high: int, out_wide: int) -> int:
        """Blocks that one image is cut into: the second dimension of `sums`."""
        return int(triton.cdiv(out_high * triton.cdiv(out_wide, self.columns), self.block_spots))


def depthwise_tiles(
    out_shape: tuple[int, int, int, int],
    taps_wide: int,
    stride_wide: int,
    multiprocessors: int = H200_MULTIPROCESSORS,
) -> list[DepthwiseTile]:
    """The cuts worth timing, at most 12, most promising first: wide runs where there is work enough for all."""
    images, high, wide, channels = out_shape
    found: list[tuple[float, DepthwiseTile]] = []
    for block_channels, cost in _widths(channels):
        for columns in (1, 2, 4, 8):
            if columns > wide or (columns == 8 and (taps_wide > 3 or stride_wide > 1)):
                continue  # more than the registers of a thread can hold, as compiled for Hopper
            for num_warps in (1, 2, 4):
                # One 16-byte vector of channels for each thread.
                spots = max(1, num_warps * 32 * _VECTOR // block_channels)
                tile = DepthwiseTile(spots, block_channels, columns, num_warps)
                blocks = images * triton.cdiv(channels, block_channels) * tile.blocks(high, wide)
                loads = ((columns - 1) * stride_wide + taps_wide) / columns
                # Threads beyond what hides the latency (half of 2048 a multiprocessor) are better spent on longer runs.
                idle = max(1.0, multiprocessors * 1024 / (blocks * num_warps * 32))
                found.append((cost * triton.cdiv(wide, columns) * columns / wide * loads * idle**_IDLING, tile))
    return diverse(found, lambda tile: (tile.block_channels, tile.columns))


def _widths(channels: int) -> list[tuple[int, float]]:
    """Channels of a block, and what they cost: threads with channels that are not there work for nothing."""
    most = power_of_two(channels, _VECTOR)
    if most < min(_WIDTHS):
        return [(most, 1.0)]
    costs = {
        each: cost * triton.cdiv(channels, each) * each / channels for each, cost in _WIDTHS.items() if each <= most
    }
    least = min(costs.values())
    return [(each, cost) for each, cost in costs.items() if cost < 1.2 * least]


def depthwise_conv2d_nhwc(
    x: torch.Tensor,
    w: torch.Tensor,
    *,
    out: torch.Tensor,
    config: DepthwiseTile,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    sums: torch.Tensor | None = None,
    epilogue: Epilogue | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    scale: float = 1.0,
    pdl: bool = False,
) -> None:
    """Convolve x [N, H, W, C] with w [R, S, C], channel by channel, into out [N, P, Q, C].

    padding   rows above and columns to the left; what is missing below and to the right follows from out's shape.
    sums      FP32 [N, config.blocks(P, Q), C], of what is stored in out before it is rounded.
    scale     what one step of x is worth where it is INT8; w stays in floats.
    """
    depthwise_conv2d_nhwc_launch(
        x, w, out=out, config=config, bias=bias, residual=residual, sums=sums, epilogue=epilogue, stride=stride,
        padding=padding, dilation=dilation, scale=scale, pdl=pdl,
    ).run()  # fmt: skip


def depthwise_conv2d_nhwc_launch(
    x: torch.Tensor,
    w: torch.Tensor,
    *,
    out: torch.Tensor,
    config: DepthwiseTile,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    sums: torch.Tensor | None = None,
    epilogue: Epilogue | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    scale: float = 1.0,
    pdl: bool = False,
) -> Launch:
    images, height, width, channels = x.shape
    expect_shape(w, "w", w.shape[0], w.shape[1], channels)
    expect_shape(out, "out", images, out.shape[1], out.shape[2], channels)
    out_high, out_wide = out.shape[1:3]
    blocks = config.blocks(out_high, out_wide)
    expect_contiguous(w, "w", "contiguous weights [R, S, C]")
    if bias is not None:
        expect_shape(bias, "bias", channels)
    if residual is not None:
        expect_shape(residual, "residual", *out.shape)
    if sums is not None:
        expect_shape(sums, "sums", images, blocks, channels)
    epilogue = epilogue or Epilogue()
    return Launch(
        depthwise_kernel,
        (blocks, triton.cdiv(channels, config.block_channels), images),
        (x, w, bias, residual, out, sums, scale, epilogue.residual_scale, 1.0 / epilogue.out_scale),
        {
            "CHANNELS": channels,
            "HEIGHT": height,
            "WIDTH": width,
            "OUT_HEIGHT": out_high,
            "OUT_WIDTH": out_wide,
            "TAPS_HIGH": w.shape[0],
            "TAPS_WIDE": w.shape[1],
            "STRIDE_HIGH": stride[0],
            "STRIDE_WIDE": stride[1],
            "PAD_TOP": padding[0],
            "PAD_LEFT": padding[1],
            "DILATION_HIGH": dilation[0],
            "DILATION_WIDE": dilation[1],
            "X_PITCH": pitch(x, "x"),
            "RESIDUAL_PITCH": 0 if residual is None else pitch(residual, "residual"),
            "OUT_PITCH": pitch(out, "out"),
            "ACTIVATION": epilogue.activation,
            "ALPHA": epilogue.alpha,
            "BETA": epilogue.beta,
            "RESIDUAL_LAST": epilogue.residual_last,
            "BLOCK_SPOTS": config.block_spots,
            "BLOCK_CHANNELS": config.block_channels,
            "COLUMNS": config.columns,
            "UNROLLED": w.shape[0] * w.shape[1] <= _UNROLLED,
            "PDL": pdl,
        },
        config.num_warps,
        pdl=pdl,
    )


@triton.jit
def _row(
    totals,
    x,
    w,
    scale,
    channels,
    first,
    nothing,
    top,
    left,
    exists,
    r,
    CHANNELS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    TAPS_WIDE: tl.constexpr,
    STRIDE_WIDE: tl.constexpr,
    DILATION_HIGH: tl.constexpr,
    DILATION_WIDE: tl.constexpr,
    X_PITCH: tl.constexpr,
    BLOCK_SPOTS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    REACH: tl.constexpr,
):
    """The sums of each column with one row of taps more."""
    high_inside = (top + r * DILATION_HIGH).to(tl.uint32, bitcast=True) < HEIGHT
    filters = ()
    for s in tl.static_range(TAPS_WIDE):
        # A whole tile, all rows alike: each thread then has its own channels' weights, and none are exchanged.
        tap = tl.load(
            w + (r * TAPS_WIDE + s) * CHANNELS + channels[None, :] + nothing[:, None],
            mask=tl.broadcast_to(exists[None, :], (BLOCK_SPOTS, BLOCK_CHANNELS)),
            other=0.0,
        )
        if x.dtype.element_ty == tl.int8:
            filters = filters + (tap.to(tl.float32) * scale,)
        else:
            filters = filters + (tap.to(tl.float32),)
    for j in tl.static_range(REACH):
        seen = high_inside & ((left + j).to(tl.uint32, bitcast=True) < WIDTH)
        pixels = tl.load(
            x + first[:, None] + ((r * DILATION_HIGH * WIDTH + j) * X_PITCH + channels)[None, :],
            mask=seen[:, None] & exists[None, :],
            other=0.0,
        )
        pixels = whole_to_float(pixels, 256) if x.dtype.element_ty == tl.int8 else pixels.to(tl.float32)
        changed = ()
        for column in tl.static_range(COLUMNS):
            if (
                j >= column * STRIDE_WIDE
                and (j - column * STRIDE_WIDE) % DILATION_WIDE == 0
                and (j - column * STRIDE_WIDE) // DILATION_WIDE < TAPS_WIDE
            ):
                filtered = pixels * filters[(j - column * STRIDE_WIDE) // DILATION_WIDE]
                changed = changed + (totals[column] + filtered,)
            else:
                changed = changed + (totals[column],)
        totals = changed
    return totals


@triton.jit
def depthwise_kernel(
    x,
    w,
    bias,
    residual,
    out,
    sums,
    scale,
    residual_scale,
    out_inverse_scale,
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
    RESIDUAL_PITCH: tl.constexpr,
    OUT_PITCH: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    RESIDUAL_LAST: tl.constexpr,
    BLOCK_SPOTS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNROLLED: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (blocks of an image, blocks of channels, images)."""
    RUNS: tl.constexpr = (OUT_WIDTH + COLUMNS - 1) // COLUMNS
    # Input columns that one run of outputs looks at.
    REACH: tl.constexpr = (COLUMNS - 1) * STRIDE_WIDE + (TAPS_WIDE - 1) * DILATION_WIDE + 1

    block = tl.program_id(0)
    image = tl.program_id(2)
    spots = block * BLOCK_SPOTS + tl.arange(0, BLOCK_SPOTS)
    channels = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    exists = channels < CHANNELS
    nothing = spots * 0
    p = spots // RUNS
    q = (spots % RUNS) * COLUMNS
    top = p * STRIDE_HIGH - PAD_TOP
    left = q * STRIDE_WIDE - PAD_LEFT
    # Spots past the end are as far outside the picture as the padding is.
    top = tl.where(p < OUT_HEIGHT, top, -(1 << 20))
    first = ((image * HEIGHT + p * STRIDE_HIGH - PAD_TOP) * WIDTH + left) * X_PITCH

    if bias is None:
        start = tl.zeros((BLOCK_CHANNELS,), dtype=tl.float32)
    else:
        start = tl.load(bias + channels, mask=exists, other=0.0).to(tl.float32)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()

    totals = ()
    for _column in tl.static_range(COLUMNS):
        totals = totals + (tl.zeros((BLOCK_SPOTS, BLOCK_CHANNELS), dtype=tl.float32) + start[None, :],)
    if UNROLLED:
        for r in tl.static_range(TAPS_HIGH):
            totals = _row(
                totals, x, w, scale, channels, first, nothing, top, left, exists, r, CHANNELS, HEIGHT, WIDTH, TAPS_WIDE,
                STRIDE_WIDE, DILATION_HIGH, DILATION_WIDE, X_PITCH, BLOCK_SPOTS, BLOCK_CHANNELS, COLUMNS, REACH,
            )  # fmt: skip
    else:
        for r in range(TAPS_HIGH):
            totals = _row(
                totals, x, w, scale, channels, first, nothing, top, left, exists, r, CHANNELS, HEIGHT, WIDTH, TAPS_WIDE,
                STRIDE_WIDE, DILATION_HIGH, DILATION_WIDE, X_PITCH, BLOCK_SPOTS, BLOCK_CHANNELS, COLUMNS, REACH,
            )  # fmt: skip

    summed = tl.zeros((BLOCK_SPOTS, BLOCK_CHANNELS), dtype=tl.float32)
    for column in tl.static_range(COLUMNS):
        kept = ((p < OUT_HEIGHT) & (q + column < OUT_WIDTH))[:, None] & exists[None, :]
        at = (image * OUT_HEIGHT + p) * OUT_WIDTH + q + column
        y = totals[column]
        if residual is None:
            y = activate(y, ACTIVATION, ALPHA, BETA)
        else:
            added = tl.load(residual + (at * RESIDUAL_PITCH)[:, None] + channels[None, :], mask=kept, other=0.0)
            added = added.to(tl.float32)
            if residual.dtype.element_ty == tl.int8:
                added *= residual_scale
            if RESIDUAL_LAST:
                y = activate(y, ACTIVATION, ALPHA, BETA) + added
            else:
                y = activate(y + added, ACTIVATION, ALPHA, BETA)
        stored = stored_as(y, out_inverse_scale, out.dtype.element_ty)
        tl.store(out + (at * OUT_PITCH)[:, None] + channels[None, :], stored, mask=kept)
        summed += tl.where(kept, y, 0.0)
    if sums is not None:
        blocks = tl.num_programs(0)
        tl.store(sums + (image * blocks + block) * CHANNELS + channels, tl.sum(summed, axis=0), mask=exists)
