"""Nodes that pass their input on unchanged go away.

Identity; Dropout in inference; Cast to the same type, or to a wider type and back; Transpose that keeps the order;
Reshape, Expand, Slice, Pad and Concat that keep the tensor, and parts of a Concat without an entry; Where of one
choice; adding 0 and multiplying by 1; Relu after Relu.
Exact by definition, with two remarks. x + 0 makes a negative zero positive, which compares equal. A Reshape keeps its
input when all dimensions but one are known to agree: the count of elements settles the last one.
"""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import onnx_ir as ir

from penstock.graph.editing import Edit, constant, input_of, integer, integers, producer, static_shape

NEVER_NEGATIVE: Final = ("Relu", "Sigmoid", "Softmax", "HardSigmoid")
_FLOATS = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE}
# Type -> types that hold every one of its values.
_WIDER: Final[Mapping[ir.DataType, frozenset[ir.DataType]]] = {
    ir.DataType.FLOAT16: frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE}),
    ir.DataType.BFLOAT16: frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE}),
    ir.DataType.FLOAT: frozenset({ir.DataType.DOUBLE}),
    ir.DataType.UINT8: frozenset(
        {ir.DataType.UINT16, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64, *_FLOATS - {ir.DataType.BFLOAT16}}
    ),
    ir.DataType.INT8: frozenset(
        {ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64, *_FLOATS - {ir.DataType.BFLOAT16}}
    ),
    ir.DataType.INT32: frozenset({ir.DataType.INT64, ir.DataType.DOUBLE}),
}


def remove_no_ops(edit: Edit) -> None:
    for node in edit.nodes(*_KEPT):
        if node.graph is None or not node.outputs:
            continue
        kept = _KEPT[node.op_type](edit, node)
        if kept is None or any(value.uses() or edit.is_output(value) for value in node.outputs[1:]):
            continue
        if edit.forward(node.outputs[0], kept):
            edit.remove(node)


def _identity(edit: Edit, node: ir.Node) -> ir.Value | None:
    return node.inputs[0]


def _dropout(edit: Edit, node: ir.Node) -> ir.Value | None:
    training = input_of(node, 2)
    off = constant(training)
    return node.inputs[0] if training is None or (off is not None and not off.any()) else None


def _cast(edit: Edit, node: ir.Node) -> ir.Value | None:
    value = node.inputs[0]
    to = ir.DataType(integer(node, "to", 0))
    if value is None or value.dtype == to:
        return value
    before = producer(value, "Cast")
    first = before.inputs[0] if before is not None else None
    if first is not None and first.dtype == to and value.dtype in _WIDER.get(to, ()):
        return first
    return None


def _transpose(edit: Edit, node: ir.Node) -> ir.Value | None:
    order = integers(node, "perm")
    return node.inputs[0] if order is not None and list(order) == sorted(order) else None


def _reshape(edit: Edit, node: ir.Node) -> ir.Value | None:
    value = node.inputs[0]
    return value if value is not None and same_shape(value, node.outputs[0]) else None


def same_shape(left: ir.Value, right: ir.Value) -> bool:
    """Whether two tensors with the same number of elements surely have the same shape."""
    if left.shape is None or right.shape is None or len(left.shape) != len(right.shape):
        return False
    pairs = list(zip(left.shape, right.shape, strict=True))
    unknown = [pair for pair in pairs if not all(isinstance(size, int) for size in pair)]
    known = [pair for pair in pairs if all(isinstance(size, int) for size in pair)]
    return len(unknown) <= 1 and all(a == b and (a != 0 or not unknown) for a, b in known)


def _expand(edit: Edit, node: ir.Node) -> ir.Value | None:
    value, sizes = node.inputs[0], constant(input_of(node, 1))
    if value is None or value.shape is None or sizes is None or sizes.size > len(value.shape):
        return None
    shape = list(value.shape)[len(value.shape) - sizes.size :]
    return value if all(size in (1, known) for size, known in zip(sizes.tolist(), shape, strict=True)) else None


