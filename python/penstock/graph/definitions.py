"""What operators are in terms of others, where the `onnx` package has no definition of them.

Each is a function in ONNX's text form, for one node: sizes and attributes are written into it. Sources: the operators'
pages of the ONNX specification. Used by `spelling` alone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import onnx
import onnx_ir as ir

from penstock.graph.editing import Array, constant, input_of, integer, number, rank, static_shape

_FLOATS: Final = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_ENDS: Final = {ir.DataType.INT8: (-128, 127), ir.DataType.UINT8: (0, 255)}


def definition(node: ir.Node, opset: int) -> onnx.FunctionProto | None:
    """The node as a function of its inputs; None where there is no rule for it as it is.

    Of operators that every target knows (MatMul, Clip, Swish) the forms that are rare.
    """
    rule = _RULES.get(node.op_type)
    body = rule(node) if rule is not None and opset >= _OPSET else None
    if body is None:
        return None
    inputs = [f"x{index}" for index in range(len(node.inputs))]
    head = f'<domain: "local", opset_import: ["" : {opset}]> f ({", ".join(inputs)}) => (y)'
    return onnx.parser.parse_function(f"{head} {{ {body} }}")


# Of Squeeze, Unsqueeze and ReduceSum, which have axes as an input from here on.
_OPSET: Final = 13


def _ints(name: str, values: Sequence[int]) -> str:
    return f"{name} = Constant <value_ints: ints = {list(values)}> () "


def _float(name: str, value: float) -> str:
    """A number of the FP32 kind."""
    return f"{name} = Constant <value = float {{{value!r}}}> () "


def dequantized(node: ir.Node) -> Array | None:
    """What DequantizeLinear makes of a constant, in FP32."""
    narrow, scale, zero = constant(node.inputs[0]), constant(input_of(node, 1)), constant(input_of(node, 2))
    shape = _channels(node, node.inputs[0], node.inputs[1])
    if narrow is None or scale is None or shape is None or (zero is None) != (input_of(node, 2) is None):
        return None
    wide = narrow.astype(np.float32)
    if zero is not None:
        wide -= zero.astype(np.float32).reshape(shape)
    made: Array = wide * scale.astype(np.float32).reshape(shape)
    return made if node.outputs[0].dtype is ir.DataType.FLOAT else None


def _quantize(node: ir.Node) -> str | None:
    """round(x / scale) + zero, cut to the ends of the type, in FP32."""
    x, scale, zero = (*node.inputs, None)[:3]
    to = node.outputs[0].dtype
    shape = _channels(node, x, scale)
    if to not in _ENDS or shape is None or (x is not None and x.dtype not in _FLOATS):
        return None
    low, high = _ENDS[to]
    body = "s0 = Cast <to: int = 1> (x1) xf = Cast <to: int = 1> (x0) " + _ints("shape", shape)
    body += "s = Reshape (s0, shape) q = Div (xf, s) r = Round (q) "
    if zero is not None:
        body += "z0 = Cast <to: int = 1> (x2) z = Reshape (z0, shape) t = Add (r, z) "
    else:
        body += "t = Identity (r) "
    body += _float("low", low) + _float("high", high)
    return body + f"c = Clip (t, low, high) y = Cast <to: int = {int(to)}> (c)"


def _dequantize(node: ir.Node) -> str | None:
    """(x - zero) * scale."""
    x, scale, zero = (*node.inputs, None)[:3]
    shape = _channels(node, x, scale)
    to = node.outputs[0].dtype
    if shape is None or x is None or to not in _FLOATS or x.dtype not in (*_ENDS, ir.DataType.INT32):
        return None
    body = "s0 = Cast <to: int = 1> (x1) xf = Cast <to: int = 1> (x0) " + _ints("shape", shape)
    body += "s = Reshape (s0, shape) "
    if zero is not None:
        body += "z0 = Cast <to: int = 1> (x2) z = Reshape (z0, shape) d = Sub (xf, z) "
    else:
        body += "d = Identity (xf) "
    return body + f"m = Mul (d, s) y = Cast <to: int = {int(to)}> (m)"


def _channels(node: ir.Node, x: ir.Value | None, scale: ir.Value | None) -> Sequence[int] | None:
    """What the scale is reshaped to: one number, or one of each channel; blocks have no rule."""
    dims, count, axes = static_shape(scale), static_shape(x), rank(x)
    if dims is None or axes is None or integer(node, "block_size", 0):
        return None
    if not dims or dims == (1,):
        return ()
    axis = integer(node, "axis", 1) % max(axes, 1)
    if len(dims) != 1 or (count is not None and count[axis] != dims[0]):
        return None
    return [-1 if each == axis else 1 for each in range(axes)]


def _response_norm(node: ir.Node) -> str | None:
    """x / (bias + alpha / size * sum of the squares of the channels around) ** beta."""
    shape, size = static_shape(node.inputs[0]), integer(node, "size", 0)
    if shape is None or len(shape) < 2 or size < 1 or node.outputs[0].dtype is not ir.DataType.FLOAT:
        return None
    before = [0, (size - 1) // 2, *[0] * (len(shape) - 2)]
    behind = [0, size - 1 - before[1], *before[2:]]
    body = "sq = Mul (x0, x0) " + _ints("pads", [*before, *behind]) + _ints("one", [1])
    body += "padded = Pad (sq, pads) "
    for index in range(size):
        body += _ints(f"a{index}", [index]) + _ints(f"e{index}", [index + shape[1]])
        body += f"p{index} = Slice (padded, a{index}, e{index}, one) "
    body += f"total = Sum ({', '.join(f'p{index}' for index in range(size))}) "
    body += _float("alpha", number(node, "alpha", 1e-4) / size) + _float("beta", number(node, "beta", 0.75))
    body += _float("bias", number(node, "bias", 1.0))
    return body + "scaled = Mul (total, alpha) t = Add (scaled, bias) p = Pow (t, beta) y = Div (x0, p)"


def _unit_norm(node: ir.Node) -> str | None:
    """x / |x|, and 0 where that is 0."""
    if node.outputs[0].dtype is not ir.DataType.FLOAT:
        return None
    power = integer(node, "p", 2)
    if power not in (1, 2):
        return None
    body = _ints("axes", [integer(node, "axis", -1)]) + _float("zero", 0.0) + _float("one", 1.0)
    body += "parts = Abs (x0) " if power == 1 else "parts = Mul (x0, x0) "
    body += "total = ReduceSum <keepdims: int = 1> (parts, axes) "
    body += "length = Identity (total) " if power == 1 else "length = Sqrt (total) "
    return body + "none = Equal (length, zero) safe = Where (none, one, length) y = Div (x0, safe)"


def _is_infinite(node: ir.Node) -> str | None:
    wanted = (integer(node, "detect_negative", 1), integer(node, "detect_positive", 1))
    far = _float("far", float(np.finfo(np.float32).max))
    x = node.inputs[0]
    if x is None or x.dtype is not ir.DataType.FLOAT or wanted == (0, 0):
        return None
    head = far + {(1, 1): "a = Abs (x0) ", (0, 1): "a = Identity (x0) ", (1, 0): "a = Neg (x0) "}[wanted]
    return head + "y = Greater (a, far)"


def _one_hot(node: ir.Node) -> str | None:
    """Where an index is the place along the new axis, the second of the two values."""
    indices, depth = node.inputs[0], input_of(node, 1)
    shape = static_shape(node.outputs[0])
    if indices is None or depth is None or shape is None or indices.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
        return None
    axis = integer(node, "axis", -1) % len(shape)
    places = [size if each == axis else 1 for each, size in enumerate(shape)]
    body = _ints("axis", [axis]) + "i0 = Cast <to: int = 7> (x0) i = Unsqueeze (i0, axis) "
    body += _ints("count", [shape[axis]]) + _ints("zero", [0]) + "back = Less (i, zero) j = Add (i, count) "
    body += "k = Where (back, j, i) " + _ints("numbers", range(shape[axis])) + _ints("shape", places)
    body += "n = Reshape (numbers, shape) hit = Equal (k, n) " + _ints("first", [0]) + _ints("second", [1])
    return body + "off = Gather (x2, first) on = Gather (x2, second) y = Where (hit, on, off)"


def _hard_max(node: ir.Node) -> str | None:
    """1 at the first of the largest numbers along the axis, 0 elsewhere."""
    shape = static_shape(node.inputs[0])
    if shape is None or not shape or node.outputs[0].dtype is not ir.DataType.FLOAT:
        return None
    axis = integer(node, "axis", -1) % len(shape)
    places = [size if each == axis else 1 for each, size in enumerate(shape)]
    body = f"i = ArgMax <axis: int = {axis}, keepdims: int = 1> (x0) " + _ints("numbers", range(shape[axis]))
    body += _ints("shape", places) + "n = Reshape (numbers, shape) hit = Equal (i, n) "
    return body + "y = Cast <to: int = 1> (hit)"


def _swish(node: ir.Node) -> str | None:
    """x * sigmoid(alpha * x); known where alpha is 1."""
    alpha = number(node, "alpha", 1.0)
    if alpha == 1.0 or node.outputs[0].dtype is not ir.DataType.FLOAT:
        return None
    return _float("alpha", alpha) + "a = Mul (x0, alpha) s = Sigmoid (a) y = Mul (x0, s)"


def _clip(node: ir.Node) -> str | None:
    """Between bounds that are computed."""
    bounds = [value if constant(value) is None else None for value in (input_of(node, 1), input_of(node, 2))]
    if not any(bounds):
        return None
    body, last = "", "x0"
    for index, operator in ((1, "Max"), (2, "Min")):
        if input_of(node, index) is not None:
            body, last = body + f"b{index} = {operator} ({last}, x{index}) ", f"b{index}"
    return body + f"y = Identity ({last})"


def _product(node: ir.Node) -> str | None:
    """A vector on either side is a matrix of one row or column."""
    left, right = (rank(value) for value in node.inputs)
    if left is None or right is None or 1 not in (left, right):
        return None
    body, gone = _ints("first", [0]) + _ints("last", [-1]), []
    a, b = "x0", "x1"
    if left == 1:
        body, a, gone = body + "a = Unsqueeze (x0, first) ", "a", [-2]
    if right == 1:
        body, b, gone = body + "b = Unsqueeze (x1, last) ", "b", [*gone, -1]
    return body + f"m = MatMul ({a}, {b}) " + _ints("gone", gone) + "y = Squeeze (m, gone)"


_RULES: Final[Mapping[str, Callable[[ir.Node], str | None]]] = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "LRN": _response_norm,
    "LpNormalization": _unit_norm,
    "IsInf": _is_infinite,
    "OneHot": _one_hot,
    "Hardmax": _hard_max,
    "MatMul": _product,
    "Swish": _swish,
    "Clip": _clip,
}
