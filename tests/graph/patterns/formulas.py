"""Every pattern, written out with the choices that exporters have."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tests.graph.patterns.drafts import Draft
from tests.graph.small import normal


def gelu_erf(draft: Draft, x: str = "x", half: float = 0.5, root: float = math.sqrt(2), one: float = 1.0) -> str:
    inner = draft.scaled(x, 1 / root)
    return draft.product(half, x, draft.add("Add", draft.add("Erf", inner), draft.number(one)))


def gelu_tanh(
    draft: Draft, x: str = "x", half: float = 0.5, factor: float = math.sqrt(2 / math.pi), cubic: float = 0.044715
) -> str:
    if draft.choices.pick(False, True):  # sqrt(2 / pi) * x * (1 + c * x * x)
        square = draft.add("Add", draft.product(cubic, x, x), draft.number(1.0))
        inner = draft.product(factor, x, square)
    else:
        power = draft.choices.pick(False, True)
        cube = draft.add("Pow", x, draft.number(3.0)) if power else ""
        term = draft.product(cubic, cube) if power else draft.product(cubic, x, x, x)
        inner = draft.product(factor, draft.add("Add", x, term))
    return draft.product(half, x, draft.add("Add", draft.add("Tanh", inner), draft.number(1.0)))


def relu6(draft: Draft, x: str, top: float = 6.0) -> str:
    form = draft.choices.pick("clip", "relu", "max")
    if form == "clip":
        bounds = [np.asarray(bound, draft.dtype) for bound in (0.0, top)]
        return draft.add("Clip", x, *map(draft.weight, bounds))
    below = draft.add("Relu", x) if form == "relu" else draft.add("Max", x, draft.number(0.0))
    return draft.add("Min", below, draft.number(top))


def hard_sigmoid(draft: Draft, x: str = "x", shift: float = 3.0, top: float = 6.0, sixth: float = 1 / 6) -> str:
    return draft.product(sixth, relu6(draft, draft.add("Add", x, draft.number(shift)), top))


def hard_swish(draft: Draft, x: str = "x", shift: float = 3.0, top: float = 6.0, sixth: float = 1 / 6) -> str:
    return draft.product(sixth, x, relu6(draft, draft.add("Add", x, draft.number(shift)), top))


def hard_swish_of_gate(draft: Draft, x: str = "x", alpha: float = 1 / 6, beta: float = 0.5) -> str:
    return draft.add("Mul", x, draft.add("HardSigmoid", x, attributes={"alpha": alpha, "beta": beta}))


def silu(draft: Draft, x: str = "x", slope: float = 1.0) -> str:
    return draft.add("Mul", x, draft.add("Sigmoid", x if slope == 1.0 else draft.scaled(x, slope)))


@dataclass(frozen=True)
class Norm:
    """What a layer normalization is made with."""

    axes: Sequence[int] = (-1,)
    second_axes: Sequence[int] | None = None
    """Of the variance, when they differ."""

    scale: tuple[int, ...] | None = (8,)
    offset: tuple[int, ...] | None = (8,)
    epsilon: float = 1e-5
    exponent: float = 2.0


def layer_norm(draft: Draft, x: str = "x", norm: Norm = Norm()) -> str:
    pick = draft.choices.pick
    centred = draft.add("Sub", x, draft.reduce_mean(x, norm.axes))
    again = draft.add("Sub", x, draft.reduce_mean(x, norm.axes)) if pick(False, True) else centred
    if norm.exponent == 2.0 and pick(False, True):
        square = draft.add("Mul", again, again)
    else:
        square = draft.add("Pow", again, draft.number(norm.exponent))
    variance = draft.add("Add", draft.reduce_mean(square, norm.second_axes or norm.axes), draft.number(norm.epsilon))
    form = pick("sqrt", "pow", "reciprocal", "pow-reciprocal", "one-over")
    if form == "pow-reciprocal":
        result = draft.add("Mul", centred, draft.add("Pow", variance, draft.number(-0.5)))
    else:
        root = draft.add("Pow", variance, draft.number(0.5)) if form == "pow" else draft.add("Sqrt", variance)
        if form == "reciprocal":
            result = draft.add("Mul", centred, draft.add("Reciprocal", root))
        elif form == "one-over":
            result = draft.add("Mul", centred, draft.add("Div", draft.number(1.0), root))
        else:
            result = draft.add("Div", centred, root)
    if norm.scale is not None:
        result = draft.add("Mul", result, draft.weight(1 + 0.1 * normal(*norm.scale, seed=1).astype(draft.dtype)))
    if norm.offset is not None:
        result = draft.add("Add", result, draft.weight(normal(*norm.offset, seed=2).astype(draft.dtype)))
    return result