def _slice(edit: Edit, node: ir.Node) -> ir.Value | None:
    if len(node.inputs) < 3:  # before opset 10 in attributes: rare, and left alone
        return None
    starts, ends = constant(input_of(node, 1)), constant(input_of(node, 2))
    given = input_of(node, 4)
    steps = constant(given)
    if starts is None or ends is None or starts.any() or (given is not None and (steps is None or (steps != 1).any())):
        return None
    sizes, after = static_shape(node.inputs[0]), static_shape(node.outputs[0])
    whole = (ends >= np.iinfo(np.int32).max).all() or (sizes is not None and sizes == after)
    return node.inputs[0] if whole else None


def _pad(edit: Edit, node: ir.Node) -> ir.Value | None:
    pads = constant(input_of(node, 1)) if len(node.inputs) > 1 else integers(node, "pads")
    return node.inputs[0] if pads is not None and not np.any(pads) else None


def _only_input(edit: Edit, node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if len(node.inputs) == 1 else None


def _concat(edit: Edit, node: ir.Node) -> ir.Value | None:
    """Parts without an entry go, one at least stays."""
    parts = [value for value in node.inputs if 0 not in (static_shape(value) or ())]
    if 0 < len(parts) < len(node.inputs):
        for index, value in enumerate(parts):
            edit.set_input(node, index, value)
        node.resize_inputs(len(parts))
    return _only_input(edit, node)


def _where(edit: Edit, node: ir.Node) -> ir.Value | None:
    choice = constant(node.inputs[0])
    if choice is None or not choice.size or choice.any() != choice.all():
        return None
    kept = node.inputs[1 if choice.any() else 2]
    sizes = kept.shape if kept is not None else None
    if sizes is None or node.outputs[0].shape != sizes:
        return None
    return kept if all(isinstance(size, int) or size.value is not None for size in sizes) else None


def _clip(edit: Edit, node: ir.Node) -> ir.Value | None:
    bounded = (
        any(value is not None for value in node.inputs[1:]) or "min" in node.attributes or "max" in node.attributes
    )
    return None if bounded or edit.opset < 11 else node.inputs[0]


def _neutral(edit: Edit, node: ir.Node) -> ir.Value | None:
    neutral = 0 if node.op_type in ("Add", "Sub") else 1
    for index, value in enumerate(node.inputs):
        other = node.inputs[1 - index]
        array = constant(other)
        if array is None or value is None or other is None or (index == 1 and node.op_type in ("Sub", "Div")):
            continue
        if array.size and array.dtype != bool and (array == neutral).all() and _no_larger(array.shape, value):
            return value
    return None


def _no_larger(shape: tuple[int, ...], value: ir.Value) -> bool:
    """Whether a constant of this shape leaves the value's shape as it is."""
    if value.shape is None or len(shape) > len(value.shape):
        return False
    sizes = list(value.shape)[len(value.shape) - len(shape) :]
    return all(size in (1, known) for size, known in zip(shape, sizes, strict=True))


def _idempotent(edit: Edit, node: ir.Node) -> ir.Value | None:
    """Relu of what is never negative."""
    return node.inputs[0] if producer(node.inputs[0], *NEVER_NEGATIVE) else None


_KEPT: Final[Mapping[str, Callable[[Edit, ir.Node], ir.Value | None]]] = {
    "Identity": _identity,
    "Dropout": _dropout,
    "Cast": _cast,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Expand": _expand,
    "Slice": _slice,
    "Pad": _pad,
    "Concat": _concat,
    "Where": _where,
    "Sum": _only_input,
    "Max": _only_input,
    "Min": _only_input,
    "Mean": _only_input,
    "Clip": _clip,
    "Add": _neutral,
    "Sub": _neutral,
    "Mul": _neutral,
    "Div": _neutral,
    "Relu": _idempotent,
}
