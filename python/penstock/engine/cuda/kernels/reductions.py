"""Sums over rows and over pictures, in FP32 whatever the data: layer norm, channel sums, global average pool."""

# What Triton compiles has Triton's types, which are not Python's.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from dataclasses import dataclass
from typing import Final

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .activations import stored_as
from .epilogue import Scratch
from .launching import Launch
from .rows import INDEX_LIMIT, expect_shape, pitch, power_of_two

_MANY_ROWS: Final = 1024
_NUMBERS: Final = 32  # of a thread, at most, in cuts other than the usual one


@dataclass(frozen=True, slots=True)
class NormTile:
    """How rows are shared out to blocks."""

    rows: int
    warps: int


def norm_tiles(rows: int, size: int) -> list[NormTile]:
    """Those worth timing, the usual one first: a warp that has rows to itself waits for no other."""
    usual, block = _usual(rows, size), power_of_two(size, 16)
    if rows < _MANY_ROWS:
        return [usual]
    others = [NormTile(1, 1), NormTile(1, 2), NormTile(2, 2), NormTile(4, 4), NormTile(2, 4)]
    sensible = [each for each in others if 8 <= each.rows * block // (32 * each.warps) <= _NUMBERS]
    return [usual, *(each for each in sensible if each != usual)]


def _usual(rows: int, size: int) -> NormTile:
    block = power_of_two(size, 16)
    # Several short rows share a block only where there are more than the chip can hold at once.
    together = 1
    while together * block < 2048 and rows >= _MANY_ROWS * together:
        together *= 2
    return NormTile(together, max(1, min(8, together * block // 256)))


def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    out: torch.Tensor,
    epsilon: float,
    residual: torch.Tensor | None = None,
    indices: torch.Tensor | None = None,
    total: torch.Tensor | None = None,
    out_scale: float = 1.0,
    pdl: bool = False,
) -> None:
    """out = (t - mean) / sqrt(variance + epsilon) · weight + bias over the last dimension, t = x + residual.

    residual   like out; its rows may be the same few again and again, by strides of 0 before them.
    indices    x is a table [.., C] then, and its rows of these numbers are what is meant; below 0 counts from its end.
    total      takes t, rounded to its own type; the statistics are those of t before rounding.
    out_scale  what one step of `out` is worth where it is eight bits
    """
    layer_norm_launch(
        x,
        weight,
        bias,
        out=out,
        epsilon=epsilon,
        residual=residual,
        indices=indices,
        total=total,
        out_scale=out_scale,
        pdl=pdl,
    ).run()


def layer_norm_launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    out: torch.Tensor,
    epsilon: float,
    residual: torch.Tensor | None = None,
    indices: torch.Tensor | None = None,
    total: torch.Tensor | None = None,
    out_scale: float = 1.0,
    config: NormTile | None = None,
    pdl: bool = False,
) -> Launch:
    size = x.shape[-1]
    rows = out.numel() // size
    expect_shape(weight, "weight", size)
    seen = (*(x.shape[:-1] if indices is None else indices.shape), size)
    for name, each in (("out", out), ("residual", residual), ("total", total)):
        if each is not None:
            expect_shape(each, name, *seen)
    if indices is not None and (x.dim() != 2 or not indices.is_contiguous() or x.numel() >= INDEX_LIMIT):
        raise ValueError(f"indices: expected contiguous ones of a table, got {tuple(indices.shape)}")
    if bias is not None:
        expect_shape(bias, "bias", size)
    block = power_of_two(size, 16)
    tile = config or _usual(rows, size)
    return Launch(
        layer_norm_kernel,
        (triton.cdiv(rows, tile.rows), 1, 1),
        (x, weight, bias, residual, indices, out, total, epsilon, 1.0 / out_scale),
        {
            "ROWS": rows,
            "SIZE": size,
            "TABLE": 0 if indices is None else x.shape[0],
            "X_PITCH": pitch(x, "x"),
            **_residual(residual, rows),
            "OUT_PITCH": pitch(out, "out"),
            "TOTAL_PITCH": 0 if total is None else pitch(total, "total"),
            "BLOCK_ROWS": tile.rows,
            "BLOCK": block,
            "PDL": pdl,
        },
        num_warps=tile.warps,
        pdl=pdl,
    )


def _residual(residual: torch.Tensor | None, rows: int) -> dict[str, int]:
    """From one row to the next, and after how many they are the same again."""
    if residual is None:
        return {"RESIDUAL_PITCH": 0, "RESIDUAL_ROWS": rows}
    while residual.dim() > 2 and (residual.stride(0) == 0 or residual.shape[0] == 1):
        residual = residual[0]
    return {"RESIDUAL_PITCH": pitch(residual, "residual"), "RESIDUAL_ROWS": residual.numel() // residual.shape[-1]}


@triton.jit
def layer_norm_kernel(
    x,
    weight,
    bias,
    residual,
    indices,
    out,
    total,
    epsilon,
    out_inverse_scale,
    ROWS: tl.constexpr,
    SIZE: tl.constexpr,
    TABLE: tl.constexpr,
    X_PITCH: tl.constexpr,
    RESIDUAL_PITCH: tl.constexpr,
    RESIDUAL_ROWS: tl.constexpr,
    OUT_PITCH: tl.constexpr,
    TOTAL_PITCH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (blocks of rows,)."""
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.arange(0, BLOCK)
    exists = columns < SIZE
    inside = (rows < ROWS)[:, None] & exists[None, :]
    scale = tl.load(weight + columns, mask=exists, other=0.0).to(tl.float32)
    shift = tl.zeros((BLOCK,), dtype=tl.float32)
    if bias is not None:
        shift = tl.load(bias + columns, mask=exists, other=0.0).to(tl.float32)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    places = rows
    if indices is not None:
        places = tl.load(indices + rows, mask=rows < ROWS, other=0).to(tl.int32)
        places = tl.where(places < 0, places + TABLE, places)
        places = tl.minimum(tl.maximum(places, 0), TABLE - 1)  # a number beyond the table must not read beyond it
    t = tl.load(x + places[:, None] * X_PITCH + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    if residual is not None:
        again = rows if RESIDUAL_ROWS == ROWS else rows % RESIDUAL_ROWS
        t += tl.load(residual + again[:, None] * RESIDUAL_PITCH + columns[None, :], mask=inside, other=0.0).to(
            tl.float32
        )
    if total is not None:
        tl.store(total + rows[:, None] * TOTAL_PITCH + columns[None, :], t.to(total.dtype.element_ty), mask=inside)
    # Two passes over registers: the one-pass formula cancels where the mean is large.
    mean = tl.sum(t, axis=1) / SIZE
    centred = tl.where(inside, t - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, axis=1) / SIZE
    y = centred * tl.rsqrt(variance + epsilon)[:, None] * scale[None, :] + shift[None, :]
    y = stored_as(y, out_inverse_scale, out.dtype.element_ty)
    tl.store(out + rows[:, None] * OUT_PITCH + columns[None, :], y, mask=inside)


def channel_sums(x: torch.Tensor, *, out: torch.Tensor, pdl: bool = False) -> None:
    """Sum x [N, H, W, C] over the pixels of each of `blocks` parts of an image, into out FP32 [N, blocks, C].

    The blocks are about alike; how many there are is the caller's choice, by the shape of out.
    """
    channel_sums_launch(x, out=out, pdl=pdl).run()


def channel_sums_launch(x: torch.Tensor, *, out: torch.Tensor, pdl: bool = False) -> Launch:
    images, _, _, channels = x.shape
    expect_shape(out, "out", images, out.shape[1], channels)
    if not out.is_contiguous() or out.dtype != torch.float32:
        raise ValueError(f"out: expected contiguous FP32, got {out.dtype} with strides {out.stride()}")
    return _pool_launch(x, out, None, None, out.shape[1], pdl)


def global_average_pool(
    x: torch.Tensor,
    *,
    out: torch.Tensor,
    splits: int = 1,
    how: str = "mean",
    scale: float = 1.0,
    out_scale: float = 1.0,
    scratch: Scratch | None = None,
    pdl: bool = False,
) -> None:
    """Mean of x [N, H, W, C] over its pixels, into out [N, C].

    how      or "sum", or "l2": the root of the sum of squares
    scale    what one step of x is worth, and out_scale what one of `out`, where they are eight bits
    splits   blocks that share an image, for few large images; above 1 it needs scratch: N · splits · C floats and
             N · ceil(C / 16) counters at least.
    """
    global_average_pool_launch(
        x, out=out, splits=splits, how=how, scale=scale, out_scale=out_scale, scratch=scratch, pdl=pdl
    ).run()


def global_average_pool_launch(
    x: torch.Tensor,
    *,
    out: torch.Tensor,
    splits: int = 1,
    how: str = "mean",
    scale: float = 1.0,
    out_scale: float = 1.0,
    scratch: Scratch | None = None,
    pdl: bool = False,
) -> Launch:
    images, _, _, channels = x.shape
    expect_shape(out, "out", images, channels)
    if splits == 1:
        return _pool_launch(x, None, out, None, 1, pdl, scale, out_scale, how)
    floats, counters = images * splits * channels, images * triton.cdiv(channels, 16)
    if scratch is None or scratch.partial_sums.numel() < floats or scratch.counters.numel() < counters:
        raise ValueError(f"scratch: expected {floats} floats and {counters} counters for {splits} splits")
    return _pool_launch(x, scratch.partial_sums, out, scratch.counters, splits, pdl, scale, out_scale, how)


def _pool_launch(
    x: torch.Tensor,
    sums: torch.Tensor | None,
    mean: torch.Tensor | None,
    counters: torch.Tensor | None,
    splits: int,
    pdl: bool,
    scale: float = 1.0,
    out_scale: float = 1.0,
    how: str = "mean",
) -> Launch:
    images, height, width, channels = x.shape
    if how not in ("mean", "sum", "l2"):
        raise ValueError(f"how: expected mean, sum or l2, got {how!r}")
    # Narrow blocks of channels where there are few images, so that there are blocks enough.
    block_channels = min(power_of_two(channels, 16), 64)
    while block_channels > 16 and images * splits * triton.cdiv(channels, block_channels) < 132:
        block_channels //= 2
    return Launch(
        pool_kernel,
        (splits, triton.cdiv(channels, block_channels), images),
        (x, sums, mean, counters, scale, 1.0 / out_scale),
        {
            "PIXELS": height * width,
            "CHANNELS": channels,
            "X_PITCH": pitch(x, "x"),
            "MEAN_PITCH": 0 if mean is None else pitch(mean, "out"),
            "SPLITS": splits,
            "SQUARED": how == "l2",
            "DIVISOR": height * width if how == "mean" else 1,
            "BLOCK_PIXELS": min(4096 // block_channels, power_of_two(triton.cdiv(height * width, splits))),
            "BLOCK_CHANNELS": block_channels,
            "PDL": pdl,
        },
        num_warps=4,
        pdl=pdl,
    )


@triton.jit
def pool_kernel(
    x,
    sums,
    mean,
    counters,
    scale,
    out_inverse_scale,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    X_PITCH: tl.constexpr,
    MEAN_PITCH: tl.constexpr,
    SPLITS: tl.constexpr,
    SQUARED: tl.constexpr,
    DIVISOR: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (splits, blocks of channels, images). With counters, the last block of an image makes the result."""
    EACH: tl.constexpr = (PIXELS + SPLITS - 1) // SPLITS
    split = tl.program_id(0)
    image = tl.program_id(2)
    channels = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    exists = channels < CHANNELS
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    end = tl.minimum((split + 1) * EACH, PIXELS)
    parts = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), dtype=tl.float32)
    for start in range(split * EACH, end, BLOCK_PIXELS):
        pixels = start + tl.arange(0, BLOCK_PIXELS)
        seen = tl.load(
            x + (image * PIXELS + pixels)[:, None] * X_PITCH + channels[None, :],
            mask=(pixels < end)[:, None] & exists[None, :],
            other=0,
        ).to(tl.float32)
        parts += seen * seen if SQUARED else seen
    total = tl.sum(parts, axis=0) * (scale * scale if SQUARED else scale)
    if sums is not None:
        at = sums + image * (SPLITS * CHANNELS) + channels
        tl.store(at + split * CHANNELS, total, mask=exists)
    if counters is not None:
        counter = counters + image * tl.num_programs(1) + tl.program_id(1)
        tl.debug_barrier()
        if tl.atomic_add(counter, 1, sem="acq_rel") == SPLITS - 1:
            tl.store(counter, 0)
            everything = tl.zeros((BLOCK_CHANNELS,), dtype=tl.float32)
            for part in range(SPLITS):
                everything += tl.load(
                    sums + (image * SPLITS + part) * CHANNELS + channels, mask=exists, other=0.0, cache_modifier=".cg"
                )
            everything = tl.sqrt(everything) if SQUARED else everything / DIVISOR
            result = stored_as(everything, out_inverse_scale, mean.dtype.element_ty)
            tl.store(mean + image * MEAN_PITCH + channels, result, mask=exists)
    elif mean is not None:
        total = tl.sqrt(total) if SQUARED else total / DIVISOR
        result = stored_as(total, out_inverse_scale, mean.dtype.element_ty)
        tl.store(mean + image * MEAN_PITCH + channels, result, mask=exists)
