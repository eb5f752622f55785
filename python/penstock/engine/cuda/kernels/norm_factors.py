"""What to multiply and what to add, per image and channel, so that groups of channels of an NHWC map are normed.

Two kernels: mean and sum of squared differences of each channel in parts of an image, and then of the parts together,
in a fixed order (Chan, Golub, LeVeque 1979), so that answers do not change from call to call. Differences are taken
from the part's first pixel, which is near enough to the mean for sums of squares not to cancel.
"""

# What Triton compiles has Triton's types, which are not Python's.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .launching import Launch
from .rows import expect_shape, pitch, power_of_two

_NUMBERS = 4096  # of a block
_WARPS = 4


def norm_factors_launches(
    x: torch.Tensor,
    *,
    groups: int,
    epsilon: float,
    scale: torch.Tensor,
    offset: torch.Tensor,
    splits: int,
    parts: torch.Tensor,
    pdl: bool = False,
) -> tuple[Launch, Launch]:
    """x [N, H, W, C] · scale + offset has mean 0 and variance 1 in each of `groups` groups of channels of an image.

    scale, offset  FP32 [N, C], written
    splits         parts of an image, of H · W / splits pixels; none may be empty
    parts          FP32, N · splits · 2 · C numbers at least
    ValueError for shapes that don't fit together.
    """
    images, height, width, channels = x.shape
    pixels = height * width
    each = triton.cdiv(pixels, splits)
    for name, factor in (("scale", scale), ("offset", offset)):
        expect_shape(factor, name, images, channels)
        if factor.dtype != torch.float32 or not factor.is_contiguous():
            raise ValueError(f"{name}: expected contiguous FP32, got {factor.dtype} with strides {factor.stride()}")
    if channels % groups or (splits - 1) * each >= pixels:
        raise ValueError(f"{groups} groups and {splits} splits do not fit {pixels} pixels of {channels} channels")
    if parts.numel() < images * splits * 2 * channels:
        raise ValueError(f"parts: expected {images * splits * 2 * channels} numbers, got {parts.numel()}")
    block_channels = min(power_of_two(channels, 16), 64)
    block_splits, members = power_of_two(splits), channels // groups
    sizes = {"PIXELS": pixels, "CHANNELS": channels, "SPLITS": splits, "EACH": each, "PDL": pdl}
    moments = Launch(
        moments_kernel,
        (splits, triton.cdiv(channels, block_channels), images),
        (x, parts),
        sizes
        | {
            "X_PITCH": pitch(x, "x"),
            "BLOCK_PIXELS": min(_NUMBERS // block_channels, power_of_two(each)),
            "BLOCK_CHANNELS": block_channels,
        },
        num_warps=_WARPS,
        pdl=pdl,
    )
    factors = Launch(
        factors_kernel,
        (groups, images, 1),
        (parts, scale, offset, epsilon),
        sizes
        | {
            "MEMBERS": members,
            "BLOCK_SPLITS": block_splits,
            "BLOCK_MEMBERS": min(power_of_two(members), max(1, _NUMBERS // block_splits)),
        },
        num_warps=_WARPS,
        pdl=pdl,
    )
    return moments, factors


@triton.jit
def moments_kernel(
    x,
    parts,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    SPLITS: tl.constexpr,
    EACH: tl.constexpr,
    X_PITCH: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (splits, blocks of channels, images)."""
    split = tl.program_id(0)
    image = tl.program_id(2)
    channels = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    exists = channels < CHANNELS
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    begin = split * EACH
    end = tl.minimum(begin + EACH, PIXELS)
    first = tl.load(x + (image * PIXELS + begin) * X_PITCH + channels, mask=exists, other=0).to(tl.float32)
    sums = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), dtype=tl.float32)
    squares = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), dtype=tl.float32)
    for start in range(begin, end, BLOCK_PIXELS):
        pixels = start + tl.arange(0, BLOCK_PIXELS)
        inside = (pixels < end)[:, None] & exists[None, :]
        seen = tl.load(x + (image * PIXELS + pixels)[:, None] * X_PITCH + channels[None, :], mask=inside, other=0)
        off = tl.where(inside, seen.to(tl.float32) - first[None, :], 0.0)
        sums += off
        squares += off * off
    count = (end - begin).to(tl.float32)
    total = tl.sum(sums, axis=0)
    spread = tl.sum(squares, axis=0) - total * total / count
    at = parts + (image * SPLITS + split) * (2 * CHANNELS) + channels
    tl.store(at, first + total / count, mask=exists)
    tl.store(at + CHANNELS, tl.where(spread < 0, 0.0, spread), mask=exists)  # NaN is not below


@triton.jit
def factors_kernel(
    parts,
    scale,
    offset,
    epsilon,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    SPLITS: tl.constexpr,
    EACH: tl.constexpr,
    MEMBERS: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    BLOCK_MEMBERS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (groups, images)."""
    group = tl.program_id(0)
    image = tl.program_id(1)
    splits = tl.arange(0, BLOCK_SPLITS)
    counts = tl.minimum(tl.maximum(PIXELS - splits * EACH, 0), EACH).to(tl.float32)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    rows = parts + (image * SPLITS + splits) * (2 * CHANNELS) + group * MEMBERS
    total = tl.zeros((BLOCK_SPLITS, BLOCK_MEMBERS), dtype=tl.float32)
    for start in range(0, MEMBERS, BLOCK_MEMBERS):
        members = start + tl.arange(0, BLOCK_MEMBERS)
        inside = (splits < SPLITS)[:, None] & (members < MEMBERS)[None, :]
        means = tl.load(rows[:, None] + members[None, :], mask=inside, other=0.0)
        total += means * counts[:, None]
    mean = tl.sum(tl.sum(total, axis=1), axis=0) / (PIXELS * MEMBERS)
    spread = tl.zeros((BLOCK_SPLITS, BLOCK_MEMBERS), dtype=tl.float32)
    for start in range(0, MEMBERS, BLOCK_MEMBERS):
        members = start + tl.arange(0, BLOCK_MEMBERS)
        inside = (splits < SPLITS)[:, None] & (members < MEMBERS)[None, :]
        off = tl.where(inside, tl.load(rows[:, None] + members[None, :], mask=inside, other=0.0) - mean, 0.0)
        spread += off * off * counts[:, None]
        spread += tl.load(rows[:, None] + CHANNELS + members[None, :], mask=inside, other=0.0)
    variance = tl.sum(tl.sum(spread, axis=1), axis=0) / (PIXELS * MEMBERS)
    factor = tl.rsqrt(variance + epsilon)
    for start in range(0, MEMBERS, BLOCK_MEMBERS):
        members = start + tl.arange(0, BLOCK_MEMBERS)
        at = image * CHANNELS + group * MEMBERS + members
        every = tl.full((BLOCK_MEMBERS,), 1.0, dtype=tl.float32) * factor
        tl.store(scale + at, every, mask=members < MEMBERS)
        tl.store(offset + at, -mean * every, mask=members < MEMBERS)
