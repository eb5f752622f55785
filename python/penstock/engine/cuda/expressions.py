"""Pointwise programs and the activations of epilogues, in torch operators.

Programs are computed in FP32 whatever their operands are, as our own kernels do; a number too large for FP16 is cut to
its largest when it is written, since infinity times zero in a mask is no number.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias

import torch
from torch.nn import functional

from penstock.engine.cuda.sites import Run, Site, narrow
from penstock.engine.lowered import Instruction, Number
from penstock.engine.pieces import read
from penstock.errors import Internal

Argument: TypeAlias = "torch.Tensor | Number"

_QUICK: Final = 1.702  # CLIP's GELU, Hendrycks and Gimpel 2016, section 2


def _tensor(value: Argument) -> torch.Tensor:
    assert isinstance(value, torch.Tensor)
    return value


def _div(a: Argument, b: Argument) -> Argument:
    whole = [each for each in (a, b) if isinstance(each, torch.Tensor)]
    if any(each.is_floating_point() for each in whole) or isinstance(a, float) or isinstance(b, float):
        return a / b
    return torch.div(a, b, rounding_mode="trunc") if isinstance(a, torch.Tensor) else _like(a, b) // b


def _like(number: Argument, other: Argument) -> torch.Tensor:
    """A tensor of a number's, beside a tensor."""
    return number if isinstance(number, torch.Tensor) else torch.full_like(_tensor(other), number)


def _minimum(a: Argument, b: Argument) -> torch.Tensor:
    return torch.minimum(_like(a, b), _like(b, a))


def _maximum(a: Argument, b: Argument) -> torch.Tensor:
    return torch.maximum(_like(a, b), _like(b, a))


def _clip(x: Argument, low: Argument, high: Argument) -> torch.Tensor:
    assert not isinstance(low, torch.Tensor)
    assert not isinstance(high, torch.Tensor)
    bounds = [each if math.isfinite(each) else None for each in (low, high)]
    return _tensor(x) if bounds == [None, None] else torch.clamp(_tensor(x), *bounds)


def _where(condition: Argument, a: Argument, b: Argument) -> torch.Tensor:
    if not isinstance(a, torch.Tensor) and not isinstance(b, torch.Tensor):
        kind = torch.float32 if isinstance(a, float) or isinstance(b, float) else torch.int64
        a = torch.full_like(_tensor(condition), a, dtype=kind)
    return torch.where(_tensor(condition), a, b)


def _pow(x: Argument, exponent: Argument) -> Argument:
    return torch.pow(x, exponent)


