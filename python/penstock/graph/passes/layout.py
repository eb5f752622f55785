"""Chains of Transpose become one, and so do chains of Reshape; what cancels disappears.

Exact: permutations compose, and a Reshape reads its input's elements in order, so only the last shape of a chain
counts. That shape must not say 0 ("copy this dimension of the input"), since the input changes.
"""

import numpy as np
import onnx_ir as ir

from penstock.graph.editing import Edit, constant, input_of, integers, producer, rank, static_shape
from penstock.graph.passes.no_ops import same_shape
from penstock.graph.sources import inherit

_RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


def merge_transposes(edit: Edit) -> None:
    for node in edit.nodes("Transpose"):
        before = producer(node.inputs[0], "Transpose")
        if before is None or before.inputs[0] is None:
            continue
        first, second = _order(before), _order(node)
        if first is None or second is None or len(first) != len(second):
            continue
        order = [first[axis] for axis in second]
        if order == sorted(order) and edit.forward(node.outputs[0], before.inputs[0]):
            edit.remove(node)
            continue
        edit.set_input(node, 0, before.inputs[0])
        edit.set_attributes(node, {"perm": order})
        inherit(node, [before, node])


def _order(node: ir.Node) -> tuple[int, ...] | None:
    order = integers(node, "perm")
    if order is None:  # left out, it reverses
        dims = rank(node.inputs[0])
        return None if dims is None else tuple(reversed(range(dims)))
    return order


def merge_reshapes(edit: Edit) -> None:
    for node in edit.nodes(*_RESHAPES):
        before = producer(node.inputs[0], *_RESHAPES)
        if before is None or before.inputs[0] is None or not edit.replaceable(node.outputs[0]):
            continue
        source = before.inputs[0]
        if _undoes(before, node) and edit.forward(node.outputs[0], source):
            edit.remove(node)
        elif node.op_type == "Reshape":
            shape = constant(input_of(node, 1))
            if shape is not None and (shape != 0).all():
                edit.set_input(node, 0, source)
                inherit(node, [before, node])
        elif (sizes := static_shape(node.outputs[0])) is not None and 0 not in sizes:
            shape_input = edit.constant(f"{node.outputs[0].name}_shape", np.array(sizes, np.int64))
            result = edit.insert(node, "Reshape", (source, shape_input), {}, [before, node])
            if edit.forward(node.outputs[0], result):
                edit.remove(node)


def _undoes(before: ir.Node, node: ir.Node) -> bool:
    source = before.inputs[0]
    if source is not None and same_shape(source, node.outputs[0]):
        return True
    if {before.op_type, node.op_type} != {"Squeeze", "Unsqueeze"}:
        return False
    axes = _axes(before), _axes(node)
    return axes[0] is not None and axes[0] == axes[1] and all(axis >= 0 for axis in axes[0])


def _axes(node: ir.Node) -> list[int] | None:
    given = constant(input_of(node, 1)) if len(node.inputs) > 1 else integers(node, "axes")
    return None if given is None else sorted(int(axis) for axis in given)
