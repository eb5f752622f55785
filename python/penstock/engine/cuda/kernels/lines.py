"""Softmax, sums, means and extremes along one axis of any layout, in FP32 whatever the data.

x [ahead, size, behind]: each of ahead · behind lines has `size` numbers, `behind` numbers apart. A block takes a few
neighbouring lines, so that what is read together lies together, and reads a line once where it fits.
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
from .rows import INDEX_LIMIT, expect_shape, power_of_two

KEEPING: Final = ("softmax", "log_softmax")
REDUCING: Final = ("mean", "sum", "max", "min", "l2")
_ONCE: Final = 16384
"""Numbers of a block, at most."""

_LONGEST: Final = 8192
"""Of a line that is read once."""


@dataclass(frozen=True, slots=True)
class LineTile:
    """How lines are shared out to blocks."""

    lines: int
    block: int
    """Numbers of a line that are read together; below its size they are read twice, or summed up piece by piece."""

    warps: int


def line_tiles(ahead: int, size: int, behind: int) -> list[LineTile]:
    """Those worth timing, the usual one first."""
    whole = power_of_two(size)
    block = whole if whole <= _LONGEST else 2048
    most = min(power_of_two(ahead * behind), max(1, _ONCE // block))
    usual = min(most, max(4096 // block, 1 if behind == 1 else min(power_of_two(behind), 32)))
    found: list[LineTile] = []
    for lines in (usual, usual // 2, usual * 2, usual * 4, usual // 4):
        if 1 <= lines <= most and lines * block <= _ONCE:
            found += [LineTile(lines, block, warps) for warps in _warps(lines * block)]
    return found


def _warps(numbers: int) -> list[int]:
    """Eight to sixty-four numbers of a thread."""
    return [warps for warps in (4, 1, 2, 8, 16) if 8 <= numbers // (32 * warps) <= 64] or [1]


def along_lines(x: torch.Tensor, how: str, axis: int, *, out: torch.Tensor, pdl: bool = False) -> None:
    """softmax and log_softmax of x along an axis into out, which is like x; or mean, sum, max, min or l2 (the root of
    the sum of squares) into out, whose axis has size 1. Both contiguous. NaN in a line is NaN in all made of it.
    """
    ahead, size, behind = lines_of(tuple(x.shape), (axis,))
    along_lines_launch(x, how, (ahead, size, behind), out=out, pdl=pdl).run()


def lines_of(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, int, int]:
    """ahead, size and behind, of axes that follow each other. ValueError where they do not."""
    if not axes or tuple(range(axes[0], axes[0] + len(axes))) != tuple(axes):
        raise ValueError(f"axes: expected such as follow each other, got {axes}")
    ahead = size = behind = 1
    for axis, length in enumerate(shape):
        if axis < axes[0]:
            ahead *= length
        elif axis > axes[-1]:
            behind *= length
        else:
            size *= length
    return ahead, size, behind


def along_lines_launch(
    x: torch.Tensor,
    how: str,
    lines: tuple[int, int, int],
    *,
    out: torch.Tensor,
    config: LineTile | None = None,
    pdl: bool = False,
) -> Launch:
    ahead, size, behind = lines
    if how not in (*KEEPING, *REDUCING):
        raise ValueError(f"how: expected one of {', '.join((*KEEPING, *REDUCING))}, got {how!r}")
    if not x.is_contiguous() or not out.is_contiguous() or not 0 < x.numel() < INDEX_LIMIT:
        raise ValueError("x and out: expected contiguous ones of less than 2^31 numbers")
    expect_shape(x.view(-1), "x", ahead * size * behind)
    expect_shape(out.view(-1), "out", x.numel() if how in KEEPING else ahead * behind)
    tile = config or line_tiles(ahead, size, behind)[0]
    return Launch(
        lines_kernel,
        (triton.cdiv(ahead * behind, tile.lines), 1, 1),
        (x, out),
        {
            "AHEAD": ahead,
            "SIZE": size,
            "BEHIND": behind,
            "HOW": how,
            "KEEPS": how in KEEPING,
            "EXTREME": how in ("max", "min"),
            "LINES": tile.lines,
            "BLOCK": tile.block,
            "PDL": pdl,
        },
        num_warps=tile.warps,
        pdl=pdl,
    )


@triton.jit
def greater(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def smaller(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def part_of(x, base, start, exists, SIZE: tl.constexpr, BEHIND: tl.constexpr, BLOCK: tl.constexpr, OTHER: tl.constexpr):
    """[lines, BLOCK] of them in FP32, OTHER behind the end. Lines that do not exist are 0."""
    places = start + tl.arange(0, BLOCK)
    within = (places < SIZE)[None, :]
    seen = tl.load(x + base[:, None] + places[None, :] * BEHIND, mask=exists[:, None] & within, other=0.0)
    return tl.where(within, seen.to(tl.float32), OTHER)


@triton.jit
def finite_or_zero(top):
    """What exponents are relative to: where all are minus infinity, their difference would be no number."""
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit
def lines_kernel(
    x,
    out,
    AHEAD: tl.constexpr,
    SIZE: tl.constexpr,
    BEHIND: tl.constexpr,
    HOW: tl.constexpr,
    KEEPS: tl.constexpr,
    EXTREME: tl.constexpr,
    LINES: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (blocks of lines,), those behind each other first."""
    LOWEST: tl.constexpr = float("-inf")
    lines = tl.program_id(0) * LINES + tl.arange(0, LINES)
    exists = lines < AHEAD * BEHIND
    base = lines // BEHIND * (SIZE * BEHIND) + lines % BEHIND
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    if KEEPS:
        if SIZE <= BLOCK:
            t = part_of(x, base, 0, exists, SIZE, BEHIND, BLOCK, LOWEST)
            t -= finite_or_zero(tl.reduce(t, 1, greater))[:, None]
            e = tl.exp(t)
            total = tl.sum(e, axis=1)
            y = e / total[:, None] if HOW == "softmax" else t - tl.log(total)[:, None]
            places = tl.arange(0, BLOCK)
            at = out + base[:, None] + places[None, :] * BEHIND
            tl.store(at, y.to(out.dtype.element_ty), mask=exists[:, None] & (places < SIZE)[None, :])
        else:
            top = tl.full((LINES,), LOWEST, dtype=tl.float32)
            total = tl.zeros((LINES,), dtype=tl.float32)
            for start in range(0, SIZE, BLOCK):
                t = part_of(x, base, start, exists, SIZE, BEHIND, BLOCK, LOWEST)
                above = greater(top, tl.reduce(t, 1, greater))
                total = total * tl.exp(finite_or_zero(top) - finite_or_zero(above)) + tl.sum(
                    tl.exp(t - finite_or_zero(above)[:, None]), axis=1
                )
                top = above
            top = finite_or_zero(top)
            for start in range(0, SIZE, BLOCK):
                t = part_of(x, base, start, exists, SIZE, BEHIND, BLOCK, LOWEST) - top[:, None]
                y = tl.exp(t) / total[:, None] if HOW == "softmax" else t - tl.log(total)[:, None]
                places = start + tl.arange(0, BLOCK)
                at = out + base[:, None] + places[None, :] * BEHIND
                tl.store(at, y.to(out.dtype.element_ty), mask=exists[:, None] & (places < SIZE)[None, :])
    elif EXTREME:
        END: tl.constexpr = float("-inf") if HOW == "max" else float("inf")
        best = tl.full((LINES, BLOCK), END, dtype=tl.float32)
        for start in range(0, SIZE, BLOCK):
            t = part_of(x, base, start, exists, SIZE, BEHIND, BLOCK, END)
            best = greater(best, t) if HOW == "max" else smaller(best, t)
        y = tl.reduce(best, 1, greater) if HOW == "max" else tl.reduce(best, 1, smaller)
        tl.store(out + lines, y.to(out.dtype.element_ty), mask=exists)
    else:
        parts = tl.zeros((LINES, BLOCK), dtype=tl.float32)
        for start in range(0, SIZE, BLOCK):
            t = part_of(x, base, start, exists, SIZE, BEHIND, BLOCK, 0.0)
            parts += t * t if HOW == "l2" else t
        y = tl.sum(parts, axis=1)
        if HOW == "mean":
            y = y / SIZE
        elif HOW == "l2":
            y = tl.sqrt(y)
        tl.store(out + lines, y.to(out.dtype.element_ty), mask=exists)
