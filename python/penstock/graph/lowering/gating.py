"""Gates made before what they apply to, so that one kernel convolves, gates, adds and puts side by side.

The mean of a pointwise convolution is the pointwise convolution of the mean: a squeeze-and-excite behind one can read
what the convolution reads, with the convolution's matrix folded into its first layer. Then the convolution has the
gate's application for its only reader, and the two become one step; so do several of them under a concatenation.
Called by `lower`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from penstock.engine.lowered import Attribute, LoweredGraph, Operand, Step, Weight
from penstock.graph.editing import Array
from penstock.graph.lowering.builder import numpy_datatype

# As for a gate of its own: beyond it one block is slower than a mean and two layers.
_MOST_GATE_WEIGHTS: Final = 1 << 14
_WIDEST: Final = 128
_MOST_GROUPS: Final = 4
_PIECE: Final = 16
"""What a product's channels are a multiple of."""


def fold_gates(graph: LoweredGraph, weights: Mapping[str, Array]) -> tuple[LoweredGraph, dict[str, Array]]:
    """The graph with every gate that can be read off what its convolution reads, and all weights."""
    known, steps = dict(weights), list(graph.steps)
    made = dict(graph.weights)
    makers = {name: step for step in graph.steps for name in step.outputs}
    for number, step in enumerate(graph.steps):
        if step.kind != "squeeze_excite" or step.inputs[0].view is not None:
            continue
        layer = makers.get(step.inputs[0].value)
        folded = None if layer is None else _folded(step, layer, known)
        if layer is None or folded is None:
            continue
        matrix, bias = folded
        operands = [Operand(layer.inputs[0].value, "x")]
        for role, array in (("first", matrix), ("first_bias", bias)):
            name = f"{step.name}.{role}.of_mean"
            known[name], made[name] = array, Weight(array.shape, numpy_datatype(array))
            operands.append(Operand(name, role))
        operands += [each for each in step.inputs if each.role.startswith("second")]
        steps[number] = replace(step, inputs=tuple(operands))
    return replace(graph, steps=tuple(steps), weights=made), known


def _folded(step: Step, layer: Step, weights: Mapping[str, Array]) -> tuple[Array, Array] | None:
    """The gate's first layer behind the convolution's, as one."""
    first, matrix = step.operand("first"), layer.operand("weight")
    if first is None or matrix is None or not _is_bare_layer(layer):
        return None
    squeeze, convolve = (weights[each.value] for each in (first, matrix))
    squeeze = squeeze.reshape(squeeze.shape[0], -1)
    convolve = convolve.reshape(convolve.shape[0], -1)
    if squeeze.shape[0] * convolve.shape[1] > _MOST_GATE_WEIGHTS:
        return None
    bias = np.zeros(squeeze.shape[0], squeeze.dtype)
    if (own := step.operand("first_bias")) is not None:
        bias = bias + weights[own.value].reshape(-1)
    if (added := layer.operand("bias")) is not None:
        bias = bias + squeeze @ weights[added.value].reshape(-1)
    return np.ascontiguousarray(squeeze @ convolve), bias.astype(squeeze.dtype)


