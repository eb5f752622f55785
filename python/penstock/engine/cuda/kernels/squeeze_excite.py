"""Squeeze-and-excite: a gate for each channel from its mean and two small layers.

`squeeze_excite` reads the map and makes the gate in one kernel: the block that is last to add up its pixels of an image
computes it. Where the kernel that made the map left sums over blocks of pixels (`depthwise`'s `sums`), they are enough
(`squeeze_excite_gate`), and the map is read once, by what applies the gate.
"""

# What Triton compiles has Triton's types, which are not Python's.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from typing import Final

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .activations import activate, expect_activation
from .epilogue import Epilogue, Scratch
from .launching import Launch
from .rows import expect_contiguous, expect_shape, pitch, power_of_two

WIDEST: Final = 2048
"""Channels of a map that one block sums."""

_IN_FLIGHT: Final = 8192  # numbers that a block adds to its sums at a time
_FEWEST_SPLITS: Final = 3  # that are worth what it costs blocks to wait for each other


def splits_for(blocks: int, channels: int) -> int:
    """Into how many the sums of so many blocks of an image are best cut for `squeeze_excite`; 1: let one block add."""
    splits = int(triton.cdiv(blocks, max(1, _IN_FLIGHT // power_of_two(channels, 16))))
    return splits if splits >= _FEWEST_SPLITS else 1


def squeeze_excite(
    x: torch.Tensor,
    squeeze: torch.Tensor,
    squeeze_bias: torch.Tensor | None,
    excite: torch.Tensor,
    excite_bias: torch.Tensor | None,
    *,
    out: torch.Tensor,
    splits: int,
    inner: Epilogue,
    outer: Epilogue,
    scratch: Scratch,
    pdl: bool = False,
) -> None:
    """The gate [N, M] of x [N, H, W, C], as `squeeze_excite_gate` makes it of sums; `splits` blocks share an image.

    scratch  N · splits · C floats and N counters at least.
    """
    squeeze_excite_launch(
        x, squeeze, squeeze_bias, excite, excite_bias, out=out, splits=splits, inner=inner, outer=outer,
        scratch=scratch, pdl=pdl,
    ).run()  # fmt: skip


def squeeze_excite_launch(
    x: torch.Tensor,
    squeeze: torch.Tensor,
    squeeze_bias: torch.Tensor | None,
    excite: torch.Tensor,
    excite_bias: torch.Tensor | None,
    *,
    out: torch.Tensor,
    splits: int,
    inner: Epilogue,
    outer: Epilogue,
    scratch: Scratch,
    count: int = 0,
    pdl: bool = False,
) -> Launch:
    """`count`: what the sum over x is divided by, if not by its pixels: x may hold sums over blocks of them."""
    images, height, width, channels = x.shape
    if channels > WIDEST:
        raise ValueError(f"x: expected at most {WIDEST} channels, got {channels}")
    if scratch.partial_sums.numel() < images * splits * channels or scratch.counters.numel() < images:
        raise ValueError(f"scratch: expected {images * splits * channels} floats and {images} counters")
    _expect_layers(images, channels, squeeze, squeeze_bias, excite, excite_bias, out)
    expect_activation(inner.activation)
    expect_activation(outer.activation)
    block_channels = power_of_two(channels, 16)
    return Launch(
        squeeze_excite_kernel,
        (splits, images, 1),
        (x, squeeze, squeeze_bias, excite, excite_bias, scratch.partial_sums, scratch.counters, out),
        {
            "PIXELS": height * width,
            "COUNT": count or height * width,
            "X_PITCH": pitch(x, "x"),
            "SPLITS": splits,
            "BLOCK_PIXELS": max(
                1, min(_IN_FLIGHT // block_channels, power_of_two(triton.cdiv(height * width, splits)))
            ),
            **_layers(channels, excite, splits, inner, outer),
            "PDL": pdl,
        },
        num_warps=8,
        pdl=pdl,
    )


def squeeze_excite_gate(
    sums: torch.Tensor,
    squeeze: torch.Tensor,
    squeeze_bias: torch.Tensor | None,
    excite: torch.Tensor,
    excite_bias: torch.Tensor | None,
    *,
    pixels: int,
    out: torch.Tensor,
    inner: Epilogue,
    outer: Epilogue,
    pdl: bool = False,
) -> None:
    """out [N, M] = outer(inner(mean squeeze^T + squeeze_bias) excite + excite_bias), mean = sum over blocks / pixels.

    sums     FP32 [N, blocks, C]; `pixels` of one image were added.
    squeeze  [R, C]. excite: [R, M], the transpose of what a 1x1 convolution stores; M is C for a plain one.
    """
    squeeze_excite_gate_launch(
        sums, squeeze, squeeze_bias, excite, excite_bias, pixels=pixels, out=out, inner=inner, outer=outer, pdl=pdl
    ).run()


def squeeze_excite_gate_launch(
    sums: torch.Tensor,
    squeeze: torch.Tensor,
    squeeze_bias: torch.Tensor | None,
    excite: torch.Tensor,
    excite_bias: torch.Tensor | None,
    *,
    pixels: int,
    out: torch.Tensor,
    inner: Epilogue,
    outer: Epilogue,
    pdl: bool = False,
) -> Launch:
    images, blocks, channels = sums.shape
    _expect_layers(images, channels, squeeze, squeeze_bias, excite, excite_bias, out)
    expect_contiguous(sums, "sums")
    expect_activation(inner.activation)
    expect_activation(outer.activation)
    return Launch(
        gate_kernel,
        (images, 1, 1),
        (sums, squeeze, squeeze_bias, excite, excite_bias, out),
        {"PIXELS": pixels, "SPLITS": blocks, **_layers(channels, excite, blocks, inner, outer), "PDL": pdl},
        num_warps=8,
        pdl=pdl,
    )


def _expect_layers(
    images: int,
    channels: int,
    squeeze: torch.Tensor,
    squeeze_bias: torch.Tensor | None,
    excite: torch.Tensor,
    excite_bias: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    reduced, made = squeeze.shape[0], excite.shape[1]
    for name, tensor, shape in (
        ("squeeze", squeeze, (reduced, channels)),
        ("squeeze_bias", squeeze_bias, (reduced,)),
        ("excite", excite, (reduced, made)),
        ("excite_bias", excite_bias, (made,)),
        ("out", out, (images, made)),
    ):
        if tensor is None:
            continue
        expect_shape(tensor, name, *shape)
        expect_contiguous(tensor, name)


def _layers(
    channels: int, excite: torch.Tensor, splits: int, inner: Epilogue, outer: Epilogue
) -> dict[str, int | float | str | bool]:
    """Constants of the two layers, and of adding up the parts of an image."""
    reduced, made = excite.shape
    wide, wide_out = power_of_two(channels, 16), power_of_two(made, 16)
    return {
        "CHANNELS": channels,
        "MADE": made,
        "REDUCED": reduced,
        "INNER": inner.activation,
        "INNER_ALPHA": inner.alpha,
        "INNER_BETA": inner.beta,
        "OUTER": outer.activation,
        "OUTER_ALPHA": outer.alpha,
        "OUTER_BETA": outer.beta,
        "BLOCK_CHANNELS": wide,
        "BLOCK_MADE": wide_out,
        # Eight vectors of 16 bytes of each of 256 threads in flight.
        "BLOCK_REDUCED": min(power_of_two(reduced), max(1, 16384 // max(wide, wide_out))),
        "BLOCK_SPLITS": min(power_of_two(splits), max(1, _IN_FLIGHT // wide)),
    }


@triton.jit
def _layers_ahead(
    squeeze,
    squeeze_bias,
    excite,
    start,
    CHANNELS: tl.constexpr,
    MADE: tl.constexpr,
    REDUCED: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_MADE: tl.constexpr,
    BLOCK_REDUCED: tl.constexpr,
):
    """Some rows of both layers, and their biases: nothing that another kernel writes. Past the end they are 0."""
    channels = tl.arange(0, BLOCK_CHANNELS)
    made = tl.arange(0, BLOCK_MADE)
    r = start + tl.arange(0, BLOCK_REDUCED)
    first = tl.load(
        squeeze + r[:, None] * CHANNELS + channels[None, :],
        mask=(r < REDUCED)[:, None] & (channels < CHANNELS)[None, :],
        other=0.0,
    )
    second = tl.load(
        excite + r[:, None] * MADE + made[None, :], mask=(r < REDUCED)[:, None] & (made < MADE)[None, :], other=0.0
    )
    hidden = tl.zeros((BLOCK_REDUCED,), dtype=tl.float32)
    if squeeze_bias is not None:
        hidden += tl.load(squeeze_bias + r, mask=r < REDUCED, other=0.0).to(tl.float32)
    return first, hidden, second


@triton.jit
def _gate(
    sums,
    squeeze,
    squeeze_bias,
    excite,
    out,
    image,
    gate,
    first,
    hidden,
    second,
    CHANNELS: tl.constexpr,
    MADE: tl.constexpr,
    REDUCED: tl.constexpr,
    SPLITS: tl.constexpr,
    PIXELS: tl.constexpr,
    INNER: tl.constexpr,
    INNER_ALPHA: tl.constexpr,
    INNER_BETA: tl.constexpr,
    OUTER: tl.constexpr,
    OUTER_ALPHA: tl.constexpr,
    OUTER_BETA: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_MADE: tl.constexpr,
    BLOCK_REDUCED: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
):
    """One image's gate from its sums; `gate` starts as the second layer's bias, the others are the first rows of both
    layers, loaded before the sums were there."""
    channels = tl.arange(0, BLOCK_CHANNELS)
    exists = channels < CHANNELS
    mean = tl.zeros((BLOCK_CHANNELS,), dtype=tl.float32)
    for start in range(0, SPLITS, BLOCK_SPLITS):
        split = start + tl.arange(0, BLOCK_SPLITS)
        part = tl.load(
            sums + (image * SPLITS + split)[:, None] * CHANNELS + channels[None, :],
            mask=(split < SPLITS)[:, None] & exists[None, :],
            other=0.0,
            cache_modifier=".cg",
        )
        mean += tl.sum(part, axis=0)
    mean = mean / PIXELS
    # Rows past the end meet weights of 0 in the second layer.
    hidden += tl.sum(first.to(tl.float32) * mean[None, :], axis=1)
    gate += tl.sum(second.to(tl.float32) * activate(hidden, INNER, INNER_ALPHA, INNER_BETA)[:, None], axis=0)
    for start in range(BLOCK_REDUCED, REDUCED, BLOCK_REDUCED):
        first, hidden, second = _layers_ahead(
            squeeze, squeeze_bias, excite, start, CHANNELS, MADE, REDUCED, BLOCK_CHANNELS, BLOCK_MADE, BLOCK_REDUCED
        )
        hidden += tl.sum(first.to(tl.float32) * mean[None, :], axis=1)
        gate += tl.sum(second.to(tl.float32) * activate(hidden, INNER, INNER_ALPHA, INNER_BETA)[:, None], axis=0)
    gate = activate(gate, OUTER, OUTER_ALPHA, OUTER_BETA)
    made = tl.arange(0, BLOCK_MADE)
    tl.store(out + image * MADE + made, gate.to(out.dtype.element_ty), mask=made < MADE)


@triton.jit
def squeeze_excite_kernel(
    x,
    squeeze,
    squeeze_bias,
    excite,
    excite_bias,
    sums,
    counters,
    out,
    PIXELS: tl.constexpr,
    COUNT: tl.constexpr,
    X_PITCH: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    MADE: tl.constexpr,
    REDUCED: tl.constexpr,
    INNER: tl.constexpr,
    INNER_ALPHA: tl.constexpr,
    INNER_BETA: tl.constexpr,
    OUTER: tl.constexpr,
    OUTER_ALPHA: tl.constexpr,
    OUTER_BETA: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_MADE: tl.constexpr,
    BLOCK_REDUCED: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (splits, images). The last block of an image makes the gate; COUNT is what the sum is divided by."""
    EACH: tl.constexpr = (PIXELS + SPLITS - 1) // SPLITS
    split = tl.program_id(0)
    image = tl.program_id(1)
    channels = tl.arange(0, BLOCK_CHANNELS)
    exists = channels < CHANNELS
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    end = tl.minimum((split + 1) * EACH, PIXELS)
    parts = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), dtype=tl.float32)
    for start in range(split * EACH, end, BLOCK_PIXELS):
        pixels = start + tl.arange(0, BLOCK_PIXELS)
        parts += tl.load(
            x + (image * PIXELS + pixels)[:, None] * X_PITCH + channels[None, :],
            mask=(pixels < end)[:, None] & exists[None, :],
            other=0.0,
        ).to(tl.float32)
    tl.store(sums + (image * SPLITS + split) * CHANNELS + channels, tl.sum(parts, axis=0), mask=exists)
    tl.debug_barrier()
    if tl.atomic_add(counters + image, 1, sem="acq_rel") == SPLITS - 1:
        tl.store(counters + image, 0)
        first, hidden, second = _layers_ahead(
            squeeze, squeeze_bias, excite, 0, CHANNELS, MADE, REDUCED, BLOCK_CHANNELS, BLOCK_MADE, BLOCK_REDUCED
        )
        made = tl.arange(0, BLOCK_MADE)
        gate = tl.zeros((BLOCK_MADE,), dtype=tl.float32)
        if excite_bias is not None:
            gate += tl.load(excite_bias + made, mask=made < MADE, other=0.0).to(tl.float32)
        _gate(
            sums, squeeze, squeeze_bias, excite, out, image, gate, first, hidden, second, CHANNELS, MADE, REDUCED,
            SPLITS, COUNT, INNER, INNER_ALPHA, INNER_BETA, OUTER, OUTER_ALPHA, OUTER_BETA, BLOCK_CHANNELS, BLOCK_MADE,
            BLOCK_REDUCED, BLOCK_SPLITS,
        )  # fmt: skip


@triton.jit
def gate_kernel(
    sums,
    squeeze,
    squeeze_bias,
    excite,
    excite_bias,
    out,
    PIXELS: tl.constexpr,
    SPLITS: tl.constexpr,
    CHANNELS: tl.constexpr,
    MADE: tl.constexpr,
    REDUCED: tl.constexpr,
    INNER: tl.constexpr,
    INNER_ALPHA: tl.constexpr,
    INNER_BETA: tl.constexpr,
    OUTER: tl.constexpr,
    OUTER_ALPHA: tl.constexpr,
    OUTER_BETA: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_MADE: tl.constexpr,
    BLOCK_REDUCED: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (images,)."""
    made = tl.arange(0, BLOCK_MADE)
    gate = tl.zeros((BLOCK_MADE,), dtype=tl.float32)
    if excite_bias is not None:
        gate += tl.load(excite_bias + made, mask=made < MADE, other=0.0).to(tl.float32)
    first, hidden, second = _layers_ahead(
        squeeze, squeeze_bias, excite, 0, CHANNELS, MADE, REDUCED, BLOCK_CHANNELS, BLOCK_MADE, BLOCK_REDUCED
    )
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    _gate(
        sums, squeeze, squeeze_bias, excite, out, tl.program_id(0), gate, first, hidden, second, CHANNELS, MADE,
        REDUCED, SPLITS, PIXELS, INNER, INNER_ALPHA, INNER_BETA, OUTER, OUTER_ALPHA, OUTER_BETA, BLOCK_CHANNELS,
        BLOCK_MADE, BLOCK_REDUCED, BLOCK_SPLITS,
    )  # fmt: skip
