"""Squeeze-and-excite: a gate for each channel from its mean, two small layers, and its application.

The means come as sums over blocks of pixels, from the kernel that made the feature map (`depthwise`'s `sums`) or from
`reductions.channel_sums`; so the map is read once, by `apply_gate`.
"""

# What Triton compiles has Triton's types, which are not Python's.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .activations import activate, expect_activation
from .epilogue import Epilogue
from .launching import Launch
from .rows import expect_shape, pitch, power_of_two


def squeeze_excite_gate(
    sums: torch.Tensor,
    squeeze: torch.Tensor,
    squeeze_bias: torch.Tensor,
    excite: torch.Tensor,
    excite_bias: torch.Tensor,
    *,
    pixels: int,
    out: torch.Tensor,
    inner: Epilogue,
    outer: Epilogue,
    pdl: bool = False,
) -> None:
    """out [N, C] = outer(inner(mean squeeze^T + squeeze_bias) excite + excite_bias), mean = sum over blocks / pixels.

    sums     FP32 [N, blocks, C]; `pixels` of one image were added.
    squeeze  [R, C]. excite: [R, C] too, which is the transpose of what a 1x1 convolution stores.
    """
    squeeze_excite_gate_launch(
        sums, squeeze, squeeze_bias, excite, excite_bias, pixels=pixels, out=out, inner=inner, outer=outer, pdl=pdl
    ).run()


