"""What stands before a transformer's blocks: embeddings as one step, and masks read as they come in.

    gather -> add -> layer norm      one step: a row of the table, one of positions, and their norm
    (1 - mask) · lowest -> attention the attention reads the whole numbers itself

Each saves launches on tensors so small that launching them is all they cost. Called by `lower`.
"""

from dataclasses import replace
from typing import Final

from penstock.engine.lowered import Attribute, Instruction, LoweredGraph, Operand, Step, contiguous

_SUM: Final = (Instruction("add", ("i0", "i1")), Instruction("add", ("i1", "i0")))


def join_embeddings(graph: LoweredGraph) -> LoweredGraph:
    joining = _Joining(graph)
    for number, step in enumerate(graph.steps):
        if step.kind == "layer_norm":
            joining.add_sum(number)
        elif step.kind == "pointwise":
            joining.read_mask(number)
    joining = _Joining(joining.result())
    for number, each in enumerate(joining.steps):
        if each is not None and each.kind == "layer_norm":
            joining.add_table(number)
    return joining.result()


class _Joining:
    def __init__(self, graph: LoweredGraph) -> None:
        self._graph = graph
        self.steps: list[Step | None] = list(graph.steps)
        self._makers = {name: number for number, step in enumerate(graph.steps) for name in step.outputs}
        self._readers = graph.readers()
        self._kept = {output.value for output in graph.outputs}

    def add_sum(self, number: int) -> None:
        """sum -> layer norm."""
        step = self._step(number)
        maker, before = self._only_for(step.inputs[0], number)
        if before is None or step.attributes["axes"] != 1 or before.kind != "pointwise" or len(before.inputs) != 2:
            return
        shape = self._graph.values[before.outputs[0]].shape
        if before.program not in ((_SUM[0],), (_SUM[1],)) or self._type(before.outputs[0]) not in _FLOATS:
            return
        for x, added in (before.inputs, tuple(reversed(before.inputs))):
            whole = x.value in self._graph.values and x.view is None and self._graph.shape(x) == shape
            if not whole or self._type(x.value) not in _FLOATS or not self._is_rows(added, shape):
                continue
            inputs = (Operand(x.value, "x"), *step.inputs[1:], replace(added, role="residual"))
            self.steps[maker] = None
            self.steps[number] = replace(step, inputs=inputs, nodes=(*before.nodes, *step.nodes))
            return

    def add_table(self, number: int) -> None:
        """gather -> layer norm."""
        step = self._step(number)
        maker, before = self._only_for(step.inputs[0], number)
        if before is None or before.kind != "gather" or before.attributes["axis"] != 0 or before.inputs[1].view:
            return
        table, indices = before.inputs
        if table.view is not None or len(self._graph.shape(table)) != 2 or step.operand("weight") is None:
            return
        inputs = (replace(table, role="x"), *step.inputs[1:], replace(indices, role="indices"))
        self.steps[maker] = None
        self.steps[number] = replace(step, inputs=inputs, nodes=(*before.nodes, *step.nodes))

    def read_mask(self, number: int) -> None:
        """(a - x) · b -> attention."""
        step = self._step(number)
        numbers = _affine(step)
        out = step.outputs[0]
        readers = self._readers.get(out, ())
        if numbers is None or out in self._kept or not readers:
            return
        x = step.inputs[0]
        if x.view is not None and (x.view.offset or x.view.strides != contiguous(x.view.shape)):
            return
        if x.value not in self._graph.values:
            return
        changed: dict[int, Step] = {}
        for at in readers:
            reader = self._step(at)
            roles = [each.role for each in reader.inputs if each.value == out]
            if reader.kind != "attention" or roles != ["mask"] or "mask_factor" in reader.attributes:
                return
            inputs = []
            for each in reader.inputs:
                if each.value == out and each.view is None:
                    return
                inputs.append(replace(each, value=x.value) if each.value == out else each)
            attributes: dict[str, Attribute] = dict(reader.attributes)
            attributes |= {"mask_from": numbers[0], "mask_factor": numbers[1]}
            changed[at] = replace(reader, inputs=tuple(inputs), attributes=attributes)
        for at, reader in changed.items():
            self.steps[at] = reader
        self.steps[number] = None

    def _is_rows(self, operand: Operand, shape: tuple[int, ...]) -> bool:
        """Rows of what is normalised, or the same few again and again."""
        view = operand.view
        if view is None:
            return self._graph.shape(operand) == shape
        if view.shape != shape or view.strides[-1:] != (1,):
            return False
        dense = contiguous(shape)
        first = next((axis for axis, stride in enumerate(view.strides) if stride), 0)
        return view.strides[first:] == dense[first:] and not any(view.strides[:first])

    def _only_for(self, operand: Operand, number: int) -> tuple[int, Step | None]:
        """What makes a value that nothing else reads."""
        maker = self._makers.get(operand.value)
        alone = self._readers.get(operand.value) == (number,) and operand.value not in self._kept
        if maker is None or operand.view is not None or not alone:
            return 0, None
        return maker, self.steps[maker]

    def _type(self, value: str) -> str:
        return self._graph.values[value].datatype

    def _step(self, number: int) -> Step:
        step = self.steps[number]
        assert step is not None
        return step

    def result(self) -> LoweredGraph:
        steps = tuple(step for step in self.steps if step is not None)
        made = {name for step in steps for name in step.outputs} | {each.name for each in self._graph.inputs}
        values = {name: value for name, value in self._graph.values.items() if name in made}
        return replace(self._graph, steps=steps, values=values)


_FLOATS: Final = ("FP16", "BF16", "FP32")


def _affine(step: Step) -> tuple[float, float] | None:
    """a and b where the step computes (a - x) · b of what it reads."""
    if len(step.inputs) != 1:
        return None
    known = "i0"
    lines = list(step.program)
    if lines and lines[0] == Instruction("to_float", ("i0",)):
        known = "t0"
        del lines[0]
    if [line.name for line in lines] != ["sub", "mul"] or lines[0].arguments[1] != known:
        return None
    before, factor = lines[0].arguments[0], [each for each in lines[1].arguments if not isinstance(each, str)]
    return (float(before), float(factor[0])) if not isinstance(before, str) and len(factor) == 1 else None
