"""Elementwise operators: each becomes a pointwise step of one instruction or two; `fusing` joins them later.

The result lies in memory as its largest operand does, so that feature maps stay NHWC; the others are read through views
with stride 0 where they are broadcast. Constants of one element become numbers of the program.
"""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import onnx_ir as ir

from penstock.engine.lowered import Instruction, Number, Operand
from penstock.errors import Unsupported
from penstock.graph.editing import Array, input_of, integer, number, string
from penstock.graph.lowering.builder import Builder
from penstock.graph.lowering.views import NHWC, by_stride, expanded, identity

Argument = str | Number
Program = Callable[[ir.Node, Sequence[Argument]], list[Instruction]]

_PLAIN: Final = {
    "Relu": "relu",
    "Sigmoid": "sigmoid",
    "HardSwish": "hard_swish",
    "Tanh": "tanh",
    "Erf": "erf",
    "Exp": "exp",
    "Log": "log",
    "Sqrt": "sqrt",
    "Neg": "neg",
    "Abs": "abs",
    "Reciprocal": "reciprocal",
    "Sign": "sign",
    "Floor": "floor",
    "Ceil": "ceil",
    "Round": "round",
    "Softplus": "softplus",
    "Not": "not",
    "IsNaN": "is_nan",
    "Sin": "sin",
    "Cos": "cos",
    "Sub": "sub",
    "Div": "div",
    "Pow": "pow",
    "Equal": "equal",
    "Less": "less",
    "LessOrEqual": "less_equal",
    "Greater": "greater",
    "GreaterOrEqual": "greater_equal",
    "Where": "where",
}
# Of any number of operands, taken from the left.
_FOLDS: Final = {"Add": "add", "Sum": "add", "Mul": "mul", "Min": "min", "Max": "max", "And": "and", "Or": "or"}


def _fold(name: str, arguments: Sequence[Argument]) -> list[Instruction]:
    lines: list[Instruction] = []
    result = arguments[0]
    for each in arguments[1:]:
        lines.append(Instruction(name, (result, each)))
        result = f"t{len(lines) - 1}"
    return lines or [Instruction("identity", (result,))]


def _mean(_: ir.Node, arguments: Sequence[Argument]) -> list[Instruction]:
    lines = _fold("add", arguments)
    return [*lines, Instruction("mul", (f"t{len(lines) - 1}", 1.0 / len(arguments)))]


def _gelu(node: ir.Node, arguments: Sequence[Argument]) -> list[Instruction]:
    name = "gelu_tanh" if string(node, "approximate", "none") == "tanh" else "gelu"
    return [Instruction(name, (arguments[0],))]


def _swish(node: ir.Node, arguments: Sequence[Argument]) -> list[Instruction]:
    if number(node, "alpha", 1.0) != 1.0:
        raise Unsupported(
            f"Swish of node {node.name!r} with alpha {number(node, 'alpha', 1.0)} can't be lowered, 1 can"
        )
    return [Instruction("silu", (arguments[0],))]


def _mish(_: ir.Node, arguments: Sequence[Argument]) -> list[Instruction]:
    x = arguments[0]
    return [Instruction("softplus", (x,)), Instruction("tanh", ("t0",)), Instruction("mul", (x, "t1"))]


def _hard_sigmoid(node: ir.Node, arguments: Sequence[Argument]) -> list[Instruction]:
    slope, middle = number(node, "alpha", 0.2), number(node, "beta", 0.5)
    return [Instruction("hard_sigmoid", (arguments[0], slope, middle))]


def _leaky_relu(node: ir.Node, arguments: Sequence[Argument]) -> list[Instruction]:
    return [Instruction("leaky_relu", (arguments[0], number(node, "alpha", 0.01)))]


def _elu(node: ir.Node, arguments: Sequence[Argument]) -> list[Instruction]:
    return [Instruction("elu", (arguments[0], number(node, "alpha", 1.0)))]


