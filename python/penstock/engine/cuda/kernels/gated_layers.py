"""Pointwise convolutions whose results are gated, repeated, added to a smaller map or put side by side: one store.

out = concat over g of repeat_g((x_g W_g + b_g) · (plus + gate_g)) + repeat(residual): a text detector's pyramid, whose
gates are known before the convolutions they apply to (they are made of the means of what these read). What a repeated
pixel is made of is multiplied again for each time it is written, which costs less than to write, read and move it.
"""

# What Triton compiles has Triton's types, which are not Python's.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .launching import Launch
from .rows import expect_shape, pitch, power_of_two

MOST: Final = 4
"""Groups."""
WIDEST_OUT: Final = 128
"""Channels that a group makes."""


@dataclass(frozen=True, slots=True)
class Group:
    x: torch.Tensor
    """[N, h, w, C]."""
    weight: torch.Tensor
    """[O, C]."""
    bias: torch.Tensor | None
    gate: torch.Tensor
    """[N, O]."""
    times: tuple[int, int]
    """How often rows and columns of what is made are repeated."""


@dataclass(frozen=True, slots=True)
class LayersTile:
    block_m: int
    """Pixels of one block."""
    num_warps: int


def layers_tiles(pixels: int, made: int, multiprocessors: int = 132) -> list[LayersTile]:
    """The cuts worth timing, most promising first."""
    found = [LayersTile(64, 4), LayersTile(128, 8), LayersTile(128, 4), LayersTile(32, 4), LayersTile(16, 4)]
    if made > 64:
        found.remove(LayersTile(128, 4))
    if pixels < 128 * multiprocessors:
        found.sort(key=lambda tile: tile.block_m)
    return found


def gated_layers_launch(
    groups: Sequence[Group],
    *,
    out: torch.Tensor,
    config: LayersTile,
    plus: bool,
    residual: torch.Tensor | None = None,
    residual_times: tuple[int, int] = (1, 1),
    pdl: bool = False,
) -> Launch:
    """out [N, H, W, groups · O]; `residual` [N, H / a, W / b, O] is for one group alone. Products are 16 deep at least,
    so C is a multiple of 16."""
    images, height, width, _ = out.shape
    made = groups[0].weight.shape[0]
    if not 1 <= len(groups) <= MOST or made > WIDEST_OUT:
        raise ValueError(f"groups: expected 1 to {MOST} of {WIDEST_OUT} channels, got {len(groups)} of {made}")
    expect_shape(out, "out", images, height, width, made * len(groups))
    if residual is not None:
        small = images, height // residual_times[0], width // residual_times[1], made
        expect_shape(residual, "residual", *small)
        if len(groups) > 1 or height % residual_times[0] or width % residual_times[1]:
            raise ValueError(f"residual: expected one group, and {residual_times} to divide {height} x {width}")
    arguments: list[torch.Tensor | None] = []
    constants: dict[str, int | bool] = {}
    for number in range(MOST):
        group = groups[number] if number < len(groups) else None
        arguments += [None] * 4 if group is None else [group.x, group.weight, group.bias, group.gate]
        high, wide = (1, 1) if group is None else group.times
        channels = 16 if group is None else group.x.shape[3]
        if group is not None:
            _expect(group, images, height, width, made)
        constants |= {
            f"CHANNELS_{number}": channels,
            f"PITCH_{number}": 0 if group is None else pitch(group.x, "x"),
            f"GATE_{number}": 0 if group is None else pitch(group.gate, "gate"),
            f"HIGH_{number}": high,
            f"WIDE_{number}": wide,
        }
    pixels = images * height * width
    return Launch(
        gated_layers_kernel,
        (triton.cdiv(pixels, config.block_m), 1, 1),
        (*arguments, residual, out),
        {
            "PIXELS": pixels,
            "HEIGHT": height,
            "WIDTH": width,
            "MADE": made,
            "PLUS": plus,
            "RESIDUAL_PITCH": 0 if residual is None else pitch(residual, "residual"),
            "OUT_PITCH": pitch(out, "out"),
            "RESIDUAL_HIGH": residual_times[0],
            "RESIDUAL_WIDE": residual_times[1],
            **constants,
            "BLOCK_M": config.block_m,
            "BLOCK_O": power_of_two(made, 16),
            "PDL": pdl,
        },
        config.num_warps,
        pdl=pdl,
    )


