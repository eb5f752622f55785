"""Cuts a graph into regions: the pieces that one kernel, or one call of a library, should execute.

Every node but constants belongs to exactly one region, and regions can run one after the other in the order given.
A region has one way out: every value inside it is read inside it only, but for the outputs of its last node. From that
it follows that no two regions can wait for each other: were there a circle of regions, each one's last node would come
before the next one's, and so before itself. Merging a region into the only one that reads it keeps the property, and
is the only move here, so that no order of the rules below can break it.

Groups that `patterns` named come first, then epilogues of convolutions and matrix products, chains of elementwise
operators, and views, which cost nothing and go with a neighbour. Called by build for reports, `penstock inspect`, and
the GPU target.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

import onnx_ir as ir

from penstock.engine.plan import Region
from penstock.graph.editing import is_operator
from penstock.graph.patterns.matching import cone, data_inputs
from penstock.graph.patterns.pattern import group
from penstock.graph.region_kinds import HEAVY, MOVES, NAMED_ACTIVATIONS, POINTWISE, VIEWS, label
from penstock.graph.sources import sources

# Sizes and shapes are numbers beside the data, until one of these makes a tensor of them.
_FILLS: Final = ("ConstantOfShape", "Expand", "Range", "RandomNormal", "RandomUniform", "Tile")
# Beyond this many operators a chain's name says less than "elementwise".
_NAMED: Final = 6
# Nodes; an attention with its masks and views has some forty. Keeps the time to cut a graph in proportion to its size.
_LARGEST: Final = 256


@dataclass(frozen=True, slots=True)
class Piece:
    """A region with the graph's own nodes."""

    kind: str
    nodes: tuple[ir.Node, ...]
    """In the graph's order; others read only the outputs of the last."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What became of a model's layers."""

    layers_before: int
    """Nodes that compute: no constants, no Identity, no arithmetic on shapes."""

    regions: tuple[Region, ...]


def regions(model: ir.Model) -> tuple[Region, ...]:
    """The main graph's regions in execution order, with the names of the source model's nodes."""
    return tuple(
        Region(
            name=piece.nodes[-1].name or f"region{number}",
            kind=piece.kind,
            nodes=tuple(dict.fromkeys(name for node in piece.nodes for name in sources(node))),
        )
        for number, piece in enumerate(cut(model))
    )


def listing(before: ir.Model, after: ir.Model) -> Listing:
    """How many layers a model has, and the regions of what it was made into."""
    return Listing(len(layers(before)), regions(after))


def layers(model: ir.Model) -> tuple[ir.Node, ...]:
    """The nodes that compute something."""
    shapes = shape_arithmetic(model.graph)
    return tuple(node for node in model.graph if not is_operator(node, "Constant", "Identity") and node not in shapes)


def shape_arithmetic(graph: ir.Graph) -> frozenset[ir.Node]:
    """Nodes that compute with sizes only: Shape, Size, and what depends on nothing else."""
    found: set[ir.Node] = set()
    for node in graph:
        inputs = list(data_inputs(node))
        sizes = all(value.producer() in found for value in inputs) and bool(inputs)
        if is_operator(node, "Shape", "Size") or (sizes and not is_operator(node, *_FILLS)):
            found.add(node)
    return frozenset(found)


def cut(model: ir.Model) -> tuple[Piece, ...]:
    """The main graph's regions in execution order, with their nodes."""
    partition = _Partition(model.graph)
    partition.take_in(_Role.SIZES)
    partition.take_in(_Role.DEQUANTIZE)
    partition.add_epilogues()
    partition.join_chains()
    partition.attach_views()
    return partition.pieces()


class _Role(Enum):
    """What may be merged with a unit."""

    HEAVY = auto()
    POINTWISE = auto()
    MOVE = auto()
    SIZES = auto()
    DEQUANTIZE = auto()
    OTHER = auto()


@dataclass(slots=True, eq=False)
class _Unit:
    """A region in the making."""

    role: _Role
    nodes: list[ir.Node]
    last: ir.Node
    parts: list[str]
    """Names of what it computes, in order; views and arithmetic on shapes say nothing."""


