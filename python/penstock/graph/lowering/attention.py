"""Attention that `patterns` named, as one step: softmax(q k^T scale + mask) v, q, k and v read where they lie.

The group's two products with what is between them become the step; the reshapes and transposes around are views anyway.
Rows of q and k that are divided by their lengths, and a factor for each head (Swin V2), are part of it. What is not
understood (a guard against rows without a key, a sum of masks that are no constants) is lowered operator by operator.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import onnx_ir as ir

from penstock.engine.lowered import Attribute
from penstock.engine.plan import Shape
from penstock.graph.editing import Array, integers, is_operator, producer, rank, static_shape
from penstock.graph.lowering.builder import Builder
from penstock.graph.lowering.masks import Added, added, aligned, mask, summed
from penstock.graph.lowering.views import Ref, expanded, identity, permuted, reshaped, sliced
from penstock.graph.patterns import group
from penstock.graph.patterns.matching import constant_of, scalar
from penstock.graph.patterns.unit_rows import UnitRows, unit_rows
from penstock.graph.sources import inherit

_LONGEST: Final = 256
"""Numbers of a row of q, k or v that a kernel holds."""

_MOST_CHANNELS: Final = 128
"""Of a head whose channels attend to each other: a kernel holds all their scores."""


@dataclass(frozen=True, slots=True)
class Attention:
    q: ir.Value
    k: ir.Value
    v: ir.Value
    masks: tuple[Added, ...]
    scale: float
    scales: Array | None
    """A factor for each head, besides the one for all."""
    nodes: tuple[ir.Node, ...]
    """Those that the step replaces; the last makes its output."""
    unit: float | None = None
    """Rows of q and k are divided by their lengths, or by this where they are shorter; k is [.., T, D] then, else it
    is transposed already."""

    @property
    def is_plain(self) -> bool:
        """Whether it has nothing but a scale and a mask, which libraries know, too."""
        simple = len(self.masks) < 2 and all(len(each.scores) == 4 for each in self.masks)
        return simple and self.unit is None and self.scales is None


def find(graph: ir.Graph) -> Mapping[ir.Node, Attention | None]:
    """The last node of every attention that is understood -> what it is; its other nodes -> None."""
    found: dict[ir.Node, Attention | None] = {}
    for node in graph:
        if is_operator(node, "Softmax") and (group(node) or "").startswith("attention#"):
            attention = _around(node)
            if attention is not None and rank(attention.nodes[-1].outputs[0]) in (2, 3, 4):
                found.update(dict.fromkeys(attention.nodes))
                found[attention.nodes[-1]] = attention
    return found


def _around(softmax: ir.Node) -> Attention | None:
    uses = list(softmax.outputs[0].uses())
    last = uses[0].node if _is_private(softmax.outputs[0]) else None
    if last is None or not is_operator(last, "MatMul") or last.inputs[0] is not softmax.outputs[0]:
        return None
    whole = static_shape(softmax.outputs[0])
    if whole is None or len(whole) > 4:
        return None
    between = _between(softmax.inputs[0], (1,) * (4 - len(whole)) + whole)
    if between is None:
        return None
    first = between.nodes[0]
    q, k, v = first.inputs[0], first.inputs[1], last.inputs[1]
    if q is None or k is None or v is None or static_shape(first.outputs[0]) != whole:
        return None
    nodes = [*between.nodes, softmax, last]
    q, scale = _unscaled(q, between.scale, nodes)
    k, scale = _unscaled(k, scale, nodes)
    found = Attention(q, k, v, between.masks, scale, between.scales, tuple(nodes))
    return _of_unit_rows(found) or found


@dataclass(frozen=True, slots=True)
class _Between:
    """The first product, and what is between it and the softmax."""

    nodes: tuple[ir.Node, ...]
    masks: tuple[Added, ...] = ()
    scale: float = 1.0
    scales: Array | None = None


def _between(scores: ir.Value | None, whole: Shape) -> _Between | None:
    found = _Between(())
    while (node := _producer(scores)) is not None:
        if not _is_private(node.outputs[0]):
            return None
        if is_operator(node, "MatMul"):
            return replace(found, nodes=(node, *found.nodes)) if summed(found.masks) else None
        step = _step(node, whole)
        scaled = found.scale != 1.0 or found.scales is not None
        if step is None or (step.mask is not None and scaled):
            return None
        if step.scales is not None and found.scales is not None:
            return None
        scores = step.scores
        found = _Between(
            (node, *found.nodes),
            (step.mask, *found.masks) if step.mask is not None else found.masks,
            found.scale * step.factor,
            step.scales if step.scales is not None else found.scales,
        )
    return None


def _producer(value: ir.Value | None) -> ir.Node | None:
    return value.producer() if value is not None else None


@dataclass(frozen=True, slots=True)
class _Step:
    """Between product and softmax: the scores before, and what is done to them."""

    scores: ir.Value | None
    factor: float = 1.0
    scales: Array | None = None
    mask: Added | None = None


def _step(node: ir.Node, whole: Shape) -> _Step | None:
    left, right = (*node.inputs, None, None)[:2]
    if is_operator(node, "Mul", "Div"):
        number = scalar(right, left)
        if number:
            return _Step(left, number if node.op_type == "Mul" else 1.0 / number)
        scales = _of_heads(node, right, whole)
        return _Step(left, scales=scales) if scales is not None else None
    if is_operator(node, "Reshape"):
        before, after = (None if each is None else static_shape(each) for each in (left, node.outputs[0]))
        rows = before is not None and after is not None and before[-2:] == after[-2:] == whole[-2:]
        return _Step(left) if rows else None
    if is_operator(node, "Add") and left is not None and right is not None:
        shape = static_shape(node.outputs[0])
        for scores, mask in ((left, right), (right, left)):
            maker = scores.producer()
            if maker is not None and group(maker) == group(node) and shape is not None:
                found = added(mask, shape, whole)
                return _Step(scores, mask=found) if found is not None and static_shape(scores) == shape else None
    return None


def _of_heads(node: ir.Node, value: ir.Value | None, whole: Shape) -> Array | None:
    """What each head's scores are multiplied with."""
    shape, array = static_shape(node.outputs[0]), constant_of(value)
    if node.op_type != "Mul" or array is None or shape is None or not aligned(shape, whole):
        return None
    sizes = (1, 1, *array.shape)[-3:]
    if array.ndim > len(shape) or array.size != whole[1] or sizes != (whole[1], 1, 1):
        return None
    return array.reshape(-1).astype(np.float32)


