"""Attention that `patterns` named, as one step: softmax(q k^T scale + mask) v, q, k and v read where they lie.

The group's two products with what is between them become the step; the reshapes and transposes around are views anyway.
What is not understood (a guard against rows without a key, two masks) is left to be lowered operator by operator.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import onnx_ir as ir

from penstock.graph.editing import is_operator, producer, rank, static_shape
from penstock.graph.lowering.builder import Builder
from penstock.graph.lowering.views import Ref, expanded, permuted, reshaped
from penstock.graph.patterns import group
from penstock.graph.patterns.matching import scalar
from penstock.graph.sources import inherit

_WIDE_HEAD: Final = 128
_WIDEST_HEAD: Final = 256
"""Above, nobody's fused kernel takes them."""


@dataclass(frozen=True, slots=True)
class Attention:
    q: ir.Value
    k: ir.Value
    """Transposed already: [.., D, T]."""
    v: ir.Value
    mask: ir.Value | None
    scale: float
    nodes: tuple[ir.Node, ...]
    """Those that the step replaces; the last makes its output."""


def find(graph: ir.Graph) -> Mapping[ir.Node, Attention | None]:
    """The last node of every attention that is understood -> what it is; its other nodes -> None."""
    found: dict[ir.Node, Attention | None] = {}
    for node in graph:
        if is_operator(node, "Softmax") and (group(node) or "").startswith("attention#"):
            attention = _around(node)
            if attention is not None and rank(attention.nodes[-1].outputs[0]) in (2, 3, 4) and not _broad(attention):
                found.update(dict.fromkeys(attention.nodes))
                found[attention.nodes[-1]] = attention
    return found


def _broad(attention: Attention) -> bool:
    """Whether heads are so wide, and keys so few, that kernels which never write the scores have nothing to save:
    where channels attend to channels, and tokens are what is summed over.
    """
    shape = static_shape(attention.k)
    size, keys = shape[-2:] if shape is not None and len(shape) > 1 else (0, 0)
    return size > _WIDEST_HEAD or (size > _WIDE_HEAD and keys < size)


def _around(softmax: ir.Node) -> Attention | None:
    uses = list(softmax.outputs[0].uses())
    last = uses[0].node if len(uses) == 1 else None
    if last is None or not is_operator(last, "MatMul") or last.inputs[0] is not softmax.outputs[0]:
        return None
    scale, mask = 1.0, None
    nodes = [softmax, last]
    scores = softmax.inputs[0]
    while (node := _producer(scores)) is not None and not is_operator(node, "MatMul"):
        step = _step(node) if len(node.outputs[0].uses()) == 1 else None
        if step is None or (step[2] is not None and (mask is not None or scale != 1.0)):
            return None
        scores, factor, added = step
        scale, mask = scale * factor, added if added is not None else mask
        nodes.insert(0, node)
    if node is None or len(node.outputs[0].uses()) != 1:
        return None
    nodes.insert(0, node)
    q, k, v = node.inputs[0], node.inputs[1], last.inputs[1]
    if q is None or k is None or v is None:
        return None
    q, scale = _unscaled(q, scale, nodes)
    k, scale = _unscaled(k, scale, nodes)
    return Attention(q, k, v, mask, scale, tuple(nodes))


def _producer(value: ir.Value | None) -> ir.Node | None:
    return value.producer() if value is not None else None


def _step(node: ir.Node) -> tuple[ir.Value | None, float, ir.Value | None] | None:
    """Between product and softmax: the scores before, what they are multiplied with, what is added."""
    left, right = (*node.inputs, None, None)[:2]
    if is_operator(node, "Mul", "Div"):
        number = scalar(right, left)
        if number:
            return left, number if node.op_type == "Mul" else 1.0 / number, None
    if is_operator(node, "Add") and left is not None and right is not None:
        for scores, mask in ((left, right), (right, left)):
            maker = scores.producer()
            if maker is not None and group(maker) == group(node):
                return scores, 1.0, mask
    return None


def _unscaled(value: ir.Value, scale: float, nodes: list[ir.Node]) -> tuple[ir.Value, float]:
    node = producer(value, "Mul", "Div")
    if node is None or len(value.uses()) != 1 or value.is_graph_output():
        return value, scale
    number = scalar(node.inputs[1], node.inputs[0])
    if not number or node.inputs[0] is None:
        return value, scale
    nodes.insert(0, node)
    return node.inputs[0], scale * number if node.op_type == "Mul" else scale / number


def lower(builder: Builder, attention: Attention) -> None:
    """The step's operands are views of [batch, heads, T, D]; its output lies as [batch, T, heads, D]."""
    last = attention.nodes[-1]
    output = last.outputs[0]
    shape = builder.shape(output)
    k = builder.ref(attention.k)
    k = permuted(k, (*range(len(k.shape) - 2), len(k.shape) - 1, len(k.shape) - 2))
    refs = [_four(ref) for ref in (builder.ref(attention.q), k, builder.ref(attention.v))]
    operands = [builder.operand(ref, role) for ref, role in zip(refs, "qkv", strict=True)]
    whole = (*((1,) * (4 - len(shape))), *shape)
    if attention.mask is not None:
        mask = builder.ref(attention.mask)
        operands.append(builder.operand(expanded(mask, (*whole[:-1], refs[1].shape[2])), "mask"))
    inherit(last, attention.nodes)
    datatype = builder.datatype(output)
    result = builder.emit(
        last, "attention", operands, whole, datatype, (0, 2, 1, 3), {"scale": attention.scale}, name=output.name
    )
    shaped = reshaped(result, shape)
    assert shaped is not None  # axes of one are taken off
    builder.forward(output, shaped)


def _four(ref: Ref) -> Ref:
    shaped = reshaped(ref, (*((1,) * (4 - len(ref.shape))), *ref.shape))
    assert shaped is not None
    return shaped
