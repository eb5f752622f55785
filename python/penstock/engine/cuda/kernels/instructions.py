"""The instructions of pointwise programs as the text of a kernel, and the functions of numbers that Triton lacks.

Floats are FP32, NaN in gives NaN out; integers and truths stay what they are. Called by what writes kernels.
"""

# What Triton compiles has Triton's types, which are not Python's.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import triton
import triton.language as tl
from triton.language.extra import libdevice


@dataclass(frozen=True, slots=True)
class Known:
    """An argument in the text."""

    text: str
    kind: str
    """f: FP32, i: integers, u: bytes, b: truth; n: a float that stands there, w: a whole number that does."""

    @property
    def as_float(self) -> str:
        return f"{self.text}.to(tl.float32)" if self.kind == "i" else self.text


_ACTIVATED: Final = ("relu", "relu6", "silu", "quick_gelu", "gelu_tanh", "sigmoid", "hard_swish")
# Of FP32, to FP32.
_OF_ONE: Final = {
    **{name: f'activate({{0}}, "{name}", 0.0, 0.0)' for name in _ACTIVATED},
    "gelu": "0.5 * {0} * (1.0 + tl.erf({0} * 0.7071067811865476))",
    "tanh": "tanh({0})",
    "erf": "tl.erf({0})",
    "exp": "tl.exp({0})",
    "log": "tl.log({0})",
    "sqrt": "tl.sqrt_rn({0})",
    "reciprocal": "1.0 / {0}",
    "floor": "tl.floor({0})",
    "ceil": "tl.ceil({0})",
    "round": "rounded({0})",
    "softplus": "softplus({0})",
    "sin": "tl.sin({0})",
    "cos": "tl.cos({0})",
}
# Of floats or integers, to the same.
_ALIKE: Final = {
    "neg": "-{0}",
    "abs": "tl.abs({0})",
    "sign": "tl.where({0} > 0, 1, tl.where({0} < 0, -1, {0}))",
    "identity": "{0}",
}
_NUMBERS: Final = frozenset("finw")
_TRUTHS: Final = {"and": "{0} & {1}", "or": "{0} | {1}"}
_EXTREMES: Final = {"min": "tl.minimum", "max": "tl.maximum"}
_ARITHMETIC: Final = {"add": "+", "sub": "-", "mul": "*"}
_COMPARED: Final = {"equal": "==", "less": "<", "less_equal": "<=", "greater": ">", "greater_equal": ">="}
_POWERS: Final = {
    2.0: "{0} * {0}",
    3.0: "{0} * {0} * {0}",
    1.0: "{0}",
    0.5: "tl.sqrt_rn({0})",
    -0.5: "1.0 / tl.sqrt_rn({0})",
    -1.0: "1.0 / {0}",
}


def result(name: str, arguments: Sequence[Known]) -> Known:
    """An instruction's; ValueError for what no kernel here computes."""
    kinds = "".join(each.kind for each in arguments)
    made = None
    if not set(kinds) <= set("nw"):
        made = _of_one(name, arguments[0], kinds) or _logical(name, arguments, kinds) or _number(name, arguments, kinds)
    if made is None:
        raise ValueError(f"{name} of {kinds}: no kernel here computes it")
    return made


def _of_one(name: str, x: Known, kinds: str) -> Known | None:
    if name in _MADE:
        kind, text = _MADE[name]
        return Known(text.format(x.text), kind)
    if (name in _ALIKE and kinds in "fi") or name == "identity":
        return Known(_ALIKE[name].format(x.text), x.kind)
    return Known(_OF_ONE[name].format(x.text), "f") if name in _OF_ONE and kinds == "f" else None


def _logical(name: str, arguments: Sequence[Known], kinds: str) -> Known | None:
    if name in _TRUTHS and kinds == "bb":
        return Known(_TRUTHS[name].format(*(each.text for each in arguments)), "b")
    if name in _COMPARED and (set(kinds) <= _NUMBERS or kinds == "bb"):
        texts = _alike(arguments)
        return Known(f"{texts[0]} {_COMPARED[name]} {texts[1]}", "b")
    if name == "where" and kinds[0] == "b" and (set(kinds[1:]) <= _NUMBERS or kinds == "bbb"):
        texts, kind = _alike(arguments[1:]), "b" if kinds == "bbb" else _widest(arguments[1:])
        return Known(f"tl.where({arguments[0].text}, {texts[0]}, {texts[1]})", kind)
    return None


