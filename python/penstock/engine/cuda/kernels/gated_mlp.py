"""Two pointwise layers with an activation between, in one kernel: the hidden values never leave the chip.

out = residual + second(activation(first(x · gate))): the body of a mobile network's mixing block (a gate per image and
channel from a squeeze-and-excite, 1x1, GELU, 1x1, residual), and of a small transformer's feed-forward without a gate.
What is added may be x · gate itself (`skip`), which every block has at hand. Each block keeps its rows of x and walks
through the hidden channels, adding what each group of them contributes.
"""

# What Triton compiles has Triton's types, which are not Python's.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from dataclasses import dataclass
from typing import Final

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .activations import activate, expect_activation
from .epilogue import Epilogue
from .launching import Launch
from .rows import expect_contiguous, expect_shape, pitch, power_of_two

WIDEST: Final = 512
"""Channels that a block can keep, and keep sums of, for 64 rows in the registers of 256 threads."""


@dataclass(frozen=True, slots=True)
class MlpTile:
    block_m: int
    """Rows of one block."""
    block_h: int
    """Hidden channels of one step of its loop."""
    num_warps: int
    num_stages: int


def mlp_tiles(
    rows: int, width: int, hidden: int, multiprocessors: int = 132, out_width: int | None = None
) -> list[MlpTile]:
    """The cuts worth timing, most promising first: large blocks read the weights less often, if all have work."""
    padded, padded_out = (power_of_two(each, 16) for each in (width, width if out_width is None else out_width))
    found: list[tuple[float, MlpTile]] = []
    for block_m in (16, 32, 64, 128):
        for block_h in (16, 32, 64, 128):
            for num_warps in (4, 8):
                accumulators = block_m * (padded_out + block_h) // (32 * num_warps)
                if accumulators > 128 or block_h >= 2 * power_of_two(hidden, 16) or accumulators < 8:
                    continue
                for num_stages in (2, 3):
                    shared = 2 * (block_m * (padded + block_h) + num_stages * block_h * (padded + padded_out))
                    if shared > 200 * 1024:
                        continue
                    waves = triton.cdiv(triton.cdiv(rows, block_m), multiprocessors)
                    steps = triton.cdiv(hidden, block_h)
                    # Clocks: weights from L2, then both products (the older instruction below 64 rows), then latency.
                    load = 2 * block_h * (padded + padded_out) / 48
                    multiply = block_m * block_h * (padded + padded_out) / (2048 if block_m >= 64 else 1024)
                    step = max(load, multiply) + 600 / num_stages
                    found.append((waves * (1500 + steps * step), MlpTile(block_m, block_h, num_warps, num_stages)))
    found.sort(key=lambda each: each[0])
    return [tile for _, tile in found[:12]]


def gated_mlp(
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
) -> None:
    """x [N, ..., C], residual and out [N, ..., O]; first [H, C], second [O, H]; gate [N, C], alike for an image's rows.

    Sums are FP32; x · gate and the hidden values are rounded to x's type, as separate kernels would. C and O at most
    512. activation  between the layers, alpha and beta its numbers. skip: x · gate is the residual, O is C.
    """
    gated_mlp_launch(
        x, first, first_bias, second, second_bias, out=out, config=config, activation=activation, alpha=alpha,
        beta=beta, gate=gate, residual=residual, skip=skip, epilogue=epilogue, pdl=pdl,
    ).run()  # fmt: skip


