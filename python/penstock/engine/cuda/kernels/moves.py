"""Kernels that only move numbers: channels side by side, and pictures from planes to pixels.

Used where a library would take one kernel for each part, or move two bytes at a time.
"""

# What Triton compiles has Triton's types, which are not Python's.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: SIM102  (whether there is a part is known to the compiler, which block this is only on the device)

from collections.abc import Sequence
from typing import Final

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .launching import Launch
from .rows import INDEX_LIMIT, expect_shape, pitch, power_of_two

Arithmetic = Sequence[tuple[str, torch.Tensor | float]]
OPERATORS: Final = ("add", "sub", "mul", "div")
MOST_PARTS: Final = 4
_WIDEST: Final = 1024
_BLOCK: Final = 4096  # numbers a block moves: 32 of each of 128 threads


def concat_channels(
    parts: Sequence[torch.Tensor], *, out: torch.Tensor, repeats: Sequence[tuple[int, int]] = (), pdl: bool = False
) -> None:
    """The channels of up to four maps [N, H, W, C] side by side in out.

    repeats  for each map the times that each of its rows and columns is used: nearest upsampling by whole factors.
    """
    concat_channels_launch(parts, out=out, repeats=repeats, pdl=pdl).run()


def concat_channels_launch(
    parts: Sequence[torch.Tensor], *, out: torch.Tensor, repeats: Sequence[tuple[int, int]] = (), pdl: bool = False
) -> Launch:
    images, height, width, channels = out.shape
    repeats = repeats or [(1, 1)] * len(parts)
    if not 1 <= len(parts) <= MOST_PARTS or len(repeats) != len(parts):
        raise ValueError(f"parts: expected up to {MOST_PARTS} with a repeat each, got {len(parts)} and {len(repeats)}")
    if sum(part.shape[-1] for part in parts) != channels:
        raise ValueError(f"out: expected as many channels as its parts together, got {channels}")
    widest = max(part.shape[-1] for part in parts)
    if widest > _WIDEST:
        raise ValueError(f"parts: expected at most {_WIDEST} channels, got {widest}")
    block_channels = power_of_two(widest, 8)
    block_pixels = max(1, _BLOCK // block_channels)
    constants: dict[str, int | float | str | bool] = {
        "PIXELS": images * height * width,
        "HEIGHT": height,
        "WIDTH": width,
        "OUT_PITCH": pitch(out, "out"),
        "BLOCK_PIXELS": block_pixels,
        "BLOCK_CHANNELS": block_channels,
        "PDL": pdl,
    }
    begin = 0
    for index in range(MOST_PARTS):
        there = index < len(parts)
        high, wide = repeats[index] if there else (1, 1)
        size = parts[index].shape[-1] if there else 0
        if there:
            if height % high or width % wide:
                raise ValueError(f"repeats: expected {(high, wide)} to divide {height} x {width}")
            expect_shape(parts[index], f"parts[{index}]", images, height // high, width // wide, size)
        constants |= {
            f"CHANNELS_{index}": size,
            f"PITCH_{index}": pitch(parts[index], f"parts[{index}]") if there else 0,
            f"BEGIN_{index}": begin,
            f"HIGH_{index}": high,
            f"WIDE_{index}": wide,
        }
        begin += size
    given = [parts[index] if index < len(parts) else None for index in range(MOST_PARTS)]
    blocks = triton.cdiv(images * height * width, block_pixels)
    return Launch(concat_kernel, (blocks, len(parts), 1), (*given, out), constants, num_warps=4, pdl=pdl)


@triton.jit
def _place(
    part,
    out,
    PIXELS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    OUT_PITCH: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    PITCH: tl.constexpr,
    BEGIN: tl.constexpr,
    HIGH: tl.constexpr,
    WIDE: tl.constexpr,
):
    pixels = tl.program_id(0) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    channels = tl.arange(0, BLOCK_CHANNELS)
    inside = (pixels < PIXELS)[:, None] & (channels < CHANNELS)[None, :]
    rows = pixels
    if HIGH * WIDE > 1:
        above = pixels // WIDTH
        image = above // HEIGHT
        rows = (image * (HEIGHT // HIGH) + (above % HEIGHT) // HIGH) * (WIDTH // WIDE) + (pixels % WIDTH) // WIDE
    values = tl.load(part + rows[:, None] * PITCH + channels[None, :], mask=inside)
    at = pixels[:, None] * OUT_PITCH + BEGIN + channels[None, :]
    tl.store(out + at, values.to(out.dtype.element_ty), mask=inside)


@triton.jit
def concat_kernel(
    a,
    b,
    c,
    d,
    out,
    PIXELS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    OUT_PITCH: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    PDL: tl.constexpr,
    CHANNELS_0: tl.constexpr,
    PITCH_0: tl.constexpr,
    BEGIN_0: tl.constexpr,
    HIGH_0: tl.constexpr,
    WIDE_0: tl.constexpr,
    CHANNELS_1: tl.constexpr,
    PITCH_1: tl.constexpr,
    BEGIN_1: tl.constexpr,
    HIGH_1: tl.constexpr,
    WIDE_1: tl.constexpr,
    CHANNELS_2: tl.constexpr,
    PITCH_2: tl.constexpr,
    BEGIN_2: tl.constexpr,
    HIGH_2: tl.constexpr,
    WIDE_2: tl.constexpr,
    CHANNELS_3: tl.constexpr,
    PITCH_3: tl.constexpr,
    BEGIN_3: tl.constexpr,
    HIGH_3: tl.constexpr,
    WIDE_3: tl.constexpr,
):
    """Grid: (blocks of pixels, parts)."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    index = tl.program_id(1)
    if index == 0:
        _place(
            a, out, PIXELS, HEIGHT, WIDTH, OUT_PITCH, BLOCK_PIXELS, BLOCK_CHANNELS, CHANNELS_0, PITCH_0, BEGIN_0,
            HIGH_0, WIDE_0,
        )  # fmt: skip
    if b is not None:
        if index == 1:
            _place(
                b, out, PIXELS, HEIGHT, WIDTH, OUT_PITCH, BLOCK_PIXELS, BLOCK_CHANNELS, CHANNELS_1, PITCH_1, BEGIN_1,
                HIGH_1, WIDE_1,
            )  # fmt: skip
    if c is not None:
        if index == 2:
            _place(
                c, out, PIXELS, HEIGHT, WIDTH, OUT_PITCH, BLOCK_PIXELS, BLOCK_CHANNELS, CHANNELS_2, PITCH_2, BEGIN_2,
                HIGH_2, WIDE_2,
            )  # fmt: skip
    if d is not None:
        if index == 3:
            _place(
                d, out, PIXELS, HEIGHT, WIDTH, OUT_PITCH, BLOCK_PIXELS, BLOCK_CHANNELS, CHANNELS_3, PITCH_3, BEGIN_3,
                HIGH_3, WIDE_3,
            )  # fmt: skip


def planes_to_pixels(
    x: torch.Tensor,
    *,
    out: torch.Tensor,
    corner: tuple[int, int] = (0, 0),
    arithmetic: Arithmetic = (),
    pdl: bool = False,
) -> None:
    """x [N, C, H, W] into out [N, P, Q, K], rounded to out's type; what x does not have is zero.

    corner      row and column of out where x begins.
    arithmetic  up to two operators with a number, or one for each plane, [C], computed in FP32 on the way.
    """
    planes_to_pixels_launch(x, out=out, corner=corner, arithmetic=arithmetic, pdl=pdl).run()


def planes_to_pixels_launch(
    x: torch.Tensor,
    *,
    out: torch.Tensor,
    corner: tuple[int, int] = (0, 0),
    arithmetic: Arithmetic = (),
    pdl: bool = False,
) -> Launch:
    images, planes, height, width = x.shape
    _, out_height, out_width, channels = out.shape
    top, left = corner
    expect_shape(out, "out", images, out_height, out_width, channels)
    if min(corner) < 0 or top + height > out_height or left + width > out_width:
        raise ValueError(f"out: expected {height} x {width} pixels from {corner} on, got {out_height} x {out_width}")
    if not planes <= channels <= 16:
        raise ValueError(f"out: expected from {planes} to 16 channels, got {channels}")
    if not out.is_contiguous() or out.numel() >= INDEX_LIMIT:
        raise ValueError(f"out: expected a contiguous tensor below 2**31 numbers, got {tuple(out.shape)}")
    reach = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    if reach >= INDEX_LIMIT:
        raise ValueError(f"x: expected less than 2**31 numbers, got {tuple(x.shape)} of strides {x.stride()}")
    if len(arithmetic) > 2 or any(name not in OPERATORS for name, _ in arithmetic):
        raise ValueError(f"arithmetic: expected at most two of {', '.join(OPERATORS)}")
    for _, numbers in arithmetic:
        if isinstance(numbers, torch.Tensor):
            expect_shape(numbers, "arithmetic", planes)
    names = [name for name, _ in arithmetic] + [""] * (2 - len(arithmetic))
    numbers = [number for _, number in arithmetic] + [None] * (2 - len(arithmetic))
    block_channels = power_of_two(channels)
    block_pixels = 2048 // block_channels
    return Launch(
        planes_kernel,
        (triton.cdiv(out_height * out_width, block_pixels), images, 1),
        (x, *numbers, out),
        {
            "FIRST": names[0],
            "FIRST_ROW": isinstance(numbers[0], torch.Tensor),
            "SECOND": names[1],
            "SECOND_ROW": isinstance(numbers[1], torch.Tensor),
            "PLANES": planes,
            "HEIGHT": height,
            "WIDTH": width,
            "X_IMAGE": x.stride(0),
            "X_PLANE": x.stride(1),
            "X_ROW": x.stride(2),
            "X_PIXEL": x.stride(3),
            "TOP": top,
            "LEFT": left,
            "OUT_HEIGHT": out_height,
            "OUT_WIDTH": out_width,
            "CHANNELS": channels,
            "BLOCK_PIXELS": block_pixels,
            "BLOCK_CHANNELS": block_channels,
            "PDL": pdl,
        },
        num_warps=4,
        pdl=pdl,
    )


@triton.jit
def _with_number(values, number, inside, channels, NAME: tl.constexpr, ROW: tl.constexpr):
    other = number
    if ROW:
        other = tl.load(number + channels, mask=inside, other=1.0).to(tl.float32)[None, :]
    if NAME == "add":
        values = values + other
    elif NAME == "sub":
        values = values - other
    elif NAME == "mul":
        values = values * other
    else:
        values = values / other
    return values


@triton.jit
def planes_kernel(
    x,
    first,
    second,
    out,
    FIRST: tl.constexpr,
    FIRST_ROW: tl.constexpr,
    SECOND: tl.constexpr,
    SECOND_ROW: tl.constexpr,
    PLANES: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    X_IMAGE: tl.constexpr,
    X_PLANE: tl.constexpr,
    X_ROW: tl.constexpr,
    X_PIXEL: tl.constexpr,
    TOP: tl.constexpr,
    LEFT: tl.constexpr,
    OUT_HEIGHT: tl.constexpr,
    OUT_WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (blocks of pixels of an image, images)."""
    PIXELS: tl.constexpr = OUT_HEIGHT * OUT_WIDTH
    image = tl.program_id(1)
    pixels = tl.program_id(0) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    channels = tl.arange(0, BLOCK_CHANNELS)
    if HEIGHT == OUT_HEIGHT and WIDTH == OUT_WIDTH and X_ROW == WIDTH * X_PIXEL:
        # Rows lie one behind the other: neighbours are neighbours across them, which the compiler then knows.
        there = pixels < PIXELS
        begin = pixels * X_PIXEL
    else:
        row = pixels // OUT_WIDTH - TOP
        column = pixels % OUT_WIDTH - LEFT
        # As unsigned numbers what is negative is large.
        there = (row.to(tl.uint32, bitcast=True) < HEIGHT) & (column.to(tl.uint32, bitcast=True) < WIDTH)
        begin = row * X_ROW + column * X_PIXEL
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    seen = there[:, None] & (channels < PLANES)[None, :]
    values = tl.load(x + (image * X_IMAGE + channels * X_PLANE)[None, :] + begin[:, None], mask=seen, other=0)
    if FIRST != "":
        values = _with_number(values.to(tl.float32), first, channels < PLANES, channels, FIRST, FIRST_ROW)
        if SECOND != "":
            values = _with_number(values, second, channels < PLANES, channels, SECOND, SECOND_ROW)
        values = tl.where(seen, values, 0.0)
    at = (image * PIXELS + pixels)[:, None] * CHANNELS + channels[None, :]
    tl.store(
        out + at, values.to(out.dtype.element_ty), mask=(pixels < PIXELS)[:, None] & (channels < CHANNELS)[None, :]
    )
