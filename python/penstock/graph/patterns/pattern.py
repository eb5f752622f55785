"""What a recogniser is: a name, the operators its last node may have, and a function that finds it there.

`Pattern` is a pass. Where it finds its subgraph it writes the one standard operator which means the same; where there
is none at an opset that every library runs, it gives the members a group's name and leaves them. It promises that a
value which anything else sees is never taken away. Called by `recognise`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import onnx_ir as ir

from penstock.graph.editing import Array, Attribute, Edit
from penstock.graph.patterns.matching import keeps_to_itself
from penstock.graph.patterns.opset import raise_opset

GROUP_KEY: Final = "penstock.group"
"""Metadata of a node that belongs to a named subgraph: `attention#3`."""


@dataclass(frozen=True, slots=True)
class Operator:
    """The standard operator that means the same as the subgraph."""

    name: str
    opset: int
    """The first one in which it exists."""

    inputs: tuple[ir.Value | Array, ...]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Match:
    """A subgraph that was found."""

    kind: str
    nodes: frozenset[ir.Node]
    operator: Operator | None = None
    """None: it is only named."""

    last: ir.Node | None = None
    """The node whose outputs others may read; None: the one at which the search began."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """One recogniser."""

    name: str
    roots: tuple[str, ...]
    find: Callable[[Edit, ir.Node], Match | None]

    def __call__(self, model: ir.Model) -> int:
        """Rewrite every occurrence, or name it where it has no name yet; how many were."""
        edit = Edit(model)
        counts = _counts(model)
        position = {node: number for number, node in enumerate(model.graph)}
        found = 0
        # From the end, so that the longest form (with scale and offset, say) is met before its parts.
        for root in reversed(edit.nodes(*self.roots)):
            match = self.find(edit, root) if root.graph is edit.graph else None
            if match is None or not keeps_to_itself(edit, match.nodes, match.last or root):
                continue
            names = {name for node in match.nodes if (name := group(node)) is not None}
            if any(name.partition("#")[0] != match.kind for name in names):
                continue
            # What could only be named before (the rank of some other tensor was not known yet) may be rewritten now.
            # In the graph's order, so that provenance reads as the model was written.
            nodes = sorted(match.nodes, key=position.__getitem__)
            if match.operator is None or not _rewrite(edit, root, nodes, match.operator):
                if names:
                    continue
                number = counts[match.kind] = counts.get(match.kind, -1) + 1
                for node in match.nodes:
                    node.metadata_props[GROUP_KEY] = f"{match.kind}#{number}"
            found += 1
        return found


def group(node: ir.Node) -> str | None:
    """`attention#3` for a member of a named subgraph."""
    return node.metadata_props.get(GROUP_KEY)


def _counts(model: ir.Model) -> dict[str, int]:
    """The highest number given so far, by kind."""
    highest: dict[str, int] = {}
    for node in model.graph:
        kind, _, number = (group(node) or "").partition("#")
        if number.isdecimal():
            highest[kind] = max(highest.get(kind, -1), int(number))
    return highest


def _rewrite(edit: Edit, root: ir.Node, nodes: Sequence[ir.Node], operator: Operator) -> bool:
    """Put the operator in place of the nodes; False, and nothing changed, where the model can't have it."""
    old = root.outputs[0]
    if not raise_opset(edit, operator.opset):
        return False
    inputs = [each if isinstance(each, ir.Value) else edit.constant(old, each) for each in operator.inputs]
    new = edit.insert(root, operator.name, inputs, operator.attributes, nodes)
    new.type, new.shape = old.type, old.shape
    if not edit.forward(old, new):
        node = new.producer()
        assert node is not None
        edit.remove(node)
        return False
    sources = {value.producer() for node in nodes for value in node.inputs if value is not None}
    edit.remove(*nodes)
    for source in sources:
        unused = source is not None and source.graph is edit.graph and source.op_type == "Constant"
        if source is not None and unused and not any(v.uses() or edit.is_output(v) for v in source.outputs):
            edit.remove(source)
    return True