def gated_mlp_launch(
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
    width, hidden, out_width = x.shape[-1], first.shape[0], second.shape[0]
    rows = x.numel() // width
    if max(width, out_width) > WIDEST:
        raise ValueError(f"x, out: expected at most {WIDEST} channels, got {width} and {out_width}")
    if skip and (residual is not None or width != out_width):
        raise ValueError(f"skip: expected as many channels out as in and no residual, got {width} and {out_width}")
    for name, tensor, shape in (("first", first, (hidden, width)), ("second", second, (out_width, hidden))):
        expect_shape(tensor, name, *shape)
        expect_contiguous(tensor, name, "contiguous weights")
    for name, each, shape in (
        ("first_bias", first_bias, (hidden,)),
        ("second_bias", second_bias, (out_width,)),
        ("gate", gate, (x.shape[0], width)),
        ("residual", residual, (*x.shape[:-1], out_width)),
        ("out", out, (*x.shape[:-1], out_width)),
    ):
        if each is not None:
            expect_shape(each, name, *shape)
    epilogue = epilogue or Epilogue()
    expect_activation(activation)
    expect_activation(epilogue.activation)
    return Launch(
        gated_mlp_kernel,
        (triton.cdiv(rows, config.block_m), 1, 1),
        (x, gate, first, first_bias, second, second_bias, residual, out),
        {
            "ROWS": rows,
            "IMAGE_ROWS": rows // x.shape[0],
            "WIDTH": width,
            "HIDDEN": hidden,
            "OUT_WIDTH": out_width,
            "X_PITCH": pitch(x, "x"),
            "GATE_PITCH": 0 if gate is None else pitch(gate, "gate"),
            "RESIDUAL_PITCH": 0 if residual is None else pitch(residual, "residual"),
            "OUT_PITCH": pitch(out, "out"),
            "INNER": activation,
            "INNER_ALPHA": alpha,
            "INNER_BETA": beta,
            "OUTER": epilogue.activation,
            "ALPHA": epilogue.alpha,
            "BETA": epilogue.beta,
            "RESIDUAL_LAST": epilogue.residual_last,
            "SKIP": skip,
            "BLOCK_M": config.block_m,
            "BLOCK_H": config.block_h,
            "BLOCK_C": power_of_two(width, 16),
            "BLOCK_O": power_of_two(out_width, 16),
            "PDL": pdl,
        },
        config.num_warps,
        config.num_stages,
        pdl,
    )


@triton.jit
def gated_mlp_kernel(
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
    BLOCK_C: tl.constexpr,
    BLOCK_O: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (blocks of rows,)."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_C)
    exists = columns < WIDTH
    inside = (rows < ROWS)[:, None] & exists[None, :]
    outputs = tl.arange(0, BLOCK_O)
    wanted = outputs < OUT_WIDTH
    written = (rows < ROWS)[:, None] & wanted[None, :]
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    values = tl.load(x + rows[:, None] * X_PITCH + columns[None, :], mask=inside, other=0.0)
    if gate is not None:
        image = rows // IMAGE_ROWS
        factor = tl.load(gate + image[:, None] * GATE_PITCH + columns[None, :], mask=inside, other=0.0)
        values = (values.to(tl.float32) * factor.to(tl.float32)).to(values.dtype)
    total = tl.zeros((BLOCK_M, BLOCK_O), dtype=tl.float32)
    for start in range(0, HIDDEN, BLOCK_H):
        h = start + tl.arange(0, BLOCK_H)
        used = h < HIDDEN
        # [C, H] of the first layer, [H, O] of the second: both transposed as they are read.
        weights = tl.load(
            first + h[None, :] * WIDTH + columns[:, None], mask=used[None, :] & exists[:, None], other=0.0
        )
        hidden = tl.dot(values, weights, input_precision="ieee")
        if first_bias is not None:
            hidden += tl.load(first_bias + h, mask=used, other=0.0).to(tl.float32)[None, :]
        hidden = activate(hidden, INNER, INNER_ALPHA, INNER_BETA)
        # Channels past the end meet weights of 0, but an activation of 0 may be anything finite: never NaN.
        weights = tl.load(
            second + outputs[None, :] * HIDDEN + h[:, None], mask=used[:, None] & wanted[None, :], other=0.0
        )
        total = tl.dot(hidden.to(values.dtype), weights, total, input_precision="ieee")
    if second_bias is not None:
        total += tl.load(second_bias + outputs, mask=wanted, other=0.0).to(tl.float32)[None, :]
    if residual is None and not SKIP:
        total = activate(total, OUTER, ALPHA, BETA)
    else:
        if SKIP:
            added = values
        else:
            added = tl.load(residual + rows[:, None] * RESIDUAL_PITCH + outputs[None, :], mask=written, other=0.0)
        if RESIDUAL_LAST:
            total = activate(total, OUTER, ALPHA, BETA) + added.to(tl.float32)
        else:
            total = activate(total + added.to(tl.float32), OUTER, ALPHA, BETA)
    tl.store(out + rows[:, None] * OUT_PITCH + outputs[None, :], total.to(out.dtype.element_ty), mask=written)
