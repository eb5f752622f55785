"""What happens to a sum before its only store, and the memory through which blocks share a sum."""

# What Triton compiles has Triton's types, which are not Python's.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .activations import activate, stored_as, whole_to_float


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
):
    """`ahead`: the residual's tile, where it was loaded before the sums were made. `LARGEST`: no INT32 sum is more."""
    inside = (rows < M)[:, None] & (columns < N)[None, :]
    y = whole_to_float(total, LARGEST) if total.dtype == tl.int32 else total.to(tl.float32)
    if scale is not None:
        y *= tl.load(scale + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
    if bias is not None:
        y += tl.load(bias + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
    if residual is None:
        y = activate(y, ACTIVATION, ALPHA, BETA)
    else:
        if ahead is None:
            added = tl.load(residual + rows[:, None] * RESIDUAL_PITCH + columns[None, :], mask=inside, other=0.0)
        else:
            added = ahead
        if residual.dtype.element_ty == tl.int8:
            added = whole_to_float(added, 256) * residual_scale
        else:
            added = added.to(tl.float32)
        if RESIDUAL_LAST:
            y = activate(y, ACTIVATION, ALPHA, BETA) + added
        else:
            y = activate(y + added, ACTIVATION, ALPHA, BETA)
    y = stored_as(y, out_inverse_scale, out.dtype.element_ty)
    tl.store(out + rows[:, None] * OUT_PITCH + columns[None, :], y, mask=inside)
