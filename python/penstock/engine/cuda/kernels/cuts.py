"""A picture's planes cut into patches, each a row of a matrix: what a vision transformer does with it first."""

# What Triton compiles has Triton's types, which are not Python's.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from typing import Final

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .launching import Launch
from .rows import INDEX_LIMIT, power_of_two

_BLOCK: Final = 2048
"""Numbers a block moves, in whole rows of the picture."""


def are_side_by_side(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether [N, rows of patches, patches of a row, planes, height, width] leaves nothing out along the picture."""
    side = len(shape) == 6 and strides[2] == shape[5] * strides[5] and strides[1] == shape[4] * strides[4]
    return side and shape[2] * shape[5] <= _BLOCK


def cut_patches_launch(x: torch.Tensor, *, out: torch.Tensor, pdl: bool = False) -> Launch:
    """x seen as [N, rows, patches of a row, planes, height, width]; out the same, dense, in a type of its own."""
    if not are_side_by_side(tuple(x.shape), x.stride()):
        raise ValueError(f"x: expected patches side by side, got {tuple(x.shape)} of strides {x.stride()}")
    reach = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    if out.numel() != x.numel() or not out.is_contiguous() or max(out.numel(), reach) >= INDEX_LIMIT:
        raise ValueError(f"out: expected {x.numel()} contiguous numbers, below 2**31, got {tuple(out.shape)}")
    images, rows, patches, planes, height, width = x.shape
    block_width = power_of_two(patches * width)
    block_height = min(power_of_two(height), _BLOCK // block_width)
    return Launch(
        cut_patches_kernel,
        (images * rows, planes, triton.cdiv(height, block_height)),
        (x, out),
        {
            "ROWS": rows,
            "PATCHES": patches,
            "PLANES": planes,
            "HEIGHT": height,
            "WIDTH": width,
            "X_IMAGE": x.stride(0),
            "X_PLANE": x.stride(3),
            "X_ROW": x.stride(4),
            "X_PIXEL": x.stride(5),
            "BLOCK_HEIGHT": block_height,
            "BLOCK_WIDTH": block_width,
            "PDL": pdl,
        },
        num_warps=4,
        pdl=pdl,
    )


@triton.jit
def cut_patches_kernel(
    x,
    out,
    ROWS: tl.constexpr,
    PATCHES: tl.constexpr,
    PLANES: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    X_IMAGE: tl.constexpr,
    X_PLANE: tl.constexpr,
    X_ROW: tl.constexpr,
    X_PIXEL: tl.constexpr,
    BLOCK_HEIGHT: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (rows of patches of all images, planes, runs of rows of a patch)."""
    at = tl.program_id(0)
    plane = tl.program_id(1)
    down = tl.program_id(2) * BLOCK_HEIGHT + tl.arange(0, BLOCK_HEIGHT)
    across = tl.arange(0, BLOCK_WIDTH)
    inside = (down < HEIGHT)[:, None] & (across < PATCHES * WIDTH)[None, :]
    begin = at // ROWS * X_IMAGE + plane * X_PLANE + at % ROWS * (HEIGHT * X_ROW)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    values = tl.load(x + begin + down[:, None] * X_ROW + across[None, :] * X_PIXEL, mask=inside, other=0.0)
    patch = at * PATCHES + across // WIDTH
    column = (plane * HEIGHT + down[:, None]) * WIDTH + across[None, :] % WIDTH
    tl.store(out + patch[None, :] * (PLANES * HEIGHT * WIDTH) + column, values.to(out.dtype.element_ty), mask=inside)
