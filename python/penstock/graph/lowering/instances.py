"""Norms of each image by itself, over its pixels: InstanceNormalization, GroupNormalization.

Of a feature map two factors for each channel of each image, and a pointwise step that applies them, which takes in
what follows; of anything else the layer norm of rows of pixels, scaled by channel behind it.
"""

import math

import numpy as np
import onnx_ir as ir

from penstock.engine.lowered import Attribute, Instruction
from penstock.errors import Unsupported
from penstock.graph.editing import Array, input_of, integer, number, producer
from penstock.graph.lowering.builder import Builder
from penstock.graph.lowering.pointwise import compute
from penstock.graph.lowering.views import NHWC, Ref, expanded, identity, reshaped

_FLOATS = ("FP16", "BF16", "FP32")


def instance_norm(builder: Builder, node: ir.Node) -> None:
    given, factors = builder.ref(node.inputs[0]), _constants(builder, node)
    whole = _cut_up(builder, node)
    if whole is None:
        _norm(builder, node, given.shape[1], factors)
        return
    each = whole.shape[1] // given.shape[1]
    scale, offset = (np.repeat(array, each) for array in factors)
    # As the map that the Reshape behind makes of it again, its only reader.
    builder.forward(node.outputs[0], _of_map(builder, node, whole, given.shape[1], (scale, offset)))


def group_norm(builder: Builder, node: ir.Node) -> None:
    """As of operator set 21; the one before was withdrawn."""
    groups, channels = integer(node, "num_groups", 1), builder.ref(node.inputs[0]).shape[1]
    if groups < 1 or channels % groups:
        raise Unsupported(f"GroupNormalization of node {node.name!r} has {groups} groups of {channels} channels")
    _norm(builder, node, groups, _constants(builder, node))


def _constants(builder: Builder, node: ir.Node) -> tuple[Array, Array]:
    """Scale and offset of each channel."""
    scale, offset = (builder.constant(input_of(node, index)) for index in (1, 2))
    if scale is None or offset is None:
        raise Unsupported(f"{node.op_type} of node {node.name!r} has a scale that is computed")
    return scale, offset


def _is_map(builder: Builder, ref: Ref) -> bool:
    return len(ref.shape) == 4 and ref.datatype in _FLOATS and builder.order_of(ref) == NHWC


def _cut_up(builder: Builder, node: ir.Node) -> Ref | None:
    """The map whose groups of channels are normed as channels, between two Reshapes, as torch writes its group norm."""
    before, uses = producer(input_of(node, 0), "Reshape"), list(node.outputs[0].uses())
    after = uses[0].node if len(uses) == 1 and not node.outputs[0].is_graph_output() else None
    if before is None or after is None or after.op_type != "Reshape":
        return None
    whole, given = builder.ref(before.inputs[0]), builder.ref(node.inputs[0])
    if not _is_map(builder, whole) or builder.shape(after.outputs[0]) != whole.shape:
        return None
    return whole if given.shape[0] == whole.shape[0] and whole.shape[1] % given.shape[1] == 0 else None


def _of_map(builder: Builder, node: ir.Node, x: Ref, groups: int, factors: tuple[Array, Array]) -> Ref:
    images, channels = x.shape[:2]
    found = [
        builder.value(f"{node.name}.{name}", (images, channels, 1, 1), "FP32", NHWC) for name in ("scale", "offset")
    ]
    attributes: dict[str, Attribute] = {"groups": groups, "epsilon": number(node, "epsilon", 1e-5)}
    seen = builder.operand(x, "x", NHWC)
    builder.append(node, "norm_factors", [seen], [each.value for each in found], attributes)
    program = [Instruction("mul", ("i0", "i1")), Instruction("add", ("t0", "i2"))]
    if not all(np.all(array == neutral) for array, neutral in zip(factors, (1, 0), strict=True)):
        found += [builder.weight(array.reshape(1, channels, 1, 1), f"{node.name}.factor") for array in factors]
        program += [Instruction("mul", ("t1", "i3")), Instruction("add", ("t2", "i4"))]
    operands = [builder.operand(each, "", NHWC) for each in (x, *(expanded(each, x.shape) for each in found))]
    return builder.emit(
        node, "pointwise", operands, x.shape, x.datatype, NHWC, program=program, name=node.outputs[0].name
    )


def _norm(builder: Builder, node: ir.Node, groups: int, factors: tuple[Array, Array]) -> None:
    given = builder.ref(node.inputs[0])
    if _is_map(builder, given):
        builder.forward(node.outputs[0], _of_map(builder, node, given, groups, factors))
        return
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
    compute(
        builder,
        node,
        [value, *(array.reshape(shape) for array in factors)],
        lambda found: [Instruction("mul", (found[0], found[1])), Instruction("add", ("t0", found[2]))],
    )


def _value(builder: Builder, ref: Ref, name: str) -> ir.Value:
    """What steps made on the way, as the values of the model are known."""
    value = ir.Value(name=name)
    builder.forward(value, ref)
    return value
