"""Joins a stem with the max pool behind it: a window over rows of pixels of a picture, and the largest of 3 x 3; and
both with what lays the picture out for it.

The map between the two is the largest of a residual network, and a quarter of it is all that anybody reads. Works on
finished steps, of floats or in eight bits, and only on the form that kernels take. Called by `graph.lowering` and by
`eight_bits`.
"""

from dataclasses import replace
from typing import Final

from penstock.engine.lowered import FLOATS, LoweredGraph, Operand, Step, Value, View

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


def join_pictures(graph: LoweredGraph) -> LoweredGraph:
    """A stem and its pool with the zeros around the picture, which nobody else reads. Of floats."""
    makers = {name: step for step in graph.steps for name in step.outputs}
    readers = graph.readers()
    ends = {output.value for output in graph.outputs}
    joined: dict[str, Step] = {}
    gone: set[str] = set()
    for step in graph.steps:
        x = step.operand("x") if step.kind == "conv_pool" else None
        pad = None if x is None else makers.get(x.value)
        if x is None or pad is None or not _is_plain(graph, pad) or x.value in ends or len(readers[x.value]) != 1:
            continue
        whole = replace(
            step,
            kind=PICTURE,
            inputs=tuple(replace(pad.inputs[0], role="x") if each is x else each for each in step.inputs),
            attributes={**step.attributes, **{name: pad.attributes[name] for name in _ZEROS}},
            nodes=(*pad.nodes, *step.nodes),
        )
        kept = graph.values[x.value]
        if kept.scale is not None or apart(graph, whole)[2].operand("x") != replace(x, value=_BETWEEN):
            continue
        joined[step.name] = whole
        gone |= {pad.name, x.value}
    if not joined:
        return graph
    steps = tuple(joined.get(step.name, step) for step in graph.steps if step.name not in gone)
    return replace(graph, steps=steps, values={name: value for name, value in graph.values.items() if name not in gone})


PICTURE: Final = "picture_pool"
_ZEROS: Final = ("begin", "end", "value")
_BETWEEN: Final = "the picture with zeros around it"


def _is_plain(graph: LoweredGraph, pad: Step) -> bool:
    """Zeros around floats, as they came."""
    if pad.kind != "pad" or pad.program or len(pad.inputs) != 1 or pad.attributes.get("value") != 0.0:
        return False
    x = graph.stored(pad.inputs[0].value)
    return x.datatype in FLOATS and len(graph.shape(pad.inputs[0])) == 4


def apart(graph: LoweredGraph, step: Step) -> tuple[LoweredGraph, Step, Step]:
    """What `join_pictures` has joined: a graph that has what lies between the two, what lays the picture out, and the
    stem with its pool.
    """
    x, weight = step.operand("x"), step.operand("weight")
    assert x is not None, step.name
    assert weight is not None, step.name
    begin, end = (tuple(map(int, _numbers(step, name))) for name in ("begin", "end"))
    shape = tuple(sum(sizes) for sizes in zip(begin, graph.shape(x), end, strict=True))
    out = graph.values[step.outputs[0]]
    row = shape[2] * shape[3]
    seen = (shape[0], 4 * out.shape[1] + graph.shape(weight)[1] - 2, 2 * out.shape[2], _WINDOW)
    windows = Operand(_BETWEEN, "x", View(seen, (shape[1] * row, row, _STEP, 1)))
    value = Value(shape, out.datatype)
    zeros = {name: step.attributes[name] for name in _ZEROS}
    rest = {name: each for name, each in step.attributes.items() if name not in zeros}
    pad = replace(step, kind="pad", name=_BETWEEN, inputs=(x,), outputs=(_BETWEEN,), attributes=zeros)
    inputs = tuple(windows if each is x else each for each in step.inputs)
    pool = replace(step, kind="conv_pool", inputs=inputs, attributes=rest)
    return replace(graph, values={**graph.values, _BETWEEN: value}), pad, pool


def _numbers(step: Step, name: str) -> tuple[float, ...]:
    found = step.attributes[name]
    assert isinstance(found, tuple), name
    return found
