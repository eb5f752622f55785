"""A product of two matrices of the data stores its result in the order of axes that what reads it wants.

Heads that are brought together again behind attention, or put last for a layer across them, are a copy otherwise.
Called by `lower`.
"""

from dataclasses import replace

from penstock.engine.lowered import LoweredGraph, Operand, Step, contiguous
from penstock.engine.plan import Shape


def store_in_order(graph: LoweredGraph) -> LoweredGraph:
    readers, kept = graph.readers(), {output.value for output in graph.outputs}
    steps: list[Step | None] = list(graph.steps)
    for number, step in enumerate(graph.steps):
        if step.kind != "matmul" or step.attributes or step.outputs[0] in kept:
            continue
        value = graph.values[step.outputs[0]]
        reader = graph.steps[readers[step.outputs[0]][0]] if len(readers[step.outputs[0]]) == 1 else None
        if reader is None or reader.kind != "copy" or len(reader.inputs) != 1:
            continue
        made, order = graph.values[reader.outputs[0]], _order(value.shape, reader.inputs[0])
        if order is None or (made.datatype, made.scale) != (value.datatype, value.scale):
            continue
        if made.shape != tuple(value.shape[axis] for axis in order):
            continue
        steps[number] = None
        nodes = (*step.nodes, *reader.nodes)
        at = readers[step.outputs[0]][0]
        steps[at] = replace(reader, kind="matmul", inputs=step.inputs, attributes={"order": order}, nodes=nodes)
    left = tuple(step for step in steps if step is not None)
    names = {name for step in left for name in step.outputs} | {each.name for each in graph.inputs}
    return replace(graph, steps=left, values={name: each for name, each in graph.values.items() if name in names})


def _order(stored: Shape, seen: Operand) -> tuple[int, ...] | None:
    """Which stored axis each of the view's is; None where the view is more than another order of them."""
    if seen.view is None or seen.view.offset or sorted(seen.view.shape) != sorted(stored):
        return None
    axes = dict(zip(zip(contiguous(stored), stored, strict=True), range(len(stored)), strict=True))
    found = [axes.get(each) for each in zip(seen.view.strides, seen.view.shape, strict=True)]
    order = tuple(each for each in found if each is not None)
    return order if sorted(order) == list(range(len(stored))) else None