def _unscaled(value: ir.Value, scale: float, nodes: list[ir.Node]) -> tuple[ir.Value, float]:
    node = producer(value, "Mul", "Div")
    if node is None or len(value.uses()) != 1 or value.is_graph_output():
        return value, scale
    number = scalar(node.inputs[1], node.inputs[0])
    if not number or node.inputs[0] is None:
        return value, scale
    nodes.insert(0, node)
    return node.inputs[0], scale * number if node.op_type == "Mul" else scale / number


def _of_unit_rows(attention: Attention) -> Attention | None:
    """The same with q and k as they were before their rows were divided by their lengths."""
    turned = producer(attention.k, "Transpose")
    order = integers(turned, "perm") if turned is not None else None
    axes = rank(attention.k) or 0
    if turned is None or order != (*range(axes - 2), axes - 1, axes - 2) or not _is_private(turned.outputs[0]):
        return None
    nodes = [turned]
    q, scale = _unscaled(attention.q, attention.scale, nodes)
    k, scale = _unscaled(turned.inputs[0], scale, nodes) if turned.inputs[0] is not None else (None, scale)
    rows = _private_rows(q), _private_rows(k)
    if rows[0] is None or rows[1] is None or rows[0].epsilon != rows[1].epsilon:
        return None
    before = (*rows[0].nodes, *rows[1].nodes, *nodes, *attention.nodes)
    return replace(attention, q=rows[0].x, k=rows[1].x, scale=scale, nodes=before, unit=rows[0].epsilon)


