"""A gate applied to a feature map: every channel of an image times one number, with what is added behind."""

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


def apply_gate(
    x: torch.Tensor,
    gate: torch.Tensor,
    *,
    out: torch.Tensor,
    residual: torch.Tensor | None = None,
    repeat: tuple[int, int] = (1, 1),
    plus_x: bool = False,
    epilogue: Epilogue | None = None,
    pdl: bool = False,
) -> None:
    """out = activation(x · gate + residual), or activation(x · gate) + residual; x [N, H, W, C], gate [N, C].

    repeat  times that each row and each column of the residual is used: nearest upsampling by whole factors.
    plus_x  adds x too, with the gate.
    """
    apply_gate_launch(
        x, gate, out=out, residual=residual, repeat=repeat, plus_x=plus_x, epilogue=epilogue, pdl=pdl
    ).run()


def apply_gate_launch(
    x: torch.Tensor,
    gate: torch.Tensor,
    *,
    out: torch.Tensor,
    residual: torch.Tensor | None = None,
    repeat: tuple[int, int] = (1, 1),
    plus_x: bool = False,
    epilogue: Epilogue | None = None,
    pdl: bool = False,
) -> Launch:
    images, height, width, channels = x.shape
    expect_shape(gate, "gate", images, channels)
    expect_shape(out, "out", *x.shape)
    if height % repeat[0] or width % repeat[1]:
        raise ValueError(f"repeat: expected {repeat} to divide {height} x {width}")
    if residual is not None:
        expect_shape(residual, "residual", images, height // repeat[0], width // repeat[1], channels)
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
            "WIDTH": width,
            "CHANNELS": channels,
            "REPEAT_HIGH": repeat[0],
            "REPEAT_WIDE": repeat[1],
            "PLUS_X": plus_x,
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
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    REPEAT_HIGH: tl.constexpr,
    REPEAT_WIDE: tl.constexpr,
    PLUS_X: tl.constexpr,
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
    y = y * factor[None, :] + y if PLUS_X else y * factor[None, :]
    if residual is None:
        y = activate(y, ACTIVATION, ALPHA, BETA)
    else:
        if REPEAT_HIGH * REPEAT_WIDE > 1:
            above = (pixels // WIDTH) // REPEAT_HIGH
            rows = image * (PIXELS // (REPEAT_HIGH * REPEAT_WIDE)) + above * (WIDTH // REPEAT_WIDE)
            rows += (pixels % WIDTH) // REPEAT_WIDE
            added = tl.load(residual + rows[:, None] * RESIDUAL_PITCH + channels[None, :], mask=inside, other=0.0)
        else:
            added = tl.load(residual + rows[:, None] * RESIDUAL_PITCH + channels[None, :], mask=inside, other=0.0)
        if RESIDUAL_LAST:
            y = activate(y, ACTIVATION, ALPHA, BETA) + added.to(tl.float32)
        else:
            y = activate(y + added.to(tl.float32), ACTIVATION, ALPHA, BETA)
    at = image * PIXELS + pixels
    tl.store(out + at[:, None] * OUT_PITCH + channels[None, :], y.to(out.dtype.element_ty), mask=inside)