def squeeze_excite_gate_launch(
    sums: torch.Tensor,
    squeeze: torch.Tensor,
    squeeze_bias: torch.Tensor,
    excite: torch.Tensor,
    excite_bias: torch.Tensor,
    *,
    pixels: int,
    out: torch.Tensor,
    inner: Epilogue,
    outer: Epilogue,
    pdl: bool = False,
) -> Launch:
    images, blocks, channels = sums.shape
    reduced = squeeze.shape[0]
    for name, tensor, shape in (
        ("squeeze", squeeze, (reduced, channels)),
        ("squeeze_bias", squeeze_bias, (reduced,)),
        ("excite", excite, (reduced, channels)),
        ("excite_bias", excite_bias, (channels,)),
        ("out", out, (images, channels)),
        ("sums", sums, (images, blocks, channels)),
    ):
        expect_shape(tensor, name, *shape)
        if not tensor.is_contiguous():
            raise ValueError(f"{name}: expected a contiguous tensor, got strides {tensor.stride()}")
    expect_activation(inner.activation)
    expect_activation(outer.activation)
    return Launch(
        gate_kernel,
        (images, 1, 1),
        (sums, squeeze, squeeze_bias, excite, excite_bias, out),
        {
            "CHANNELS": channels,
            "REDUCED": reduced,
            "BLOCKS": blocks,
            "PIXELS": pixels,
            "INNER": inner.activation,
            "INNER_ALPHA": inner.alpha,
            "INNER_BETA": inner.beta,
            "OUTER": outer.activation,
            "OUTER_ALPHA": outer.alpha,
            "OUTER_BETA": outer.beta,
            "BLOCK_CHANNELS": power_of_two(channels, 16),
            # Eight vectors of 16 bytes of each of 256 threads in flight.
            "BLOCK_REDUCED": min(power_of_two(reduced), max(1, 16384 // power_of_two(channels, 16))),
            "BLOCK_BLOCKS": min(power_of_two(blocks), max(1, 8192 // power_of_two(channels, 16))),
            "PDL": pdl,
        },
        num_warps=8,
        pdl=pdl,
    )


@triton.jit
def gate_kernel(
    sums,
    squeeze,
    squeeze_bias,
    excite,
    excite_bias,
    out,
    CHANNELS: tl.constexpr,
    REDUCED: tl.constexpr,
    BLOCKS: tl.constexpr,
    PIXELS: tl.constexpr,
    INNER: tl.constexpr,
    INNER_ALPHA: tl.constexpr,
    INNER_BETA: tl.constexpr,
    OUTER: tl.constexpr,
    OUTER_ALPHA: tl.constexpr,
    OUTER_BETA: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_REDUCED: tl.constexpr,
    BLOCK_BLOCKS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (images,)."""
    image = tl.program_id(0)
    channels = tl.arange(0, BLOCK_CHANNELS)
    exists = channels < CHANNELS
    gate = tl.load(excite_bias + channels, mask=exists, other=0.0).to(tl.float32)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    mean = tl.zeros((BLOCK_CHANNELS,), dtype=tl.float32)
    for start in range(0, BLOCKS, BLOCK_BLOCKS):
        block = start + tl.arange(0, BLOCK_BLOCKS)
        part = tl.load(
            sums + (image * BLOCKS + block)[:, None] * CHANNELS + channels[None, :],
            mask=(block < BLOCKS)[:, None] & exists[None, :],
            other=0.0,
        )
        mean += tl.sum(part, axis=0)
    mean = mean / PIXELS
    for start in range(0, REDUCED, BLOCK_REDUCED):
        r = start + tl.arange(0, BLOCK_REDUCED)
        at = r[:, None] * CHANNELS + channels[None, :]
        inside = (r < REDUCED)[:, None] & exists[None, :]
        weights = tl.load(squeeze + at, mask=inside, other=0.0).to(tl.float32)
        hidden = tl.sum(weights * mean[None, :], axis=1)
        hidden += tl.load(squeeze_bias + r, mask=r < REDUCED, other=0.0).to(tl.float32)
        hidden = activate(hidden, INNER, INNER_ALPHA, INNER_BETA)
        weights = tl.load(excite + at, mask=inside, other=0.0).to(tl.float32)
        gate += tl.sum(weights * hidden[:, None], axis=0)
    gate = activate(gate, OUTER, OUTER_ALPHA, OUTER_BETA)
    tl.store(out + image * CHANNELS + channels, gate.to(out.dtype.element_ty), mask=exists)


def apply_gate(
    x: torch.Tensor,
    gate: torch.Tensor,
    *,
    out: torch.Tensor,
    residual: torch.Tensor | None = None,
    epilogue: Epilogue | None = None,
    pdl: bool = False,
) -> None:
    """out = activation(x · gate + residual), or activation(x · gate) + residual; x [N, H, W, C], gate [N, C]."""
    apply_gate_launch(x, gate, out=out, residual=residual, epilogue=epilogue, pdl=pdl).run()


def apply_gate_launch(
    x: torch.Tensor,
    gate: torch.Tensor,
    *,
    out: torch.Tensor,
    residual: torch.Tensor | None = None,
    epilogue: Epilogue | None = None,
    pdl: bool = False,
) -> Launch:
    images, height, width, channels = x.shape
    expect_shape(gate, "gate", images, channels)
    expect_shape(out, "out", *x.shape)
    if residual is not None:
        expect_shape(residual, "residual", *x.shape)
    epilogue = epilogue or Epilogue()
    expect_activation(epilogue.activation)
    block_channels = min(128, power_of_two(channels, 16))
    # 256 bytes of each of 128 threads; less where that leaves most of the chip without work.
    block_pixels = 8192 // block_channels
    while block_pixels > 8 and images * triton.cdiv(height * width, block_pixels) < 256:
        block_pixels //= 2
    return Launch(
        apply_gate_kernel,
        (triton.cdiv(height * width, block_pixels), triton.cdiv(channels, block_channels), images),
        (x, gate, residual, out),
        {
            "PIXELS": height * width,
            "CHANNELS": channels,
            "X_PITCH": pitch(x, "x"),
            "GATE_PITCH": pitch(gate, "gate"),
            "RESIDUAL_PITCH": 0 if residual is None else pitch(residual, "residual"),
            "OUT_PITCH": pitch(out, "out"),
            "ACTIVATION": epilogue.activation,
            "ALPHA": epilogue.alpha,
            "BETA": epilogue.beta,
            "RESIDUAL_LAST": epilogue.residual_last,
            "BLOCK_PIXELS": block_pixels,
            "BLOCK_CHANNELS": block_channels,
            "PDL": pdl,
        },
        num_warps=4,
        pdl=pdl,
    )


@triton.jit
def apply_gate_kernel(
    x,
    gate,
    residual,
    out,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    X_PITCH: tl.constexpr,
    GATE_PITCH: tl.constexpr,
    RESIDUAL_PITCH: tl.constexpr,
    OUT_PITCH: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    RESIDUAL_LAST: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (blocks of pixels of an image, blocks of channels, images)."""
    image = tl.program_id(2)
    pixels = tl.program_id(0) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    channels = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    inside = (pixels < PIXELS)[:, None] & (channels < CHANNELS)[None, :]
    rows = image * PIXELS + pixels
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    factor = tl.load(gate + image * GATE_PITCH + channels, mask=channels < CHANNELS, other=0.0).to(tl.float32)
    y = tl.load(x + rows[:, None] * X_PITCH + channels[None, :], mask=inside, other=0.0).to(tl.float32)
    y *= factor[None, :]
    if residual is None:
        y = activate(y, ACTIVATION, ALPHA, BETA)
    else:
        added = tl.load(residual + rows[:, None] * RESIDUAL_PITCH + channels[None, :], mask=inside, other=0.0)
        if RESIDUAL_LAST:
            y = activate(y, ACTIVATION, ALPHA, BETA) + added.to(tl.float32)
        else:
            y = activate(y + added.to(tl.float32), ACTIVATION, ALPHA, BETA)
    tl.store(out + rows[:, None] * OUT_PITCH + channels[None, :], y.to(out.dtype.element_ty), mask=inside)
