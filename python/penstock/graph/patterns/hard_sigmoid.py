"""Hard sigmoid, written out: clip(x + 3, 0, 6) / 6 becomes HardSigmoid(x) with alpha 1/6 and beta 1/2.

Torch's `hardsigmoid` and Paddle's; HardSigmoid is as old as opset 6. `relu6_of_shifted` is the part that `hard_swish`
shares.
"""

from typing import Final

import onnx_ir as ir

from penstock.graph.editing import Edit, input_of, number, producer
from penstock.graph.patterns.matching import operands, plus, product, same, scalar
from penstock.graph.patterns.pattern import Match, Operator, Pattern

TYPES: Final = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
SIXTH: Final = 1 / 6


def find(edit: Edit, root: ir.Node) -> Match | None:
    whole = product(edit, root.outputs[0])
    if whole is None or not same(whole.coefficient, SIXTH, root.outputs[0].dtype):
        return None
    for (clipped,) in whole.orders(1):
        found = relu6_of_shifted(clipped)
        if found is not None and found[0].dtype in TYPES:
            x, nodes = found
            operator = Operator("HardSigmoid", 6, (x,), {"alpha": SIXTH, "beta": 0.5})
            return Match("hard_sigmoid", frozenset((*whole.nodes, *nodes)), operator)
    return None


def relu6_of_shifted(value: ir.Value) -> tuple[ir.Value, tuple[ir.Node, ...]] | None:
    """For clip(x + 3, 0, 6): x and the nodes."""
    clipped = _between_0_and_6(value)
    if clipped is None:
        return None
    inner, nodes = clipped
    for x, shift, add in plus(inner):
        if shift == 3.0:
            return x, (*nodes, add)
    return None


def _between_0_and_6(value: ir.Value) -> tuple[ir.Value, tuple[ir.Node, ...]] | None:
    """Clip with its bounds as inputs or (before opset 11) attributes, or min(relu(x), 6), or min(max(x, 0), 6)."""
    clip = producer(value, "Clip")
    if clip is not None and clip.inputs[0] is not None:
        if len(clip.inputs) > 1:
            bounds = scalar(input_of(clip, 1)), scalar(input_of(clip, 2))
        else:
            bounds = number(clip, "min", float("-inf")), number(clip, "max", float("inf"))
        return (clip.inputs[0], (clip,)) if bounds == (0.0, 6.0) else None
    least = producer(value, "Min")
    for below, six in operands(least):
        if least is None or scalar(six, below) != 6.0:
            continue
        relu, most = producer(below, "Relu"), producer(below, "Max")
        if relu is not None and relu.inputs[0] is not None:
            return relu.inputs[0], (least, relu)
        for inner, zero in operands(most):
            if most is not None and scalar(zero, inner) == 0.0:
                return inner, (least, most)
    return None


HARD_SIGMOID: Final = Pattern("hard_sigmoid", ("Mul", "Div"), find)
