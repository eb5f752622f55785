"""Products of matrices that both come from the data, read as they lie: attention that is no attention's usual form.

out[.., m, n] = sum over k of a[.., m, k] b[.., k, n], sums FP32. Operands and the result may have any strides, 0 of
those that repeat included, where a library copies what has no axis of neighbours. Triton.
"""

# What Triton compiles has Triton's types, which are not Python's.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .launching import Launch
from .rows import INDEX_LIMIT, expect_shape, power_of_two

MOST_BATCH_AXES: Final = 3
_WAVE: Final = 132  # multiprocessors
_CUTS: Final = ((64, 64, 4), (128, 128, 8), (128, 64, 4), (64, 128, 4), (128, 32, 4), (32, 128, 4), (32, 64, 4),
                (64, 32, 4), (32, 32, 2), (16, 64, 2), (16, 32, 1))  # fmt: skip


@dataclass(frozen=True, slots=True)
class MatmulTile:
    """A block's part of one matrix, and how much of the depth it reads at once."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int


def matmul_tiles(batch: int, m: int, n: int, k: int) -> list[MatmulTile]:
    """Those worth timing, what wastes little and fills the chip first."""

    def cost(cut: tuple[int, int, int]) -> float:
        block_m, block_n, _ = cut
        tiles = batch * -(-m // block_m) * -(-n // block_n)
        waves = -(-tiles // (2 * _WAVE))
        return waves * block_m * block_n * (1 + 64 * (block_m + block_n) / (block_m * block_n))

    fitting = [cut for cut in _CUTS if cut[0] <= power_of_two(m, 16) and cut[1] <= power_of_two(n, 16)]
    best = sorted(fitting or [(16, 32, 1)], key=cost)[:5]
    depths = [depth for depth in (64, 32, 16) if depth <= power_of_two(k, 16)][:2]
    return [MatmulTile(*cut[:2], depth, cut[2], stages) for cut in best for depth in depths for stages in (3, 2)]


def batch_axes(shape: Sequence[int], *strides: Sequence[int]) -> list[tuple[int, ...]]:
    """[size, stride of each operand ..] of the axes that are left when what lies alike is joined."""
    found: list[tuple[int, ...]] = []
    for axis, size in enumerate(shape):
        steps = tuple(each[axis] for each in strides)
        if size == 1:
            continue
        if found and all(before == step * size for before, step in zip(found[-1][1:], steps, strict=True)):
            found[-1] = (found[-1][0] * size, *steps)
        else:
            found.append((size, *steps))
    return found


def strided_matmul(a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor, pdl: bool = False) -> None:
    """a [.., M, K], b [.., K, N] and out [.., M, N] of as many axes and the same batch."""
    strided_matmul_launch(a, b, out=out, pdl=pdl).run()


def strided_matmul_launch(
    a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor, config: MatmulTile | None = None, pdl: bool = False
) -> Launch:
    *batch, m, k = a.shape
    n = b.shape[-1]
    expect_shape(b, "b", *batch, k, n)
    expect_shape(out, "out", *batch, m, n)
    if a.dtype != b.dtype or a.itemsize != 2 or not k:
        raise ValueError(f"a and b: expected sixteen bits of one type and a depth, got {a.dtype}, {b.dtype}, {k}")
    reach = max(sum((size - 1) * step for size, step in zip(e.shape, e.stride(), strict=True)) for e in (a, b, out))
    axes = batch_axes(batch, a.stride()[:-2], b.stride()[:-2], out.stride()[:-2])
    if len(axes) > MOST_BATCH_AXES or reach >= INDEX_LIMIT:
        raise ValueError(f"batch: expected at most {MOST_BATCH_AXES} axes that lie apart, got {len(axes)}")
    axes = [(1, 0, 0, 0)] * (MOST_BATCH_AXES - len(axes)) + axes
    count = axes[0][0] * axes[1][0] * axes[2][0]
    tile = config or matmul_tiles(count, m, n, k)[0]
    names = ("OUTER", "MIDDLE", "INNER")
    return Launch(
        strided_matmul_kernel,
        (count * triton.cdiv(m, tile.block_m) * triton.cdiv(n, tile.block_n), 1, 1),
        (a, b, out),
        {
            "M": m,
            "N": n,
            "K": k,
            "MIDDLE": axes[1][0],
            "INNER": axes[2][0],
            **{f"{name}_{each}": axis[1 + at] for name, axis in zip(names, axes, strict=True)
               for at, each in enumerate(("A", "B", "OUT"))},
            "A_ROW": a.stride(-2),
            "A_DEPTH": a.stride(-1),
            "B_DEPTH": b.stride(-2),
            "B_COLUMN": b.stride(-1),
            "OUT_ROW": out.stride(-2),
            "OUT_COLUMN": out.stride(-1),
            "BLOCK_M": tile.block_m,
            "BLOCK_N": tile.block_n,
            "BLOCK_K": tile.block_k,
            "STAGES": tile.stages,
            "PDL": pdl,
        },
        num_warps=tile.warps,
        num_stages=tile.stages,
        pdl=pdl,
    )  # fmt: skip


@triton.jit
def strided_matmul_kernel(
    a,
    b,
    out,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    MIDDLE: tl.constexpr,
    INNER: tl.constexpr,
    OUTER_A: tl.constexpr,
    OUTER_B: tl.constexpr,
    OUTER_OUT: tl.constexpr,
    MIDDLE_A: tl.constexpr,
    MIDDLE_B: tl.constexpr,
    MIDDLE_OUT: tl.constexpr,
    INNER_A: tl.constexpr,
    INNER_B: tl.constexpr,
    INNER_OUT: tl.constexpr,
    A_ROW: tl.constexpr,
    A_DEPTH: tl.constexpr,
    B_DEPTH: tl.constexpr,
    B_COLUMN: tl.constexpr,
    OUT_ROW: tl.constexpr,
    OUT_COLUMN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (matrices x rows of tiles x tiles of a row,)."""
    WIDE: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    HIGH: tl.constexpr = (M + BLOCK_M - 1) // BLOCK_M
    tile = tl.program_id(0)
    matrix = tile // (WIDE * HIGH)
    rows = tile // WIDE % HIGH * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile % WIDE * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)
    inner = matrix % INNER
    middle = matrix // INNER % MIDDLE
    outer = matrix // (INNER * MIDDLE)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    a += outer * OUTER_A + middle * MIDDLE_A + inner * INNER_A
    b += outer * OUTER_B + middle * MIDDLE_B + inner * INNER_B
    out += outer * OUTER_OUT + middle * MIDDLE_OUT + inner * INNER_OUT
    left = a + rows[:, None] * A_ROW + depth[None, :] * A_DEPTH
    right = b + depth[:, None] * B_DEPTH + columns[None, :] * B_COLUMN
    here, there = (rows < M)[:, None], (columns < N)[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        within = depth < K - start
        x = tl.load(left + start * A_DEPTH, mask=here & within[None, :], other=0.0)
        y = tl.load(right + start * B_DEPTH, mask=within[:, None] & there, other=0.0)
        total = tl.dot(x, y, total)
    at = out + rows[:, None] * OUT_ROW + columns[None, :] * OUT_COLUMN
    tl.store(at, total.to(out.dtype.element_ty), mask=here & there)