def _private_rows(value: ir.Value | None) -> UnitRows | None:
    return unit_rows(value) if value is not None and _is_private(value) else None


def _is_private(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def lower(builder: Builder, attention: Attention) -> bool:
    """The step's operands are views of [batch, heads, T, D]; its output lies as [batch, T, heads, D].

    False, and nothing is made, where its nodes had better be lowered one by one: where no kernel reads the rows, and
    neither do libraries. Channels that attend to channels, whose scores are sums over tokens, are a step of their own.
    """
    last = attention.nodes[-1]
    output = last.outputs[0]
    shape = builder.shape(output)
    k = builder.ref(attention.k)
    if attention.unit is None:
        k = permuted(k, (*range(len(k.shape) - 2), len(k.shape) - 1, len(k.shape) - 2))
    whole = (*((1,) * (4 - len(shape))), *shape)
    refs = [_four(ref, whole[:2]) for ref in (builder.ref(attention.q), k, builder.ref(attention.v))]
    (size, keys), rows = (refs[0].shape[3], refs[1].shape[2]), all(_is_of_rows(ref) for ref in refs)
    kind, order = "attention", (0, 2, 1, 3)
    if not rows and not attention.masks and all(_is_of_channels(ref) for ref in refs):
        kind, order = "channel_attention", (0, 3, 1, 2)
        refs = [permuted(ref, (0, 1, 3, 2)) for ref in refs]
    elif not rows and (keys < size or not attention.is_plain):
        return False
    elif not rows:
        refs = [_in_rows(builder, ref, last) for ref in refs]
    operands = [builder.operand(ref, role) for ref, role in zip(refs, "qkv", strict=True)]
    attributes: dict[str, Attribute] = {"scale": attention.scale}
    if attention.masks:
        seen = mask(builder, attention.masks, (*whole[:-1], refs[1].shape[2]))
        operands.append(builder.operand(seen, "mask"))
    if attention.scales is not None:
        operands.append(builder.operand(builder.weight(attention.scales, f"{output.name}.scales"), "scales"))
    if attention.unit is not None:
        attributes["unit"] = attention.unit
    inherit(last, attention.nodes)
    datatype = builder.datatype(output)
    result = builder.emit(last, kind, operands, whole, datatype, order, attributes, name=output.name)
    shaped = reshaped(result, shape)
    assert shaped is not None  # axes of one are taken off
    builder.forward(output, shaped)
    return True


def _is_of_rows(ref: Ref) -> bool:
    """Whether a kernel reads it; rows that are channels lie across."""
    return ref.shape[-1] <= _LONGEST and (ref.strides[-1] == 1 or ref.shape[-1] == 1)


def _in_rows(builder: Builder, ref: Ref, node: ir.Node) -> Ref:
    """The same with rows that lie in one piece: libraries' kernels don't read others, and what they do instead takes
    many times as long as a copy."""
    if ref.strides[-1] == 1 or ref.shape[-1] == 1:
        return ref
    once = ref
    for axis, stride in enumerate(ref.strides):
        once = sliced(once, axis, 0, 1) if stride == 0 else once
    return expanded(builder.stored_as(once, identity(4), node), ref.shape)


def _is_of_channels(ref: Ref) -> bool:
    """Whether rows are channels, which lie side by side, and not too many for a kernel."""
    return ref.shape[2] <= _MOST_CHANNELS and (ref.strides[2] == 1 or ref.shape[2] == 1)


def _four(ref: Ref, batch: Shape) -> Ref:
    """[batch, heads, T, D], repeated where the products do."""
    shaped = reshaped(ref, (*((1,) * (4 - len(ref.shape))), *ref.shape))
    assert shaped is not None
    return expanded(shaped, (*batch, *shaped.shape[2:]))
