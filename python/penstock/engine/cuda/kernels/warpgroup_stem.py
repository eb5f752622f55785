"""A stem of 64 filters and the max pool behind it as one kernel, by Hopper's own units (`cpp/warpgroup_stem.cu`).

What `stem_pool` computes, of sixteen bits and of maps of up to 128 columns. Needs compute capability 9.0 and no other.
"""

from dataclasses import dataclass
from math import ceil
from typing import Final

import torch

from .cpp_launching import CppLaunch
from .epilogue import Epilogue
from .stem_pool import STEP, WINDOW, expect_stem

FILTERS: Final = 64
_THREADS: Final = 128
_RESIDENT: Final = 2  # blocks of a multiprocessor at a time, as the source has it
_SLOTS: Final = 16  # rows of the picture that a block holds
_COLUMNS: Final = (64, 96, 112, 128)  # of a product
_UNIT_BYTES: Final = 16


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
    filters, taps, _, _ = weight.shape
    images, _, wide, _ = x.shape
    pool_high, pool_wide = out.shape[1:3]
    if filters != FILTERS or wide > _COLUMNS[-1]:
        raise ValueError(f"expected {FILTERS} filters, and at most {_COLUMNS[-1]} columns; got {filters} and {wide}")
    columns = next(each for each in _COLUMNS if each >= wide)
    units = wide + WINDOW // STEP - 1
    constants = {
        "TAPS": taps,
        "UNITS": units,
        "IMAGE_UNITS": x.stride(0) // STEP,
        "POOL_HIGH": pool_high,
        "POOL_WIDE": pool_wide,
        "COLUMNS": columns,
        "ROWS": config.rows,
        "RELU": int(epilogue.activation == "relu"),
    }
    if x.dtype == torch.bfloat16:
        constants["BFLOAT16"] = 1
    # Windows of columns that the map does not have reach beyond a row.
    beyond = columns - wide
    return CppLaunch(
        "warpgroup_stem.cu",
        "warpgroup_stem",
        (images * ceil(pool_high / config.rows), 1, 1),
        _THREADS,
        (x, weight, bias, out),
        constants,
        (_SLOTS * units + beyond) * _UNIT_BYTES,
        pdl=pdl,
    )