class _Partition:
    """Every node in one unit; units grow by merging into the only unit that reads them."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._nodes = [node for node in graph if not is_operator(node, "Constant")]
        self._position = {node: position for position, node in enumerate(self._nodes)}
        self._units: dict[ir.Node, _Unit] = {}
        members: dict[str, list[ir.Node]] = {}
        for node in self._nodes:
            if (name := group(node)) is not None:
                members.setdefault(name, []).append(node)
        for name, nodes in members.items():
            whole = cone(nodes, self._position.__getitem__)
            if len(whole) > 1:  # what an edit left of a group is a node like any other
                self._add_group(name.partition("#")[0], whole)
        sizes = shape_arithmetic(graph)
        for node in self._nodes:
            if node not in self._units:
                role = _Role.SIZES if node in sizes else _role(node)
                self._units[node] = _Unit(role, [node], node, [] if role is _Role.SIZES else [label(node)])

    def take_in(self, role: _Role) -> None:
        """Merge what prepares something else into what it prepares, when that is one unit."""
        for unit in self._backwards(role):
            follower = self._follower(unit)
            if follower is not None:
                self._prepend(unit, follower)

    def add_epilogues(self) -> None:
        """Elementwise operators after a heavy one join it. Of two that meet in an Add, the later one takes it."""
        for unit in self._backwards(_Role.HEAVY):
            grown = unit
            while (follower := self._follower(grown)) is not None:
                if follower.role is _Role.POINTWISE and _same_size(grown.last, follower.last):
                    parts = [*grown.parts, *follower.parts]
                elif follower.role is _Role.MOVE and all(is_operator(node, *VIEWS) for node in follower.nodes):
                    parts = grown.parts
                elif is_operator(follower.last, "MaxPool") and len(follower.nodes) == 1 and _is_stem(unit):
                    parts = [*grown.parts, *follower.parts]
                else:
                    break
                grown = self._merge(grown, follower, _Role.HEAVY, parts)

    def join_chains(self) -> None:
        """Elementwise operators that only the next one reads join it."""
        for unit in self._backwards(_Role.POINTWISE):
            follower = self._follower(unit)
            if follower is not None and follower.role is _Role.POINTWISE and _same_size(unit.last, follower.last):
                self._merge(unit, follower, _Role.POINTWISE, [*unit.parts, *follower.parts])

    def attach_views(self) -> None:
        """Views in a row are one; it goes with what makes its data if nothing else reads that, else with its reader."""
        for unit in self._backwards(_Role.MOVE):
            follower = self._follower(unit)
            if follower is not None and follower.role is _Role.MOVE:
                self._merge(unit, follower, _Role.MOVE, [*unit.parts, *follower.parts])
        for unit in reversed(self._backwards(_Role.MOVE)):
            first = unit.nodes[0].inputs[0]  # what the run moves: arithmetic on its shapes was put behind
            maker = self._units.get(producer) if first is not None and (producer := first.producer()) else None
            if maker is not None and maker.role is not _Role.SIZES and self._follower(maker) is unit:
                self._merge(maker, unit, maker.role, maker.parts)
                continue
            follower = self._follower(unit)
            if follower is not None and follower.role is not _Role.SIZES:
                self._prepend(unit, follower)

    def pieces(self) -> tuple[Piece, ...]:
        """All members of a unit lead to its last node, so that the order of the last nodes is one of execution."""
        units = sorted(dict.fromkeys(self._units.values()), key=lambda unit: self._position[unit.last])
        return tuple(Piece(_kind(unit), tuple(sorted(unit.nodes, key=self._position.__getitem__))) for unit in units)

    def _add_group(self, kind: str, nodes: tuple[ir.Node, ...]) -> None:
        role = _Role.POINTWISE if kind in NAMED_ACTIVATIONS else _GROUP_ROLES.get(kind, _Role.OTHER)
        unit = _Unit(role, list(nodes), nodes[-1], [kind])
        self._units.update(dict.fromkeys(nodes, unit))

    def _backwards(self, role: _Role) -> list[_Unit]:
        units = dict.fromkeys(self._units[node] for node in reversed(self._nodes))
        return [unit for unit in units if unit.role is role]

    def _follower(self, unit: _Unit) -> _Unit | None:
        """The only unit that reads what this one computes; None when there are several, or an output is the graph's.

        None as well when the two were too large for one kernel.
        """
        readers: set[_Unit] = set()
        for value in unit.last.outputs:
            if value.is_graph_output():
                return None
            for use in value.uses():
                if use.node.graph is not self._graph:
                    return None
                readers.add(self._units[use.node])
        follower = readers.pop() if len(readers) == 1 else None
        return follower if follower is not None and len(unit.nodes) + len(follower.nodes) <= _LARGEST else None

    def _prepend(self, unit: _Unit, follower: _Unit) -> None:
        """Let the follower have the unit without becoming anything else."""
        merged = _Unit(follower.role, [*follower.nodes, *unit.nodes], follower.last, follower.parts)
        self._units.update(dict.fromkeys(merged.nodes, merged))

    def _merge(self, unit: _Unit, follower: _Unit, role: _Role, parts: list[str]) -> _Unit:
        merged = _Unit(role, [*unit.nodes, *follower.nodes], follower.last, list(parts))
        self._units.update(dict.fromkeys(merged.nodes, merged))
        return merged


_GROUP_ROLES: Final = {"squeeze_excite": _Role.HEAVY}  # its multiplication takes a residual Add and an activation


def _role(node: ir.Node) -> _Role:
    rows = ((_Role.HEAVY, HEAVY), (_Role.POINTWISE, POINTWISE), (_Role.MOVE, MOVES))
    if is_operator(node, "DequantizeLinear"):
        return _Role.DEQUANTIZE
    return next((role for role, operators in rows if is_operator(node, *operators)), _Role.OTHER)


def _kind(unit: _Unit) -> str:
    if not unit.parts:
        return "shape" if unit.role is _Role.SIZES else "+".join(dict.fromkeys(map(label, unit.nodes)))
    if unit.role is _Role.POINTWISE and len(unit.parts) > _NAMED:
        return "elementwise"
    return "+".join(unit.parts)


def _is_stem(unit: _Unit) -> bool:
    """Whether it reads the model's input: the pooling behind such a convolution is small enough to go along."""
    return any(value.is_graph_input() for node in unit.nodes for value in data_inputs(node))


def _same_size(node: ir.Node, following: ir.Node) -> bool:
    """Whether, for all that is known, the following one's output is as large: nothing is broadcast to it."""
    before, after = node.outputs[0].shape, following.outputs[0].shape
    if before is None or after is None:
        return True
    return len(before) == len(after) and not any(_smaller(a, b) for a, b in zip(before, after, strict=True))


def _smaller(size: int | ir.SymbolicDim, other: int | ir.SymbolicDim) -> bool:
    if isinstance(size, int) and isinstance(other, int):
        return size != other
    return size == 1