def _selu(node: ir.Node, arguments: Sequence[Argument]) -> list[Instruction]:
    alpha, gamma = number(node, "alpha", 1.67326319), number(node, "gamma", 1.05070102)
    return [Instruction("elu", (arguments[0], alpha)), Instruction("mul", ("t0", gamma))]


def _celu(node: ir.Node, arguments: Sequence[Argument]) -> list[Instruction]:
    x, alpha = arguments[0], number(node, "alpha", 1.0)
    if not alpha > 0:
        raise Unsupported(f"Celu of node {node.name!r} with alpha {alpha:g} can't be lowered, positive ones can")
    bent = [Instruction("mul", (x, 1.0 / alpha)), Instruction("elu", ("t0", alpha))]
    return [*bent, Instruction("greater", (x, 0.0)), Instruction("where", ("t2", x, "t1"))]


def _thresholded_relu(node: ir.Node, arguments: Sequence[Argument]) -> list[Instruction]:
    x = arguments[0]
    return [Instruction("greater", (x, number(node, "alpha", 1.0))), Instruction("where", ("t0", x, 0.0))]


def _softsign(_: ir.Node, arguments: Sequence[Argument]) -> list[Instruction]:
    x = arguments[0]
    return [Instruction("abs", (x,)), Instruction("add", ("t0", 1.0)), Instruction("div", (x, "t1"))]


def _xor(_: ir.Node, arguments: Sequence[Argument]) -> list[Instruction]:
    return [Instruction("equal", tuple(arguments)), Instruction("not", ("t0",))]


def _prelu(_: ir.Node, arguments: Sequence[Argument]) -> list[Instruction]:
    return [Instruction("leaky_relu", (arguments[0], arguments[1]))]


def _cast(node: ir.Node, arguments: Sequence[Argument]) -> list[Instruction]:
    to = ir.DataType(integer(node, "to", 1))
    name = "to_bool" if to is ir.DataType.BOOL else "to_float" if to.is_floating_point() else "to_int"
    return [Instruction(name, (arguments[0],))]


_SPECIAL: Final[dict[str, Program]] = {
    "Mean": _mean,
    "Gelu": _gelu,
    "Swish": _swish,
    "Mish": _mish,
    "HardSigmoid": _hard_sigmoid,
    "LeakyRelu": _leaky_relu,
    "Elu": _elu,
    "PRelu": _prelu,
    "Selu": _selu,
    "Celu": _celu,
    "ThresholdedRelu": _thresholded_relu,
    "Softsign": _softsign,
    "Xor": _xor,
    "Cast": _cast,
}

POINTWISE: Final = frozenset((*_PLAIN, *_FOLDS, *_SPECIAL, "Clip", "BatchNormalization", "Trilu"))


def pointwise(builder: Builder, node: ir.Node) -> None:
    """One elementwise operator with broadcasting."""
    if node.op_type == "Clip":
        _clip(builder, node)
        return
    if node.op_type == "BatchNormalization":
        _batch_norm(builder, node)
        return
    if node.op_type == "Trilu":
        _trilu(builder, node)
        return
    values = [value for value in node.inputs if value is not None]
    compute(builder, node, values, lambda arguments: _program(node, arguments))


def _program(node: ir.Node, arguments: Sequence[Argument]) -> list[Instruction]:
    if node.op_type in _FOLDS:
        return _fold(_FOLDS[node.op_type], arguments)
    if node.op_type in _SPECIAL:
        return _SPECIAL[node.op_type](node, arguments)
    return [Instruction(_PLAIN[node.op_type], tuple(arguments))]


