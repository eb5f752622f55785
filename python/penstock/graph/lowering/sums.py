"""What is added behind a product is added by the norm that reads the sum, where there are many rows.

    s = x w^T + b + r;  n = norm(s)     becomes     y = x w^T + b;  n, s = norm(y + r)

Libraries make y in one kernel, and s only with another behind it; the norm reads r while it waits for memory anyway.
Of few rows a kernel of ours makes s in one, and `norms` has the norm inside as well. Called by `lower`.
"""

import math
from dataclasses import replace
from typing import Final

from penstock.engine.lowered import LoweredGraph, Operand, Step, contiguous
from penstock.graph.lowering.norms import MOST_ROWS

_FLOATS: Final = ("FP16", "BF16", "FP32")


def carry_sums(graph: LoweredGraph) -> LoweredGraph:
    """The graph with such sums moved."""
    steps = list(graph.steps)
    makers = {name: number for number, step in enumerate(steps) for name in step.outputs}
    readers, kept = graph.readers(), {output.value for output in graph.outputs}
    values = dict(graph.values)
    for number, norm in enumerate(graph.steps):
        maker = makers.get(norm.inputs[0].value) if norm.kind == "layer_norm" else None
        if maker is None or norm.inputs[0].value in kept or not _is_bare(norm):
            continue
        product = steps[maker]
        residual = product.operand("residual")
        (total,) = product.outputs[:1]
        if total != norm.inputs[0].value:  # another norm of the same sum has moved it already
            continue
        others = [each for each in readers[total] if each != number]
        shape = graph.values[total].shape
        if (
            residual is None
            or not _is_sum(product)
            or math.prod(shape[:-1]) <= MOST_ROWS
            or min(others, default=number) < number
        ):
            continue
        if not _lies_so(graph, residual, shape) or [each.value for each in norm.inputs].count(total) != 1:
            continue
        alone = f"{total}.alone"
        while alone in values or alone in graph.weights:
            alone += "."
        values[alone] = values[total]
        inputs = tuple(each for each in product.inputs if each is not residual)
        attributes = {name: value for name, value in product.attributes.items() if name != "residual"}
        steps[maker] = replace(product, inputs=inputs, outputs=(alone,), attributes=attributes)
        steps[number] = replace(
            norm,
            inputs=(Operand(alone, "x"), *norm.inputs[1:], residual),
            outputs=(*norm.outputs, total) if others else norm.outputs,
        )
        if not others:
            del values[total]
    return replace(graph, steps=tuple(steps), values=values)


def _is_bare(norm: Step) -> bool:
    """Over rows, of one value as it lies."""
    roles = {operand.role for operand in norm.inputs}
    return norm.attributes["axes"] == 1 and norm.inputs[0].view is None and roles == {"x", "weight", "bias"}


def _is_sum(step: Step) -> bool:
    return step.kind == "gemm" and step.attributes.get("activation", "none") == "none"


def _lies_so(graph: LoweredGraph, operand: Operand, shape: tuple[int, ...]) -> bool:
    """Every row of its own, one after the other, and made by a step or come in as numbers of the same kinds."""
    stored = graph.stored(operand.value)
    if stored.datatype not in _FLOATS or operand.value in graph.weights:
        return False
    view = operand.view
    if view is None:
        return stored.shape == shape
    return view.shape == shape and view.strides == contiguous(shape) and not view.offset
