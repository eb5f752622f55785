"""The body of a residual block as one kernel whose maps between layers never leave a lane's registers.

What `bottleneck` does with Triton, for maps of 64 channels: 3 x 3, 1 x 1 with what is added, and the next 1 x 1; INT8
or sixteen bits throughout.
CUDA C++ (`cpp/bottleneck.cu`): Triton passes what lies between two products through shared memory. Needs compute
capability 9.0.
"""

from dataclasses import dataclass
from math import ceil
from typing import Final

import torch

from .bottleneck import Steps
from .cpp_launching import CppLaunch
from .epilogue import Epilogue, folds
from .rows import expect_aligned, expect_shape, pitch

DEPTH: Final = 64
"""Channels of all maps but the wide one."""
_SHARED: Final = 226 * 1024
_MOST_THREADS: Final = 512
_FEW_THREADS: Final = 320  # each of which may have 200 registers


@dataclass(frozen=True, slots=True)
class BlockCut:
    rows: int
    """Of a picture, of one tile."""
    resident: int
    """Blocks of a multiprocessor at a time."""


def block_cuts(high: int, across: int, itemsize: int = 1) -> list[BlockCut]:
    """Those worth timing, most promising first: rows that fill warps of 32 pixels."""
    found = [rows for rows in range(1, high + 1) if rows * across <= _MOST_THREADS]
    found.sort(key=lambda rows: (round(1 - _filled(rows, across, high), 2), -rows))
    small = [rows for rows in found[:4] if rows * across <= _FEW_THREADS]
    return [BlockCut(rows, 1) for rows in small[:2]]


def _filled(rows: int, across: int, high: int) -> float:
    """Of pixels that are multiplied, how many there are."""
    return high * across / (ceil(high / rows) * ceil(rows * across / 32) * 32)


def block_bytes(cut: BlockCut, across: int, wide: int, out: int, itemsize: int, *, shortcut: bool) -> int:
    """Of shared memory."""
    weights = 9 * DEPTH * DEPTH + wide * DEPTH * (2 if shortcut else 1) + out * (wide + 32)
    numbers = 8 * (DEPTH + wide + out) + (4 * wide if shortcut else 0)
    picture = ceil(itemsize * (cut.rows + 2) * (across + 2) * DEPTH / 128) * 128
    return ceil((itemsize * weights + numbers) / 128) * 128 + picture


def lane_bottleneck_launch(
    x: torch.Tensor,
    first: torch.Tensor,
    first_bias: torch.Tensor,
    second: torch.Tensor,
    second_bias: torch.Tensor,
    *,
    wide: torch.Tensor,
    config: BlockCut,
    steps: Steps | None = None,
    inner: Epilogue,
    epilogue: Epilogue,
    residual: torch.Tensor | None = None,
    worth: torch.Tensor | None = None,
    source: torch.Tensor | None = None,
    shortcut: torch.Tensor | None = None,
    third: torch.Tensor | None = None,
    third_bias: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    outer: Epilogue | None = None,
    multiprocessors: int = 132,
    pdl: bool = False,
) -> CppLaunch:
    """As `bottleneck_launch` with a 3 x 3 window, padded by one, and strides of one.

    Biases are FP32, of INT8 those of `fold` with 0 for the largest sum; `second_bias` is that of the shortcut, too.
    INT8 has `steps`, and `worth` is `steps.residual` as a tensor of one number.
    """
    images, high, across, channels = x.shape
    widest, made = wide.shape[3], 0 if out is None else out.shape[3]
    expect_shape(x, "x", images, high, across, DEPTH)
    expect_shape(first, "first", DEPTH, 3, 3, channels)
    expect_shape(wide, "wide", images, high, across, widest)
    expect_shape(second, "second", widest, DEPTH)
    if widest % 32 or (third is None) != (out is None) or (residual is not None and source is not None):
        raise ValueError(f"wide: expected 32 n channels and one thing that is added, got {widest}")
    if out is not None and third is not None:
        expect_shape(out, "out", images, high, across, DEPTH)
        expect_shape(third, "third", DEPTH, widest)
    if residual is not None:
        expect_shape(residual, "residual", *wide.shape)
    if source is not None and shortcut is not None:
        expect_shape(source, "source", *x.shape)
        expect_shape(shortcut, "shortcut", widest, DEPTH)
    maps = (x, first, second, wide, residual, source, shortcut, third, out)
    if x.dtype not in (torch.int8, torch.float16, torch.bfloat16):
        raise ValueError(f"x: expected INT8 or 16 bits, got {x.dtype}")
    if any(each is not None and (each.dtype != x.dtype or not each.is_contiguous()) for each in maps):
        raise ValueError(f"x: expected {x.dtype} and dense tensors throughout")
    for name, each in (("x", x), ("wide", wide), ("residual", residual), ("source", source), ("out", out)):
        if each is not None:
            expect_aligned(each, name)
    pitch(wide, "wide")  # whose offsets have 32 bits
    endings = (inner, epilogue, outer or Epilogue())
    eight = x.dtype == torch.int8
    if not all(folds(each.activation) for each in endings) or eight != (steps is not None):
        raise ValueError("epilogue: expected none or relu, and the steps of INT8")
    scales: tuple[torch.Tensor | None, ...] = ()
    if steps is not None:
        if (residual is None) != (worth is None):
            raise ValueError("worth: expected what a residual is worth")
        shortcuts = None if source is None else steps.shortcut
        scales = (steps.first, steps.second, worth, shortcuts, None if out is None else steps.third)
    numbers = (first_bias, second_bias, None if out is None else third_bias, *scales)
    if any(each is not None and each.dtype != torch.float32 for each in numbers):
        raise ValueError("steps, biases: expected FP32")
    shared = block_bytes(config, across, widest, made, x.element_size(), shortcut=source is not None)
    tiles = images * ceil(high / config.rows)
    if config.resident * (shared + 1024) > _SHARED + 1024 * config.resident or config.rows * across > _MOST_THREADS:
        raise ValueError(f"config: {config} takes {shared} bytes")
    walkers = min(tiles, multiprocessors * config.resident)
    constants = {
        "BYTES": int(eight),
        "IMAGES": images,
        "HIGH": high,
        "WIDTH": across,
        "ROWS": config.rows,
        "WIDE": widest,
        "OUT": made,
        "HAS_RESIDUAL": int(residual is not None),
        "HAS_SHORTCUT": int(source is not None),
        "INNER_RELU": int(inner.activation == "relu"),
        "RELU": int(epilogue.activation == "relu"),
        "OUTER_RELU": int(endings[2].activation == "relu"),
        "WALKERS": walkers,
        "RESIDENT": config.resident,
    }
    if x.dtype == torch.bfloat16:
        constants["BFLOAT16"] = 1
    return CppLaunch(
        "bottleneck.cu",
        "bottleneck",
        (walkers, 1, 1),
        ceil(config.rows * across / 32) * 32,
        (
            x, first, first_bias, second, second_bias, residual, source, shortcut, third,
            None if out is None else third_bias, *scales, out, wide,
        ),
        constants,
        shared,
        pdl=pdl,
    )  # fmt: skip
