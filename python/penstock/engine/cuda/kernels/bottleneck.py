"""Convolutions in a row on the same pixels as one kernel: what lies between them never leaves the chip.

middle = inner(first * x), wide = activation(second · middle + added), out = outer(third · wide): the body of a residual
bottleneck, a window of any size and then 1 x 1, with the first 1 x 1 of the bottleneck after it, in 16 bits or INT8
throughout. `added` is the
residual, or what a 1 x 1 `shortcut` makes of another map, whose pixels may lie further apart. `wide` is written because
the next block adds it; `out`, and with it the third convolution, may be missing. Each block keeps `middle` for its rows
and walks through the channels of `wide`, so that a map of 256 channels is written once and read only to be added.
"""

# What Triton compiles has Triton's types, which are not Python's.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .activations import activate, expect_activation, round_to_int8, whole_to_float
from .epilogue import Epilogue, folds, in_steps
from .launching import Launch
from .rows import expect_shape, picture_strides, pitch

WIDEST: Final = 256
"""Of the maps that a block keeps whole: `middle`, `out`, and what a shortcut reads."""

_SHARED: Final = 226 * 1024
_ACCUMULATORS: Final = 160  # of a thread, at most, with room for addresses beside them


@dataclass(frozen=True, slots=True)
class BottleneckTile:
    block_m: int
    """Pixels of one block."""
    block_n: int
    """Channels of `wide` of one step."""
    block_k: int
    """Channels of x of one step of the first convolution."""
    num_warps: int
    num_stages: int
    """Steps of the first convolution that are loaded ahead."""
    wide_stages: int
    """The same of the walk through `wide`."""


@dataclass(frozen=True, slots=True)
class Widths:
    """Channels of each map: x, middle, wide, out (0: none), what the shortcut reads (0: there is a residual)."""

    x: int
    middle: int
    wide: int
    out: int
    shortcut: int
    taps: int
    itemsize: int = 2


@dataclass(frozen=True, slots=True)
class Steps:
    """Of INT8: what sums are worth in steps of what is made of them. Biases are of `epilogue.fold`, and all there."""

    first: torch.Tensor
    """FP32, of each column, like the others."""
    second: torch.Tensor
    third: torch.Tensor | None = None
    shortcut: torch.Tensor | None = None
    residual: float = 1.0
    """What a step of the residual is worth in steps of `wide`."""


def bottleneck_tiles(rows: int, widths: Widths, multiprocessors: int = 132) -> list[BottleneckTile]:
    """The cuts worth timing, most promising first; of one shape the best two depths."""
    ranked = sorted(_sensible(rows, widths, multiprocessors), key=lambda each: each[0])
    kept: list[BottleneckTile] = []
    shapes: Counter[tuple[int, int, int]] = Counter()
    for _, tile in ranked:
        shape = tile.block_m, tile.block_n, tile.num_warps
        if shapes[shape] < 2:
            shapes[shape] += 1
            kept.append(tile)
    return kept[:12]


