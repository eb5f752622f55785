"""Activations inside a kernel, on FP32 values. NaN in gives NaN out, which the hardware's own maximum would not.

gelu is the exact one, with erf, but for 9e-5: less than 16 bits can hold, and erf itself costs three times as much,
which in the epilogue of a short product is most of the kernel. `gelu_tanh` is the approximation, another function.
`alpha` is the slope of leaky_relu; hard_sigmoid is clamp(alpha x + beta) to 0 … 1 and hard_swish is x times it with
alpha 1/6 and beta 1/2; clip is clamp(x) to alpha … beta, and quick_gelu is x times the sigmoid of 1.702 x.
"""

# What Triton compiles has Triton's types, which are not Python's.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from typing import Final

import triton
import triton.language as tl

ACTIVATIONS: Final = (
    *("none", "relu", "relu6", "leaky_relu", "silu", "sigmoid", "hard_sigmoid", "hard_swish", "gelu", "gelu_tanh"),
    *("tanh", "clip", "quick_gelu"),
)


def expect_activation(name: str) -> None:
    if name not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {name!r}")


@triton.jit
def clamp(x, low, high):
    x = tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(x, high, propagate_nan=tl.PropagateNan.ALL)


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
        # erf(x / sqrt 2) as x P(x^2), fitted where it is below 1; beyond, P grows and the clamp makes it exactly 1.
        square = x * x
        p = square * 1.2965947759902008e-10 - 1.1799470733819817e-08
        p = p * square + 4.791773449142056e-07
        p = p * square - 1.1591594557103235e-05
        p = p * square + 0.00018879830895457417
        p = p * square - 0.0022204371634870768
        p = p * square + 0.019617274403572083
        p = p * square - 0.13262811303138733
        p = p * square + 0.7977529764175415
        half = 0.5 * x
        x = half * clamp(p * x, -1.0, 1.0) + half
    elif ACTIVATION == "gelu_tanh":
        # 0.5 (1 + tanh y) = sigmoid(2 y)
        x = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif ACTIVATION == "tanh":
        x = 2.0 * tl.sigmoid(2.0 * x) - 1.0
    return x


@triton.jit
def round_to_int8(x):
    """To the nearest, ties to even, saturating. Adding 1.5 x 2**23 leaves no bits for a fraction in FP32."""
    x = tl.minimum(tl.maximum(x, -128.0), 127.0)
    return ((x + 12582912.0) - 12582912.0).to(tl.int8)
