"""Joins steps: activations written in two, epilogues of layers, chains of elementwise steps.

A step takes in the pointwise step behind it when that is its result's only reader, sees it as it is stored, and makes a
value of the same shape. The joined step stands where the later one stood, so that everything it reads is there. Called
by `lower` on the finished graph; what it can't join is left as it is.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from penstock.engine.lowered import (
    FLOATS,
    Attribute,
    Instruction,
    LoweredGraph,
    Number,
    Operand,
    Step,
    Value,
    View,
    contiguous,
)
from penstock.engine.plan import Shape

_HEAVY: Final = ("conv", "conv_transpose", "gemm")
# Instructions that an epilogue knows; those with numbers give alpha and beta.
_ACTIVATIONS: Final = (
    *("relu", "relu6", "silu", "quick_gelu", "gelu", "gelu_tanh", "sigmoid", "hard_swish", "tanh"),
    *("clip", "hard_sigmoid", "leaky_relu", "star_relu"),
)
# Of one kernel: instructions, operands, and values that those are seen in.
_LONGEST: Final = 128
_MOST_OPERANDS: Final = 128
_MOST_VALUES: Final = 32
_QUICK_GELU: Final = 1.702
_SQUARES: Final = (("pow", ("i0", 2)), ("mul", ("i0", "i0")))


def fuse(graph: LoweredGraph) -> LoweredGraph:
    fusing = _Fusing(graph)
    fusing.name_activations()
    fusing.see_as_stored()
    fusing.add_epilogues()
    fusing.join_chains()
    fusing.compute_while_padding()
    return fusing.result()


class _Fusing:
    def __init__(self, graph: LoweredGraph) -> None:
        self._graph = graph
        self._steps: list[Step | None] = list(graph.steps)
        self._kept = {output.value for output in graph.outputs}

    def name_activations(self) -> None:
        """x * sigmoid(x), in two steps, is silu; the square of what ReLU leaves, scaled and shifted, star_relu."""
        for number, step in enumerate(self._steps):
            if step is not None and step.kind == "pointwise" and (squared := self._star_relu(step)) is not None:
                maker, self._steps[number] = squared
                self._steps[maker] = None
            if step is None or [line.name for line in step.program] != ["mul"] or len(step.inputs) != 2:
                continue
            for x, gate in (step.inputs, tuple(reversed(step.inputs))):
                if (joined := self._silu(step, x, gate)) is not None:
                    makers, self._steps[number] = joined
                    for maker in makers:
                        self._steps[maker] = None
                    break

    def _silu(self, step: Step, x: Operand, gate: Operand) -> tuple[tuple[int, ...], Step] | None:
        """The steps that go, and the one in place of `step`; None where it is no product of x and its gate."""
        sigmoid = self._only_for(gate)
        if sigmoid is None or sigmoid[1].program != (Instruction("sigmoid", ("i0",)),):
            return None
        (inner,), nodes = sigmoid[1].inputs, (*sigmoid[1].nodes, *step.nodes)
        if inner == x:
            return (sigmoid[0],), replace(step, inputs=(x,), program=(Instruction("silu", ("i0",)),), nodes=nodes)
        scaled = self._only_for(inner)
        if scaled is None or scaled[1].inputs != (x,) or not _is_quick(scaled[1]):
            return None
        program, nodes = (Instruction("quick_gelu", ("i0",)),), (*scaled[1].nodes, *nodes)
        return (scaled[0], sigmoid[0]), replace(step, inputs=(x,), program=program, nodes=nodes)

    def _star_relu(self, step: Step) -> tuple[int, Step] | None:
        """The step that goes, and the one in place of `step`: a square of a ReLU, or a number behind one."""
        before = self._only_for(step.inputs[0]) if len(step.inputs) == 1 else None
        floats = self._graph.values[step.outputs[0]].datatype in FLOATS
        if before is None or len(before[1].program) != 1 or len(step.program) != 1 or not floats:
            return None
        number, maker = before
        line = _star_relu(maker.program[0], step.program[0])
        nodes = (*maker.nodes, *step.nodes)
        return (number, replace(step, inputs=maker.inputs, program=(line,), nodes=nodes)) if line is not None else None

    def _only_for(self, operand: Operand) -> tuple[int, Step] | None:
        """The pointwise step that makes an operand which nothing else reads."""
        number = self._maker(operand.value) if operand.view is None and operand.value not in self._kept else None
        step = self._steps[number] if number is not None else None
        if number is None or step is None or step.kind != "pointwise" or len(self._readers(operand.value)) != 1:
            return None
        return number, step

    def see_as_stored(self) -> None:
        """A pointwise step that sees a layer's result in another shape, as tokens in place of a map, takes the shape
        that it is stored in; what reads the step sees the shape that it had.
        """
        values = dict(self._graph.values)
        for number, step in enumerate(self._steps):
            made = step.outputs[0] if step is not None and step.kind == "pointwise" else None
            if step is None or made is None or made in self._kept:
                continue
            stored = next((value for each in step.inputs if (value := self._stored(each, values, made))), None)
            inputs = [_seen_in(each, values, stored.shape) for each in step.inputs] if stored is not None else []
            if stored is None or any(each is None for each in inputs):
                continue
            shape = values[made].shape
            values[made] = replace(values[made], shape=stored.shape, layout=stored.layout)
            self._steps[number] = replace(step, inputs=tuple(each for each in inputs if each is not None))
            self._show(made, View(shape, contiguous(shape)))
        self._graph = replace(self._graph, values=values)

    def _stored(self, operand: Operand, values: Mapping[str, Value], made: str) -> Value | None:
        """What a layer, or a step like this one, makes for this reader alone, if it is seen in another shape."""
        view, shape = operand.view, values[made].shape
        if view is None or operand.value not in values or operand.value in self._kept:
            return None
        maker = self._maker(operand.value)
        before = self._steps[maker] if maker is not None else None
        if before is None or before.kind not in (*_HEAVY, "pointwise") or len(before.outputs) != 1:
            return None
        whole = view == View(shape, contiguous(shape)) and math.prod(values[operand.value].shape) == math.prod(shape)
        return values[operand.value] if whole and len(self._readers(operand.value)) == 1 else None

    def _show(self, value: str, view: View) -> None:
        """Let what reads a value whole see it so."""
        for number in self._readers(value):
            step = self._steps[number]
            assert step is not None
            inputs = (
                replace(each, view=view) if each.value == value and each.view is None else each for each in step.inputs
            )
            self._steps[number] = replace(step, inputs=tuple(inputs))

    def add_epilogues(self) -> None:
        """Of two layers that meet in an addition the later one takes it."""
        for number in reversed(range(len(self._steps))):
            place = number
            while (step := self._steps[place]) is not None and step.kind in _HEAVY:
                follower = self._follower(place)
                joined = self._with_epilogue(step, *follower) if follower is not None else None
                if follower is None or joined is None or not self._plain_residual(joined):
                    break
                self._steps[place], place = None, follower[0]
                self._steps[place] = joined

    def join_chains(self) -> None:
        for number, step in enumerate(self._steps):
            follower = self._follower(number) if step is not None and step.kind == "pointwise" else None
            joined = _joined(step, follower[1], follower[2]) if step is not None and follower is not None else None
            if joined is not None and follower is not None and _fits_a_kernel(joined):
                self._steps[number], self._steps[follower[0]] = None, joined

    def compute_while_padding(self) -> None:
        """What is a number for each channel away from a picture is computed where the picture gets its zeros."""
        for number, step in enumerate(self._steps):
            if step is None or step.kind != "pad" or step.program or step.attributes["value"] != 0.0:
                continue
            (x,) = step.inputs
            maker = self._maker(x.value) if x.value not in self._kept else None
            before = self._steps[maker] if maker is not None else None
            if maker is None or before is None or before.kind != "pointwise" or len(self._readers(x.value)) != 1:
                continue
            inputs = self._seen_through(before, x)
            if inputs is not None:
                nodes = (*before.nodes, *step.nodes)
                self._steps[maker] = None
                self._steps[number] = replace(step, inputs=inputs, program=before.program, nodes=nodes)

    def _seen_through(self, step: Step, seen: Operand) -> tuple[Operand, ...] | None:
        """A pointwise step's operands, one value and weights of a number for each channel, as a view of its result
        shows them; None where there is more to it.
        """
        shape = self._graph.values[seen.value].shape
        view = seen.view or View(shape, contiguous(shape))
        values = [each for each in step.inputs if each.value in self._graph.values]
        if len(values) != 1 or len(view.shape) != 4 or view.offset or values[0].view is not None:
            return None
        if self._graph.values[values[0].value].shape != shape:
            return None
        found: list[Operand] = []
        for each in step.inputs:
            if each is values[0]:
                found.append(Operand(each.value, "x", view))
                continue
            # The one axis along which the numbers change must be the channels, as they are seen.
            strides = each.view.strides if each.view is not None and each.view.shape == shape else ()
            moving = [axis for axis, stride in enumerate(strides) if stride and shape[axis] != 1]
            channels = [axis for axis in moving if contiguous(shape)[axis] == view.strides[-1]]
            if each.view is None or each.view.offset or len(moving) != 1 or moving != channels:
                return None
            if strides[moving[0]] != 1 or shape[moving[0]] != view.shape[-1]:
                return None
            found.append(Operand(each.value, "", View(view.shape, (0, 0, 0, 1))))
        return tuple(found)

    def result(self) -> LoweredGraph:
        steps = tuple(step for step in self._steps if step is not None)
        steps = self._without_dead(steps)
        read = {operand.value for step in steps for operand in step.inputs} | self._kept
        made = {name for step in steps for name in step.outputs} | {each.name for each in self._graph.inputs}
        return replace(
            self._graph,
            steps=steps,
            values={name: value for name, value in self._graph.values.items() if name in made},
            weights={name: weight for name, weight in self._graph.weights.items() if name in read},
        )

    def _without_dead(self, steps: Sequence[Step]) -> tuple[Step, ...]:
        needed = set(self._kept)
        alive: list[Step] = []
        for step in reversed(steps):
            if needed & set(step.outputs):
                alive.append(step)
                needed |= {operand.value for operand in step.inputs}
        return tuple(reversed(alive))

    def _maker(self, value: str) -> int | None:
        return next(
            (number for number, step in enumerate(self._steps) if step is not None and value in step.outputs), None
        )

    def _readers(self, value: str) -> list[int]:
        return [
            number
            for number, step in enumerate(self._steps)
            if step is not None and any(operand.value == value for operand in step.inputs)
        ]

    def _follower(self, number: int) -> tuple[int, Step, int] | None:
        """The pointwise step that alone reads what this one makes, as it is stored; and which operand it is."""
        step = self._steps[number]
        if step is None or len(step.outputs) != 1 or step.outputs[0] in self._kept:
            return None
        (value,) = step.outputs
        readers = self._readers(value)
        if len(readers) != 1:
            return None
        follower = self._steps[readers[0]]
        if follower is None or follower.kind != "pointwise":
            return None
        uses = [index for index, operand in enumerate(follower.inputs) if operand.value == value]
        same = self._graph.values[follower.outputs[0]].shape == self._graph.values[value].shape
        if len(uses) != 1 or follower.inputs[uses[0]].view is not None or not same:
            return None
        before, after = (self._graph.values[each.outputs[0]].datatype for each in (step, follower))
        if step.program and step.program[-1].name == "to_int" and before != "INT64":
            return None  # what is stored is cut to its type
        floats = before == after or step.kind == "pointwise"
        return (readers[0], follower, uses[0]) if floats and before != "BOOL" else None

    def _plain_residual(self, step: Step) -> bool:
        """Whether what is added lies in memory just as what is computed."""
        residual = step.operand("residual")
        if residual is None:
            return True
        shape = self._graph.values[step.outputs[0]].shape
        stored = residual.value in self._graph.values
        if residual.view is not None:
            return stored and residual.view.shape == shape and residual.view.strides == contiguous(shape)
        return stored and self._graph.values[residual.value].shape == shape

    def _with_epilogue(self, step: Step, _: int, follower: Step, operand: int) -> Step | None:
        """The layer with a bias, an activation or a residual more; None where its epilogue can't say it."""
        if len(follower.program) != 1:
            return None
        line = follower.program[0]
        attributes: dict[str, Attribute] = dict(step.attributes)
        has_activation, has_residual = "activation" in attributes, step.operand("residual") is not None
        inputs = list(step.inputs)
        current = f"i{operand}"
        if line.name in _ACTIVATIONS and line.arguments[0] == current and not has_activation:
            numbers = [each for each in line.arguments[1:] if not isinstance(each, str)]
            if len(numbers) != len(line.arguments) - 1 or (has_residual and attributes.get("residual") == "after"):
                return None
            attributes["activation"] = line.name
            attributes.update(dict(zip(("alpha", "beta"), map(float, numbers), strict=False)))
        elif line.name == "add" and sorted(map(str, line.arguments)) == ["i0", "i1"]:
            other = follower.inputs[1 - operand]
            row = other.value in self._graph.weights and _is_row(other)
            if row and step.operand("bias") is None and not has_activation and not has_residual:
                count = math.prod(self._graph.weights[other.value].shape)
                flat = len(self._graph.weights[other.value].shape) == 1
                inputs.append(Operand(other.value, "bias", None if flat else View((count,), (1,))))
            elif not row and not has_residual:
                inputs.append(Operand(other.value, "residual", other.view))
                attributes["residual"] = "after" if has_activation else "before"
            else:
                return None
        else:
            return None
        nodes = (*step.nodes, *follower.nodes)
        return replace(
            step, name=follower.name, inputs=tuple(inputs), outputs=follower.outputs, attributes=attributes, nodes=nodes
        )


