"""A stem and the max pool behind it as one kernel: what lies between them, four times the result, stays in registers.

The stem as lowering lays it out: rows of pixels of four channels, padded before, of which each result reads eight in
eight rows or fewer, every other pixel of every other row; the pool the largest of 3 x 3, every other, padded by one.
CUDA C++ (`cpp/stem.cu`): Triton can't read a row of shared memory as windows that overlap. Sixteen bits, or INT8 to
INT8 or sixteen bits. Needs compute capability 9.0.
"""

from dataclasses import dataclass
from math import ceil
from typing import Final

import torch

from .cpp_launching import CppLaunch
from .epilogue import Epilogue, folds
from .rows import expect_aligned, expect_shape, pitch

WINDOW: Final = 32
"""Numbers of a row of the window."""
STEP: Final = 8
"""Numbers from one window to the next."""
_SLOTS: Final = 16  # rows of the picture that a block holds
_WIDEST: Final = 64  # columns of the result, of which a warp carries a row from step to step


@dataclass(frozen=True, slots=True)
class StemCut:
    rows: int
    """Of the result, of one block."""
    resident: int
    """Blocks of a multiprocessor at a time."""


def stem_cuts(images: int, high: int, multiprocessors: int = 132) -> list[StemCut]:
    """Those worth timing, most promising first. A block begins with half a row that it only needs for the next one."""
    found = [StemCut(rows, resident) for rows in range(1, high + 1) for resident in (2, 3)]
    found.sort(key=lambda cut: (_clocks(images, high, cut, multiprocessors), -cut.rows))
    kept: list[StemCut] = []
    for cut in found:
        if all(each.resident != cut.resident for each in kept):
            kept.append(cut)
    return kept


def _clocks(images: int, high: int, cut: StemCut, multiprocessors: int) -> float:
    blocks = images * ceil(high / cut.rows)
    waves = ceil(blocks / (multiprocessors * cut.resident))
    sharing = min(cut.resident, ceil(blocks / multiprocessors))
    return waves * (2 + (cut.rows + 0.5) * max(sharing, 2))


def stem_pool_launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    out: torch.Tensor,
    config: StemCut,
    scale: torch.Tensor | None = None,
    epilogue: Epilogue | None = None,
    pdl: bool = False,
) -> CppLaunch:
    """x       [N, H, 2 Q, 32] whose pixels lie 8 numbers apart, in dense rows; weight: [K, taps, 1, 32].
    bias    FP32 [K], and `scale` where x is INT8: in steps of the result where that is INT8 (`epilogue.fold`).
    out     [N, P, Q, K], where H is 4 P + taps - 2.
    ValueError for anything else, and activations other than none and relu.
    """
    epilogue = epilogue or Epilogue()
    expect_stem(x, weight, bias, out, scale, epilogue)
    filters, taps, _, _ = weight.shape
    images, _, wide, _ = x.shape
    pool_high, pool_wide = out.shape[1:3]
    eight, units = x.dtype == torch.int8, wide + WINDOW // STEP - 1
    tiles = ceil(pool_wide / 8)
    constants = {
        "TAPS": taps,
        "UNITS": units,
        "IMAGE_UNITS": x.stride(0) // STEP,
        "POOL_HIGH": pool_high,
        "POOL_WIDE": pool_wide,
        "FILTERS": filters,
        "ROWS": config.rows,
        "RELU": int(epilogue.activation == "relu"),
        "BYTES": int(eight),
        "NARROW_OUTPUT": int(out.dtype == torch.int8),
        "RESIDENT": config.resident,
    }
    if torch.bfloat16 in (x.dtype, out.dtype):
        constants["BFLOAT16"] = 1
    return CppLaunch(
        "stem.cu",
        "stem_pool",
        (images * ceil(pool_high / config.rows), 1, 1),
        2 * filters,
        (x, weight, bias, scale, out),
        constants,
        _SLOTS * (128 * tiles + 32 if eight else 32 * (8 * tiles + 2)),
        pdl=pdl,
    )


def expect_stem(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    out: torch.Tensor,
    scale: torch.Tensor | None,
    epilogue: Epilogue,
) -> None:
    """ValueError for what is no stem, its pool and their operands."""
    filters, taps, one, window = weight.shape
    images, high, wide, columns = x.shape
    pool_high, pool_wide = out.shape[1:3]
    eight, units = x.dtype == torch.int8, wide + WINDOW // STEP - 1
    if (one, window, columns) != (1, WINDOW, WINDOW) or not 2 <= taps <= 8 or filters % 16 or filters > 256:
        raise ValueError(f"weight: expected [16 n, 2 to 8, 1, {WINDOW}], got {tuple(weight.shape)}")
    expect_shape(out, "out", images, pool_high, pool_wide, filters)
    if pool_wide > _WIDEST:
        raise ValueError(f"out: expected at most {_WIDEST} columns, which registers hold, got {pool_wide}")
    if (wide, high) != (2 * pool_wide, 4 * pool_high + taps - 2):
        raise ValueError(f"x: expected {4 * pool_high + taps - 2} x {2 * pool_wide} windows, got {high} x {wide}")
    if x.stride(3) != 1 or x.stride(2) != STEP or x.stride(1) != units * STEP or x.stride(0) % STEP:
        raise ValueError(f"x: expected dense rows of windows that are {STEP} apart, got strides {x.stride()}")
    narrow = (torch.float16, torch.bfloat16)
    if x.dtype not in (torch.int8, *narrow) or weight.dtype != x.dtype or not weight.is_contiguous():
        raise ValueError(f"x, weight: expected both INT8 or 16 bits, got {x.dtype}, {weight.dtype}")
    results = (torch.int8, *narrow) if eight else (x.dtype,)
    if out.dtype not in results or not out.is_contiguous() or eight != (scale is not None):
        raise ValueError(f"out: expected one of {results}, and a scale with INT8, got {out.dtype}")
    if not folds(epilogue.activation) or (out.dtype == torch.int8 and not epilogue.folded):
        raise ValueError(f"epilogue: expected none or relu, and folded where the result is INT8, got {epilogue}")
    for name, each in (("bias", bias), ("scale", scale)):
        if each is not None:
            expect_shape(each, name, filters)
    for name, each in (("x", x), ("out", out)):
        expect_aligned(each, name)
    pitch(out, "out")  # whose offsets have 32 bits
