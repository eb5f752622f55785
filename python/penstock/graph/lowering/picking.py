"""Operators that pick or put elements by number, rank them or run along an axis: GatherND, ScatterND, TopK, CumSum.

What is picked by constants is picked from rows, as `moves.gather` does it: exporters write masks of transformers so.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import onnx_ir as ir

from penstock.engine.lowered import Attribute, Operand
from penstock.errors import Unsupported
from penstock.graph.editing import Array, input_of, integer, string
from penstock.graph.lowering.builder import Builder
from penstock.graph.lowering.views import Ref, identity, reshaped


def gather_elements(builder: Builder, node: ir.Node) -> None:
    """y[i, j] = x[i, indices[i, j]] for axis 1. Negative indices count from the end."""
    x = builder.ref(node.inputs[0])
    axis = integer(node, "axis", 0) % len(x.shape)
    indices = builder.constant(node.inputs[1])
    if indices is not None:
        _pick(builder, node, x, _along(node, indices, axis, x.shape), len(x.shape))
        return
    _computed(builder, node, "gather_elements", {"axis": axis})


def gather_nd(builder: Builder, node: ir.Node) -> None:
    """Rows by places of several axes, behind those that both have."""
    x, batch = builder.ref(node.inputs[0]), integer(node, "batch_dims", 0)
    indices = builder.constant(node.inputs[1])
    if indices is not None:
        axes = batch + indices.shape[-1]
        around = np.indices(indices.shape[:-1])[:batch]
        _pick(builder, node, x, [*around, *_counted(node, indices, x.shape[batch:axes])], axes)
        return
    _computed(builder, node, "gather_nd", {"batch": batch})


def scatter_elements(builder: Builder, node: ir.Node) -> None:
    """x with other elements at constant places. Exporters write what a model assigns to a slice so."""
    x = builder.ref(node.inputs[0])
    axis = integer(node, "axis", 0) % len(x.shape)
    indices = _places(builder, node)
    _put(builder, node, _along(node, indices, axis, x.shape), 1)


def scatter_nd(builder: Builder, node: ir.Node) -> None:
    """x with other rows at constant places."""
    indices, sizes = _places(builder, node), builder.ref(node.inputs[0]).shape
    _put(builder, node, _counted(node, indices, sizes[: indices.shape[-1]]), math.prod(sizes[indices.shape[-1] :]))


def _along(node: ir.Node, indices: Array, axis: int, sizes: Sequence[int]) -> list[Array]:
    """Places in every axis of what has these sizes, where those in one are told."""
    places = [*np.indices(indices.shape)]
    places[axis] = indices
    return _counted(node, np.stack(places, -1), sizes)


def _counted(node: ir.Node, places: Array, sizes: Sequence[int]) -> list[Array]:
    """Places by axis, counted from the front; raises Unsupported where they are none."""
    if not sizes or places.shape[-1] != len(sizes):
        raise Unsupported(
            f"{node.op_type} of node {node.name!r} has places of {places.shape[-1]} axes in {list(sizes)}"
        )
    if np.any(places >= sizes) or np.any(places < np.negative(sizes)):
        raise Unsupported(f"{node.op_type} of node {node.name!r} has places beyond {list(sizes)}")
    return [places[..., at] % size for at, size in enumerate(sizes)]


def _places(builder: Builder, node: ir.Node) -> Array:
    indices = builder.constant(node.inputs[1])
    if indices is None or string(node, "reduction", "none") != "none":
        raise Unsupported(f"{node.op_type} of node {node.name!r} with places that are computed, or with a reduction")
    return indices


def _put(builder: Builder, node: ir.Node, places: Sequence[Array], width: int) -> None:
    """Rows of so many numbers picked from x and, behind it, from the updates: of several for one place the last."""
    x, updates = (builder.ref(node.inputs[index]) for index in (0, 2))
    count, more = math.prod(x.shape) // max(width, 1), math.prod(updates.shape) // max(width, 1)
    numbers = np.arange(count, dtype=np.int64)
    numbers[np.ravel_multi_index(tuple(places), x.shape[: len(places)]).reshape(-1)] = count + np.arange(more)
    parts = []
    for ref, rows in ((x, count), (updates, more)):
        flat = reshaped(builder.stored_as(ref, identity(len(ref.shape)), node), (rows, width))
        assert flat is not None
        parts.append(builder.operand(flat))
    both = builder.emit(node, "concat", parts, (count + more, width), x.datatype, None, {"axis": 0})
    where = builder.weight(numbers, f"{node.name}.places")
    operands = [builder.operand(both, "x"), builder.operand(where, "indices")]
    made = builder.emit(node, "gather", operands, (count, width), x.datatype, None, {"axis": 0})
    answer = reshaped(made, x.shape)
    assert answer is not None
    builder.forward(node.outputs[0], answer)


def _computed(builder: Builder, node: ir.Node, kind: str, attributes: dict[str, Attribute]) -> None:
    refs = [builder.ref(value) for value in node.inputs]
    whole = [builder.stored_as(ref, identity(len(ref.shape)), node) for ref in refs]
    operands = [builder.operand(ref, role) for ref, role in zip(whole, ("x", "indices"), strict=True)]
    _answer(builder, node, kind, operands, attributes)


def _pick(builder: Builder, node: ir.Node, x: Ref, places: Sequence[Array], axes: int) -> None:
    """What lies at these places of the first `axes` axes, as rows of what has one axis in their stead."""
    sizes = x.shape[:axes]
    rows = reshaped(builder.stored_as(x, identity(len(x.shape)), node), (math.prod(sizes), *x.shape[axes:]))
    assert rows is not None
    numbers = np.asarray(np.ravel_multi_index(tuple(places), sizes), np.int64)
    where = builder.weight(numbers, f"{node.name}.places")
    _answer(builder, node, "gather", [builder.operand(rows, "x"), builder.operand(where, "indices")], {"axis": 0})


def _answer(
    builder: Builder, node: ir.Node, kind: str, operands: Sequence[Operand], attributes: dict[str, Attribute]
) -> None:
    output = node.outputs[0]
    shape, datatype = builder.shape(output), builder.datatype(output)
    builder.forward(output, builder.emit(node, kind, operands, shape, datatype, None, attributes, name=output.name))


def top_k(builder: Builder, node: ir.Node) -> None:
    """The largest or smallest of an axis in order, and where they are: of equal ones the first comes first."""
    if builder.constant(input_of(node, 1)) is None:  # or an attribute, before operator set 10
        raise Unsupported(f"TopK of node {node.name!r} has a number of elements that is computed")
    x, order = builder.dense(builder.ref(node.inputs[0]), node)
    axis = integer(node, "axis", -1) % len(x.shape)
    shape = builder.shape(node.outputs[0])
    names = [value.name or f"{node.name}.{index}" for index, value in enumerate(node.outputs)]
    found = [
        builder.value(name, shape, datatype, order) for name, datatype in zip(names, (x.datatype, "INT64"), strict=True)
    ]
    attributes: dict[str, Attribute] = {
        "axis": order.index(axis),
        "how": "max" if integer(node, "largest", 1) else "min",
    }
    builder.append(node, "top_k", [builder.operand(x, "x", order)], [each.value for each in found], attributes)
    for value, ref in zip(node.outputs, found, strict=True):
        builder.forward(value, ref)


def cumulative_sum(builder: Builder, node: ir.Node) -> None:
    axis = builder.constant(node.inputs[1])
    if axis is None:
        raise Unsupported(f"CumSum of node {node.name!r} along an axis that is computed")
    x, order = builder.dense(builder.ref(node.inputs[0]), node)
    attributes: dict[str, Attribute] = {
        "axis": order.index(int(axis.reshape(-1)[0]) % len(x.shape)),
        **{name: bool(integer(node, name, 0)) for name in _WAYS},
    }
    operands, output = [builder.operand(x, "x", order)], node.outputs[0]
    result = builder.emit(node, "cumsum", operands, x.shape, x.datatype, order, attributes, name=output.name)
    builder.forward(output, result)


_WAYS: Final = ("exclusive", "reverse")
