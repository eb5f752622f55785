"""Convolutions that cut a picture into patches are a copy and a matrix product: a vision transformer's first layer.

The picture comes in planes, and the convolution wants pixels: one copy for that, another for the patches within the
library. Both are one where the patches are cut from the planes, with the filters' numbers in that order. Called by
`lower`.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from penstock.engine.lowered import LoweredGraph, Operand, Step, Value, View, Weight, contiguous
from penstock.graph.editing import Array
from penstock.graph.lowering.builder import numpy_datatype

_SHORTEST: Final = 64
"""Numbers of a patch: below, the product has nothing to do."""

_EPILOGUE: Final = ("activation", "alpha", "beta", "residual")


def cut_pictures(graph: LoweredGraph, weights: Mapping[str, Array]) -> tuple[LoweredGraph, dict[str, Array]]:
    """The graph with such convolutions replaced, and all weights."""
    known, values, steps = dict(weights), dict(graph.values), list(graph.steps)
    stored = dict(graph.weights)
    makers = {name: number for number, step in enumerate(steps) for name in step.outputs}
    readers, kept = graph.readers(), {output.value for output in graph.outputs}
    for number, step in enumerate(graph.steps):
        maker = makers.get(step.inputs[0].value) if step.kind == "conv" else None
        if maker is None or steps[maker].kind != "copy" or step.inputs[0].view is not None:
            continue
        pixels, planes = step.inputs[0].value, steps[maker].inputs[0]
        weight = step.operand("weight")
        if weight is None or weight.view is not None or readers[pixels] != (number,) or pixels in kept:
            continue
        filters = known[weight.value]
        seen = _patches(graph, planes, values[pixels], filters.shape)
        name = f"{step.name}.patches"
        if seen is None or not _only_cuts(step, filters.shape) or name in values or name in known:
            continue
        known[name] = np.ascontiguousarray(filters.transpose(0, 3, 1, 2).reshape(filters.shape[0], -1))
        stored[name] = Weight(tuple(known[name].shape), numpy_datatype(known[name]))
        values[pixels] = Value((*seen.shape[:3], math.prod(seen.shape[3:])), values[pixels].datatype)
        steps[maker] = replace(steps[maker], inputs=(Operand(planes.value, planes.role, seen),))
        inputs = tuple(Operand(name, "weight") if each is weight else each for each in step.inputs)
        attributes = {key: value for key, value in step.attributes.items() if key in _EPILOGUE}
        steps[number] = replace(step, kind="gemm", inputs=inputs, attributes=attributes)
    read = {operand.value for step in steps for operand in step.inputs} | kept
    stored = {name: each for name, each in stored.items() if name in read}
    return replace(graph, steps=tuple(steps), values=values, weights=stored), known


def _only_cuts(step: Step, filters: tuple[int, ...]) -> bool:
    """Windows side by side, no zeros around."""
    attributes = step.attributes
    aside = attributes.get("strides") == filters[1:3] and attributes.get("groups") == 1
    long = filters[1:3] != (1, 1) and math.prod(filters[1:]) >= _SHORTEST
    still = attributes.get("pads") in (None, (0, 0, 0, 0)) and attributes.get("dilations") in (None, (1, 1))
    return long and aside and still and "products" not in attributes


def _patches(graph: LoweredGraph, planes: Operand, pixels: Value, filters: tuple[int, ...]) -> View | None:
    """[N, rows, patches of a row, planes, height, width] of a picture that comes in planes."""
    view, (_, high, wide, depth) = planes.view, filters
    if view is None or len(view.shape) != 4 or view.shape != pixels.shape or view.shape[3] != depth:
        return None
    batch, height, width, _ = view.shape
    image, row, pixel, plane = view.strides
    if plane <= pixel or planes.value in graph.weights or contiguous(view.shape) == view.strides:
        return None
    return View(
        (batch, height // high, width // wide, depth, high, wide),
        (image, high * row, wide * pixel, plane, row, pixel),
        view.offset,
    )
