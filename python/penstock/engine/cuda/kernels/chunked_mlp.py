"""Two pointwise layers in one kernel, channels in pieces: for widths that are no power of two, like 48, 96 and 192.

What `gated_mlp` computes, of the same arguments. There a block's channels are one matrix, which is as wide as the next
power of two: of 192 channels a quarter of each product is zeros, and sums of 128 rows don't fit into its registers.
Here they are three matrices of 64, so nothing is padded and a block can keep 128 rows.
"""

# What Triton compiles has Triton's types, which are not Python's.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment, var-annotated"
# ruff: noqa: RUF005  (Triton knows no unpacking)

from dataclasses import replace
from typing import Final

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .activations import activate
from .epilogue import Epilogue
from .gated_mlp import MlpTile, gated_mlp_launch
from .launching import Launch
from .ranking import diverse

WIDEST: Final = 384
"""Channels in or out."""

_LARGEST_PIECE: Final = 64
_SHARED: Final = 220 * 1024  # bytes of a multiprocessor that a block's tiles may take
_ACCUMULATORS: Final = 168  # sums of a thread, of 255 registers

# As ten layers on an H200 rank cuts: the first is 3 % off the best. Few rows don't run on a warpgroup's units.
_PRODUCTS: Final = 2048  # in a clock
_FEW_ROWS: Final = 200  # the same below 64 rows, all that comes with them counted
_LATENCY: Final = 400  # clocks


def piece(channels: int) -> int:
    """Channels of one matrix: the largest power of two that divides them all."""
    return min(channels & -channels, _LARGEST_PIECE)


def fits(width: int, hidden: int, out_width: int) -> bool:
    """Products are 16 channels deep at least."""
    return max(width, out_width) <= WIDEST and min(piece(each) for each in (width, hidden, out_width)) >= 16


def chunked_mlp_tiles(rows: int, width: int, hidden: int, out_width: int, multiprocessors: int = 132) -> list[MlpTile]:
    """The cuts worth timing, at most 12, most promising first."""
    found: list[tuple[float, MlpTile]] = []
    for block_m in (16, 32, 64, 128):
        for block_h in (16, 32, 64, 128):
            for num_warps in (4, 8):
                for num_stages in (2, 3, 4):
                    tile = MlpTile(block_m, block_h, num_warps, num_stages)
                    clocks = _clocks(tile, rows, width, hidden, out_width, multiprocessors)
                    if clocks is not None:
                        found.append((clocks, tile))
    return diverse(found, lambda tile: (tile.block_m, tile.num_warps))


