"""Operators over whole axes: pooling, means and sums, softmax, layer normalization, the index of the largest."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import onnx_ir as ir

from penstock.engine.lowered import Attribute
from penstock.errors import Unsupported
from penstock.graph.editing import Array, input_of, integer, integers, number, string
from penstock.graph.lowering.builder import Builder
from penstock.graph.lowering.layers import row, without_row
from penstock.graph.lowering.views import NHWC, Ref, identity

REDUCTIONS: Final = {
    "ReduceMean": "mean",
    "ReduceSum": "sum",
    "ReduceMax": "max",
    "ReduceMin": "min",
    "ReduceL2": "l2",
    "GlobalAveragePool": "mean",
    "GlobalMaxPool": "max",
}


def pool(builder: Builder, node: ir.Node) -> None:
    """`max_pool` and `average_pool`, of one dimension too (as an image of one row).

    Pads: top, left, bottom, right; what ceil_mode adds is in the output's shape.
    """
    x, output = builder.ref(node.inputs[0]), node.outputs[0]
    flat = len(x.shape) == 3
    if len(x.shape) not in (3, 4) or len([value for value in node.outputs if value.uses()]) > 1:
        raise Unsupported(f"{node.op_type} of node {node.name!r}: only pooling of images, without indices")
    if string(node, "auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
        raise Unsupported(f"{node.op_type} of node {node.name!r} pads by itself; optimize the model before lowering it")
    shape, one = builder.shape(output), (1,) if flat else ()
    sizes, pads = integers(node, "kernel_shape"), integers(node, "pads") or (0,) * (2 if flat else 4)
    assert sizes is not None
    if flat:
        x, shape, pads = row(x), (*shape[:2], 1, shape[2]), (0, pads[0], 0, pads[1])
    kernel = (*one, *sizes)
    strides = (*one, *(integers(node, "strides") or (1,) * len(sizes)))
    dilations = (*one, *(integers(node, "dilations") or (1,) * len(sizes)))
    reach = [(entries - 1) * dilation + 1 for entries, dilation in zip(kernel, dilations, strict=True)]
    room = [x.shape[2 + axis] + pads[axis] + pads[2 + axis] for axis in (0, 1)]
    fits = reach[0] <= room[0] and reach[1] <= room[1]
    if 0 in shape or not (fits or integer(node, "ceil_mode", 0)):  # libraries differ there
        raise Unsupported(f"{node.op_type} of node {node.name!r}: a window of {reach} does not fit into {room}")
    attributes: dict[str, Attribute] = {
        "kernel": kernel,
        "strides": strides,
        "pads": pads,
        "dilations": dilations,
        "count_pads": bool(integer(node, "count_include_pad", 0)),
    }
    kind = "max_pool" if node.op_type == "MaxPool" else "average_pool"
    operands = [builder.operand(builder.stored_as(x, NHWC, node), "x", NHWC)]
    result = builder.emit(node, kind, operands, shape, x.datatype, NHWC, attributes, name=output.name)
    builder.forward(output, without_row(result) if flat else result)


def reduce(builder: Builder, node: ir.Node) -> None:
    x, output = builder.ref(node.inputs[0]), node.outputs[0]
    rank = len(x.shape)
    keep = integer(node, "keepdims", 1) == 1
    axes = tuple(range(2, rank)) if node.op_type.startswith("Global") else _axes(builder, node, rank)
    if REDUCTIONS[node.op_type] != "l2" and all(x.shape[axis] == 1 for axis in axes):
        builder.forward(output, x if keep else dropped(x, axes))  # of one number it is that number
        return
    x, order = builder.dense(x, node)
    whole = tuple(1 if axis in axes else size for axis, size in enumerate(x.shape))
    attributes: dict[str, Attribute] = {
        "how": REDUCTIONS[node.op_type],
        "axes": tuple(sorted(order.index(axis) for axis in axes)),
    }
    operands = [builder.operand(x, "x", order)]
    result = builder.emit(node, "reduce", operands, whole, x.datatype, order, attributes, name=output.name)
    builder.forward(output, result if keep else dropped(result, axes))


def arg_max(builder: Builder, node: ir.Node) -> None:
    x, order = builder.dense(builder.ref(node.inputs[0]), node)
    rank, output = len(x.shape), node.outputs[0]
    if integer(node, "select_last_index", 0):
        raise Unsupported(f"{node.op_type} of node {node.name!r} asks for the last index; the first can be lowered")
    axis = integer(node, "axis", 0) % rank
    whole = tuple(1 if each == axis else size for each, size in enumerate(x.shape))
    attributes: dict[str, Attribute] = {
        "axis": order.index(axis),
        "how": "max" if node.op_type == "ArgMax" else "min",
    }
    operands = [builder.operand(x, "x", order)]
    result = builder.emit(node, "arg_max", operands, whole, "INT64", order, attributes, name=output.name)
    builder.forward(output, result if integer(node, "keepdims", 1) else dropped(result, (axis,)))


def softmax(builder: Builder, node: ir.Node) -> None:
    x, order = builder.dense(builder.ref(node.inputs[0]), node)
    axis = integer(node, "axis", -1)
    if builder.opset < 13:
        axis = integer(node, "axis", 1)
        if axis % len(x.shape) != len(x.shape) - 1:
            raise Unsupported(f"{node.op_type} of node {node.name!r} over several axes, as before opset 13")
    kind = "softmax" if node.op_type == "Softmax" else "log_softmax"
    attributes: dict[str, Attribute] = {"axis": order.index(axis % len(x.shape))}
    operands, output = [builder.operand(x, "x", order)], node.outputs[0]
    result = builder.emit(node, kind, operands, x.shape, x.datatype, order, attributes, name=output.name)
    builder.forward(output, result)


def layer_norm(builder: Builder, node: ir.Node) -> None:
    """Over the last axes, with constant scale and offset."""
    x, output = builder.ref(node.inputs[0]), node.outputs[0]
    rank = len(x.shape)
    axis = integer(node, "axis", -1) % rank
    scale, offset = builder.constant(node.inputs[1]), builder.constant(input_of(node, 2))
    if scale is None or (input_of(node, 2) is not None and offset is None):
        raise Unsupported(f"LayerNormalization of node {node.name!r} has a scale that is computed")
    order = builder.order_of(x)
    if order is None or order[axis:] != identity(rank)[axis:]:
        x, order = builder.stored_as(x, identity(rank), node), identity(rank)
    size = x.shape[axis:]
    operands = [builder.operand(x, "x", order)]
    for role, array, index in (("weight", scale, 1), ("bias", offset, 2)):
        if array is not None:
            value = input_of(node, index)
            whole = array if array.shape == size else _whole(array, size)
            name = (value.name if value is not None else None) or f"{node.name}.{role}"
            operand = builder.formed(array, "" if whole is array else "whole", whole, name)
            operands.append(type(operand)(operand.value, role))
    attributes: dict[str, Attribute] = {"axes": rank - axis, "epsilon": number(node, "epsilon", 1e-5)}
    result = builder.emit(node, "layer_norm", operands, x.shape, x.datatype, order, attributes, name=output.name)
    builder.forward(output, result)


def _whole(array: Array, size: tuple[int, ...]) -> Array:
    return np.ascontiguousarray(np.broadcast_to(array, size))


def _axes(builder: Builder, node: ir.Node, rank: int) -> tuple[int, ...]:
    axes = integers(node, "axes")
    value = input_of(node, 1)
    if value is not None:
        array = builder.constant(value)
        if array is None:
            raise Unsupported(f"{node.op_type} of node {node.name!r} over axes that are computed")
        axes = tuple(int(axis) for axis in array.reshape(-1))
    if not axes:
        axes = () if integer(node, "noop_with_empty_axes", 0) else identity(rank)
    return tuple(axis % rank for axis in axes)


def dropped(ref: Ref, axes: Sequence[int]) -> Ref:
    """Without axes of one."""
    keep = [axis for axis in range(len(ref.shape)) if axis not in axes]
    return Ref(
        ref.value,
        tuple(ref.shape[axis] for axis in keep),
        tuple(ref.strides[axis] for axis in keep),
        ref.datatype,
        ref.offset,
    )
