"""Values rounded to eight bits: INT8 or e4m3, whichever `out` is, one scale for all of them."""

# What Triton compiles has Triton's types, which are not Python's.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .activations import stored_as
from .launching import Launch
from .rows import INDEX_LIMIT, expect_shape

_BLOCK = 2048  # 16 eight-bit numbers for each thread of 4 warps
_WARPS = 4


def quantize_launch(x: torch.Tensor, *, out: torch.Tensor, scale: float, pdl: bool = False) -> Launch:
    """out = x / scale, to the nearest. Both dense."""
    expect_shape(out, "out", *x.shape)
    if not (x.is_contiguous() and out.is_contiguous()) or x.numel() >= INDEX_LIMIT:
        raise ValueError(f"x, out: expected dense tensors below 2**31 elements, got strides {x.stride()}")
    constants = {"SIZE": x.numel(), "BLOCK": _BLOCK, "PDL": pdl}
    grid = (triton.cdiv(x.numel(), _BLOCK), 1, 1)
    return Launch(quantize_kernel, grid, (x, out, 1.0 / scale), constants, num_warps=_WARPS, pdl=pdl)


@triton.jit
def quantize_kernel(x, out, inverse_scale, SIZE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Grid: (blocks,)."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y = tl.load(x + places, mask=places < SIZE, other=0.0).to(tl.float32)
    tl.store(out + places, stored_as(y, inverse_scale, out.dtype.element_ty), mask=places < SIZE)