def _clocks(tile: MlpTile, rows: int, width: int, hidden: int, out_width: int, multiprocessors: int) -> float | None:
    """A guess; None for what can't be, or would be silly."""
    threads = 32 * tile.num_warps
    sums = tile.block_m * (out_width + tile.block_h) // threads
    shared = 2 * (tile.block_m * width + tile.num_stages * tile.block_h * (width + out_width))
    steps = hidden // tile.block_h
    if sums > _ACCUMULATORS or sums < 4 or shared > _SHARED or hidden % tile.block_h or tile.num_stages > steps + 1:
        return None
    if tile.block_m < 16 * tile.num_warps and tile.block_m >= 64:
        return None  # a warpgroup has 64 rows
    resident = min(_SHARED // shared, 65536 // (threads * min(255, sums + 80)), 4)
    if resident < 1:
        return None
    load = 2 * tile.block_h * (width + out_width) / 48
    multiply = tile.block_m * tile.block_h * (width + out_width) / (_PRODUCTS if tile.block_m >= 64 else _FEW_ROWS)
    activating = tile.block_m * tile.block_h * 20 / 128
    alone = 2500 + steps * (multiply + activating + max(load, _LATENCY / (tile.num_stages - 1)))
    together = resident * steps * max(load, multiply, activating)
    return float(triton.cdiv(triton.cdiv(rows, tile.block_m), multiprocessors * resident) * max(alone, together))


def chunked_mlp_launch(
    x: torch.Tensor,
    first: torch.Tensor,
    first_bias: torch.Tensor | None,
    second: torch.Tensor,
    second_bias: torch.Tensor | None,
    *,
    out: torch.Tensor,
    config: MlpTile,
    activation: str,
    alpha: float = 0.0,
    beta: float = 0.0,
    gate: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    skip: bool = False,
    epilogue: Epilogue | None = None,
    pdl: bool = False,
) -> Launch:
    """As `gated_mlp_launch`, for what `fits`."""
    (hidden, width), out_width = first.shape, second.shape[0]
    if not fits(width, hidden, out_width) or hidden % config.block_h:
        raise ValueError(
            f"first, second: expected up to {WIDEST} channels in multiples of 16, and of {config.block_h} between, "
            f"got {width}, {hidden}, {out_width}"
        )
    launch = gated_mlp_launch(
        x, first, first_bias, second, second_bias, out=out, config=config, activation=activation, alpha=alpha,
        beta=beta, gate=gate, residual=residual, skip=skip, epilogue=epilogue, pdl=pdl,
    )  # fmt: skip
    same = {name: value for name, value in launch.constants.items() if name not in ("BLOCK_C", "BLOCK_O", "PDL")}
    pieces = {"PIECE_C": piece(width), "PIECE_O": piece(width) if skip else piece(out_width), "PDL": pdl}
    return replace(launch, kernel=chunked_mlp_kernel, constants={**same, **pieces})


@triton.jit
def chunked_mlp_kernel(
    x,
    gate,
    first,
    first_bias,
    second,
    second_bias,
    residual,
    out,
    ROWS: tl.constexpr,
    IMAGE_ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    OUT_WIDTH: tl.constexpr,
    X_PITCH: tl.constexpr,
    GATE_PITCH: tl.constexpr,
    RESIDUAL_PITCH: tl.constexpr,
    OUT_PITCH: tl.constexpr,
    INNER: tl.constexpr,
    INNER_ALPHA: tl.constexpr,
    INNER_BETA: tl.constexpr,
    OUTER: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    RESIDUAL_LAST: tl.constexpr,
    SKIP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
    PIECE_C: tl.constexpr,
    PIECE_O: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (blocks of rows,)."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = (rows < ROWS)[:, None]
    columns = tl.arange(0, PIECE_C)
    outputs = tl.arange(0, PIECE_O)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    values = ()
    for c in tl.static_range(WIDTH // PIECE_C):
        part = tl.load(x + rows[:, None] * X_PITCH + (c * PIECE_C + columns)[None, :], mask=inside, other=0.0)
        if gate is not None:
            if IMAGE_ROWS % BLOCK_M == 0:
                image = (tl.program_id(0) * BLOCK_M) // IMAGE_ROWS
                factor = tl.load(gate + image * GATE_PITCH + c * PIECE_C + columns)[None, :]
            else:
                image = rows // IMAGE_ROWS
                factor = tl.load(
                    gate + image[:, None] * GATE_PITCH + (c * PIECE_C + columns)[None, :], mask=inside, other=0.0
                )
            part = (part.to(tl.float32) * factor.to(tl.float32)).to(part.dtype)
        values = values + (part,)
    totals = ()
    for _o in tl.static_range(OUT_WIDTH // PIECE_O):
        totals = totals + (tl.zeros((BLOCK_M, PIECE_O), dtype=tl.float32),)
    for start in range(0, HIDDEN, BLOCK_H):
        h = start + tl.arange(0, BLOCK_H)
        hidden = tl.zeros((BLOCK_M, BLOCK_H), dtype=tl.float32)
        for c in tl.static_range(WIDTH // PIECE_C):
            # [C, H] of the first layer, [H, O] of the second: both transposed as they are read.
            weights = tl.load(first + h[None, :] * WIDTH + (c * PIECE_C + columns)[:, None])
            hidden = tl.dot(values[c], weights, hidden, input_precision="ieee")
        if first_bias is not None:
            hidden += tl.load(first_bias + h).to(tl.float32)[None, :]
        narrow = activate(hidden, INNER, INNER_ALPHA, INNER_BETA).to(x.dtype.element_ty)
        changed = ()
        for o in tl.static_range(OUT_WIDTH // PIECE_O):
            weights = tl.load(second + (o * PIECE_O + outputs)[None, :] * HIDDEN + h[:, None])
            changed = changed + (tl.dot(narrow, weights, totals[o], input_precision="ieee"),)
        totals = changed
    for o in tl.static_range(OUT_WIDTH // PIECE_O):
        total = totals[o]
        wanted = o * PIECE_O + outputs
        if second_bias is not None:
            total += tl.load(second_bias + wanted).to(tl.float32)[None, :]
        if residual is None and not SKIP:
            total = activate(total, OUTER, ALPHA, BETA)
        else:
            if SKIP:
                added = values[o]
            else:
                added = tl.load(residual + rows[:, None] * RESIDUAL_PITCH + wanted[None, :], mask=inside, other=0.0)
            if RESIDUAL_LAST:
                total = activate(total, OUTER, ALPHA, BETA) + added.to(tl.float32)
            else:
                total = activate(total + added.to(tl.float32), OUTER, ALPHA, BETA)
        tl.store(out + rows[:, None] * OUT_PITCH + wanted[None, :], total.to(out.dtype.element_ty), mask=inside)
