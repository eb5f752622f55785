"""Convolutions whose whole filter stays on the chip: each block keeps its weights and walks over pixels.

For short reductions over many pixels: a stem's window of a few channels, 1 x 1 layers of early maps. `implicit_gemm`
begins a block for each tile and waits for its first data each time; here the next tiles are loaded, all of their
reduction at once and what is added to them, while one is multiplied and stored. Results are `implicit_gemm`'s.
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

from .activations import expect_activation
from .epilogue import Epilogue, store_tile
from .launching import Launch
from .rows import expect_shape, picture_strides, pitch, power_of_two
from .tiles import H200_MULTIPROCESSORS, Product

LONGEST: Final = 256
"""Of a reduction."""

_SHARED: Final = 224 * 1024
_ACCUMULATORS: Final = 128  # of a thread


@dataclass(frozen=True, slots=True)
class ResidentTile:
    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    """Tiles whose data are on the way or there."""
    blocks: int
    """Of each multiprocessor."""


def resident_tiles(product: Product, residual: bool, multiprocessors: int = H200_MULTIPROCESSORS) -> list[ResidentTile]:
    """The cuts worth timing, most promising first; none where a block has no second tile to walk to."""
    ranked = sorted(_sensible(product, residual, multiprocessors), key=lambda each: each[0])
    kept: list[ResidentTile] = []
    shapes: Counter[tuple[int, int]] = Counter()
    for _, tile in ranked:
        if shapes[tile.block_m, tile.block_n] < 2:
            shapes[tile.block_m, tile.block_n] += 1
            kept.append(tile)
    return kept[:12]


def _sensible(product: Product, residual: bool, multiprocessors: int) -> Iterator[tuple[float, ResidentTile]]:
    if product.k > LONGEST or product.batch > 1:
        return
    length = power_of_two(product.k, 16)
    for block_m, num_warps in ((64, 4), (128, 4), (128, 8), (256, 8)):
        for block_n in (16, 32, 64, 128, 256):
            if (block_n > 16 and block_n >= 2 * product.n) or block_m * block_n // (32 * num_warps) > _ACCUMULATORS:
                continue
            for blocks in (1, 2, 3):
                walk = triton.cdiv(product.m, block_m) * triton.cdiv(product.n, block_n) / (blocks * multiprocessors)
                for num_stages in (2, 3, 4):
                    each = product.itemsize * block_m * (length + (block_n if residual else 0))
                    shared = product.itemsize * block_n * (length + block_m) + num_stages * each
                    if walk >= 2 and blocks * (shared + 1024) <= _SHARED:
                        yield (
                            _clocks(product, block_m, block_n, length, walk, num_stages, blocks),
                            ResidentTile(block_m, block_n, num_warps, num_stages, blocks),
                        )


def _clocks(
    product: Product, block_m: int, block_n: int, length: int, walk: float, num_stages: int, blocks: int
) -> float:
    """Roughly: of each tile, its products, or its loads and its stores, and what of their latency is not hidden."""
    products = block_m * block_n * length / 2048
    moved = product.itemsize * block_m * (length + 2 * block_n) / 24
    return 3000 + walk * (blocks * max(products, moved) + 1200 / (num_stages - 1) + 600)


def resident_conv_launch(
    x: torch.Tensor,
    w: torch.Tensor,
    *,
    out: torch.Tensor,
    config: ResidentTile,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    epilogue: Epilogue | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    multiprocessors: int = H200_MULTIPROCESSORS,
    pdl: bool = False,
) -> Launch:
    """As `implicit_gemm.conv2d_nhwc`. ValueError for a reduction longer than 256."""
    images, height, width, channels = x.shape
    filters, taps_high, taps_wide, _ = w.shape
    out_high, out_wide = out.shape[1:3]
    expect_shape(w, "w", filters, taps_high, taps_wide, channels)
    expect_shape(out, "out", images, out_high, out_wide, filters)
    reduced = channels * taps_high * taps_wide
    if not w.is_contiguous() or w.dtype != x.dtype or reduced > LONGEST:
        raise ValueError(f"w: expected contiguous {x.dtype} and at most {LONGEST} of a filter, got {tuple(w.shape)}")
    if residual is not None:
        expect_shape(residual, "residual", *out.shape)
    if bias is not None:
        expect_shape(bias, "bias", filters)
    epilogue = epilogue or Epilogue()
    expect_activation(epilogue.activation)
    across, row, image = picture_strides(x, "x")
    rows = images * out_high * out_wide
    tiles_m, tiles_n = triton.cdiv(rows, config.block_m), triton.cdiv(filters, config.block_n)
    walkers = max(1, min(tiles_m, config.blocks * multiprocessors // tiles_n))
    ends = [
        (size - 1) * step + (taps - 1) * apart
        for size, step, taps, apart in zip((out_high, out_wide), stride, (taps_high, taps_wide), dilation, strict=True)
    ]
    return Launch(
        resident_conv_kernel,
        (walkers, tiles_n, 1),
        (x, w, bias, residual, out),
        {
            "M": rows,
            "N": filters,
            "REDUCED": reduced,
            "CHANNELS": channels,
            "HEIGHT": height,
            "WIDTH": width,
            "OUT_HEIGHT": out_high,
            "OUT_WIDTH": out_wide,
            "TAPS_WIDE": taps_wide,
            "STRIDE_HIGH": stride[0],
            "STRIDE_WIDE": stride[1],
            "PAD_TOP": padding[0],
            "PAD_LEFT": padding[1],
            "DILATION_HIGH": dilation[0],
            "DILATION_WIDE": dilation[1],
            "INSIDE": padding == (0, 0) and ends[0] < height and ends[1] < width,
            "DENSE": taps_high * taps_wide == 1
            and (stride, padding) == ((1, 1), (0, 0))
            and (row, image) == (width * across, height * row),
            "X_PITCH": across,
            "X_ROW": row,
            "X_IMAGE": image,
            "RESIDUAL_PITCH": 0 if residual is None else pitch(residual, "residual"),
            "OUT_PITCH": pitch(out, "out"),
            "ACTIVATION": epilogue.activation,
            "ALPHA": epilogue.alpha,
            "BETA": epilogue.beta,
            "RESIDUAL_LAST": epilogue.residual_last,
            "WALKERS": walkers,
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
            "BLOCK_K": power_of_two(reduced, 16),
            "STAGES": config.num_stages,
            "PDL": pdl,
        },
        config.num_warps,
        config.num_stages,
        pdl,
    )


@triton.jit
def resident_conv_kernel(
    x,
    w,
    bias,
    residual,
    out,
    M: tl.constexpr,
    N: tl.constexpr,
    REDUCED: tl.constexpr,
    CHANNELS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    OUT_HEIGHT: tl.constexpr,
    OUT_WIDTH: tl.constexpr,
    TAPS_WIDE: tl.constexpr,
    STRIDE_HIGH: tl.constexpr,
    STRIDE_WIDE: tl.constexpr,
    PAD_TOP: tl.constexpr,
    PAD_LEFT: tl.constexpr,
    DILATION_HIGH: tl.constexpr,
    DILATION_WIDE: tl.constexpr,
    INSIDE: tl.constexpr,
    DENSE: tl.constexpr,
    X_PITCH: tl.constexpr,
    X_ROW: tl.constexpr,
    X_IMAGE: tl.constexpr,
    RESIDUAL_PITCH: tl.constexpr,
    OUT_PITCH: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    RESIDUAL_LAST: tl.constexpr,
    WALKERS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (walkers over tiles of pixels, tiles of filters). `INSIDE`: no window reaches beyond the picture."""
    TILES: tl.constexpr = (M + BLOCK_M - 1) // BLOCK_M
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    there = k < REDUCED
    # Nobody writes weights: they come while the kernel ahead still runs.
    weights = tl.load(
        w + columns[None, :] * REDUCED + k[:, None], mask=there[:, None] & (columns < N)[None, :], other=0
    )
    if bias is not None:
        added = tl.load(bias + columns, mask=columns < N, other=0.0).to(tl.float32)
    tap = k // CHANNELS
    down = (tap // TAPS_WIDE) * DILATION_HIGH
    right = (tap % TAPS_WIDE) * DILATION_WIDE
    moved = down * X_ROW + right * X_PITCH + k % CHANNELS
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    for tile in tl.range(tl.program_id(0), TILES, WALKERS, num_stages=STAGES):
        rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        if DENSE:
            addresses = x + (rows * X_PITCH)[:, None] + k[None, :]
        else:
            above = rows // OUT_WIDTH
            top = (above % OUT_HEIGHT) * STRIDE_HIGH - PAD_TOP
            left = (rows % OUT_WIDTH) * STRIDE_WIDE - PAD_LEFT
            first = (above // OUT_HEIGHT) * X_IMAGE + top * X_ROW + left * X_PITCH
            addresses = x + first[:, None] + moved[None, :]
        seen = (rows < M)[:, None] & there[None, :]
        if not INSIDE:
            # As unsigned numbers what is negative is large.
            seen = (
                seen
                & ((top[:, None] + down[None, :]).to(tl.uint32, bitcast=True) < HEIGHT)
                & ((left[:, None] + right[None, :]).to(tl.uint32, bitcast=True) < WIDTH)
            )
        pixels = tl.load(addresses, mask=seen, other=0)
        total = tl.dot(pixels, weights, input_precision="ieee")
        if bias is not None:
            total += added[None, :]
        store_tile(
            total, rows, columns, None, residual, None, out, 1.0, 1.0, M, N, RESIDUAL_PITCH, OUT_PITCH, ACTIVATION,
            ALPHA, BETA, RESIDUAL_LAST,
        )  # fmt: skip
