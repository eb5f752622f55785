"""Norms of each image by itself, over its pixels: InstanceNormalization, GroupNormalization.

The layer norm of rows of pixels, scaled by channel behind it.
"""

import math

import onnx_ir as ir

from penstock.engine.lowered import Attribute, Instruction
from penstock.errors import Unsupported
from penstock.graph.editing import input_of, integer, number
from penstock.graph.lowering.builder import Builder
from penstock.graph.lowering.pointwise import compute
from penstock.graph.lowering.views import Ref, identity, reshaped


def instance_norm(builder: Builder, node: ir.Node) -> None:
    _norm(builder, node, builder.ref(node.inputs[0]).shape[1])


def group_norm(builder: Builder, node: ir.Node) -> None:
    """As of operator set 21; the one before was withdrawn."""
    _norm(builder, node, integer(node, "num_groups", 1))


def _norm(builder: Builder, node: ir.Node, groups: int) -> None:
    given = builder.ref(node.inputs[0])
    scale, offset = (builder.constant(input_of(node, index)) for index in (1, 2))
    if scale is None or offset is None:
        raise Unsupported(f"{node.op_type} of node {node.name!r} has a scale that is computed")
    x = builder.stored_as(given, identity(len(given.shape)), node)
    rows = (x.shape[0], groups, math.prod(x.shape[1:]) // groups)
    seen = reshaped(x, rows)
    assert seen is not None
    attributes: dict[str, Attribute] = {"axes": 1, "epsilon": number(node, "epsilon", 1e-5)}
    normed = builder.emit(node, "layer_norm", [builder.operand(seen, "x")], rows, x.datatype, None, attributes)
    back = reshaped(normed, x.shape)
    assert back is not None
    value = _value(builder, back, f"{node.name}.normed")
    shape = (-1, *(1,) * (len(x.shape) - 2))
    factors = [array.reshape(shape) for array in (scale, offset)]
    compute(
        builder,
        node,
        [value, *factors],
        lambda found: [Instruction("mul", (found[0], found[1])), Instruction("add", ("t0", found[2]))],
    )


def _value(builder: Builder, ref: Ref, name: str) -> ir.Value:
    """What steps made on the way, as the values of the model are known."""
    value = ir.Value(name=name)
    builder.forward(value, ref)
    return value
