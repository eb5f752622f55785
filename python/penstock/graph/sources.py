"""Provenance: which nodes of the model as it came does a node of a changed graph stand for.

Kept in the node's own metadata (`penstock.source`, a JSON list of names), so that it survives saving, copying and other
people's passes. A node without the entry stands for itself. Passes that merge nodes call `inherit`; reports and regions
call `sources`.
"""

import json
from collections.abc import Iterable
from typing import Final

import onnx_ir as ir

SOURCE_KEY: Final = "penstock.source"


def sources(node: ir.Node) -> tuple[str, ...]:
    """Names of the source model's nodes that this one stands for, in the order they were merged."""
    entry = node.metadata_props.get(SOURCE_KEY)
    if entry is None:
        return (node.name,) if node.name else ()
    try:
        names = json.loads(entry)
    except ValueError:
        names = None
    if not isinstance(names, list):  # written by someone else: the node stands for itself
        return (node.name,) if node.name else ()
    return tuple(str(name) for name in names)


def inherit(node: ir.Node, merged: Iterable[ir.Node]) -> None:
    """Let `node` stand for all of `merged`, in their order; an old node names itself among them to keep its own."""
    names = dict.fromkeys(name for each in list(merged) for name in sources(each))
    node.metadata_props[SOURCE_KEY] = json.dumps(list(names))


def mark(graph: ir.Graph) -> None:
    """Write the entry to every node that lacks it: the graph as it is now is the source."""
    for node in graph.all_nodes():
        if SOURCE_KEY not in node.metadata_props:
            node.metadata_props[SOURCE_KEY] = json.dumps([node.name] if node.name else [])
