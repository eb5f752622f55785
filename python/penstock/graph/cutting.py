"""Cuts a graph around operators that only Python knows: parts that libraries run, and the nodes between them.

Every node gets a level: how many custom nodes lie on the longest way from the inputs to it. Nodes of one level are one
part; custom nodes that read level L run behind part L, and what they give is level L + 1. Nothing flows back to a lower
level, so the parts run one after the other, and there are no more of them than the longest chain of custom nodes and
one. What is constant belongs to no level: each part that reads it has its own copy, since libraries want to see
constants. Called by build for every form, and to find out the types of what custom nodes give.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import InlinePass

from penstock.engine.custom import STANDARD, OpName, place
from penstock.engine.parts import Attribute, Call, Chain, Part
from penstock.errors import ModelLoadError, Unsupported
from penstock.graph import inference
from penstock.graph.binding import bound_functions
from penstock.graph.editing import has_graphs
from penstock.graph.signatures import signature, spec
from penstock.tensors import TensorSpec

Array = NDArray[Any]

# Two copies of a node that draws random numbers would disagree.
_RANDOM: Final = frozenset({"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
                            "RandomUniformLike"})  # fmt: skip

_ATTRIBUTES: Final = frozenset(
    {
        ir.AttributeType.INT,
        ir.AttributeType.FLOAT,
        ir.AttributeType.STRING,
        ir.AttributeType.INTS,
        ir.AttributeType.FLOATS,
        ir.AttributeType.STRINGS,
    }
)


@dataclass(frozen=True, slots=True)
class Cut:
    """The parts, and how they follow each other."""

    chain: Chain
    models: Mapping[str, ir.Model]
    """By the part's name."""

    constants: Mapping[str, Array]
    """What calls read and no part makes, in the order of `chain.constants`."""


def is_custom(node: ir.Node, operators: Collection[OpName]) -> bool:
    return OpName(node.domain, node.op_type) in operators


def custom_nodes(model: ir.Model, operators: Collection[OpName]) -> list[ir.Node]:
    """Nodes of the main graph that only Python knows, in order; a function of the model's own is none.

    Raises Unsupported for one inside an If, a Loop, a Scan or a function.
    """
    own = {OpName(domain, name) for domain, name, _ in model.functions}
    wanted = frozenset(operators) - own
    for graph in model.graphs():
        for node in graph:
            if graph is not model.graph and is_custom(node, wanted):
                raise Unsupported(
                    f"{place(OpName(node.domain, node.op_type), node.name or '')} stands inside an If, a Loop or a "
                    "Scan, where the graph can't be cut; export the model with it outside"
                )
    return [node for node in model.graph if is_custom(node, wanted)]


def inlined(model: ir.Model) -> ir.Model:
    """A copy with functions put in place: what they hold can be cut then. Raises ModelLoadError beyond bounds."""
    bound_functions(model)
    copy = model.clone()
    if copy.functions:
        InlinePass()(copy)
    return copy


def cut(model: ir.Model, operators: Collection[OpName]) -> Cut | None:
    """The model in parts; None when none of these operators is in it.

    Types of what crosses from one part to the next are inferred anew; those of what custom nodes give have to be in the
    model. Raises Unsupported (a custom node in an inner graph, an attribute of a kind that can't be handed over) and
    ModelLoadError (a type that nothing tells).
    """
    copy = inlined(model)
    nodes = custom_nodes(copy, operators)
    if not nodes:
        return None
    inference.forget(copy)
    inference.infer(copy)
    return _Cutting(copy, nodes).cut()


