"""Two 1 x 1 convolutions with nothing between them are one, where the narrow map between them saves too little.

A mobile network's first block ends in 16 channels that the next widens to 96: on maps this large, moving the 16 costs
more than multiplying 32 by 96 does. Called by `lower`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from penstock.engine.lowered import LoweredGraph, Operand, Step, Weight
from penstock.graph.editing import Array
from penstock.graph.lowering.builder import numpy_datatype

_MOST_WEIGHTS: Final = 1 << 13
_MOST_WORK: Final = 1.75
"""Times the multiplications of both."""


def merge_layers(graph: LoweredGraph, weights: Mapping[str, Array]) -> tuple[LoweredGraph, dict[str, Array]]:
    """The graph with such pairs as one convolution, and all weights."""
    known, made = dict(weights), dict(graph.weights)
    steps: list[Step | None] = list(graph.steps)
    makers = {name: number for number, step in enumerate(graph.steps) for name in step.outputs}
    readers, kept = graph.readers(), {output.value for output in graph.outputs}
    for number, step in enumerate(graph.steps):
        between = step.inputs[0].value if step.inputs else ""
        before = steps[makers[between]] if between in makers else None
        if before is None or readers[between] != (number,) or between in kept or not _is_layer(step):
            continue
        if between in (operand.value for operand in step.inputs[1:]):  # added to what it makes of it
            continue
        if not _is_layer(before) or before.attributes.get("activation", "none") != "none" or _added(before):
            continue
        first, second = (_matrix(each, known) for each in (before, step))
        merged = second @ first
        if merged.size > min(_MOST_WEIGHTS, _MOST_WORK * (first.size + second.size)):
            continue
        bias = np.zeros(merged.shape[0], merged.dtype)
        for each, matrix in ((before, second), (step, np.eye(len(second), dtype=merged.dtype))):
            if (operand := each.operand("bias")) is not None:
                bias = bias + matrix @ known[operand.value].reshape(-1)
        operands = [before.inputs[0]]
        for role, array in (("weight", merged.reshape(len(merged), 1, 1, -1)), ("bias", bias.astype(merged.dtype))):
            name = f"{step.name}.{role}.merged"
            known[name], made[name] = np.ascontiguousarray(array), Weight(array.shape, numpy_datatype(array))
            operands.append(Operand(name, role))
        operands += [each for each in step.inputs[1:] if each.role not in ("weight", "bias")]
        steps[makers[between]] = None
        steps[number] = replace(step, inputs=tuple(operands), nodes=(*before.nodes, *step.nodes))
    left = tuple(step for step in steps if step is not None)
    names = {name for step in left for name in step.outputs} | {each.name for each in graph.inputs}
    values = {name: value for name, value in graph.values.items() if name in names}
    return replace(graph, steps=left, values=values, weights=made), known


def _is_layer(step: Step) -> bool:
    attributes = step.attributes
    plain = step.kind == "conv" and attributes.get("kernel") == (1, 1) and attributes.get("strides") == (1, 1)
    whole = attributes.get("groups") == 1 and attributes.get("pads") == (0, 0, 0, 0) and "products" not in attributes
    return plain and whole and all(operand.view is None for operand in step.inputs)


def _added(step: Step) -> bool:
    return step.operand("residual") is not None


def _matrix(step: Step, weights: Mapping[str, Array]) -> Array:
    weight = step.operand("weight")
    assert weight is not None
    array = weights[weight.value]
    return array.reshape(array.shape[0], -1)
