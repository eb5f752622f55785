"""Joins layers that one kernel can execute: squeeze-and-excite gates, two pointwise layers in a row, repeated pixels.

Works on steps that `fusing` has given their epilogues. What lies between joined steps has no other reader, and layers
are joined only where their weights are few enough for a block to read them all; larger ones are better alone. Called by
`lower`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from penstock.engine.lowered import Attribute, Instruction, LoweredGraph, Operand, Step, View, contiguous
from penstock.engine.plan import Shape

# Every block of a kernel reads all weights of both layers: half a megabyte in 16 bits takes one some 6 microseconds,
# about what two more launches cost.
_MOST_WEIGHTS: Final = 1 << 18
# A gate's layers are read by one block for each image, and layers of their own are spread over many: measured on an
# H200 at batch 1, 192 x 48 weights take one block 6 us and 384 x 96 take it 14, two layers and a mean about 8.
_MOST_GATE_WEIGHTS: Final = 1 << 14
_WIDEST: Final = 512
# Below this the rows don't fill two blocks, and the weights are better spread over many.
_FEWEST_ROWS: Final = 32
_WIDEST_FORK: Final = 64
_WIDEST_TOP: Final = 256
_WIDEST_EXPANDED: Final = 64
_LARGE: Final = 2**24  # numbers of a map that the kernel behind finds in no cache
_LAYERS: Final = ("conv", "gemm")
_NUMBERS: Final = ("alpha", "beta")


def join_gates(graph: LoweredGraph) -> LoweredGraph:
    """Squeeze-and-excite gates alone."""
    joining = _Joining(graph)
    joining.find_gates()
    return joining.result()


def join(graph: LoweredGraph) -> LoweredGraph:
    """Everything else."""
    joining = _Joining(graph)
    joining.find_gates_of_convolutions()
    joining.find_pairs()
    joining.find_tops()
    joining.find_repeats()
    joining.find_forks()
    joining.find_expansions()
    return joining.result()


@dataclass(frozen=True, slots=True)
class _Layer:
    """A step that multiplies the last axis with a matrix, and nothing else."""

    number: int
    step: Step
    weight: Operand
    """Seen as [out, in]."""

    wide: int
    """Numbers of a row that come in."""

    out: int


class _Joining:
    def __init__(self, graph: LoweredGraph) -> None:
        self._graph = graph
        self._steps: list[Step | None] = list(graph.steps)
        self._makers = {name: number for number, step in enumerate(graph.steps) for name in step.outputs}
        self._kept = {output.value for output in graph.outputs}

    # ---- squeeze-and-excite ----

    def find_gates(self) -> None:
        """mean -> layer -> layer."""
        for number, step in enumerate(self._steps):
            if step is None or not self._is_mean(step):
                continue
            first = self._next_layer(step.outputs[0])
            second = self._next_layer(first.step.outputs[0]) if first is not None else None
            if first is None or second is None or first.wide != second.out or first.out != second.wide:
                continue
            if _residual(first.step) or _residual(second.step) or first.wide * first.out > _MOST_GATE_WEIGHTS:
                continue
            if self._numbers(step.outputs[0]) != self._numbers(second.step.outputs[0]):
                continue
            joined = _two(first, second, "squeeze_excite", [Operand(step.inputs[0].value, "x", step.inputs[0].view)])
            nodes = (*step.nodes, *joined.nodes)
            self._steps[number] = self._steps[first.number] = None
            self._steps[second.number] = replace(joined, nodes=nodes)

    def find_gates_of_convolutions(self) -> None:
        """Depthwise convolution -> gate: it adds up what it makes while it has it."""
        for number, step in enumerate(self._steps):
            if step is None or step.kind != "squeeze_excite" or step.inputs[0].view is not None:
                continue
            x = step.inputs[0].value
            maker = self._makers.get(x)
            before = self._steps[maker] if maker is not None else None
            if maker is None or before is None or not self._is_depthwise(before):
                continue
            attributes = dict(before.attributes)
            for name, each in step.attributes.items():
                attributes[{"activation": "outer", "alpha": "outer_alpha", "beta": "outer_beta"}.get(name, name)] = each
            self._steps[number] = None
            self._steps[maker] = Step(
                before.name,
                "conv_gate",
                (*before.inputs, *step.inputs[1:]),
                (x, *step.outputs),
                attributes,
                nodes=(*before.nodes, *step.nodes),
            )
            self._makers[step.outputs[0]] = maker

    def _is_depthwise(self, step: Step) -> bool:
        channels = self._graph.values[step.outputs[0]].shape[-1]
        return step.kind == "conv" and step.attributes.get("groups") == channels == self._graph.shape(step.inputs[0])[3]

    def _is_mean(self, step: Step) -> bool:
        """Over the pixels of feature maps."""
        mean = step.kind == "reduce" and step.attributes.get("how") == "mean"
        return mean and step.attributes.get("axes") == (1, 2) and len(self._graph.shape(step.inputs[0])) == 4

    # ---- the likeliest class ----

    def find_tops(self) -> None:
        """softmax -> where it is largest, and how large: nobody reads the rest."""
        for number, step in enumerate(self._steps):
            if step is None or step.kind != "softmax" or step.outputs[0] in self._kept:
                continue
            last = len(self._graph.shape(step.inputs[0])) - 1
            readers = {at: each for at in self._readers(step.outputs[0]) if (each := self._steps[at])}
            found = {self._largest(each, last): each for each in readers.values()}
            if step.attributes.get("axis") != last or len(readers) != 2 or found.keys() != {"place", "value"}:
                continue
            nodes = (*step.nodes, *(node for each in readers.values() for node in each.nodes))
            outputs = (found["place"].outputs[0], found["value"].outputs[0])
            self._steps[number] = self._top(Step(step.name, "top_1", step.inputs, outputs, nodes=nodes))
            for at in readers:
                self._steps[at] = None
            self._makers |= dict.fromkeys(outputs, number)

    def _top(self, step: Step) -> Step:
        """With the product before it, if there is one that nobody else reads and that a block can keep a row of."""
        x = step.inputs[0]
        number = self._makers.get(x.value)
        before = self._steps[number] if number is not None else None
        if number is None or before is None or before.kind != "gemm" or x.value in self._kept or not self._is_all(x):
            return step
        bare = before.attributes.get("activation", "none") == "none" and not _residual(before)
        if not bare or len(self._readers(x.value)) != 1 or self._graph.shape(before.inputs[0])[-1] > _WIDEST_TOP:
            return step
        if self._graph.shape(x)[-1] != self._graph.values[x.value].shape[-1]:
            return step
        self._steps[number] = None
        nodes = (*before.nodes, *step.nodes)
        return replace(step, kind="gemm_top_1", inputs=before.inputs, nodes=nodes)

    def _largest(self, step: Step, axis: int) -> str:
        """What a step tells of the largest along this axis: its `place`, its `value`, or something else."""
        told = step.kind, step.attributes.get("how"), step.attributes.get("axis", step.attributes.get("axes"))
        if step.inputs[0].view is not None:
            return ""
        return {("arg_max", "max", axis): "place", ("reduce", "max", (axis,)): "value"}.get(told, "")  # type: ignore[arg-type]

    # ---- two layers ----

    def find_pairs(self) -> None:
        """layer -> layer, with the gate before them and what is added behind."""
        for number, step in enumerate(self._steps):
            first = self._layer(number, step)
            second = (
                self._next_layer(first.step.outputs[0]) if first is not None and not _residual(first.step) else None
            )
            if first is None or second is None or not self._worth_joining(first, second):
                continue
            self._steps[second.number] = self._pair(first, second)
            self._steps[number] = None

    def _worth_joining(self, first: _Layer, second: _Layer) -> bool:
        rows = self._numbers(second.step.outputs[0]) // second.out
        same = rows == self._numbers(first.step.outputs[0]) // first.out
        few = (first.wide + second.out) * first.out <= _MOST_WEIGHTS and max(first.wide, second.out) <= _WIDEST
        return same and few and first.out == second.wide and rows >= _FEWEST_ROWS

    def _pair(self, first: _Layer, second: _Layer) -> Step:
        x, residual = first.step.inputs[0], second.step.operand("residual")
        skip = residual is not None and (residual.value, residual.view) == (x.value, x.view)
        readers = {first.number, second.number} if skip else {first.number}
        inputs = [Operand(x.value, "x", x.view)]
        nodes: tuple[str, ...] = ()
        number = self._makers.get(x.value)
        gating = self._steps[number] if number is not None and x.view is None else None
        if number is not None and gating is not None and self._readers(x.value) == readers:
            gated = self._gated(gating)
            if gated is not None and x.value not in self._kept:
                inputs, nodes = list(gated), gating.nodes
                self._steps[number] = None
        if residual is not None and not skip:
            inputs.append(residual)
        joined = _two(first, second, "mlp", inputs)
        attributes = {**joined.attributes, "skip": True} if skip else joined.attributes
        return replace(joined, attributes=attributes, nodes=(*nodes, *joined.nodes))

    def _gated(self, step: Step) -> tuple[Operand, Operand] | None:
        """x and its gate, where the step is their product."""
        out = self._graph.values[step.outputs[0]].shape
        mul = Instruction("mul", ("i0", "i1")), Instruction("mul", ("i1", "i0"))
        if step.kind != "pointwise" or len(step.program) != 1 or step.program[0] not in mul or len(out) != 4:
            return None
        for x, gate in (step.inputs, tuple(reversed(step.inputs))):
            values = x.value in self._graph.values and gate.value in self._graph.values
            if values and x.view is None and self._graph.values[x.value].shape == out and _is_gate(gate, out):
                assert gate.view is not None
                view = View((out[0], 1, 1, out[3]), (gate.view.strides[0], 0, 0, 1), gate.view.offset)
                return Operand(x.value, "x"), Operand(gate.value, "gate", view)
        return None

    # ---- pixels repeated ----

    def find_repeats(self) -> None:
        """A map whose pixels are repeated is read where it is small: by what adds it, or puts it beside others."""
        for number, step in enumerate(self._steps):
            times = self._times(step) if step is not None else None
            if step is None or times is None or step.outputs[0] in self._kept:
                continue
            readers = self._readers(step.outputs[0])
            reader = self._steps[min(readers)] if len(readers) == 1 else None
            if reader is None or reader.kind not in ("pointwise", "concat"):
                continue
            changed = self._reading(reader, step, times)
            if changed is not None:
                self._steps[min(readers)], self._steps[number] = changed, None

    def _times(self, step: Step) -> tuple[int, int] | None:
        """How often a step repeats rows and columns; None where it does something else."""
        if step.kind != "resize" or step.attributes.get("mode") != "nearest" or step.inputs[0].view is not None:
            return None
        how = step.attributes.get("coordinates"), step.attributes.get("nearest")
        plain = how == ("asymmetric", "floor") or (how[0] == "half_pixel" and str(how[1]).startswith("round"))
        small, large = (self._graph.values[name].shape for name in (step.inputs[0].value, step.outputs[0]))
        high, wide = large[1] // small[1], large[2] // small[2]
        whole = (small[1] * high, small[2] * wide) == large[1:3]
        return (high, wide) if plain and whole and step.attributes.get("scales") == (high, wide) else None

    def _reading(self, reader: Step, step: Step, times: tuple[int, int]) -> Step | None:
        """The reader with the small map among its operands, its rows and columns seen as runs that repeat."""
        batch, height, width, channels = self._graph.values[step.inputs[0].value].shape
        high, wide = times
        shape = (batch, height, high, width, wide, channels)
        strides = contiguous((batch, height, width, channels))
        repeated = View(shape, (strides[0], strides[1], 0, strides[2], 0, strides[3]))
        if reader.kind == "concat" and reader.attributes.get("axis") != 3:
            return None
        inputs: list[Operand] = []
        for operand in reader.inputs:
            if operand.value == step.outputs[0]:
                if operand.view is not None:
                    return None
                inputs.append(Operand(step.inputs[0].value, operand.role, repeated))
            elif reader.kind == "concat":
                inputs.append(operand)
            else:
                view = self._cut(operand, times)
                if view is None or view.shape != shape:
                    return None
                inputs.append(Operand(operand.value, operand.role, view))
        return replace(reader, inputs=tuple(inputs), nodes=(*step.nodes, *reader.nodes))

    def _cut(self, operand: Operand, times: tuple[int, int]) -> View | None:
        """The same view with its rows and its columns cut into runs."""
        shape = self._graph.shape(operand)
        view = operand.view or View(shape, contiguous(shape))
        if len(shape) != 4:
            return None
        (batch, height, width, channels), (a, b, c, d), (high, wide) = shape, view.strides, times
        cut = (batch, height // high, high, width // wide, wide, channels)
        return View(cut, (a, b * high, b, c * wide, c, d), view.offset)

    # ---- a pool beside two convolutions ----

    def find_forks(self) -> None:
        """A pool of a map, and a convolution of a convolution of it, that are put side by side."""
        for number, step in enumerate(self._steps):
            if step is None or step.kind != "concat" or step.attributes.get("axis") != 3 or len(step.inputs) != 2:
                continue
            pool, second = (self._maker(operand) for operand in step.inputs)
            first = self._maker(second.inputs[0]) if second is not None else None
            if pool is None or first is None or second is None or pool.inputs[0] != first.inputs[0]:
                continue
            if pool.kind != "max_pool" or not all(_overhangs(each) for each in (pool, first, second)):
                continue
            if not all(self._is_narrow(each) for each in (first, second)) or pool.inputs[0].view is not None:
                continue
            operands = [Operand(pool.inputs[0].value, "x")]
            for layer, role in ((first, "first"), (second, "second")):
                for each in layer.inputs[1:]:
                    operands.append(replace(each, role=role if each.role == "weight" else f"{role}_bias"))
            attributes = {"inner": str(first.attributes.get("activation", "none")), **_epilogue(second.attributes)}
            attributes |= {f"inner_{name}": first.attributes[name] for name in _NUMBERS if name in first.attributes}
            nodes = tuple(node for each in (pool, first, second, step) for node in each.nodes)
            for made in (pool, first, second):
                self._steps[self._makers[made.outputs[0]]] = None
            self._steps[number] = Step(step.name, "fork", tuple(operands), step.outputs, attributes, (), nodes)

    def _is_narrow(self, step: Step) -> bool:
        """A convolution of few channels into few, over all of them, with nothing added."""
        weight = step.operand("weight")
        if step.kind != "conv" or weight is None or weight.view is not None or _residual(step):
            return False
        shape = self._graph.weights[weight.value].shape
        return step.attributes.get("groups") == 1 and max(shape[0], shape[3]) <= _WIDEST_FORK

    def _maker(self, operand: Operand) -> Step | None:
        """The step that makes all of this operand, for one reader alone."""
        number = self._makers.get(operand.value)
        alone = operand.view is None and operand.value not in self._kept and len(self._readers(operand.value)) == 1
        return self._steps[number] if number is not None and alone else None

    # ---- a layer before a depthwise convolution ----

    def find_expansions(self) -> None:
        """Where the convolution strides, what is between is much larger than what becomes of it; or than any cache."""
        for number, step in enumerate(self._steps):
            if step is None or step.kind != "conv" or not self._is_depthwise(step) or _residual(step):
                continue
            strides = step.attributes.get("strides")
            large = strides == (1, 1) and self._numbers(step.inputs[0].value) >= _LARGE
            if strides != (2, 2) and not large:
                continue
            before = self._maker(step.inputs[0])
            layer = None if before is None else self._layer(self._makers[step.inputs[0].value], before)
            if before is None or layer is None or before.kind != "conv" or _residual(before):
                continue
            x = before.inputs[0]
            if layer.wide > _WIDEST_EXPANDED or layer.wide % 8 or x.view is not None or layer.wide >= layer.out:
                continue
            operands = [x]
            operands += [
                replace(each, role={"weight": "first"}.get(each.role, "first_bias")) for each in before.inputs[1:]
            ]
            attributes: dict[str, Attribute] = {"inner": str(before.attributes.get("activation", "none"))}
            attributes |= {f"inner_{name}": before.attributes[name] for name in _NUMBERS if name in before.attributes}
            nodes = (*before.nodes, *step.nodes)
            inputs = (*operands, *step.inputs[1:])
            self._steps[layer.number] = None
            self._steps[number] = replace(
                step, kind="expand_depthwise", inputs=inputs, attributes={**step.attributes, **attributes}, nodes=nodes
            )

    # ---- shared ----

    def _layer(self, number: int, step: Step | None) -> _Layer | None:
        if step is None or step.kind not in _LAYERS:
            return None
        weight = step.operand("weight")
        if weight is None or weight.view is not None or (step.kind == "conv" and not _is_pointwise(step)):
            return None
        shape = self._graph.weights[weight.value].shape
        out, wide = shape[0], shape[-1]
        view = None if len(shape) == 2 else View((out, wide), (wide, 1))
        return _Layer(number, step, Operand(weight.value, "weight", view), wide, out)

    def _next_layer(self, value: str) -> _Layer | None:
        """The layer that alone reads a value, all of it and nothing else of it."""
        readers = self._readers(value)
        if len(readers) != 1 or value in self._kept:
            return None
        layer = self._layer(min(readers), self._steps[min(readers)])
        if layer is None or [operand.value for operand in layer.step.inputs].count(value) != 1:
            return None
        x = layer.step.inputs[0]
        return layer if x.value == value and x.role == "x" and self._is_all(x) else None

    def _is_all(self, operand: Operand) -> bool:
        if operand.view is None:
            return True
        whole = zip(operand.view.shape, operand.view.strides, contiguous(operand.view.shape), strict=True)
        dense = all(size == 1 or stride == expected for size, stride, expected in whole)
        return dense and operand.view.offset == 0 and math.prod(operand.view.shape) == self._numbers(operand.value)

    def _numbers(self, value: str) -> int:
        return math.prod(self._graph.values[value].shape)

    def _readers(self, value: str) -> set[int]:
        return {
            number
            for number, step in enumerate(self._steps)
            if step is not None and any(operand.value == value for operand in step.inputs)
        }

    def result(self) -> LoweredGraph:
        steps = tuple(step for step in self._steps if step is not None)
        made = {name for step in steps for name in step.outputs} | {each.name for each in self._graph.inputs}
        return replace(
            self._graph,
            steps=steps,
            values={name: value for name, value in self._graph.values.items() if name in made},
        )


def _two(first: _Layer, second: _Layer, kind: str, inputs: list[Operand]) -> Step:
    """Both layers behind these operands, in place of the second."""
    operands = [*inputs]
    for layer, role in ((first, "first"), (second, "second")):
        operands.append(replace(layer.weight, role=role))
        bias = layer.step.operand("bias")
        if bias is not None:
            operands.append(replace(bias, role=f"{role}_bias"))
    attributes: dict[str, Attribute] = {"inner": str(first.step.attributes.get("activation", "none"))}
    attributes |= {f"inner_{name}": first.step.attributes[name] for name in _NUMBERS if name in first.step.attributes}
    attributes |= _epilogue(second.step.attributes)
    nodes = (*first.step.nodes, *second.step.nodes)
    return Step(second.step.name, kind, tuple(operands), second.step.outputs, attributes, (), nodes)


def _epilogue(attributes: Mapping[str, Attribute]) -> dict[str, Attribute]:
    return {name: attributes[name] for name in ("activation", *_NUMBERS, "residual") if name in attributes}


def _residual(step: Step) -> bool:
    return step.operand("residual") is not None


def _overhangs(step: Step) -> bool:
    """Windows of 2 x 2, one for each pixel, that reach over the far sides."""
    attributes = step.attributes
    windows = attributes.get("kernel"), attributes.get("strides"), attributes.get("dilations")
    return windows == ((2, 2), (1, 1), (1, 1)) and attributes.get("pads") == (0, 0, 1, 1)


def _is_pointwise(step: Step) -> bool:
    attributes = step.attributes
    plain = attributes.get("kernel") == (1, 1) and attributes.get("strides") == (1, 1)
    return plain and attributes.get("groups") == 1 and attributes.get("pads") == (0, 0, 0, 0)


def _is_gate(operand: Operand, out: Shape) -> bool:
    """One number for each image and channel."""
    view = operand.view
    if view is None or view.shape != out or out[1] * out[2] == 1:
        return False
    return (
        view.strides[1:3] == (0, 0)
        and view.strides[3] == 1
        and view.strides[0] in ((0, out[3]) if out[0] == 1 else (out[3],))
    )