def _sensible(rows: int, widths: Widths, multiprocessors: int) -> Iterator[tuple[float, BottleneckTile]]:
    for block_m, num_warps in ((64, 4), (128, 4), (128, 8), (256, 8)):
        for block_n in (64, 128):
            if widths.wide % block_n or _accumulators(block_m, block_n, num_warps, widths) > _ACCUMULATORS:
                continue
            block_k = next(each for each in (128, 64, 32) if widths.x % each == 0 and each * widths.itemsize <= 128)
            for num_stages in (2, 3, 4):
                for wide_stages in (1, 2, 3):
                    tile = BottleneckTile(block_m, block_n, block_k, num_warps, num_stages, wide_stages)
                    deep = num_stages > max(2, widths.taps * widths.x // block_k)
                    if not deep and shared_bytes(tile, widths) <= _SHARED:
                        yield _clocks(rows, widths, tile, multiprocessors), tile


def _accumulators(block_m: int, block_n: int, num_warps: int, widths: Widths) -> int:
    """Of a thread: the first layer's, or those of a step through `wide` with what is kept beside them."""
    kept = widths.middle * widths.itemsize // 4
    both = block_n if widths.itemsize == 1 and widths.shortcut else 0  # sums that are worth different numbers
    return block_m * max(widths.middle, block_n + both + widths.out + kept) // (32 * num_warps)


def shared_bytes(tile: BottleneckTile, widths: Widths) -> int:
    """About what a block takes: the larger of its two halves."""
    item = widths.itemsize
    first = item * tile.num_stages * tile.block_k * (tile.block_m + widths.middle)
    kept = item * tile.block_m * widths.shortcut
    columns = widths.middle + widths.out + widths.shortcut + (0 if widths.shortcut else tile.block_m)
    return kept + max(first, item * tile.block_n * (tile.wide_stages * columns + tile.block_m))


def _clocks(rows: int, widths: Widths, tile: BottleneckTile, multiprocessors: int) -> float:
    """Roughly: weights and pixels from L2, or the products, and waits for what was not loaded ahead."""
    reduced = widths.taps * widths.x
    weights = reduced * widths.middle + widths.wide * (widths.middle + widths.out + widths.shortcut)
    added = 0 if widths.shortcut else widths.wide
    moved = widths.itemsize * (weights + tile.block_m * (reduced + widths.shortcut + added + widths.wide + widths.out))
    products = tile.block_m * weights * widths.itemsize / 4096
    registers = min(255, _accumulators(tile.block_m, tile.block_n, tile.num_warps, widths) + 90)
    resident = max(
        1,
        min(_SHARED // (shared_bytes(tile, widths) + 1024), 65536 // (registers * 32 * tile.num_warps)),
    )
    blocks = triton.cdiv(rows, tile.block_m)
    sharing = min(resident, triton.cdiv(blocks, multiprocessors))
    waves = triton.cdiv(blocks, multiprocessors * resident)
    waits = 700 * (reduced / tile.block_k / tile.num_stages + 2 * widths.wide / tile.block_n / tile.wide_stages)
    return float(waves * (sharing * max(moved / 32, products) + 1500 + waits))


def bottleneck_launch(
    x: torch.Tensor,
    first: torch.Tensor,
    first_bias: torch.Tensor | None,
    second: torch.Tensor,
    second_bias: torch.Tensor | None,
    *,
    wide: torch.Tensor,
    config: BottleneckTile,
    inner: Epilogue,
    epilogue: Epilogue,
    residual: torch.Tensor | None = None,
    source: torch.Tensor | None = None,
    shortcut: torch.Tensor | None = None,
    shortcut_bias: torch.Tensor | None = None,
    source_stride: tuple[int, int] = (1, 1),
    third: torch.Tensor | None = None,
    third_bias: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    outer: Epilogue | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    steps: Steps | None = None,
    pdl: bool = False,
) -> Launch:
    """x [N, H, W, C], first [B, R, S, C], second [A, B], third [O, A]; wide [N, P, Q, A], out [N, P, Q, O].

    Either `residual` like wide, or `source` [N, ., ., D] with `shortcut` [A, D]: every source_stride-th pixel of it.
    Sums are FP32; what lies between two products is rounded to x's type, as separate kernels would. INT8, all of it,
    has `steps`, and no activation but ReLU.
    """
    images, height, width, channels = x.shape
    middle, taps_high, taps_wide = first.shape[:3]
    out_high, out_wide = wide.shape[1:3]
    widths = Widths(
        channels, middle, wide.shape[3], 0 if out is None else out.shape[3],
        0 if source is None else source.shape[3], taps_high * taps_wide, x.element_size(),
    )  # fmt: skip
    _check(x, first, second, third, wide, out, residual, source, shortcut, widths, config, source_stride)
    for name, each, size in (
        ("first_bias", first_bias, widths.middle),
        ("second_bias", second_bias, widths.wide),
        ("shortcut_bias", shortcut_bias, widths.wide),
        ("third_bias", third_bias, widths.out),
    ):
        if each is not None:
            expect_shape(each, name, size)
    outer = outer or Epilogue()
    for each in (inner, epilogue, outer):
        expect_activation(each.activation)
    if x.dtype == torch.int8:
        endings = all(folds(each.activation) for each in (inner, epilogue, outer))
        results = [each for each in (wide, out, residual, source) if each is not None]
        if steps is None or not endings or any(each.dtype != torch.int8 for each in results):
            raise ValueError("steps: expected those of INT8 throughout, with no activation or ReLU")
        missing = (first_bias, second_bias, *(() if out is None else (third_bias,)))
        if any(each is None for each in (*missing, *(() if source is None else (shortcut_bias,)))):
            raise ValueError("steps: expected a bias for each, of `fold`")
    across, row, image = picture_strides(x, "x")
    far = (0, 0, 0) if source is None else picture_strides(source, "source")
    rows = images * out_high * out_wide
    return Launch(
        bottleneck_kernel,
        (triton.cdiv(rows, config.block_m), 1, 1),
        (
            x, first, first_bias, second, second_bias, residual, source, shortcut, shortcut_bias, third, third_bias,
            wide, out,
            *((None,) * 4 if steps is None else (steps.first, steps.second, steps.shortcut, steps.third)),
            1.0 if steps is None else steps.residual,
        ),
        {
            "ROWS": rows,
            "HEIGHT": height,
            "WIDTH": width,
            "OUT_HEIGHT": out_high,
            "OUT_WIDTH": out_wide,
            "TAPS_HIGH": taps_high,
            "TAPS_WIDE": taps_wide,
            "STRIDE_HIGH": stride[0],
            "STRIDE_WIDE": stride[1],
            "PAD_TOP": padding[0],
            "PAD_LEFT": padding[1],
            "DILATION_HIGH": dilation[0],
            "DILATION_WIDE": dilation[1],
            "X_PITCH": across,
            "X_ROW": row,
            "X_IMAGE": image,
            "SOURCE_PITCH": far[0] * source_stride[1],
            "SOURCE_ROW": far[1] * source_stride[0],
            "SOURCE_IMAGE": far[2],
            "RESIDUAL_PITCH": 0 if residual is None else pitch(residual, "residual"),
            "WIDE_PITCH": pitch(wide, "wide"),
            "OUT_PITCH": 0 if out is None else pitch(out, "out"),
            "CHANNELS": widths.x,
            "MIDDLE": widths.middle,
            "WIDE": widths.wide,
            "OUT": widths.out,
            "SOURCE": widths.shortcut,
            "INNER": inner.activation,
            "INNER_ALPHA": inner.alpha,
            "INNER_BETA": inner.beta,
            "ACTIVATION": epilogue.activation,
            "ALPHA": epilogue.alpha,
            "BETA": epilogue.beta,
            "OUTER": outer.activation,
            "OUTER_ALPHA": outer.alpha,
            "OUTER_BETA": outer.beta,
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
            "BLOCK_K": config.block_k,
            "WIDE_STAGES": config.wide_stages,
            "PDL": pdl,
        },
        config.num_warps,
        config.num_stages,
        pdl,
    )  # fmt: skip


def _check(
    x: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    third: torch.Tensor | None,
    wide: torch.Tensor,
    out: torch.Tensor | None,
    residual: torch.Tensor | None,
    source: torch.Tensor | None,
    shortcut: torch.Tensor | None,
    widths: Widths,
    config: BottleneckTile,
    source_stride: tuple[int, int],
) -> None:
    images, out_high, out_wide, _ = wide.shape
    expect_shape(first, "first", widths.middle, *first.shape[1:3], widths.x)
    expect_shape(second, "second", widths.wide, widths.middle)
    if (third is None) != (out is None):
        raise ValueError("third, out: expected both or neither")
    if third is not None and out is not None:
        expect_shape(third, "third", widths.out, widths.wide)
        expect_shape(out, "out", images, out_high, out_wide, widths.out)
    if (source is None) != (shortcut is None) or (residual is not None and source is not None):
        raise ValueError("expected a residual, or a source with its shortcut, or neither")
    if residual is not None:
        expect_shape(residual, "residual", *wide.shape)
    if source is not None and shortcut is not None:
        expect_shape(shortcut, "shortcut", widths.wide, widths.shortcut)
        reached = [-(-size // step) for size, step in zip(source.shape[1:3], source_stride, strict=True)]
        if (source.shape[0], *reached) != (images, out_high, out_wide):
            raise ValueError(f"source: expected {images} x {out_high} x {out_wide} pixels, got {tuple(source.shape)}")
    weights = [each for each in (first, second, third, shortcut) if each is not None]
    if not all(each.is_contiguous() and each.dtype == x.dtype for each in weights):
        raise ValueError(f"weights: expected contiguous {x.dtype}")
    for name, size in (("middle", widths.middle), ("out", widths.out), ("source", widths.shortcut)):
        if size & (size - 1) or size > WIDEST or 0 < size < 16:
            raise ValueError(f"{name}: expected a power of two of channels from 16 to {WIDEST}, got {size}")
    if widths.x % config.block_k or widths.wide % config.block_n:
        raise ValueError(f"x, wide: expected multiples of the tile's channels, got {widths.x} and {widths.wide}")


@triton.jit
def bottleneck_kernel(
    x,
    first,
    first_bias,
    second,
    second_bias,
    residual,
    source,
    shortcut,
    shortcut_bias,
    third,
    third_bias,
    wide,
    out,
    first_scale,
    second_scale,
    shortcut_scale,
    third_scale,
    residual_scale,
    ROWS: tl.constexpr,
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
    X_ROW: tl.constexpr,
    X_IMAGE: tl.constexpr,
    SOURCE_PITCH: tl.constexpr,
    SOURCE_ROW: tl.constexpr,
    SOURCE_IMAGE: tl.constexpr,
    RESIDUAL_PITCH: tl.constexpr,
    WIDE_PITCH: tl.constexpr,
    OUT_PITCH: tl.constexpr,
    CHANNELS: tl.constexpr,
    MIDDLE: tl.constexpr,
    WIDE: tl.constexpr,
    OUT: tl.constexpr,
    SOURCE: tl.constexpr,
    INNER: tl.constexpr,
    INNER_ALPHA: tl.constexpr,
    INNER_BETA: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    OUTER: tl.constexpr,
    OUTER_ALPHA: tl.constexpr,
    OUTER_BETA: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WIDE_STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (blocks of pixels,)."""
    CHUNKS: tl.constexpr = CHANNELS // BLOCK_K
    REDUCED: tl.constexpr = CHANNELS * TAPS_HIGH * TAPS_WIDE
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = rows < ROWS
    above = rows // OUT_WIDTH
    image = above // OUT_HEIGHT
    top = (above % OUT_HEIGHT) * STRIDE_HIGH - PAD_TOP
    left = (rows % OUT_WIDTH) * STRIDE_WIDE - PAD_LEFT
    corner = image * X_IMAGE + top * X_ROW + left * X_PITCH
    # Rows past the end are as far outside the picture as the padding is: one comparison serves both.
    top = tl.where(inside, top, -(1 << 20))
    ks = tl.arange(0, BLOCK_K)
    b = tl.arange(0, MIDDLE)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()

    EIGHT: tl.constexpr = x.dtype.element_ty == tl.int8
    SUM: tl.constexpr = tl.int32 if EIGHT else tl.float32
    total = tl.zeros((BLOCK_M, MIDDLE), dtype=SUM)
    for step in range(TAPS_HIGH * TAPS_WIDE * CHUNKS):
        tap = step // CHUNKS
        c = (step % CHUNKS) * BLOCK_K + ks
        down = (tap // TAPS_WIDE) * DILATION_HIGH
        right = (tap % TAPS_WIDE) * DILATION_WIDE
        # As unsigned numbers what is negative is large.
        seen = ((top + down).to(tl.uint32, bitcast=True) < HEIGHT) & (
            (left + right).to(tl.uint32, bitcast=True) < WIDTH
        )
        moved = down * X_ROW + right * X_PITCH + c
        pixels = tl.load(x + corner[:, None] + moved[None, :], mask=seen[:, None], other=0)
        weights = tl.load(first + b[None, :] * REDUCED + (tap * CHANNELS + c)[:, None])
        total = tl.dot(pixels, weights, total, input_precision="ieee", out_dtype=SUM)
    if EIGHT:
        total = activate(in_steps(total, first_scale, first_bias, b, REDUCED), INNER, 0.0, 0.0)
        middle = round_to_int8(total)
    else:
        if first_bias is not None:
            total += tl.load(first_bias + b).to(tl.float32)[None, :]
        middle = activate(total, INNER, INNER_ALPHA, INNER_BETA).to(x.dtype.element_ty)

    if source is not None:
        d = tl.arange(0, SOURCE)
        place = image * SOURCE_IMAGE + (above % OUT_HEIGHT) * SOURCE_ROW + (rows % OUT_WIDTH) * SOURCE_PITCH
        others = tl.load(source + place[:, None] + d[None, :], mask=inside[:, None], other=0)
    if third is not None:
        o = tl.arange(0, OUT)
        last = tl.zeros((BLOCK_M, OUT), dtype=SUM)
    for start in tl.range(0, WIDE, BLOCK_N, num_stages=WIDE_STAGES):
        columns = start + tl.arange(0, BLOCK_N)
        weights = tl.load(second + columns[None, :] * MIDDLE + b[:, None])
        y = tl.dot(middle, weights, input_precision="ieee", out_dtype=SUM)
        if EIGHT:
            y = in_steps(y, second_scale, second_bias, columns, MIDDLE)
        elif second_bias is not None:
            y += tl.load(second_bias + columns).to(tl.float32)[None, :]
        if source is not None:
            weights = tl.load(shortcut + columns[None, :] * SOURCE + d[:, None])
            if EIGHT:
                more = tl.dot(others, weights, out_dtype=SUM)
                y += in_steps(more, shortcut_scale, shortcut_bias, columns, SOURCE)
            else:
                y = tl.dot(others, weights, y, input_precision="ieee")
        if shortcut_bias is not None and not EIGHT:
            y += tl.load(shortcut_bias + columns).to(tl.float32)[None, :]
        if residual is not None:
            added = tl.load(residual + rows[:, None] * RESIDUAL_PITCH + columns[None, :], mask=inside[:, None], other=0)
            if EIGHT:
                y += whole_to_float(added, 256) * residual_scale
            else:
                y += added.to(tl.float32)
        y = activate(y, ACTIVATION, ALPHA, BETA)
        if EIGHT:  # noqa: SIM108 (decided when it is compiled)
            y = round_to_int8(y)
        else:
            y = y.to(wide.dtype.element_ty)
        tl.store(wide + rows[:, None] * WIDE_PITCH + columns[None, :], y, mask=inside[:, None])
        if third is not None:
            weights = tl.load(third + o[None, :] * WIDE + columns[:, None])
            last = tl.dot(y.to(x.dtype.element_ty), weights, last, input_precision="ieee", out_dtype=SUM)
    if third is not None:
        if EIGHT:
            last = round_to_int8(activate(in_steps(last, third_scale, third_bias, o, WIDE), OUTER, 0.0, 0.0))
        else:
            if third_bias is not None:
                last += tl.load(third_bias + o).to(tl.float32)[None, :]
            last = activate(last, OUTER, OUTER_ALPHA, OUTER_BETA).to(out.dtype.element_ty)
        tl.store(out + rows[:, None] * OUT_PITCH + o[None, :], last, mask=inside[:, None])
