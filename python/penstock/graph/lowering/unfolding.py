"""Two transposed convolutions whose windows do not overlap, as two layers on each pixel and one copy.

Each pixel becomes a patch that no other pixel touches, and each of the patch's pixels a patch again: a text detector's
last layers. So both are matrices over the channels of the pixel, the second with zeros where another pixel of the patch
is meant, and the values between, the largest of the whole network, never leave the chip. Called by `lower`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from penstock.engine.lowered import Attribute, LoweredGraph, Operand, Step, Value, View, Weight
from penstock.graph.editing import Array
from penstock.graph.lowering.builder import numpy_datatype

_WIDEST: Final = 64
"""Numbers that a pixel becomes: beyond it the zeros cost more than they save."""

_MOST_WEIGHTS: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class _Patches:
    """A transposed convolution that makes a patch of each pixel."""

    step: Step
    weight: Array
    """[in, rows, columns, out]."""

    bias: Array


def unfold(graph: LoweredGraph, weights: Mapping[str, Array]) -> tuple[LoweredGraph, dict[str, Array]]:
    """The graph with such pairs replaced, and all weights."""
    known = dict(weights)
    values, steps = dict(graph.values), list(graph.steps)
    readers, kept = graph.readers(), {output.value for output in graph.outputs}
    for number, step in enumerate(graph.steps):
        first = _patches(step, known)
        if first is None or step.outputs[0] in kept or len(readers.get(step.outputs[0], ())) != 1:
            continue
        (after,) = readers[step.outputs[0]]
        second = _patches(graph.steps[after], known)
        if second is None or second.step.inputs[0].view is not None or not _worth_it(first, second):
            continue
        names, (matrices, operands) = known.keys() | values.keys(), _layers(first, second)
        roles = ("first", "first_bias", "second", "second_bias")
        fresh = {role: f"{second.step.name}.{role}" for role in roles}
        patches = f"{second.step.name}.patches"
        if names & {*fresh.values(), patches}:
            continue
        known |= {fresh[role]: array for role, array in zip(roles, matrices, strict=True)}
        out = values[second.step.outputs[0]]
        batch, height, width, _ = graph.shape(step.inputs[0])
        wide = matrices[2].shape[0]
        values[patches] = Value((batch, height, width, wide), out.datatype, "nhwc")
        high, across, channels = operands
        row = across * channels
        view = View(
            (batch, height, high, width, across, channels),
            (height * width * wide, width * wide, row, wide, channels, 1),
        )
        inputs = (replace(step.inputs[0], role="x"), *(Operand(fresh[role], role) for role in roles))
        nodes = (*step.nodes, *second.step.nodes)
        layers = Step(patches, "mlp", inputs, (patches,), _attributes(step, second.step), (), nodes)
        laid_out = Step(second.step.name, "copy", (Operand(patches, view=view),), second.step.outputs, nodes=nodes)
        del values[step.outputs[0]]
        steps[number : number + 1] = []
        at = steps.index(second.step)
        steps[at : at + 1] = [layers, laid_out]
        return unfold(_of(graph, values, steps, known), known)
    return graph, known


def _of(graph: LoweredGraph, values: dict[str, Value], steps: list[Step], known: dict[str, Array]) -> LoweredGraph:
    read = {operand.value for step in steps for operand in step.inputs} | {each.value for each in graph.outputs}
    weights = {
        name: graph.weights.get(name) or Weight(tuple(array.shape), numpy_datatype(array))
        for name, array in known.items()
        if name in read
    }
    return replace(graph, values=values, steps=tuple(steps), weights=weights)


def _patches(step: Step, weights: Mapping[str, Array]) -> _Patches | None:
    weight, bias = step.operand("weight"), step.operand("bias")
    if step.kind != "conv_transpose" or weight is None or step.operand("residual") is not None:
        return None
    array, attributes = weights[weight.value], step.attributes
    plain = attributes.get("strides") == array.shape[1:3] and attributes.get("groups") == 1
    still = all(not any(_numbers(attributes.get(name))) for name in ("pads", "output_padding"))
    if not plain or not still or any(each != 1 for each in _numbers(attributes.get("dilations"))):
        return None
    return _Patches(step, array, np.zeros(array.shape[3], array.dtype) if bias is None else weights[bias.value])


def _numbers(attribute: Attribute | None) -> tuple[int | float | bool, ...]:
    return attribute if isinstance(attribute, tuple) else (1,)


def _worth_it(first: _Patches, second: _Patches) -> bool:
    hidden = math.prod(first.weight.shape[1:])
    out = math.prod(first.weight.shape[1:3]) * math.prod(second.weight.shape[1:])
    return out <= _WIDEST and (first.weight.shape[0] + out) * hidden <= _MOST_WEIGHTS


def _layers(first: _Patches, second: _Patches) -> tuple[tuple[Array, Array, Array, Array], tuple[int, int, int]]:
    """Both matrices with their biases; rows, columns and channels that a pixel becomes."""
    wide, high, across, middle = first.weight.shape
    _, inner_high, inner_across, channels = second.weight.shape
    # What the second makes lies as rows of the picture do: row of the patch, row within, column, column within.
    shape = (high, inner_high, across, inner_across, channels, high, across, middle)
    apart = np.zeros(shape, second.weight.dtype)
    for row in range(high):
        for column in range(across):
            apart[row, :, column, :, :, row, column, :] = second.weight.transpose(1, 2, 3, 0)
    out = math.prod(shape[:5])
    matrices = (
        np.ascontiguousarray(first.weight.transpose(1, 2, 3, 0).reshape(-1, wide)),
        np.tile(first.bias, high * across),
        apart.reshape(out, -1),
        np.tile(second.bias, out // channels),
    )
    return matrices, (high * inner_high, across * inner_across, channels)


def _attributes(first: Step, second: Step) -> dict[str, Attribute]:
    found: dict[str, Attribute] = {"inner": str(first.attributes.get("activation", "none"))}
    found |= {f"inner_{name}": first.attributes[name] for name in ("alpha", "beta") if name in first.attributes}
    return found | {
        name: second.attributes[name] for name in ("activation", "alpha", "beta") if name in second.attributes
    }