def _number(name: str, arguments: Sequence[Known], kinds: str) -> Known | None:
    """Of numbers, a number; of whole ones a whole one."""
    kind, texts = _widest(arguments), _alike(arguments)
    if not set(kinds) <= _NUMBERS:
        return None
    if name == "pow" and kind == "f":
        number = arguments[0].kind in "nw"
        return Known(_power(f"{float(texts[0])!r}" if number else texts[0], arguments[1]), "f")
    if name in _WITH_NUMBERS and (kinds[0] == "f" or (name == "clip" and kinds == "iww")):
        text = _WITH_NUMBERS[name] if kinds[0] == "f" else "tl.minimum(tl.maximum({0}, {1}), {2})"
        return Known(text.format(*texts), kinds[0])
    if name in _ARITHMETIC:
        return Known(f"{texts[0]} {_ARITHMETIC[name]} {texts[1]}", kind)
    if name in _EXTREMES and kinds not in ("in", "ni"):
        nan = ", propagate_nan=tl.PropagateNan.ALL" if kind == "f" else ""
        return Known(f"{_EXTREMES[name]}({', '.join(texts)}{nan})", kind)
    return Known(f"{texts[0]} / {texts[1]}", "f") if name == "div" and kind == "f" else None


def _widest(arguments: Sequence[Known]) -> str:
    return "f" if any(each.kind in "fn" for each in arguments) else "i"


def _alike(arguments: Sequence[Known]) -> list[str]:
    """Whole numbers among floats as floats."""
    return [each.as_float if _widest(arguments) == "f" else each.text for each in arguments]


_WITH_NUMBERS: Final = {
    "clip": "clamp({0}, {1}, {2})",
    "leaky_relu": "tl.where({0} < 0, {0} * {1}, {0})",
    "elu": "tl.where({0} < 0, {1} * expm1({0}), {0})",
    "hard_sigmoid": "clamp({0} * {1} + {2}, 0.0, 1.0)",
    "star_relu": 'activate({0}, "star_relu", {1}, {2})',
}
# To another kind.
_MADE: Final = {
    "not": ("b", "{0} == 0"),
    "is_nan": ("b", "{0} != {0}"),
    "to_float": ("f", "{0}.to(tl.float32)"),
    "to_int": ("i", "{0}.to(tl.int64)"),
    "to_bool": ("b", "{0} != 0"),
}


def _power(x: str, exponent: Known) -> str:
    if exponent.kind in "nw" and (simple := _POWERS.get(float(exponent.text))) is not None:
        return simple.format(x)
    return f"power_of({x}, {exponent.as_float})"


@triton.jit
def tanh(x):
    """Near zero the difference of two halves would lose the last digits."""
    square = x * x
    near = x * (1.0 - square * (0.3333333333333333 - square * 0.13333333333333333))
    return tl.where(square < 0.0025, near, 2.0 * tl.sigmoid(2.0 * x) - 1.0)


@triton.jit
def rounded(x):
    """To the nearest, ties to even: 2**23 leaves no bits for a fraction, and beyond there is none."""
    magic = tl.where(x < 0.0, -8388608.0, 8388608.0)
    return tl.where(tl.abs(x) < 8388608.0, (x + magic) - magic, x)


@triton.jit
def softplus(x):
    """log(1 + e**x), where 1 + e**x is 1, too (Kahan's way)."""
    e = tl.exp(tl.minimum(x, 20.0, propagate_nan=tl.PropagateNan.ALL))
    u = 1.0 + e
    return tl.where(x > 20.0, x, tl.where(u == 1.0, e, tl.log(u) * (e / (u - 1.0))))


@triton.jit
def expm1(x):
    """e**x - 1 for x below zero, by the same way."""
    u = tl.exp(tl.minimum(x, 0.0, propagate_nan=tl.PropagateNan.ALL))
    close = tl.where(u == 1.0, x, (u - 1.0) * (x / tl.log(u)))
    return tl.where(u < 1e-6, u - 1.0, close)


@triton.jit
def power_of(x, exponent):
    return libdevice.pow(x, exponent)