def _expect(group: Group, images: int, height: int, width: int, made: int) -> None:
    high, wide = group.times
    channels = group.weight.shape[1]
    expect_shape(group.x, "x", images, height // high, width // wide, channels)
    expect_shape(group.weight, "weight", made, channels)
    expect_shape(group.gate, "gate", images, made)
    if group.bias is not None:
        expect_shape(group.bias, "bias", made)
    if channels % 16 or height % high or width % wide or not group.weight.is_contiguous():
        raise ValueError(f"x: expected channels in multiples of 16, repeated evenly, got {tuple(group.x.shape)}")


@triton.jit
def _place(at, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr):
    """Where in a map, whose pixels are repeated, a pixel of the large one is from."""
    if HIGH * WIDE == 1:
        return at
    row = at // WIDTH  # of all images, one below the other
    return (row // HIGH) * (WIDTH // WIDE) + (at % WIDTH) // WIDE


@triton.jit
def _layer(
    x,
    weight,
    bias,
    gate,
    at,
    PIXELS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    MADE: tl.constexpr,
    PLUS: tl.constexpr,
    CHANNELS: tl.constexpr,
    PITCH: tl.constexpr,
    GATE: tl.constexpr,
    HIGH: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    PIECE: tl.constexpr = 64 if CHANNELS % 64 == 0 else (32 if CHANNELS % 32 == 0 else 16)
    made = tl.arange(0, BLOCK_O)
    there = (at < PIXELS)[:, None]
    from_ = _place(at, HEIGHT, WIDTH, HIGH, WIDE) * PITCH
    total = tl.zeros((BLOCK_M, BLOCK_O), dtype=tl.float32)
    for start in tl.static_range(0, CHANNELS, PIECE):
        c = start + tl.arange(0, PIECE)
        values = tl.load(x + from_[:, None] + c[None, :], mask=there, other=0.0)
        weights = tl.load(weight + made[None, :] * CHANNELS + c[:, None], mask=(made < MADE)[None, :], other=0.0)
        total = tl.dot(values, weights, total, input_precision="ieee")
    if bias is not None:
        total += tl.load(bias + made, mask=made < MADE, other=0.0).to(tl.float32)[None, :]
    if (HEIGHT * WIDTH) % BLOCK_M == 0:
        image = tl.program_id(0) * BLOCK_M // (HEIGHT * WIDTH)
        factor = tl.load(gate + image * GATE + made, mask=made < MADE, other=0.0).to(tl.float32)[None, :]
    else:
        image = at // (HEIGHT * WIDTH)
        factor = tl.load(
            gate + (image * GATE)[:, None] + made[None, :], mask=there & (made < MADE)[None, :], other=0.0
        ).to(tl.float32)
    if PLUS:
        factor += 1.0
    return total * factor


@triton.jit
def gated_layers_kernel(
    x_0,
    weight_0,
    bias_0,
    gate_0,
    x_1,
    weight_1,
    bias_1,
    gate_1,
    x_2,
    weight_2,
    bias_2,
    gate_2,
    x_3,
    weight_3,
    bias_3,
    gate_3,
    residual,
    out,
    PIXELS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    MADE: tl.constexpr,
    PLUS: tl.constexpr,
    RESIDUAL_PITCH: tl.constexpr,
    OUT_PITCH: tl.constexpr,
    RESIDUAL_HIGH: tl.constexpr,
    RESIDUAL_WIDE: tl.constexpr,
    CHANNELS_0: tl.constexpr,
    PITCH_0: tl.constexpr,
    GATE_0: tl.constexpr,
    HIGH_0: tl.constexpr,
    WIDE_0: tl.constexpr,
    CHANNELS_1: tl.constexpr,
    PITCH_1: tl.constexpr,
    GATE_1: tl.constexpr,
    HIGH_1: tl.constexpr,
    WIDE_1: tl.constexpr,
    CHANNELS_2: tl.constexpr,
    PITCH_2: tl.constexpr,
    GATE_2: tl.constexpr,
    HIGH_2: tl.constexpr,
    WIDE_2: tl.constexpr,
    CHANNELS_3: tl.constexpr,
    PITCH_3: tl.constexpr,
    GATE_3: tl.constexpr,
    HIGH_3: tl.constexpr,
    WIDE_3: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (blocks of pixels of the result,)."""
    at = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    made = tl.arange(0, BLOCK_O)
    inside = (at < PIXELS)[:, None] & (made < MADE)[None, :]
    place = out + (at * OUT_PITCH)[:, None] + made[None, :]
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    if residual is not None:
        from_ = _place(at, HEIGHT, WIDTH, RESIDUAL_HIGH, RESIDUAL_WIDE) * RESIDUAL_PITCH
        added = tl.load(residual + from_[:, None] + made[None, :], mask=inside, other=0.0)
    y = _layer(
        x_0, weight_0, bias_0, gate_0, at, PIXELS, HEIGHT, WIDTH, MADE, PLUS, CHANNELS_0, PITCH_0, GATE_0, HIGH_0,
        WIDE_0, BLOCK_M, BLOCK_O,
    )  # fmt: skip
    if residual is not None:
        y += added.to(tl.float32)
    tl.store(place, y.to(out.dtype.element_ty), mask=inside)
    if x_1 is not None:
        y = _layer(
            x_1, weight_1, bias_1, gate_1, at, PIXELS, HEIGHT, WIDTH, MADE, PLUS, CHANNELS_1, PITCH_1, GATE_1, HIGH_1,
            WIDE_1, BLOCK_M, BLOCK_O,
        )  # fmt: skip
        tl.store(place + MADE, y.to(out.dtype.element_ty), mask=inside)
    if x_2 is not None:
        y = _layer(
            x_2, weight_2, bias_2, gate_2, at, PIXELS, HEIGHT, WIDTH, MADE, PLUS, CHANNELS_2, PITCH_2, GATE_2, HIGH_2,
            WIDE_2, BLOCK_M, BLOCK_O,
        )  # fmt: skip
        tl.store(place + 2 * MADE, y.to(out.dtype.element_ty), mask=inside)
    if x_3 is not None:
        y = _layer(
            x_3, weight_3, bias_3, gate_3, at, PIXELS, HEIGHT, WIDTH, MADE, PLUS, CHANNELS_3, PITCH_3, GATE_3, HIGH_3,
            WIDE_3, BLOCK_M, BLOCK_O,
        )  # fmt: skip
        tl.store(place + 3 * MADE, y.to(out.dtype.element_ty), mask=inside)
