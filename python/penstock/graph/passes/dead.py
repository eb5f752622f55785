"""Nodes and initialisers that no output needs go away.

Exact: ONNX operators have no effect but their outputs, and a value that an inner graph captures counts as used. A node
stays whole as long as one of its outputs is needed.
"""

from penstock.graph.editing import Edit


def remove_dead(edit: Edit) -> None:
    graph = edit.graph
    for node in reversed(graph):
        if not any(value.uses() or edit.is_output(value) for value in node.outputs):
            edit.remove(node)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not edit.is_output(value) and not value.is_graph_input():
            del graph.initializers[name]
            edit.changed = True