def _is_bare_layer(step: Step) -> bool:
    """A 1 x 1 convolution of a whole map, with nothing behind it but its bias."""
    attributes = step.attributes
    plain = step.kind == "conv" and attributes.get("kernel") == (1, 1) and attributes.get("strides") == (1, 1)
    alone = attributes.get("activation", "none") == "none" and step.operand("residual") is None
    whole = all(each.view is None for each in step.inputs)
    return plain and alone and whole and attributes.get("groups") == 1 and attributes.get("pads") == (0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class _Gated:
    """A pointwise step that applies a gate: which operands play which part."""

    x: Operand
    gate: Operand
    plus: bool
    residual: Operand | None
    times: tuple[int, int]
    """How often the residual's rows and columns are repeated."""


def join_gated_layers(graph: LoweredGraph) -> LoweredGraph:
    """Convolutions with the gates that apply to them, and such beside each other."""
    steps: list[Step | None] = list(graph.steps)
    kept = {output.value for output in graph.outputs}
    makers = {name: number for number, step in enumerate(graph.steps) for name in step.outputs}
    readers = graph.readers()
    for number, step in enumerate(graph.steps):
        gated = _gated(graph, step)
        maker = None if gated is None else makers.get(gated.x.value)
        layer = None if maker is None else steps[maker]
        if gated is None or maker is None or layer is None or not _is_bare_layer(layer):
            continue
        alone = readers[gated.x.value] == (number,) and gated.x.value not in kept
        out, channels = graph.values[step.outputs[0]].shape[3], graph.shape(layer.inputs[0])[3]
        if alone and out <= _WIDEST and channels % _PIECE == 0:
            steps[number], steps[maker] = _joined(step, layer, gated), None
    for number, each in enumerate(steps):
        if each is not None and (parts := _beside(graph, each, steps, makers)) is not None:
            alone = all(readers[part.value] == (number,) and part.value not in kept for part in each.inputs)
            if alone:
                steps[number] = _side_by_side(each, parts)
                for operand in each.inputs:
                    steps[makers[operand.value]] = None
    left = tuple(step for step in steps if step is not None)
    made = {name for step in left for name in step.outputs} | {each.name for each in graph.inputs}
    return replace(graph, steps=left, values={name: value for name, value in graph.values.items() if name in made})


def _joined(step: Step, layer: Step, gated: _Gated) -> Step:
    operands = [replace(each, role=f"0_{each.role}") for each in layer.inputs]
    operands.append(Operand(gated.gate.value, "0_gate"))
    attributes: dict[str, Attribute] = {"times": (1, 1), "plus": gated.plus}
    if gated.residual is not None:
        operands.append(Operand(gated.residual.value, "residual"))
        attributes["residual_times"] = gated.times
    nodes = (*layer.nodes, *step.nodes)
    return Step(step.name, "gated_layers", tuple(operands), step.outputs, attributes, (), nodes)


def _gated(graph: LoweredGraph, step: Step) -> _Gated | None:
    """x times one number for each image and channel, maybe plus x, maybe plus another map."""
    program = step.program
    out = graph.values[step.outputs[0]].shape if step.outputs else ()
    if step.kind != "pointwise" or len(out) != 4 or len(program) not in (1, 2, 3) or program[0].name != "mul":
        return None
    factors = [_read(step, each) for each in program[0].arguments]
    if len(factors) != 2 or factors[0] is None or factors[1] is None:
        return None
    pair = (factors[0], factors[1])
    found = next(((x, gate) for x, gate in (pair, pair[::-1]) if graph.stored(gate.value).shape != out), None)
    if found is None or not _is_gate(graph, found[1], out) or not _is_whole(graph, found[0], out):
        return None
    x, gate = found
    added: list[Operand] = []
    for number, line in enumerate(program[1:]):
        others = [_read(step, each) for each in line.arguments if each != f"t{number}"]
        if line.name != "add" or len(others) != 1 or others[0] is None:
            return None
        added.append(others[0])
    plus = x in added
    if plus:
        added.remove(x)
    if len(added) > 1:
        return None
    times = (1, 1) if not added else _times(graph, added[0], out)
    return None if times is None else _Gated(x, gate, plus, added[0] if added else None, times)


def _read(step: Step, argument: object) -> Operand | None:
    return step.inputs[int(argument[1:])] if isinstance(argument, str) and argument.startswith("i") else None


def _is_gate(graph: LoweredGraph, gate: Operand, out: tuple[int, ...]) -> bool:
    stored, view = graph.stored(gate.value).shape, gate.view
    zeros = view is not None and view.offset == 0 and not any(view.strides[1:-1]) and view.strides[-1] == 1
    return gate.value in graph.values and stored == (out[0], 1, 1, out[3]) and zeros and out[1] * out[2] > 1


def _is_whole(graph: LoweredGraph, operand: Operand, out: tuple[int, ...]) -> bool:
    """All of a map in its own order, maybe with rows and columns cut in runs."""
    if operand.value not in graph.values or graph.values[operand.value].shape != out:
        return False
    view = operand.view
    return view is None or (view.offset == 0 and all(view.strides))


def _times(graph: LoweredGraph, operand: Operand, out: tuple[int, ...]) -> tuple[int, int] | None:
    """How often an added map's rows and columns are repeated; None for what is no map."""
    if _is_whole(graph, operand, out):
        return 1, 1
    return _repeats(graph, operand, out)


def _repeats(graph: LoweredGraph, operand: Operand, out: tuple[int, ...]) -> tuple[int, int] | None:
    view = operand.view
    if view is None or operand.value not in graph.values or len(view.shape) != 6 or view.offset:
        return None
    batch, height, high, width, wide, channels = view.shape
    stored = graph.values[operand.value].shape
    repeated = (view.strides[2], view.strides[4]) == (0, 0) and stored == (batch, height, width, channels)
    return (high, wide) if repeated and out[1:3] == (height * high, width * wide) else None


def _beside(
    graph: LoweredGraph, step: Step, steps: list[Step | None], makers: Mapping[str, int]
) -> list[tuple[Step, tuple[int, int]]] | None:
    """What a concatenation of channels puts side by side, where each is a gated layer, with its repetitions."""
    if step.kind != "concat" or step.attributes.get("axis") != 3 or not 2 <= len(step.inputs) <= _MOST_GROUPS:
        return None
    out = graph.values[step.outputs[0]].shape
    found: list[tuple[Step, tuple[int, int]]] = []
    for operand in step.inputs:
        part = steps[makers[operand.value]] if operand.value in makers else None
        times = (1, 1) if operand.view is None else _repeats(graph, operand, out)
        if part is None or times is None or part.kind != "gated_layers" or part.operand("residual") is not None:
            return None
        found.append((part, times))
    alike = {(graph.values[part.outputs[0]].shape[3], part.attributes["plus"]) for part, _ in found}
    return found if len(alike) == 1 and all(part.operand("1_x") is None for part, _ in found) else None


def _side_by_side(step: Step, parts: list[tuple[Step, tuple[int, int]]]) -> Step:
    operands = [
        replace(each, role=f"{number}_{each.role.partition('_')[2]}")
        for number, (part, _) in enumerate(parts)
        for each in part.inputs
    ]
    attributes: dict[str, Attribute] = {
        "times": tuple(each for _, times in parts for each in times),
        "plus": parts[0][0].attributes["plus"],
    }
    nodes = (*(node for part, _ in parts for node in part.nodes), *step.nodes)
    return Step(step.name, "gated_layers", tuple(operands), step.outputs, attributes, (), nodes)
