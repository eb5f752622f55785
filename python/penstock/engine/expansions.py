"""A 1 x 1 convolution in INT8 and the depthwise one behind it become one step: `expand_depthwise`.

Where that strides, what is between is four times as large as what becomes of it; or it is larger than any cache. The
lowering joins floats so before anything is rounded; integers are joined when their scales are known. Called by
`eight_bits`.
"""

import math
from dataclasses import replace
from typing import Final

from penstock.engine.lowered import Attribute, LoweredGraph, Step

_WIDEST: Final = 64  # channels of the narrow map
_PIECE: Final = 8
_LARGE: Final = 2**24  # numbers of a map that the kernel behind finds in no cache
# Of both layers: what a kernel does to a number while it is rounded.
_ACTIVATIONS: Final = ("relu6", "clip")


def join_expansions_of_integers(graph: LoweredGraph) -> LoweredGraph:
    """The graph with such steps joined; what lies between them is gone."""
    steps: list[Step | None] = list(graph.steps)
    makers = {name: number for number, step in enumerate(graph.steps) for name in step.outputs}
    ends = {each.value for each in graph.outputs}
    readers, gone = graph.readers(), set[str]()
    for number, step in enumerate(graph.steps):
        between = step.inputs[0].value if step.inputs else ""
        maker = makers.get(between)
        if maker is None or between in ends or readers.get(between) != (number,):
            continue
        before = graph.steps[maker]
        if _is_alone(graph, step) and _expands(graph, before):
            steps[maker], steps[number] = None, _joined(graph, before, step)
            gone.add(between)
    values = {name: value for name, value in graph.values.items() if name not in gone}
    return replace(graph, steps=tuple(each for each in steps if each is not None), values=values)


def _is_integer(graph: LoweredGraph, name: str) -> bool:
    value = graph.values.get(name)
    return value is not None and value.datatype == "INT8" and value.scale is not None


def _is_alone(graph: LoweredGraph, step: Step) -> bool:
    """A depthwise convolution that strides, or of a large map, from integers to integers, with nothing added."""
    if step.kind != "conv" or step.operand("residual") is not None or step.inputs[0].view is not None:
        return False
    channels = graph.values[step.outputs[0]].shape[-1]
    depthwise = step.attributes.get("groups") == channels == graph.shape(step.inputs[0])[3] > 1
    large = math.prod(graph.values[step.inputs[0].value].shape) >= _LARGE
    strides = step.attributes.get("strides") in ((2, 2), *(((1, 1),) if large else ()))
    strides = strides and step.attributes.get("dilations") == (1, 1)
    integers = _is_integer(graph, step.inputs[0].value) and _is_integer(graph, step.outputs[0])
    return depthwise and strides and integers and step.attributes.get("activation") in _ACTIVATIONS


def _expands(graph: LoweredGraph, step: Step) -> bool:
    """A 1 x 1 convolution of integers into more channels, with nothing added."""
    weight = step.operand("weight")
    if step.kind != "conv" or weight is None or weight.view is not None or step.operand("scale") is None:
        return False
    if step.operand("residual") is not None or step.inputs[0].view is not None:
        return False
    attributes, (out, high, wide, narrow) = step.attributes, graph.weights[weight.value].shape
    alone = attributes.get("strides") == (1, 1) and not any(_numbers(attributes.get("pads")))
    pointwise = (high, wide) == (1, 1) and attributes.get("groups") == 1 and alone
    integers = _is_integer(graph, step.inputs[0].value) and attributes.get("activation") in _ACTIVATIONS
    return pointwise and integers and narrow < out and narrow <= _WIDEST and narrow % _PIECE == 0


def _numbers(pads: Attribute | None) -> tuple[object, ...]:
    return pads if isinstance(pads, tuple) else ()


def _joined(graph: LoweredGraph, before: Step, step: Step) -> Step:
    roles = {"weight": "first", "bias": "first_bias"}
    inputs = (*(replace(each, role=roles.get(each.role, each.role)) for each in before.inputs), *step.inputs[1:])
    step_worth = graph.values[step.inputs[0].value].scale
    assert step_worth is not None
    attributes: dict[str, Attribute] = {
        **step.attributes,
        "inner": before.attributes["activation"],
        "inner_step": step_worth,
    }
    attributes |= {f"inner_{name}": before.attributes[name] for name in ("alpha", "beta") if name in before.attributes}
    nodes = (*before.nodes, *step.nodes)
    return replace(step, kind="expand_depthwise", inputs=inputs, attributes=attributes, nodes=nodes)