_ONE: Final[Mapping[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "relu": functional.relu,
    "relu6": lambda x: torch.clamp(x, 0.0, 6.0),
    "silu": functional.silu,
    "quick_gelu": lambda x: x * torch.sigmoid(_QUICK * x),
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "sigmoid": torch.sigmoid,
    "hard_swish": functional.hardswish,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "neg": torch.neg,
    "abs": torch.abs,
    "reciprocal": torch.reciprocal,
    "sign": torch.sign,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "round": torch.round,
    "softplus": functional.softplus,
    "not": torch.logical_not,
    "is_nan": torch.isnan,
    "sin": torch.sin,
    "cos": torch.cos,
    "identity": lambda x: x,
    "to_float": lambda x: x.float(),
    "to_int": lambda x: x.long(),
    "to_bool": lambda x: x != 0,
}
_MORE: Final[Mapping[str, Callable[..., Argument]]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": _div,
    "pow": _pow,
    "min": _minimum,
    "max": _maximum,
    "leaky_relu": lambda x, slope: torch.where(x < 0, x * slope, x),
    "elu": lambda x, alpha: torch.where(x < 0, alpha * torch.expm1(x), x),
    "equal": lambda a, b: a == b,
    "less": lambda a, b: a < b,
    "less_equal": lambda a, b: a <= b,
    "greater": lambda a, b: a > b,
    "greater_equal": lambda a, b: a >= b,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "where": _where,
    "clip": _clip,
    "hard_sigmoid": lambda x, alpha, beta: torch.clamp(x * alpha + beta, 0.0, 1.0),
    "star_relu": lambda x, alpha, beta: functional.relu(x).square() * alpha + beta,
}


def evaluate(program: Sequence[Instruction], operands: Sequence[torch.Tensor]) -> torch.Tensor:
    """The last instruction's result."""
    return _tensor(_evaluated(program, operands)[-1])


def _evaluated(program: Sequence[Instruction], operands: Sequence[torch.Tensor]) -> list[Argument]:
    """Each instruction's result."""
    known: dict[str, Argument] = {f"i{number}": each for number, each in enumerate(operands)}
    found: list[Argument] = []
    for number, line in enumerate(program):
        arguments = [known[each] if isinstance(each, str) else each for each in line.arguments]
        one = _ONE.get(line.name)
        result = one(_tensor(arguments[0])) if one is not None else _MORE[line.name](*arguments)
        known[f"t{number}"] = result
        found.append(result)
    return found


def pointwise(site: Site) -> Run:
    """Computed in FP32."""
    program, shape, dtype = site.step.program, site.out_shape(), site.out_dtype()

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return (computed(program, operands, dtype).reshape(shape),)

    return run


def computed(program: Sequence[Instruction], operands: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """The program's result, computed in FP32 and then stored."""
    wide = [each.float() if narrow(each.dtype) else each for each in operands]
    return written(evaluate(program, wide), dtype)


def pieces(site: Site) -> Run:
    """Each computed in FP32, and written where it belongs."""
    program, shape, dtype = site.step.program, site.out_shape(), site.out_dtype()
    where = read(site.step.attributes["pieces"], math.prod(shape))
    ends = list(itertools.accumulate(each.lines for each in where))

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        out = torch.empty(shape, dtype=dtype, device=site.device)
        lines = _evaluated(program, [each.float() if narrow(each.dtype) else each for each in operands])
        for each, end in zip(where, ends, strict=True):
            part = torch.as_strided(out, each.shape, each.strides, each.offset)
            part.copy_(written(_tensor(lines[end - 1]), dtype).expand(each.shape))
        return (out,)

    return run


def pointwise_narrow(site: Site) -> Run:
    """Each instruction rounds to the operands' type, as torch's own operators do one by one."""
    program, shape, dtype = site.step.program, site.out_shape(), site.out_dtype()

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return (written(evaluate(program, operands), dtype).reshape(shape),)

    return run


def written(result: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Of the stored type, dense, and finite if it was."""
    if dtype == torch.float16 and result.dtype == torch.float32:
        limit = torch.finfo(dtype).max
        result = result.clamp(-limit, limit)
    return result.to(dtype).contiguous()


def activate(x: torch.Tensor, name: str, alpha: float, beta: float) -> torch.Tensor:
    """An epilogue's activation."""
    if name in ("", "none"):
        return x
    if name in ("clip", "hard_sigmoid", "star_relu"):
        return _tensor(_MORE[name](x, alpha, beta))
    if name == "leaky_relu":
        return _tensor(_MORE[name](x, alpha))
    if name not in _ONE:
        raise Internal(f"no activation {name!r}")
    return _ONE[name](x)


def epilogue(site: Site) -> Callable[[torch.Tensor, Sequence[torch.Tensor]], torch.Tensor]:
    """What comes after a layer with its bias: the residual and the activation, in the order the step says."""
    name, alpha, beta = site.text("activation", "none"), site.number("alpha"), site.number("beta")
    residual, dtype, after = site.index("residual"), site.out_dtype(), site.text("residual") == "after"

    def apply(x: torch.Tensor, operands: Sequence[torch.Tensor]) -> torch.Tensor:
        if residual is not None and not after:
            x = x + operands[residual]
        x = activate(x, name, alpha, beta)
        if residual is not None and after:
            x = x + operands[residual]
        return x.to(dtype).contiguous()

    return apply
