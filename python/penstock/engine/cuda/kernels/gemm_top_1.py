"""A product whose rows are asked for their largest number and its softmax: the numbers themselves are never written.

A text recogniser's last layer makes tens of thousands of numbers for each place on a line, 48 MB for 32 lines. A block
walks through some of the columns of its rows and keeps the largest, where it was, and the sum of exponents; a second
kernel puts the blocks of a row together. Nothing is rounded on the way: of two numbers that FP16 can't tell apart the
larger one is found.
"""

# What Triton compiles has Triton's types, which are not Python's.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from dataclasses import dataclass
from typing import Final

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .launching import Launch
from .rows import expect_contiguous, expect_shape, pitch, power_of_two

WIDEST: Final = 256
"""Numbers of a row of x: they are one piece of a product."""
_LOW: Final = -1e38


@dataclass(frozen=True, slots=True)
class TopTile:
    block_m: int
    """Rows of one block."""
    block_n: int
    """Columns of one step of its loop."""
    splits: int
    """Blocks that share the columns."""
    num_warps: int
    num_stages: int


def top_tiles(rows: int, columns: int, multiprocessors: int = 132) -> list[TopTile]:
    """The cuts worth timing, most promising first."""
    found: list[TopTile] = []
    for block_m, block_n, num_warps in ((128, 128, 8), (64, 128, 4), (128, 64, 4), (64, 64, 4), (32, 128, 4)):
        if block_m >= 4 * rows and block_m > 32:
            continue
        for waves in (1, 2):
            most = triton.cdiv(columns, block_n)
            splits = max(1, min(most, waves * multiprocessors // triton.cdiv(rows, block_m)))
            tile = TopTile(block_m, block_n, splits, num_warps, 3)
            if tile not in found:
                found.append(tile)
    return found


def gemm_top_1_launches(
    x: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    index: torch.Tensor,
    score: torch.Tensor,
    parts: torch.Tensor,
    config: TopTile,
    pdl: bool = False,
) -> tuple[Launch, Launch]:
    """The first of the largest of each row of x [M, K] w [N, K]^T + bias into index, its softmax into score, both [M].

    parts  FP32 [3, M, splits], for what the blocks tell each other. A row with NaN has a NaN for its score.
    """
    (rows, deep), columns = x.shape, w.shape[0]
    expect_shape(w, "w", columns, deep)
    expect_shape(parts, "parts", 3, rows, config.splits)
    if deep > WIDEST or columns >= 1 << 24:
        raise ValueError(
            f"x, w: expected rows of up to {WIDEST} and fewer than 2**24 columns, got {deep} and {columns}"
        )
    for name, each in (("index", index), ("score", score)):
        expect_shape(each, name, rows)
        expect_contiguous(each, name, "contiguous numbers")
    if index.dtype != torch.int64 or not score.dtype.is_floating_point or not w.is_contiguous():
        raise ValueError(f"index, score: expected int64 and a float, got {index.dtype} and {score.dtype}")
    if bias is not None:
        expect_shape(bias, "bias", columns)
    walk = Launch(
        walk_kernel,
        (triton.cdiv(rows, config.block_m), config.splits, 1),
        (x, w, bias, parts),
        {
            "ROWS": rows,
            "COLUMNS": columns,
            "DEEP": deep,
            "X_PITCH": pitch(x, "x"),
            "SPLITS": config.splits,
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
            "BLOCK_K": power_of_two(deep, 16),
            "PDL": pdl,
        },
        config.num_warps,
        config.num_stages,
        pdl,
    )
    block_rows = 4
    finish = Launch(
        finish_kernel,
        (triton.cdiv(rows, block_rows), 1, 1),
        (parts, index, score),
        {
            "ROWS": rows,
            "SPLITS": config.splits,
            "BLOCK_ROWS": block_rows,
            "BLOCK_SPLITS": power_of_two(config.splits),
            "PDL": pdl,
        },
        num_warps=4,
        pdl=pdl,
    )
    return walk, finish


@triton.jit
def walk_kernel(
    x,
    w,
    bias,
    parts,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEEP: tl.constexpr,
    X_PITCH: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (blocks of rows, splits)."""
    STEPS: tl.constexpr = (COLUMNS + BLOCK_N - 1) // BLOCK_N
    EACH: tl.constexpr = (STEPS + SPLITS - 1) // SPLITS
    split = tl.program_id(1)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    columns = tl.arange(0, BLOCK_N)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    values = tl.load(
        x + rows[:, None] * X_PITCH + k[None, :], mask=(rows < ROWS)[:, None] & (k < DEEP)[None, :], other=0.0
    )
    largest = tl.full((BLOCK_M,), -1e38, tl.float32)
    place = tl.zeros((BLOCK_M,), tl.int32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    for step in range(split * EACH, tl.minimum((split + 1) * EACH, STEPS)):
        n = step * BLOCK_N + columns
        weights = tl.load(
            w + n[None, :] * DEEP + k[:, None], mask=(n < COLUMNS)[None, :] & (k < DEEP)[:, None], other=0.0
        )
        y = tl.dot(values, weights, input_precision="ieee")
        if bias is not None:
            y += tl.load(bias + n, mask=n < COLUMNS, other=0.0).to(tl.float32)[None, :]
        y = tl.where((n < COLUMNS)[None, :], y, float("-inf"))
        here = tl.max(y, axis=1)
        where = tl.argmax(y, axis=1, tie_break_left=True)
        place = tl.where(here > largest, step * BLOCK_N + where, place)
        now = tl.maximum(largest, here)
        total = total * tl.exp(largest - now) + tl.sum(tl.exp(y - now[:, None]), axis=1)
        largest = now
    at = parts + rows * SPLITS + split
    tl.store(at, largest, mask=rows < ROWS)
    tl.store(at + ROWS * SPLITS, place.to(tl.float32), mask=rows < ROWS)
    tl.store(at + 2 * ROWS * SPLITS, total, mask=rows < ROWS)


@triton.jit
def finish_kernel(
    parts,
    index,
    score,
    ROWS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (blocks of rows,). Places are whole numbers below 2**24, which FP32 holds."""
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    splits = tl.arange(0, BLOCK_SPLITS)
    inside = (rows < ROWS)[:, None] & (splits < SPLITS)[None, :]
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    at = parts + rows[:, None] * SPLITS + splits[None, :]
    largest = tl.load(at, mask=inside, other=-1e38)
    places = tl.load(at + ROWS * SPLITS, mask=inside, other=0.0)
    totals = tl.load(at + 2 * ROWS * SPLITS, mask=inside, other=0.0)
    top = tl.max(largest, axis=1)
    total = tl.where(rows < ROWS, tl.sum(totals * tl.exp(largest - top[:, None]), axis=1), 1.0)
    # Splits are in the columns' order: the smallest place among the largest is the first.
    place = tl.min(tl.where(largest == top[:, None], places, 16777216.0), axis=1)
    tl.store(index + rows, place.to(tl.int64), mask=rows < ROWS)
    tl.store(score + rows, (1.0 / total).to(score.dtype.element_ty), mask=rows < ROWS)
