"""Queries, keys and values, products of the same rows, as one product of three times the columns.

One launch reads the rows once and fills the chip better; the attention finds each part by strides, so nothing is cut
apart. Exporters that keep three layers (Hugging Face's BERT) come to what others write themselves. Called by `lower`.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from penstock.engine.lowered import LoweredGraph, Operand, Step, Value, View, Weight, contiguous
from penstock.graph.editing import Array
from penstock.graph.lowering.builder import numpy_datatype


def join_siblings(graph: LoweredGraph, weights: Mapping[str, Array]) -> tuple[LoweredGraph, dict[str, Array]]:
    """The graph with such products joined, and all weights."""
    families: dict[tuple[str, View | None], list[int]] = {}
    readers, kept = graph.readers(), {output.value for output in graph.outputs}
    for number, step in enumerate(graph.steps):
        wanted = [graph.steps[at] for at in readers.get(step.outputs[0], ())]
        for_attention = wanted and all(each.kind in ("attention", "channel_attention") for each in wanted)
        if for_attention and step.outputs[0] not in kept and _is_plain(step):
            families.setdefault((step.inputs[0].value, step.inputs[0].view), []).append(number)
    known, steps, values = dict(weights), list[Step | None](graph.steps), dict(graph.values)
    for numbers in families.values():
        if len(numbers) > 1:
            _join(graph, numbers, known, steps, values)
    rest = tuple(step for step in steps if step is not None)
    read = {operand.value for step in rest for operand in step.inputs} | kept
    made = {name for step in rest for name in step.outputs} | {each.name for each in graph.inputs}
    found = {name: array for name, array in known.items() if name in read}
    stored = {name: Weight(tuple(array.shape), numpy_datatype(array)) for name, array in found.items()}
    values = {name: value for name, value in values.items() if name in made}
    return replace(graph, steps=rest, values=values, weights=stored), found


def _is_plain(step: Step) -> bool:
    """A product and its bias, and nothing else."""
    roles = {operand.role for operand in step.inputs}
    whole = all(operand.view is None for operand in step.inputs if operand.role in ("weight", "bias"))
    return step.kind == "gemm" and not step.attributes and roles <= {"x", "weight", "bias"} and whole


def _join(
    graph: LoweredGraph,
    numbers: list[int],
    weights: dict[str, Array],
    steps: list[Step | None],
    values: dict[str, Value],
) -> None:
    members = [graph.steps[number] for number in numbers]
    matrices, biases = zip(*(_numbers(step, weights) for step in members), strict=True)
    outs = [step.outputs[0] for step in members]
    columns = [matrix.shape[0] for matrix in matrices]
    kinds = {(matrix.dtype, graph.values[out].datatype) for matrix, out in zip(matrices, outs, strict=True)}
    name = f"{outs[0]}.joined"
    names = (name, f"{name}.weight", f"{name}.bias")
    if len(kinds) > 1 or any(each in weights or each in values for each in names):
        return
    moved: dict[int, Step] = {}
    for number, step in enumerate(steps):
        if step is None or not any(operand.value in outs for operand in step.inputs):
            continue
        inputs = []
        for operand in step.inputs:
            if operand.value in outs:
                at = outs.index(operand.value)
                shape = graph.values[operand.value].shape
                whole = operand.view or View(shape, contiguous(shape))
                view = _within(whole, columns[at], sum(columns), sum(columns[:at]))
                if view is None:
                    return
                inputs.append(replace(operand, value=name, view=view))
            else:
                inputs.append(operand)
        moved[number] = replace(step, inputs=tuple(inputs))
    weights[names[1]], weights[names[2]] = np.concatenate(matrices), np.concatenate(biases)
    shape = graph.values[outs[0]].shape
    values[name] = Value((*shape[:-1], sum(columns)), graph.values[outs[0]].datatype)
    inputs = [members[0].inputs[0], Operand(names[1], "weight"), Operand(names[2], "bias")]
    nodes = tuple(dict.fromkeys(node for step in members for node in step.nodes))
    for number in numbers:
        steps[number] = None
    for number, step in moved.items():
        steps[number] = step
    steps[numbers[0]] = Step(name, "gemm", tuple(inputs), (name,), nodes=nodes)


def _numbers(step: Step, weights: Mapping[str, Array]) -> tuple[Array, Array]:
    weight, bias = step.operand("weight"), step.operand("bias")
    assert weight is not None
    matrix = weights[weight.value]
    none = np.zeros(matrix.shape[0], matrix.dtype)
    return matrix, none if bias is None else weights[bias.value].reshape(-1).astype(matrix.dtype)


def _within(view: View, columns: int, pitch: int, first: int) -> View | None:
    """A view of rows of `columns` numbers, where they are some of a row of `pitch`; None where it leaves them."""
    strides: list[int] = []
    last = view.offset % columns
    for size, stride in zip(view.shape, view.strides, strict=True):
        whole = stride % columns == 0
        strides.append(stride // columns * pitch if whole else stride)
        last += 0 if whole else (size - 1) * stride
    if last >= columns:
        return None
    return View(view.shape, tuple(strides), view.offset // columns * pitch + view.offset % columns + first)