class _Cutting:
    """One cut, on a graph of its own."""

    def __init__(self, model: ir.Model, custom: list[ir.Node]) -> None:
        self.model = model
        self.graph = model.graph
        self.custom = frozenset(custom)
        self.order = list(self.graph)
        self.outputs = set(self.graph.outputs)
        self.readers: dict[ir.Value, set[ir.Node]] = {}
        for node in self.order:
            for value in reads(node):
                self.readers.setdefault(value, set()).add(node)
        self.constant = self._constant()
        self.level = self._levels()

    def cut(self) -> Cut:
        steps: list[Part | Call] = []
        models: dict[str, ir.Model] = {}
        for level in range(max(self.level.values()) + 1):
            given = [value for value in self._made(level) if self._leaves(value, level)]
            if given:
                read = self._read(given, level)
                part = Part(f"part{len(models)}", _names(read), _names(given))
                models[part.name] = self._extract(read, given)
                steps.append(part)
            steps += [self._call(node) for node in self.order if node in self.custom and self.level[node] == level]
        inputs, outputs = signature(self.model)
        constants = self._constants()
        return Cut(Chain(inputs, outputs, tuple(steps), tuple(constants)), models, constants)

    # ---- levels ----

    def _constant(self) -> frozenset[ir.Node]:
        """Nodes that no input and no custom node reaches."""
        found: set[ir.Node] = set()
        for node in self.order:
            if node in self.custom or has_graphs(node) or node.op_type in _RANDOM:
                continue
            if all(self._is_constant(value, found) for value in node.inputs if value is not None):
                found.add(node)
        return frozenset(found)

    @staticmethod
    def _is_constant(value: ir.Value, nodes: Collection[ir.Node]) -> bool:
        producer = value.producer()
        return producer in nodes if producer is not None else value.is_initializer() and not value.is_graph_input()

    def _levels(self) -> dict[ir.Node, int]:
        level: dict[ir.Node, int] = {}
        for node in self.order:
            made = (value.producer() for value in reads(node))
            level[node] = max((level[each] + (each in self.custom) for each in made if each is not None), default=0)
        return level

    # ---- parts ----

    def _made(self, level: int) -> Iterator[ir.Value]:
        """What nodes of a part give; constants that are wanted outside of parts come from the first."""
        for node in self.order:
            if node not in self.custom and (self.level[node] == level):
                yield from (value for value in node.outputs if value.name)

    def _leaves(self, value: ir.Value, level: int) -> bool:
        """Whether anything but the part itself needs it."""
        producer = value.producer()
        if value in self.outputs:
            return True
        readers = self.readers.get(value, set())
        if producer in self.constant:  # parts have copies
            return not readers.isdisjoint(self.custom)
        return any(reader in self.custom or self.level[reader] != level for reader in readers)

    def _read(self, given: list[ir.Value], level: int) -> list[ir.Value]:
        """What the part needs from outside, in a stable order."""
        found: dict[ir.Value, None] = {}
        seen: set[ir.Value] = set()
        waiting = list(reversed(given))
        while waiting:
            value = waiting.pop()
            if value in seen:
                continue
            seen.add(value)
            node = value.producer()
            if node is None:
                if value.is_graph_input():
                    found[value] = None
            elif node in self.constant or (node not in self.custom and self.level[node] == level):
                waiting += reversed(list(reads(node)))
            else:
                found[value] = None
        return list(found)

    def _extract(self, read: list[ir.Value], given: list[ir.Value]) -> ir.Model:
        for value in (*read, *given):
            if value.dtype is None:
                raise ModelLoadError(
                    f"nothing tells the type of {value.name!r}, which goes from one part to the next; export the model "
                    "with its value_info, or declare outputs= where the custom operator is registered"
                )
        graph = ir.convenience.extract(self.graph, read, given)
        used = {node.domain for node in graph.all_nodes()} | set(STANDARD)
        for domain in [domain for domain in graph.opset_imports if domain not in used]:
            del graph.opset_imports[domain]
        return ir.Model(graph, ir_version=self.model.ir_version)

    # ---- calls ----

    def _call(self, node: ir.Node) -> Call:
        name = OpName(node.domain, node.op_type)
        return Call(
            node.name or "",
            name,
            tuple(None if value is None else self._spec(node, value) for value in node.inputs),
            tuple(self._spec(node, value) if value.name else None for value in node.outputs),
            tuple((key, _attribute(name, node, value)) for key, value in node.attributes.items()),
        )

    @staticmethod
    def _spec(node: ir.Node, value: ir.Value) -> TensorSpec:
        """Of unknown rank only where nothing depends on it: inputs of a function."""
        try:
            if value.shape is None and value.producer() is not node:
                return spec(ir.Value(name=value.name, type=value.type, shape=ir.Shape([])))
            return spec(value)
        except ModelLoadError as error:
            raise ModelLoadError(f"{place(OpName(node.domain, node.op_type), node.name or '')}: {error}") from None

    def _constants(self) -> dict[str, Array]:
        """Initialisers that functions read, or that the graph answers."""
        wanted = [value for node in self.order if node in self.custom for value in node.inputs if value is not None]
        found: dict[str, Array] = {}
        for value in (*wanted, *self.graph.outputs):
            if value.producer() is None and not value.is_graph_input() and value.const_value is not None:
                array = value.const_value.numpy()
                if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
                    raise Unsupported(
                        f"constant {value.name!r} is {array.dtype.name}, which no custom operator can read"
                    )
                found[value.name or ""] = array.view(np.uint16) if array.dtype.name == "bfloat16" else array
        return found


def reads(node: ir.Node) -> Iterator[ir.Value]:
    """Values of the main graph that a node of it needs, those that its inner graphs capture included."""
    yield from (value for value in node.inputs if value is not None)
    for inner in _inner(node):
        for each in ir.traversal.RecursiveGraphIterator(inner):
            yield from (value for value in each.inputs if value is not None and value.graph is node.graph)


def _inner(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _attribute(name: OpName, node: ir.Node, attribute: ir.Attr) -> Attribute:
    """As a Python function takes it."""
    value: Any = attribute.value
    if attribute.type == ir.AttributeType.TENSOR:
        array: Array = attribute.as_tensor().numpy()
        if array.dtype.kind in "biuf":
            return array
        what = f"a tensor of {array.dtype.name}"
    elif attribute.type in _ATTRIBUTES and not attribute.is_ref():
        if isinstance(value, float):
            return float(value)
        return list(value) if isinstance(value, list | tuple) else value
    else:
        what = attribute.type.name
    raise Unsupported(
        f"{place(name, node.name or '')}: attribute {attribute.name!r} is {what}, expected numbers, texts or a tensor"
    )


def attributes(node: ir.Node) -> dict[str, Attribute]:
    """Of a custom node, as keyword arguments. Raises Unsupported."""
    name = OpName(node.domain, node.op_type)
    return {key: _attribute(name, node, value) for key, value in node.attributes.items()}


def _names(values: list[ir.Value]) -> tuple[str, ...]:
    return tuple(value.name or "" for value in values)
