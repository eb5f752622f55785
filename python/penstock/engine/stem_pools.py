"""Joins a stem with the max pool behind it: a window over rows of pixels of a picture, and the largest of 3 x 3.

The map between the two is the largest of a residual network, and a quarter of it is all that anybody reads. Works on
finished steps, of floats or in eight bits, and only on the form that kernels take. Called by `graph.lowering` and by
`eight_bits`.
"""

from dataclasses import replace
from typing import Final

from penstock.engine.lowered import LoweredGraph, Step

_POOL: Final = {"kernel": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1), "dilations": (1, 1)}
_ROWS: Final = {"strides": (2, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1), "groups": 1}
_WINDOW: Final = 32  # numbers of a row of the window
_STEP: Final = 8  # and from one window to the next
# None that makes a smaller number of a larger one: what is the largest before is so behind.
_ENDINGS: Final = ("none", "relu")


def join_stem_pools(graph: LoweredGraph) -> LoweredGraph:
    makers = {name: step for step in graph.steps for name in step.outputs}
    readers = graph.readers()
    ends = {output.value for output in graph.outputs}
    joined: dict[str, Step] = {}
    gone: set[str] = set()
    for step in graph.steps:
        stem = makers.get(step.inputs[0].value) if step.kind == "max_pool" else None
        if stem is None or step.inputs[0].view is not None or not _fits(graph, stem, step):
            continue
        between = stem.outputs[0]
        if between in ends or len(readers[between]) != 1:
            continue
        attributes = {**stem.attributes, **{f"pool_{name}": _POOL[name] for name in ("kernel", "strides", "pads")}}
        nodes = (*stem.nodes, *step.nodes)
        joined[step.name] = replace(
            stem, kind="conv_pool", name=step.name, outputs=step.outputs, attributes=attributes, nodes=nodes
        )
        gone |= {stem.name, between}
    if not joined:
        return graph
    steps = tuple(joined.get(step.name, step) for step in graph.steps if step.name not in gone)
    return replace(graph, steps=steps, values={name: value for name, value in graph.values.items() if name not in gone})


def _fits(graph: LoweredGraph, stem: Step, pool: Step) -> bool:
    if stem.kind != "conv" or stem.operand("residual") is not None:
        return False
    weight, x = stem.operand("weight"), stem.operand("x")
    if weight is None or weight.view is not None or x is None or x.view is None:
        return False
    filters, high, wide, channels = graph.weights[weight.value].shape
    rows = (wide, channels) == (1, _WINDOW) and 2 <= high <= 8 and filters % 16 == 0 and x.view.strides[2] == _STEP
    ends = stem.attributes.get("activation", "none") in _ENDINGS
    if not rows or not ends or any(stem.attributes.get(name) != each for name, each in _ROWS.items()):
        return False
    if any(pool.attributes.get(name) != each for name, each in _POOL.items()):
        return False
    between, out = graph.values[stem.outputs[0]], graph.values[pool.outputs[0]]
    even = between.shape[1:3] == (2 * out.shape[1], 2 * out.shape[2])
    return even and (between.datatype, between.scale) == (out.datatype, out.scale)