def _seen_in(operand: Operand, values: Mapping[str, Value], shape: Shape) -> Operand | None:
    """An operand whose numbers lie one behind the other, or are one number, in a shape of as many."""
    stored = values[operand.value].shape if operand.value in values else None
    view = operand.view
    if view is not None and not any(view.strides):
        return replace(operand, view=View(shape, (0,) * len(shape), view.offset))
    seen = stored if view is None else view.shape
    if seen is None or math.prod(seen) != math.prod(shape) or (view is not None and view.strides != contiguous(seen)):
        return None
    offset = view.offset if view is not None else 0
    return replace(operand, view=None if stored == shape and not offset else View(shape, contiguous(shape), offset))


def _is_row(operand: Operand) -> bool:
    """One number for each channel; the last axis is theirs."""
    view = operand.view
    if view is None or view.offset or view.strides[-1:] != (1,):
        return False
    return not any(stride for size, stride in zip(view.shape[:-1], view.strides[:-1], strict=True) if size != 1)


def _fits_a_kernel(step: Step) -> bool:
    values = {operand.value for operand in step.inputs}
    return len(step.program) <= _LONGEST and len(step.inputs) <= _MOST_OPERANDS and len(values) <= _MOST_VALUES


def _is_quick(step: Step) -> bool:
    """A multiplication with 1.702, as FP32 or FP16 write it."""
    line = step.program[0]
    numbers = [each for each in line.arguments if not isinstance(each, str)]
    return len(step.program) == 1 and line.name == "mul" and len(numbers) == 1 and abs(numbers[0] - _QUICK_GELU) < 1e-3


