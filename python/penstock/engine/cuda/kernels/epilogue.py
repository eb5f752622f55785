"""What happens to a sum before its only store, and the memory through which blocks share a sum."""

# What Triton compiles has Triton's types, which are not Python's.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
import triton
import triton.language as tl

from .activations import activate, stored_as, whole_to_float

SHIFT: Final = 1.5 * 2**23
"""An integer below 2**22, added to the bits of this number, makes its sum with it."""
SHIFTED: Final = 2**22


@dataclass(frozen=True, slots=True)
class Scratch:
    """What tiles with a split need. Launches on one stream may share it; two streams may not."""

    partial_sums: torch.Tensor
    """FP32, at least `Tile.partial_sums(product)`; holds nothing between launches."""
    counters: torch.Tensor
    """INT32, at least `Tile.counters(product)`; zero before the first launch, and every launch leaves it zero."""


@dataclass(frozen=True, slots=True)
class Epilogue:
    """What happens to a sum before it is stored."""

    activation: str = "none"
    alpha: float = 0.0
    beta: float = 0.0
    residual_last: bool = False
    residual_scale: float = 1.0
    """What one step of an INT8 residual is worth."""
    out_scale: float = 1.0
    """What one step of an INT8 or e4m3 result is worth."""
    folded: bool = False
    """Whether `fold` made scale and bias."""


def folds(activation: str) -> bool:
    """Whether what is computed in steps of the result is computed in the result's steps."""
    return activation in ("none", "relu")


def unfilled(
    like: torch.Tensor, shape: Sequence[int] | None = None, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """What arithmetic would make, without its numbers. Arithmetic on the device `meta` imports torch's compiler, which
    takes seconds: whoever asks only for shapes gets this instead.
    """
    return torch.empty(tuple(like.shape if shape is None else shape), dtype=dtype, device=like.device)


def added(biases: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum of one or more."""
    return unfilled(biases[0]) if biases[0].is_meta else sum(biases[1:], start=biases[0])


def fold(
    scale: torch.Tensor, bias: torch.Tensor | None, out_scale: float, largest: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and bias in steps of an eight-bit result, as kernels want them that `Epilogue.folded` says so to.

    largest  that an INT32 sum may be; 0 where sums are floats. Up to 2**22 the bias takes away what makes them floats
    """
    if scale.is_meta:
        return unfilled(scale), unfilled(scale)
    factor = scale.double() / out_scale
    offset = torch.zeros_like(factor) if bias is None else bias.double() / out_scale
    factor = factor.float()
    if 0 < largest <= SHIFTED:
        offset = offset - SHIFT * factor.double()
    return factor, offset.float()


@triton.jit
def in_steps(total, scale, bias, columns, DEPTH: tl.constexpr):
    """INT32 sums of DEPTH products in steps of the result, by scale and bias of `fold`."""
    factor = tl.load(scale + columns)[None, :]
    offset = tl.load(bias + columns)[None, :]
    if DEPTH * 16384 <= 4194304:
        return (total + 0x4B400000).to(tl.float32, bitcast=True) * factor + offset
    return total.to(tl.float32) * factor + offset


@triton.jit
def store_tile(
    total,
    rows,
    columns,
    bias,
    residual,
    scale,
    out,
    residual_scale,
    out_inverse_scale,
    M: tl.constexpr,
    N: tl.constexpr,
    RESIDUAL_PITCH: tl.constexpr,
    OUT_PITCH: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    RESIDUAL_LAST: tl.constexpr,
    ahead=None,
    LARGEST: tl.constexpr = 2147483647,
    PREFOLDED: tl.constexpr = False,
):
    """`ahead`: the residual's tile, where it was loaded before the sums were made. `LARGEST`: no INT32 sum is more."""
    inside = (rows < M)[:, None] & (columns < N)[None, :]
    # What commutes with a factor may as well have it from the start: one multiplication less for every number.
    EIGHT: tl.constexpr = out.dtype.element_ty == tl.int8 or out.dtype.element_ty == tl.float8e4nv  # noqa: PLR1714
    FOLDED: tl.constexpr = EIGHT and scale is not None and (ACTIVATION == "none" or ACTIVATION == "relu")  # noqa: PLR1714
    if bias is not None:
        offset = tl.load(bias + columns, mask=columns < N, other=0.0).to(tl.float32)
    else:
        offset = tl.zeros((columns.shape[0],), dtype=tl.float32)
    if scale is not None:
        factor = tl.load(scale + columns, mask=columns < N, other=0.0).to(tl.float32)
        BY_BITS: tl.constexpr = total.dtype == tl.int32 and LARGEST <= 4194304 and FOLDED
        if FOLDED and not PREFOLDED:
            factor *= out_inverse_scale
            offset *= out_inverse_scale
            if BY_BITS:
                offset -= 12582912.0 * factor
        if BY_BITS:
            # Below 2**22 an integer added to the bits of 1.5 x 2**23 is that number plus itself. Taking it away from
            # the products in one step is off by one of the sum's steps, of which thousands make one of the result's.
            y = (total + 0x4B400000).to(tl.float32, bitcast=True) * factor[None, :] + offset[None, :]
        else:
            y = whole_to_float(total, LARGEST) if total.dtype == tl.int32 else total.to(tl.float32)
            y = y * factor[None, :] + offset[None, :]
    else:
        y = whole_to_float(total, LARGEST) if total.dtype == tl.int32 else total.to(tl.float32)
        if bias is not None:
            y += offset[None, :]
    if residual is None:
        y = activate(y, ACTIVATION, ALPHA, BETA)
    else:
        if ahead is None:
            added = tl.load(residual + rows[:, None] * RESIDUAL_PITCH + columns[None, :], mask=inside, other=0.0)
        else:
            added = ahead
        if residual.dtype.element_ty == tl.int8:
            added = whole_to_float(added, 256) * (residual_scale * out_inverse_scale if FOLDED else residual_scale)
        else:
            added = added.to(tl.float32)
            if FOLDED:
                added *= out_inverse_scale
        if RESIDUAL_LAST:
            y = activate(y, ACTIVATION, ALPHA, BETA) + added
        else:
            y = activate(y + added, ACTIVATION, ALPHA, BETA)
    y = stored_as(y, 1.0 if FOLDED else out_inverse_scale, out.dtype.element_ty)
    tl.store(out + rows[:, None] * OUT_PITCH + columns[None, :], y, mask=inside)
