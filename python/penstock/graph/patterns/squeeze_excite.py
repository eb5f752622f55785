"""Squeeze and excitation (Hu et al. 2018, section 3): channels of x scaled by a gate made of their means.

mean over the image -> 1x1 convolution (or Gemm, MatMul) -> activation -> another -> sigmoid or hard sigmoid -> x times
that. Named `squeeze_excite` and left as it is: there is no such operator. Found from the end: all that leads from x to
the gate must be of these operators, read by nothing else, and start in one mean over the image.
"""

from typing import Final

import onnx_ir as ir

from penstock.graph.editing import Edit, input_of, integer, is_operator, rank
from penstock.graph.patterns.matching import constant_of, data_inputs, operands, reduced_axes
from penstock.graph.patterns.pattern import Match, Pattern

_LAYERS: Final = ("Conv", "Gemm", "MatMul")
_GATES: Final = ("Sigmoid", "HardSigmoid")
_VIEWS: Final = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity")
_BETWEEN: Final = (
    *("Relu", "LeakyRelu", "PRelu", "Gelu", "HardSwish", "Sigmoid", "HardSigmoid", "Tanh", "Erf", "Elu"),
    *("Add", "Mul", "Div", "Clip", "BatchNormalization"),
)
# Two layers with biases and norms, an activation written out in five nodes, and reshapes on both sides.
_NODES: Final = 24


def find(edit: Edit, root: ir.Node) -> Match | None:
    for x, gate in operands(root):
        members = _way(x, gate)
        if members is not None:
            return Match("squeeze_excite", frozenset((*members, root)))
    return None


def _way(x: ir.Value, gate: ir.Value) -> set[ir.Node] | None:
    """The nodes from x to the gate, when they are squeeze and excitation."""
    if not _is_gate(gate):
        return None
    members: set[ir.Node] = set()
    pending = [gate]
    while pending:
        node = pending.pop().producer()
        if node is None or len(members) > _NODES:
            return None
        if node in members:
            continue
        members.add(node)
        if _is_mean_of_image(node):
            if node.inputs[0] is not x:
                return None
        elif is_operator(node, *_LAYERS, *_BETWEEN, *_VIEWS):
            pending += _inputs(node)
        else:
            return None
    means = [node for node in members if _is_mean_of_image(node)]
    layers = [node for node in members if node.op_type in _LAYERS]
    return members if len(means) == 1 and len(layers) == 2 and all(map(_is_pointwise, layers)) else None


def _inputs(node: ir.Node) -> list[ir.Value]:
    """What a node computes with; the target of a reshape is not data."""
    values = node.inputs[:1] if node.op_type in _VIEWS else node.inputs
    return [value for value in data_inputs(node) if any(value is each for each in values)]


def _is_gate(value: ir.Value) -> bool:
    node = value.producer()
    while is_operator(node, *_VIEWS) and node is not None and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return is_operator(node, *_GATES)


def _is_mean_of_image(node: ir.Node) -> bool:
    if node.op_type != "ReduceMean":
        return is_operator(node, "GlobalAveragePool")
    if integer(node, "keepdims", 1) == 1:
        return reduced_axes(node) in ((-2, -1), (2, 3)) and rank(node.inputs[0]) in (4, None)
    return False


def _is_pointwise(node: ir.Node) -> bool:
    """A layer with constant weights that mixes channels only."""
    weight = constant_of(input_of(node, 1))
    if weight is None:
        return False
    if node.op_type != "Conv":
        return True
    return integer(node, "group", 1) == 1 and all(size == 1 for size in weight.shape[2:]) and not _is_padded(node)


def _is_padded(node: ir.Node) -> bool:
    pads = node.attributes.get("pads")
    return pads is not None and any(pads.as_ints())


SQUEEZE_EXCITE: Final = Pattern("squeeze_excite", ("Mul",), find)
