"""Which nodes are worth eight bits, and which tensors share a scale because of it.

`plan` reads a graph and decides; it changes nothing. A *layer* is a Conv, Gemm or MatMul with constant weights (or,
when asked for, a MatMul of two activations): the nodes that `keep` and sensitivity search speak of. Everything else
follows the layers: residual Adds, concatenations, pooling and pure movement of data between them stay integer, so that
eight bits are read and written. Softmax, normalisation and activation functions stay float: they cost little, and lose
much.

Called by place and sensitivity.
"""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import onnx_ir as ir

from penstock.graph import sources
from penstock.graph.editing import constant, input_of, integer, is_operator
from penstock.quantize.scheme import MANY_CHANNELS, Scheme

# Data moves and stays what it is: output and input share a scale, and the range of the input holds for both.
# Resize and the averages compute new values, so a library has to know them in eight bits; those are left float.
PASS_THROUGH: Final = (
    *("MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Identity", "Expand"),
    *("DepthToSpace", "SpaceToDepth", "Gather"),
)
# What libraries compute in the same kernel as the convolution, and which a range from zero makes redundant.
FUSED_ACTIVATIONS: Final = ("Relu", "Clip")


@dataclass(frozen=True, slots=True)
class Layer:
    """A node that is computed in integers."""

    node: ir.Node
    activation: ir.Value
    weight: ir.Value | None
    """None: the second input is an activation, too."""
    axis: int
    """Of the weight: the output channels."""


@dataclass(slots=True)
class Plan:
    """What to do with a graph."""

    layers: list[Layer] = field(default_factory=list)
    kept: list[ir.Node] = field(default_factory=list)
    """Would be layers, but are to stay float."""
    adds: set[ir.Node] = field(default_factory=set)
    """Computed in the kernel of the convolution before: one side is never stored."""
    groups: list[list[ir.Value]] = field(default_factory=list)
    """Tensors that are quantized; those in one list have one scale."""


def plan(model: ir.Model, scheme: Scheme, keep: Collection[str] = ()) -> Plan:
    """Layers, and the tensors to quantize around them.

    keep  names of nodes of this model or of the source it came from.
    """
    found = Plan()
    kept = frozenset(keep)
    for node in model.graph:
        layer = as_layer(node, scheme)
        if layer is None:
            continue
        if kept.isdisjoint((node.name or "", *sources(node))):
            found.layers.append(layer)
        else:
            found.kept.append(node)
    _Tensors(model.graph, scheme, found, kept).decide()
    return found


def products(layer: Layer) -> float:
    """How many multiplications it makes, for one of every size that is not known: enough to compare layers."""
    answer = layer.node.outputs[0].shape
    sizes = [size for size in answer if isinstance(size, int)] if answer is not None else []
    weight = constant(layer.weight)
    if weight is None or not weight.size:
        return float(math.prod(sizes)) or 1.0
    return float(max(1.0, math.prod(sizes) / weight.shape[layer.axis])) * weight.size


def as_layer(node: ir.Node, scheme: Scheme) -> Layer | None:
    """The node as a layer when the scheme takes it."""
    activation, weight = input_of(node, 0), input_of(node, 1)
    if not is_operator(node, "Conv", "Gemm", "MatMul") or activation is None or weight is None:
        return None
    array = constant(weight)
    if array is None:
        both = node.op_type == "MatMul" and scheme.attention and constant(activation) is None
        return Layer(node, activation, None, 0) if both else None
    if array.dtype != np.float32 or constant(activation) is not None or not array.size:
        return None
    if node.op_type == "Conv":
        taken = _takes_convolution(node, array.shape, scheme) and (scheme.gates or not _single_position(activation))
        return Layer(node, activation, weight, 0) if taken else None
    taken = array.ndim == 2 and not integer(node, "transA", 0)
    return Layer(node, activation, weight, 0 if integer(node, "transB", 0) else 1) if taken else None


def _takes_convolution(node: ir.Node, shape: tuple[int, ...], scheme: Scheme) -> bool:
    group = integer(node, "group", 1)
    if group > 1 and shape[1] == 1 and not scheme.depthwise:
        return False
    return scheme.first_layer or group > 1 or shape[1] >= MANY_CHANNELS


def _single_position(value: ir.Value) -> bool:
    """Whether every spatial axis has the size 1."""
    return value.shape is not None and len(value.shape) > 2 and all(size == 1 for size in value.shape[2:])


