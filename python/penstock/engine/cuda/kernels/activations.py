"""Activations inside a kernel, on FP32 values. NaN in gives NaN out, which the hardware's own maximum would not.

gelu is the one with erf, to 5e-5 and an eighth of what rounding to FP16 costs; `gelu_tanh` is another function. `alpha`
is the slope of leaky_relu; hard_sigmoid is clamp(alpha x + beta) to 0 … 1 and hard_swish is x times it with alpha 1/6
and beta 1/2; clip is clamp(x) to alpha … beta, quick_gelu is x times the sigmoid of 1.702 x, and star_relu is
alpha relu(x)^2 + beta (Yu et al. 2022, MetaFormer baselines for vision).
"""

# What Triton compiles has Triton's types, which are not Python's.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import os
from typing import Final

import triton
import triton.language as tl

# Triton's interpreter has no assembler; kernels are made for it or for a GPU when they are defined.
INTERPRETED: tl.constexpr = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")

ACTIVATIONS: Final = (
    *("none", "relu", "relu6", "leaky_relu", "silu", "sigmoid", "hard_sigmoid", "hard_swish", "gelu", "gelu_tanh"),
    *("tanh", "clip", "quick_gelu", "star_relu"),
)


def expect_activation(name: str) -> None:
    if name not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {name!r}")


@triton.jit
def clamp(x, low, high):
    x = tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(x, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def normal_share(x):
    """How much of a normal distribution is below x, 0.5 + 0.5 erf(x / sqrt 2), to 2e-5 and beyond +-4.4 to 2e-6.

    A polynomial of x squared: a dozen instructions where the library's erf takes some forty, and an activation of a
    short product costs as much as the product.
    """
    within = tl.minimum(tl.maximum(x, -4.4), 4.4)
    t = within * within
    y = 3.569430515049099e-11 * t - 3.754050403870224e-09
    y = y * t + 1.7408477503977338e-07
    y = y * t - 4.724869086203398e-06
    y = y * t + 8.429303125012666e-05
    y = y * t - 0.0010549925500527024
    y = y * t + 0.009643028490245342
    y = y * t - 0.06607642769813538
    y = y * t + 0.3987616002559662
    return within * y + 0.5


@triton.jit
def activate(x, ACTIVATION: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr):
    if ACTIVATION == "relu":
        x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "relu6":
        x = clamp(x, 0.0, 6.0)
    elif ACTIVATION == "clip":
        x = clamp(x, ALPHA, BETA)
    elif ACTIVATION == "quick_gelu":
        x = x * tl.sigmoid(1.702 * x)
    elif ACTIVATION == "leaky_relu":
        x = tl.where(x < 0.0, x * ALPHA, x)
    elif ACTIVATION == "silu":
        x = x * tl.sigmoid(x)
    elif ACTIVATION == "sigmoid":
        x = tl.sigmoid(x)
    elif ACTIVATION == "hard_sigmoid":
        x = clamp(x * ALPHA + BETA, 0.0, 1.0)
    elif ACTIVATION == "hard_swish":
        x = x * clamp(x * 0.16666666666666666 + 0.5, 0.0, 1.0)
    elif ACTIVATION == "gelu":
        x = x * normal_share(x)
    elif ACTIVATION == "gelu_tanh":
        # 0.5 (1 + tanh y) = sigmoid(2 y)
        x = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif ACTIVATION == "star_relu":
        x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
        x = x * x * ALPHA + BETA
    elif ACTIVATION == "tanh":
        x = 2.0 * tl.sigmoid(2.0 * x) - 1.0
    return x


@triton.jit
def stored_as(x, inverse_scale, TYPE: tl.constexpr):
    """What is written of FP32 values; only eight bits have a scale."""
    if tl.int8 == TYPE:
        return round_to_int8(x * inverse_scale)
    if tl.float8e4nv == TYPE:
        # Beyond the largest there is only NaN.
        return clamp(x * inverse_scale, -448.0, 448.0).to(TYPE)
    return x.to(TYPE)


@triton.jit
def round_to_int8(x):
    """To the nearest, ties to even, saturating; NaN to 0."""
    if INTERPRETED:
        x = tl.minimum(tl.maximum(x, -128.0), 127.0)
        # 1.5 x 2**23 leaves no bits for a fraction in FP32, and the whole number in the last ones.
        return (x + 12582912.0).to(tl.int32, bitcast=True).to(tl.int8)
    # Two instructions saturate and pack four numbers.
    return tl.inline_asm_elementwise(
        """{
            .reg .s32 a, b, c, d, high;
            cvt.rni.s32.f32 a, $1;
            cvt.rni.s32.f32 b, $2;
            cvt.rni.s32.f32 c, $3;
            cvt.rni.s32.f32 d, $4;
            cvt.pack.sat.s8.s32.b32 high, d, c, 0;
            cvt.pack.sat.s8.s32.b32 $0, b, a, high;
            }""",
        "=r,f,f,f,f",
        [x],
        dtype=tl.int8,
        is_pure=True,
        pack=4,
    )


@triton.jit
def whole_to_float(x, BELOW: tl.constexpr):
    """Integers as FP32; `BELOW` says what they are smaller than, and up to 2**22 the sum above does it backwards."""
    if BELOW <= 4194304:
        return (x.to(tl.int32) + 0x4B400000).to(tl.float32, bitcast=True) - 12582912.0
    return x.to(tl.float32)
