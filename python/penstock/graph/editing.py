"""The few moves that passes are made of: ask for a constant, put a node in place of others, pass a value on.

`Edit` holds one graph while one pass runs over it and knows whether anything changed. What it promises: names of the
graph's inputs and outputs never change, new names clash with none in the model (inner graphs included), values that an
inner graph captures count as used, and new nodes stand for those they replace.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from penstock.graph.sources import inherit

Array = NDArray[Any]
Attribute = int | float | str | Sequence[int] | Sequence[float]

_STANDARD = ("", "ai.onnx")
_EXACT = (ir.DataType.FLOAT, ir.DataType.DOUBLE)


class Edit:
    """One pass over the main graph of a model."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.graph = model.graph
        self.changed = False
        self._outputs = set(model.graph.outputs)
        self._names: set[str] | None = None

    @property
    def opset(self) -> int:
        """Version of the standard operators."""
        return next((self.model.opset_imports[domain] for domain in _STANDARD if domain in self.model.opset_imports), 1)

    def nodes(self, *operators: str) -> list[ir.Node]:
        """Nodes of the main graph with one of these standard operators, in order; those removed meanwhile are not."""
        return [node for node in self.graph if is_operator(node, *operators)]

    # ---- asking ----

    def is_output(self, value: ir.Value) -> bool:
        """Whether the main graph or an inner graph answers this value."""
        return value in self._outputs or value.is_graph_output()

    def only_consumer(self, value: ir.Value | None) -> ir.Node | None:
        """The one node that reads the value, once, in the main graph; None when anything else sees it."""
        if value is None or self.is_output(value):
            return None
        uses = list(value.uses())
        return uses[0].node if len(uses) == 1 and uses[0].node.graph is self.graph else None

    def replaceable(self, value: ir.Value) -> bool:
        """Whether `forward` can give what reads this value the output of a new node."""
        return value in self._outputs or not value.is_graph_output()

    # ---- changing ----

    def constant(self, near: ir.Value | str, array: Array) -> ir.Value:
        """A new initialiser, named after what it comes from."""
        name = self.fresh(near if isinstance(near, str) else near.name or "constant")
        tensor = ir.Tensor(np.ascontiguousarray(array) if array.ndim else array, name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
        self.graph.register_initializer(value)
        self.changed = True
        return value

    def insert(
        self,
        before: ir.Node,
        operator: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Attribute],
        stands_for: Iterable[ir.Node],
    ) -> ir.Value:
        """A new node ahead of `before`; its output, whose type and shape the caller knows better."""
        node = ir.node(
            operator, inputs, dict(attributes), name=self.fresh(f"{before.name}_{operator.lower()}"), version=None
        )
        inherit(node, stands_for)
        node.outputs[0].name = self.fresh(f"{node.name}_output")
        self.graph.insert_before(before, node)
        self.changed = True
        return node.outputs[0]

    def forward(self, old: ir.Value, new: ir.Value) -> bool:
        """Let everything that reads `old` read `new`; False, and nothing changed, where names forbid it.

        An output of the graph keeps its name: `new` takes it over, which an input, an initialiser, another output and
        an inner graph's value can't. The node that made `old` stays until nothing needs it.
        """
        if self.is_output(old):
            producer = new.producer()
            if old not in self._outputs or self.is_output(new) or producer is None or producer.graph is not self.graph:
                return False
            keep, shape = old.name, old.shape
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            old.name = self.fresh(f"{keep}_replaced")
            new.name = keep
            if shape is not None:
                new.shape = shape
            self._outputs = set(self.graph.outputs)
        else:
            old.replace_all_uses_with(new)
        if new.type is None:
            new.type = old.type
        if new.shape is None and old.shape is not None:
            new.shape = old.shape
        self.changed = True
        return True

    def remove(self, *nodes: ir.Node) -> None:
        """Take nodes out whose outputs nothing reads."""
        self.graph.remove(nodes, safe=True)
        self.changed = True

    def set_input(self, node: ir.Node, index: int, value: ir.Value | None) -> None:
        """Give a node another input, appending up to the index."""
        if index >= len(node.inputs):
            node.resize_inputs(index + 1)
        node.replace_input_with(index, value)
        self.changed = True

    def set_attributes(self, node: ir.Node, attributes: Mapping[str, Attribute | None]) -> None:
        """Set attributes; None removes one."""
        for name, value in attributes.items():
            node.attributes.pop(name, None)
            if value is not None:
                node.attributes.add(ir.convenience.convert_attribute(name, value))
        self.changed = True

    def fresh(self, hint: str) -> str:
        """A name like the hint that nothing in the model has."""
        if self._names is None:
            self._names = all_names(self.model)
        name, count = hint, 0
        while name in self._names:
            count += 1
            name = f"{hint}_{count}"
        self._names.add(name)
        return name


def is_operator(node: ir.Node | None, *operators: str) -> bool:
    """Whether this is a node of the standard operator set with one of these names."""
    return node is not None and node.op_type in operators and node.domain in _STANDARD


def has_graphs(node: ir.Node) -> bool:
    """Whether a node holds inner graphs (If, Loop, Scan)."""
    return any(each.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for each in node.attributes.values())


def producer(value: ir.Value | None, *operators: str) -> ir.Node | None:
    """The node that makes a value when it has one of these standard operators."""
    node = value.producer() if value is not None else None
    return node if is_operator(node, *operators) else None


def constant(value: ir.Value | None) -> Array | None:
    """What an initialiser holds; None for everything that may change from call to call."""
    if value is None or not value.is_initializer() or value.is_graph_input() or value.const_value is None:
        return None
    array: Array = value.const_value.numpy()
    return array


def exact_constant(value: ir.Value | None) -> Array | None:
    """A constant in float64 when it is FP32 or FP64, in which folding two of them loses nothing that counts.

    Half precision is left alone: there a product rounded back to half differs visibly from two steps.
    """
    if value is None or value.const_value is None or value.const_value.dtype not in _EXACT:
        return None
    array = constant(value)
    return array.astype(np.float64) if array is not None else None


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    """An input, or None when it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def integer(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def integers(node: ir.Node, name: str) -> tuple[int, ...] | None:
    attribute = node.attributes.get(name)
    return None if attribute is None else tuple(attribute.as_ints())


def number(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_float()


def string(node: ir.Node, name: str, default: str) -> str:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_string()


def rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape when every dimension is a number."""
    if value is None or value.shape is None:
        return None
    sizes = tuple(dim for dim in value.shape if isinstance(dim, int) and dim >= 0)
    return sizes if len(sizes) == len(value.shape) else None


def all_names(model: ir.Model) -> set[str]:
    """Names of every value and node in the model, inner graphs included."""
    names: set[str] = set()
    for graph in model.graphs():
        names.update(value.name for value in graph.inputs if value.name)
        names.update(graph.initializers)
        for node in graph:
            names.update(value.name for value in node.outputs if value.name)
            if node.name:
                names.add(node.name)
    return names