class _Tensors:
    """Closes the set of quantized tensors over everything that can stay integer between layers."""

    def __init__(self, graph: ir.Graph, scheme: Scheme, found: Plan, kept: frozenset[str]) -> None:
        self.graph = graph
        self.scheme = scheme
        self.found = found
        self.kept = kept
        self.parent: dict[ir.Value, ir.Value] = {}
        self.layer_nodes = {layer.node for layer in found.layers}

    def decide(self) -> None:
        for layer in self.found.layers:
            self.take(layer.activation)
            if layer.weight is None and (second := layer.node.inputs[1]) is not None:
                self.take(second)
            if self.scheme.outputs:
                self.take(self.answer(layer.node))
        if self.scheme.residual_adds:
            # Adds follow one another, and each may make the next one integer.
            while sum(self.join(node) for node in self.graph if is_operator(node, "Add")):
                pass
        self.found.groups = list(self.sets())

    # ---- union-find ----

    def root(self, value: ir.Value) -> ir.Value:
        while (above := self.parent[value]) is not value:
            value = above
        return value

    def unite(self, first: ir.Value, second: ir.Value) -> None:
        self.parent[self.root(second)] = self.root(first)

    def sets(self) -> Iterator[list[ir.Value]]:
        members: dict[ir.Value, list[ir.Value]] = {}
        for value in self.parent:
            members.setdefault(self.root(value), []).append(value)
        yield from members.values()

    # ---- what is quantized ----

    def take(self, value: ir.Value) -> None:
        """Quantize a tensor, and those that it is merely moved or pooled from."""
        if value in self.parent or constant(value) is not None or value.dtype not in (ir.DataType.FLOAT, None):
            return
        self.parent[value] = value
        node = value.producer()
        if node is None or node.graph is not self.graph or not self.free(node):
            return
        if is_operator(node, *PASS_THROUGH) and (moved := input_of(node, 0)) is not None:
            self.share(value, moved)
        elif is_operator(node, "Concat"):
            for part in node.inputs:
                if part is not None and constant(part) is None:
                    self.share(value, part)

    def share(self, value: ir.Value, origin: ir.Value) -> None:
        self.take(origin)
        if origin in self.parent:
            self.unite(value, origin)

    def join(self, node: ir.Node) -> bool:
        """Quantize both inputs of an Add that joins convolutions; True when that is new."""
        if not self.free(node):
            return False
        parts = [part for part in node.inputs if part is not None]
        if len(parts) != 2 or any(constant(part) is not None for part in parts) or not _same_shape(*parts):
            return False
        if all(part in self.parent for part in parts):
            return False
        from_layer = [self.from_convolution(part) for part in parts]
        if not any(from_layer) or not all(
            made or part in self.parent for made, part in zip(from_layer, parts, strict=True)
        ):
            return False
        inside = self.computed_with(node, parts) if self.scheme.fused_adds else None
        if inside is not None:
            (other,) = (part for part in parts if part is not inside)
            new = other not in self.parent
            self.found.adds.add(node)
            self.take(other)
            return new
        for part in parts:
            self.take(part)
        self.take(self.after(node) if self.scheme.outputs else parts[0])
        return True

    def computed_with(self, node: ir.Node, parts: list[ir.Value]) -> ir.Value | None:
        """The part whose convolution computes the Add as well: the one made last, of those that nothing else reads."""
        made = [part for part in parts if self.from_convolution(part) and self.only(part, node)]
        order = {each: position for position, each in enumerate(self.graph)}
        return max(made, key=lambda part: order.get(part.producer(), -1), default=None)  # type: ignore[arg-type]

    def only(self, value: ir.Value, reader: ir.Node) -> bool:
        uses = list(value.uses())
        return len(uses) == 1 and uses[0].node is reader and not value.is_graph_output()

    # ---- what a node is to its neighbours ----

    def free(self, node: ir.Node) -> bool:
        return self.kept.isdisjoint((node.name or "", *sources(node)))

    def from_convolution(self, value: ir.Value) -> bool:
        node = value.producer()
        if is_operator(node, *FUSED_ACTIVATIONS) and node is not None and node.inputs[0] is not None:
            node = node.inputs[0].producer()
        return node in self.layer_nodes and is_operator(node, "Conv")

    def answer(self, node: ir.Node) -> ir.Value:
        """What a layer's kernel writes: its output, or that of the activation it is fused with."""
        return self.after(node)

    def after(self, node: ir.Node) -> ir.Value:
        value = node.outputs[0]
        uses = list(value.uses())
        if len(uses) == 1 and is_operator(uses[0].node, *FUSED_ACTIVATIONS) and not value.is_graph_output():
            return uses[0].node.outputs[0]
        return value


def _same_shape(first: ir.Value, second: ir.Value) -> bool:
    """Not a bias or a broadcast, as far as the graph says."""
    if first.shape is None or second.shape is None:
        return True
    return len(first.shape) == len(second.shape) and all(
        a == b or not (isinstance(a, int) and isinstance(b, int))
        for a, b in zip(first.shape, second.shape, strict=True)
    )
