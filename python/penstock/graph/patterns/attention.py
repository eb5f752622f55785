"""Scaled dot product attention (Vaswani et al. 2017, section 3.2.1): softmax(q k^T * scale + mask) v.

Named `attention` and left as it is: the operator Attention is of opset 23, which CPU libraries may not run. The group
is the two matrix products and all between them (scale, mask, the guard that torch writes against rows without a key),
the scales on q and k or the division of their rows by their lengths, the reshapes, slices and transposes that cut q, k
and v out of what the projections made, and those that put the heads together again; projections and what makes the mask
are not part of it.
"""

from collections.abc import Iterator
from typing import Final

import onnx_ir as ir

from penstock.graph.editing import Edit, input_of, integer, producer, rank
from penstock.graph.patterns.matching import constant_of, data_inputs, keeps_to_itself
from penstock.graph.patterns.pattern import Match, Pattern, group
from penstock.graph.patterns.unit_rows import unit_rows

# Between the first product and the softmax: scale, mask, and clamping the scores.
_BEFORE: Final = ("Add", "Sub", "Mul", "Div", "Where", "Cast", "Max", "Min", "Clip", "Identity", "Reshape")
# Between the softmax and the second product.
_AFTER: Final = ("Cast", "Dropout", "Identity", "Where", "Mul", "Reshape")
_GUARD: Final = ("IsNaN",)
# What cuts q, k and v out of a projection.
_VIEWS: Final = (
    "Transpose",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Slice",
    "Split",
    "Gather",
    "Identity",
    "Cast",
    "Expand",
)
_SCALES: Final = ("Mul", "Div", "Add")
_JOINS: Final = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity")
# A scale, two masks and their casts; longer ways are something else.
_STEPS: Final = 8


def find(edit: Edit, root: ir.Node) -> Match | None:
    if not _over_last_axis(root):
        return None
    after = _second_product(edit, root)
    before = _first_product(root)
    if after is None or before is None:
        return None
    last, members = after[-1], {root, *after, *before}
    if not keeps_to_itself(edit, members, last):
        return None
    _take_views(edit, members, [last, before[-1]])
    while (join := edit.only_consumer(last.outputs[0])) is not None and join.op_type in _JOINS and not group(join):
        if join.inputs[0] is not last.outputs[0]:
            break
        members.add(join)
        last = join
    return Match("attention", frozenset(members), last=last)


def _over_last_axis(node: ir.Node) -> bool:
    axis = integer(node, "axis", -1)
    return axis == -1 or axis + 1 in (rank(node.inputs[0]), rank(node.outputs[0]))


def _second_product(edit: Edit, softmax: ir.Node) -> tuple[ir.Node, ...] | None:
    """The nodes from the softmax on, the product with v last: probabilities are its left operand."""
    nodes: list[ir.Node] = []
    value = softmax.outputs[0]
    for _ in range(_STEPS):
        users = list(dict.fromkeys(use.node for use in value.uses()))
        guards = [node for node in users if node.op_type in _GUARD]
        users = [node for node in users if node not in guards]
        for guard in guards:  # Where(IsNaN(p), 0, p)
            if edit.only_consumer(guard.outputs[0]) not in users:
                return None
        if len(users) != 1 or edit.is_output(value):
            return None
        user = users[0]
        nodes += [*guards, user]
        if user.op_type == "MatMul":
            v = user.inputs[1]
            return tuple(nodes) if user.inputs[0] is value and v is not value and constant_of(v) is None else None
        if user.op_type not in _AFTER:
            return None
        value = user.outputs[0]
    return None


def _first_product(softmax: ir.Node) -> tuple[ir.Node, ...] | None:
    """The nodes from the product of q and k to the softmax; neither of them is a constant."""
    for path in _paths(input_of(softmax, 0), ()):
        if all(constant_of(value) is None for value in path[-1].inputs):
            return path
    return None


def _paths(value: ir.Value | None, path: tuple[ir.Node, ...]) -> Iterator[tuple[ir.Node, ...]]:
    product = producer(value, "MatMul")
    if product is not None:
        yield (*path, product)
        return
    node = producer(value, *_BEFORE)
    if node is not None and len(path) < _STEPS:
        for operand in node.inputs:
            yield from _paths(operand, (*path, node))


def _take_views(edit: Edit, members: set[ir.Node], pending: list[ir.Node]) -> None:
    """Grow from the products towards the projections by nodes that only move or scale data for the group alone."""
    while pending:
        for value in pending.pop().inputs:
            node = producer(value, *_VIEWS, *_SCALES)
            if node is None or node in members or node.graph is not edit.graph or group(node):
                continue
            rows = unit_rows(value)
            if not (_only_moves(node) or rows is not None) or not _read_only_by(edit, node, members):
                continue
            members.update(rows.nodes if rows is not None else (node,))
            # Slices of one value come into the group one by one: what they share follows with the last.
            pending.append(node)


def _only_moves(node: ir.Node) -> bool:
    """A view of one value, or that value times or plus a constant number."""
    if node.op_type not in _SCALES:
        return True
    constants = [constant for value in node.inputs if (constant := constant_of(value)) is not None]
    return len(constants) == 1 and constants[0].size == 1 and len(list(data_inputs(node))) == 1


def _read_only_by(edit: Edit, node: ir.Node, members: set[ir.Node]) -> bool:
    return all(not edit.is_output(value) and all(use.node in members for use in value.uses()) for value in node.outputs)


ATTENTION: Final = Pattern("attention", ("Softmax",), find)
