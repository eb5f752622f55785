"""A stem of 64 filters and the max pool behind it as one kernel, by Hopper's own units (`cpp/warpgroup_stem.cu`).

What `stem_pool` computes, of sixteen bits and of maps of up to 128 columns. Needs compute capability 9.0 and no other.
"""

from dataclasses import dataclass
from math import ceil
from typing import Final

import torch

from .cpp_launching import CppLaunch
from .epilogue import Epilogue
from .rows import INDEX_LIMIT, expect_aligned
from .stem_pool import STEP, WINDOW, expect_stem

FILTERS: Final = 64
_THREADS: Final = 128
_RESIDENT: Final = 2  # blocks of a multiprocessor at a time, as the source has it
_SLOTS: Final = 16  # rows of the picture that a block holds
_COLUMNS: Final = (64, 96, 112, 128)  # of a product
_UNIT_BYTES: Final = 16
_PLANES: Final = 4  # at most, of a picture
_AHEAD: Final = 4  # rows of the picture that a row of the result needs anew


@dataclass(frozen=True, slots=True)
class StemRows:
    rows: int
    """Of the result, of one block."""


def stem_rows(images: int, high: int, multiprocessors: int = 132, limit: int = 3) -> list[StemRows]:
    """Those worth timing, most promising first. A block begins with half a row that it only needs for the next one."""

    def time(cut: StemRows) -> tuple[float, int]:
        waves = ceil(images * ceil(high / cut.rows) / (multiprocessors * _RESIDENT))
        return waves * (cut.rows + 1.5), -cut.rows

    return sorted((StemRows(rows) for rows in range(1, high + 1)), key=time)[:limit]


def warpgroup_stem_launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    out: torch.Tensor,
    config: StemRows,
    epilogue: Epilogue | None = None,
    pdl: bool = False,
) -> CppLaunch:
    """As `stem_pool_launch`, of 64 filters and sixteen bits."""
    epilogue = epilogue or Epilogue()
    expect_stem(x, weight, bias, out, None, epilogue)
    if bias.shape != (FILTERS,) or x.shape[2] > _COLUMNS[-1]:
        raise ValueError(f"expected {FILTERS} filters, {_COLUMNS[-1]} columns at most; got {bias.shape}, {x.shape}")
    constants = {"PLANES": 0, "IMAGE_UNITS": x.stride(0) // STEP}
    return _launch(x, weight, bias, out, config, epilogue, constants, pdl)


def picture_stem_launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    out: torch.Tensor,
    config: StemRows,
    corner: tuple[int, int],
    epilogue: Epilogue | None = None,
    pdl: bool = False,
) -> CppLaunch:
    """x       a picture as it came, [N, planes, H, W] in FP32 or the weight's type, rows of multiples of 16 bytes
    corner  where it begins, down and across, in one with zeros around it: 4 P + taps - 2 rows of 2 Q + 3 units
    """
    images, planes, high, wide = x.shape
    pool_high, pool_wide = out.shape[1:3]
    taps, columns = weight.shape[1], 2 * pool_wide
    rows, units = 4 * pool_high + taps - 2, columns + WINDOW // STEP - 1
    # Of this shape and these strides is what lies in shared memory.
    laid_out = torch.empty((1,), dtype=weight.dtype, device="meta").as_strided(
        (images, rows, columns, WINDOW), (rows * units * STEP, units * STEP, STEP, 1)
    )
    epilogue, line = epilogue or Epilogue(), _UNIT_BYTES // x.itemsize
    expect_stem(laid_out, weight, bias, out, None, epilogue)
    expect_aligned(x, "x")
    if weight.shape[0] != FILTERS or columns > _COLUMNS[-1] or not 1 <= planes <= _PLANES:
        raise ValueError(f"expected {FILTERS} filters, 1 to {_PLANES} planes; got {tuple(weight.shape)}, {planes}")
    if x.dtype not in (torch.float32, weight.dtype):
        raise ValueError(f"x: expected FP32 or {weight.dtype}, got {x.dtype}")
    if x.stride(3) != 1 or wide % line or any(x.stride(axis) % line for axis in range(3)):
        raise ValueError(f"x: expected rows of multiples of {_UNIT_BYTES} bytes, got {tuple(x.shape)}, {x.stride()}")
    if min(corner) < 0 or corner[0] + high > rows or corner[1] + wide > 2 * units:
        raise ValueError(f"x: expected at most {rows} x {2 * units} pixels from {corner} on, got {high} x {wide}")
    if x.numel() >= INDEX_LIMIT:
        raise ValueError(f"x: expected less than 2**31 numbers, got {tuple(x.shape)}")
    constants = {
        "PLANES": planes,
        "HIGH": high,
        "WIDE": wide,
        "TOP": corner[0],
        "LEFT": corner[1],
        "PLANE_QUADS": x.stride(1) // line,
        "ROW_QUADS": x.stride(2) // line,
        "WIDE_NUMBERS": int(x.dtype == torch.float32),
        "IMAGE_UNITS": x.stride(0) // line,
    }
    pieces = _AHEAD * planes * wide // line
    return _launch(x, weight, bias, out, config, epilogue, constants, pdl, pieces)


def _launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    out: torch.Tensor,
    config: StemRows,
    epilogue: Epilogue,
    constants: dict[str, int],
    pdl: bool,
    pieces: int = 0,
) -> CppLaunch:
    """`pieces`: of planes, of sixteen bytes, that are copied ahead."""
    images, pool_high, pool_wide, _ = out.shape
    columns = next(each for each in _COLUMNS if each >= 2 * pool_wide)
    units = 2 * pool_wide + WINDOW // STEP - 1
    constants |= {
        "TAPS": weight.shape[1],
        "UNITS": units,
        "POOL_HIGH": pool_high,
        "POOL_WIDE": pool_wide,
        "COLUMNS": columns,
        "ROWS": config.rows,
        "RELU": int(epilogue.activation == "relu"),
    }
    if out.dtype == torch.bfloat16:
        constants["BFLOAT16"] = 1
    # Windows of columns that the map does not have reach beyond a row.
    beyond = columns - 2 * pool_wide
    return CppLaunch(
        "warpgroup_stem.cu",
        "warpgroup_stem",
        (images * ceil(pool_high / config.rows), 1, 1),
        _THREADS,
        (x, weight, bias, out),
        constants,
        (_SLOTS * units + beyond + pieces) * _UNIT_BYTES,
        pdl=pdl,
    )
