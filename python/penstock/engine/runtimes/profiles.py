"""Which nodes of a model file a library speaks of when it names layers in ways of its own.

Called by the runtime modules when they profile.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def read(path: Path) -> Any:
    """The ONNX file as a message, without external data."""
    import onnx

    return onnx.load(str(path), load_external_data=False)


def node_names(path: Path) -> dict[str, str]:
    """{tensor: node that computes it}, for libraries that name some nodes after tensors; empty without an ONNX file."""
    if path.suffix != ".onnx" or not path.is_file():
        return {}
    nodes = read(path).graph.node
    own = {node.name for node in nodes}
    return {tensor: node.name for node in nodes for tensor in node.output if node.name and tensor and tensor not in own}


def ancestry(form: Any, fused: Any, suffixes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Which nodes of `form` each node of the graph that a library made of it stands for, by the fused node's name.

    A fused node computes a tensor that the form has, too: one of the same name, or of the node's name less a suffix
    that the library appends. From there the form is walked backwards to the tensors that other fused nodes compute.
    Every node of the form belongs to one fused node at most.
    """
    producers = {tensor: node for node in form.graph.node for tensor in node.output if tensor}
    anchors: dict[str, str] = {}
    for node in fused.graph.node:
        names = [*node.output, *(node.name.removesuffix(suffix) for suffix in suffixes if node.name.endswith(suffix))]
        for tensor in names:
            # A node that only changes the layout comes second: the tensor belongs to the one that computed it.
            if tensor in producers:
                anchors.setdefault(tensor, node.name)
    tensors: dict[str, list[str]] = {}
    for tensor, name in anchors.items():
        tensors.setdefault(name, []).append(tensor)
    claimed: set[int] = set()
    return {
        node.name: tuple(_walk(tensors.get(node.name, ()), producers, anchors, claimed)) for node in fused.graph.node
    }


def _walk(
    tensors: Iterable[str], producers: Mapping[str, Any], anchors: Mapping[str, str], claimed: set[int]
) -> list[str]:
    names: list[str] = []
    waiting = list(tensors)
    while waiting:
        node = producers.get(waiting.pop())
        if node is None or id(node) in claimed:
            continue
        claimed.add(id(node))
        if node.name:
            names.append(node.name)
        waiting += [tensor for tensor in node.input if tensor and tensor not in anchors]
    return names[::-1]