def _star_relu(made: Instruction, line: Instruction) -> Instruction | None:
    """A line behind a relu or star_relu as one with it: its square, or a factor or a term more."""
    if made.name == "relu":
        return Instruction("star_relu", ("i0", 1.0, 0.0)) if (line.name, line.arguments) in _SQUARES else None
    numbers = [each for each in line.arguments if not isinstance(each, str)]
    if made.name != "star_relu" or line.name not in ("mul", "add") or len(numbers) != 1:
        return None
    alpha, beta = (float(each) for each in made.arguments[1:])
    factor, term = (numbers[0], 0.0) if line.name == "mul" else (1.0, numbers[0])
    return Instruction("star_relu", ("i0", alpha * factor, beta * factor + term))


def _joined(step: Step, after: Step, taken: int) -> Step:
    """The later program with the earlier one in front."""
    inputs = list(step.inputs)
    names: dict[str, str] = {f"i{taken}": f"t{len(step.program) - 1}"}
    for index, operand in enumerate(after.inputs):
        if index == taken:
            continue
        if operand not in inputs:
            inputs.append(operand)
        names[f"i{index}"] = f"i{inputs.index(operand)}"
    names |= {f"t{index}": f"t{index + len(step.program)}" for index in range(len(after.program))}
    lines = [Instruction(line.name, _renamed(line.arguments, names)) for line in after.program]
    return replace(after, inputs=tuple(inputs), program=(*step.program, *lines), nodes=(*step.nodes, *after.nodes))


def _renamed(arguments: Sequence[str | Number], names: Mapping[str, str]) -> tuple[str | Number, ...]:
    return tuple(names[each] if isinstance(each, str) else each for each in arguments)