def compute(
    builder: Builder,
    node: ir.Node,
    values: Sequence[ir.Value | Array],
    program: Callable[[Sequence[Argument]], list[Instruction]],
) -> None:
    """A pointwise step over values and constants that broadcast to the node's output."""
    output = node.outputs[0]
    shape, datatype = builder.shape(output), builder.datatype(output)
    arrays = [value if isinstance(value, np.ndarray) else builder.constant(value) for value in values]
    refs = [
        builder.ref(value) if array is None and isinstance(value, ir.Value) else None
        for value, array in zip(values, arrays, strict=True)
    ]
    whole = [ref for ref in refs if ref is not None and ref.shape == shape]
    orders = [builder.order_of(ref) for ref in whole]
    orders.sort(key=lambda order: order != NHWC)  # one feature map among them decides
    # Or else a piece of one, if it has to be read across.
    orders += [by_stride(ref) if ref.strides[-1:] != (1,) else None for ref in whole]
    order = next((each for each in orders if each is not None), identity(len(shape)))
    arguments: list[Argument] = []
    operands: list[Operand] = []
    computed = any(ref is not None for ref in refs)
    for value, array, ref in zip(values, arrays, refs, strict=True):
        if array is not None and array.size == 1 and (computed or operands):  # a step reads something
            arguments.append(array.reshape(-1)[0].item())
            continue
        name = (value.name if isinstance(value, ir.Value) else None) or f"{node.name}.constant"
        found = ref if array is None else builder.weight(array, name)
        assert found is not None
        seen = builder.operand(builder.copied(expanded(found, shape), order), "", order)
        if seen not in operands:
            operands.append(seen)
        arguments.append(f"i{operands.index(seen)}")
    result = builder.emit(
        node, "pointwise", operands, shape, datatype, order, program=program(arguments), name=output.name
    )
    builder.forward(output, result)


def _clip(builder: Builder, node: ir.Node) -> None:
    low, high = _bound(builder, node, 1, "min"), _bound(builder, node, 2, "max")
    assert node.inputs[0] is not None
    lines = [Instruction("clip", ("i0", low, high))]
    if (low, high) == (0.0, 6.0):
        lines = [Instruction("relu6", ("i0",))]
    elif low == 0.0 and high == float("inf"):
        lines = [Instruction("relu", ("i0",))]
    compute(builder, node, [node.inputs[0]], lambda _: lines)


def _bound(builder: Builder, node: ir.Node, index: int, attribute: str) -> float:
    default = float("-inf") if attribute == "min" else float("inf")
    value = input_of(node, index)
    if value is None:
        return number(node, attribute, default)
    array = builder.constant(value)
    if array is None:
        raise Unsupported(f"Clip of node {node.name!r} has a bound that is computed; only constant ones can be lowered")
    return float(array.reshape(-1)[0]) if array.size else default


def _trilu(builder: Builder, node: ir.Node) -> None:
    """One triangle of each matrix, zeros in the other."""
    x = node.inputs[0]
    place = builder.constant(input_of(node, 1))
    if x is None or (input_of(node, 1) is not None and place is None):
        raise Unsupported(f"Trilu of node {node.name!r} has a diagonal that is computed")
    diagonal, ones = int(place.reshape(-1)[0]) if place is not None else 0, np.ones(builder.shape(x)[-2:], bool)
    kept = np.triu(ones, diagonal) if integer(node, "upper", 1) else np.tril(ones, diagonal)
    compute(builder, node, [kept, x], lambda found: [Instruction("where", (found[0], found[1], 0))])


def _batch_norm(builder: Builder, node: ir.Node) -> None:
    x, *rest = node.inputs
    scale, offset, mean, variance = (builder.constant(value) for value in rest[:4])
    if x is None or scale is None or offset is None or mean is None or variance is None:
        raise Unsupported(f"BatchNormalization of node {node.name!r} has statistics that are computed")
    factor = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + number(node, "epsilon", 1e-5))
    shape = (-1, *(1,) * (len(builder.shape(x)) - 2))
    arrays = [factor, offset.astype(np.float64) - mean.astype(np.float64) * factor]
    scale_by, shift_by = (array.astype(scale.dtype).reshape(shape) for array in arrays)
    compute(
        builder,
        node,
        [x, scale_by, shift_by],
        lambda found: [Instruction("mul", (found[0], found[1])), Instruction("add", ("t0", found[2]))],
    )
