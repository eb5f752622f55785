"""GELU, x * Phi(x) (Hendrycks and Gimpel 2016), with the error function or with its tanh approximation.

x * 0.5 * (1 + erf(x / sqrt(2))) becomes Gelu, and with tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)) in place of erf it
becomes Gelu with `approximate="tanh"`: one is never turned into the other. Torch, timm and Paddle write the product in
different orders. Gelu came with opset 20; where the model can't be raised to it the nodes are named `gelu`.
"""

import math
from typing import Final

import onnx_ir as ir

from penstock.graph.editing import Edit, input_of, producer
from penstock.graph.patterns.matching import Product, plus, product, same
from penstock.graph.patterns.pattern import Match, Operator, Pattern

_TYPES: Final = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_CUBIC: Final = 0.044715  # Hendrycks and Gimpel, section 2


def find(edit: Edit, root: ir.Node) -> Match | None:
    whole = product(edit, root.outputs[0])
    if whole is None or not same(whole.coefficient, 0.5, root.outputs[0].dtype):
        return None
    for x, rest in whole.orders(2):
        for curve, one, add in plus(rest):
            if one != 1.0 or x.dtype not in _TYPES:
                continue
            nodes = _erf(edit, curve, x) or _tanh(edit, curve, x)
            if nodes:
                approximate = "tanh" if nodes[0].op_type == "Tanh" else "none"
                operator = Operator("Gelu", 20, (x,), {"approximate": approximate})
                return Match("gelu", frozenset((*whole.nodes, add, *nodes)), operator)
    return None


def _erf(edit: Edit, curve: ir.Value, x: ir.Value) -> tuple[ir.Node, ...]:
    """erf(x / sqrt(2))"""
    node = producer(curve, "Erf")
    inner = product(edit, input_of(node, 0)) if node is not None else None
    if node is None or inner is None or not inner.is_power(x, 1):
        return ()
    return (node, *inner.nodes) if same(inner.coefficient, math.sqrt(0.5), x.dtype) else ()


def _tanh(edit: Edit, curve: ir.Value, x: ir.Value) -> tuple[ir.Node, ...]:
    """tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)), also with x taken out of the sum."""
    node = producer(curve, "Tanh")
    inner = product(edit, input_of(node, 0)) if node is not None else None
    if node is None or inner is None or not same(inner.coefficient, math.sqrt(2 / math.pi), x.dtype):
        return ()
    for (total,) in inner.orders(1):
        add = producer(total, "Add")
        for left, right in ((0, 1), (1, 0)) if add is not None else ():
            cubic = product(edit, add.inputs[right]) if add is not None else None
            if add is not None and add.inputs[left] is x and _is_cubic(cubic, x, 3) and cubic is not None:
                return (node, *inner.nodes, add, *cubic.nodes)
    for factor, total in inner.orders(2):
        for square, one, add in plus(total):
            quadratic = product(edit, square)
            if factor is x and one == 1.0 and _is_cubic(quadratic, x, 2) and quadratic is not None:
                return (node, *inner.nodes, add, *quadratic.nodes)
    return ()


def _is_cubic(term: Product | None, x: ir.Value, exponent: int) -> bool:
    return term is not None and term.is_power(x, exponent) and same(term.coefficient, _CUBIC, x.dtype)


GELU: Final = Pattern("gelu", ("Mul", "Div"), find)
