"""Concatenations whose parts are computed: one step that writes every part where it belongs.

A detector's answers are views of convolutions, each changed a little, put together in two or three concatenations one
inside the other; as steps of their own they are more launches than work. What only such a concatenation reads is
computed in its place, seen through the views that lie between; a map that is rolled is put together so, too. And what
is computed of a concatenation that nothing else reads (DenseNet norms all that came before) is computed of its parts,
so that it is never written as it was. Called by the lowering when layers are joined; what it can't join is left as it
is.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from penstock.engine.lowered import FLOATS, Instruction, LoweredGraph, Operand, Step, View, contiguous
from penstock.engine.pieces import MOST, Piece, written

MOST_LINES: Final = 256
MOST_OPERANDS: Final = 256
MOST_VALUES: Final = 64
_MOST_NUMBER: Final = 65504.0  # of FP16: larger ones have results in FP32


@dataclass(frozen=True, slots=True)
class _Part:
    """Of the result, before it is known what computes it."""

    operand: Operand
    """What it is, seen in the part's shape."""
    strides: tuple[int, ...]
    offset: int


@dataclass(frozen=True, slots=True)
class _Computed:
    program: tuple[Instruction, ...]
    """`i0` is the first of `operands`."""
    operands: tuple[Operand, ...]


def join_pieces(graph: LoweredGraph) -> LoweredGraph:
    assembling = _Assembling(graph)
    for number in reversed(range(len(graph.steps))):
        assembling.join(number)
    for number in range(len(graph.steps)):
        assembling.spread(number)
    return assembling.result()


class _Assembling:
    def __init__(self, graph: LoweredGraph) -> None:
        self._graph = graph
        self._steps: list[Step | None] = list(graph.steps)
        self._maker = {name: number for number, step in enumerate(graph.steps) for name in step.outputs}
        self._readers = graph.readers()
        self._kept = {output.value for output in graph.outputs}

    def join(self, number: int) -> None:
        step = self._steps[number]
        if step is None or step.kind != "concat":
            return
        inside = self._inside(number)
        if not inside and self._of_channels(step):
            return
        concats = [self._graph.steps[each] for each in (*inside, number) if self._graph.steps[each].kind == "concat"]
        if any(self._repeats(each) for each in concats):
            return
        parts = self._parts(step, inside)
        computed = [self._computed(each.operand, inside) for each in parts]
        self._put_together(number, parts, computed, inside)

    def _put_together(
        self, number: int, parts: Sequence[_Part], computed: Sequence[_Computed], inside: Iterable[int]
    ) -> None:
        """The step becomes these parts, and those inside go, unless there is more of it than a kernel takes."""
        step = self._graph.steps[number]
        operands = [operand for each in computed for operand in each.operands]
        lines = sum(len(each.program) for each in computed)
        values = {each.value for each in operands}
        if len(parts) > MOST or lines > MOST_LINES or len(operands) > MOST_OPERANDS or len(values) > MOST_VALUES:
            return
        program = one_behind_the_other([(each.program, len(each.operands)) for each in computed])
        pieces = [
            Piece(len(each.program), self._graph.shape(part.operand), part.strides, part.offset)
            for part, each in zip(parts, computed, strict=True)
        ]
        nodes = tuple(name for other in (*sorted(inside), number) for name in self._graph.steps[other].nodes)
        self._steps[number] = Step(
            step.name, "pieces", tuple(operands), step.outputs, {"pieces": written(pieces)}, tuple(program), nodes
        )
        for other in inside:
            self._steps[other] = None

    def spread(self, number: int) -> None:
        """What a step computes of a concatenation, part by part."""
        step = self._steps[number]
        if step is None or step.kind != "pointwise" or not self._joins(number):
            return
        for index, operand in enumerate(step.inputs):
            maker = self._maker.get(operand.value)
            concat = self._steps[maker] if maker is not None else None
            if maker is None or concat is None or concat.kind != "concat" or not self._joins(maker):
                continue
            if operand.view is not None or operand.value in self._kept or self._repeats(concat):
                continue
            if self._readers[operand.value] != (number,):
                continue
            if sum(each.value == operand.value for each in step.inputs) == 1:
                parts = self._parts(concat, set())
                computed = [self._of_part(step, index, part) for part in parts]
                self._put_together(number, parts, computed, (maker,))
                return

    def _of_part(self, step: Step, index: int, part: _Part) -> _Computed:
        """What a step computes where its operand of this number is that part of a concatenation."""
        shape, whole = self._graph.shape(part.operand), self._graph.values[step.outputs[0]].shape
        begin = coordinates(part.offset, whole)
        operands: list[Operand] = []
        for number, each in enumerate(step.inputs):
            view = self._view(part.operand if number == index else each)
            if number != index:
                offset = view.offset + sum(at * stride for at, stride in zip(begin, view.strides, strict=True))
                view = View(shape, view.strides, offset)
            operands.append(Operand(part.operand.value if number == index else each.value, "", view))
        return _Computed(step.program, tuple(operands))

    def _of_channels(self, step: Step) -> bool:
        """A concatenation that has a kernel of its own, or values that no pieces are made of."""
        value = self._graph.values[step.outputs[0]]
        return value.datatype not in FLOATS or step.attributes["axis"] == len(value.shape) - 1

    def result(self) -> LoweredGraph:
        steps = tuple(step for step in self._steps if step is not None)
        read = {operand.value for step in steps for operand in step.inputs}
        made = {name for step in steps for name in step.outputs} | {each.name for each in self._graph.inputs}
        return replace(
            self._graph,
            steps=steps,
            values={name: value for name, value in self._graph.values.items() if name in made},
            weights={name: weight for name, weight in self._graph.weights.items() if name in read | self._kept},
        )

    def _inside(self, number: int) -> set[int]:
        """The steps that make what this one puts together, and that nobody else needs."""
        found: set[int] = set()
        waiting = [number]
        while waiting:
            for operand in self._graph.steps[waiting.pop()].inputs:
                maker = self._maker.get(operand.value)
                if maker is None or maker in found or self._steps[maker] is None or not self._joins(maker):
                    continue
                found.add(maker)
                waiting.append(maker)
        while True:
            needed = {
                each
                for each in found
                for name in self._graph.steps[each].outputs
                if name in self._kept or not set(self._readers.get(name, ())) <= found | {number}
            }
            # What is seen through a view that can't be taken apart is written after all, and so is all it reads.
            needed |= {each for each in found - needed if not self._seen_by_all(each, (found - needed) | {number})}
            if not needed:
                return found
            found -= needed

    def _joins(self, number: int) -> bool:
        step = self._graph.steps[number]
        value = self._graph.values[step.outputs[0]]
        if value.datatype not in FLOATS or value.scale is not None or len(step.outputs) != 1:
            return False
        if step.kind == "concat":
            return True
        same = all(self._graph.shape(each) == value.shape for each in step.inputs)
        return step.kind == "pointwise" and has_small_numbers(step) and same

    def _seen_by_all(self, number: int, readers: set[int]) -> bool:
        """Whether everybody who reads it sees it in a way that can be told of what it reads itself."""
        step = self._graph.steps[number]
        shape = self._graph.values[step.outputs[0]].shape
        for reader in self._readers.get(step.outputs[0], ()):
            if reader not in readers:
                continue
            other = self._graph.steps[reader]
            for operand in other.inputs:
                if operand.value != step.outputs[0]:
                    continue
                if step.kind == "pointwise" and axes_of(self._view(operand), shape) is None:
                    return False
                whole = self._lies_whole(other, operand, shape)
                if step.kind == "concat" and not whole and not self._is_cut_from(step, other, operand):
                    return False
        return True

    def _lies_whole(self, reader: Step, operand: Operand, shape: Sequence[int]) -> bool:
        """Of a concatenation inside another one: all of it, where neighbours stay neighbours."""
        if reader.kind != "concat":
            return False
        view, axis = self._view(operand), _axis(reader)
        whole = self._graph.values[reader.outputs[0]].shape
        dense = view.offset == 0 and view.strides == contiguous(view.shape) and len(view.shape) == len(whole)
        return dense and math.prod(view.shape) == math.prod(shape) and view.shape[:axis] == tuple(shape[:axis])

    def _is_cut_from(self, concat: Step, reader: Step, operand: Operand) -> bool:
        """Of a concatenation inside another one: a box of it, as it is, where none of its parts is one itself."""
        shape = self._graph.values[concat.outputs[0]].shape
        axes = len(self._graph.values[reader.outputs[0]].shape)
        makers = (self._maker.get(each.value) for each in concat.inputs)
        plain = all(maker is None or self._graph.steps[maker].kind != "concat" for maker in makers)
        same = reader.kind == "concat" and axes == len(shape) and not self._repeats(concat)
        return same and plain and _box(self._view(operand), shape) is not None

    def _repeats(self, concat: Step) -> bool:
        """Whether it has operands of more axes than its result."""
        axes = len(self._graph.values[concat.outputs[0]].shape)
        return any(len(self._graph.shape(each)) != axes for each in concat.inputs)

    def _view(self, operand: Operand) -> View:
        shape = self._graph.shape(operand)
        return operand.view or View(shape, contiguous(shape))

    def _parts(self, step: Step, inside: set[int]) -> list[_Part]:
        whole, axis = self._graph.values[step.outputs[0]].shape, _axis(step)
        strides, offset = contiguous(whole), 0
        found: list[_Part] = []
        for operand in step.inputs:
            seen = self._graph.shape(operand)
            maker = self._maker.get(operand.value)
            inner = self._graph.steps[maker] if maker is not None and maker in inside else None
            if inner is not None and inner.kind == "concat":
                own = self._graph.values[operand.value].shape
                if not self._lies_whole(step, operand, own):
                    found += self._cut(inner, operand, inside, strides, offset)
                    offset += seen[axis] * strides[axis]
                    continue
                # The axes ahead are the outer one's, all others lie in a row.
                at = (*strides[:axis], *contiguous(own)[axis:])
                before = contiguous(own)
                for part in self._parts(inner, inside):
                    moved = tuple(_moved(each, before, at) for each in part.strides)
                    found.append(_Part(part.operand, moved, _moved(part.offset, before, at) + offset))
            else:
                found.append(_Part(operand, strides, offset))
            offset += seen[axis] * strides[axis]
        return found

    def _cut(
        self, inner: Step, operand: Operand, inside: set[int], strides: Sequence[int], offset: int
    ) -> Iterator[_Part]:
        """The parts of a box of a concatenation; `strides` and `offset`: where the box lies."""
        shape = self._graph.values[inner.outputs[0]].shape
        box = _box(self._view(operand), shape)
        assert box is not None
        for part in self._parts(inner, inside):
            view = self._view(part.operand)
            starts = coordinates(part.offset, shape)
            low = [max(begin, start) for begin, start in zip(box, starts, strict=True)]
            ends = zip(box, self._graph.shape(operand), starts, view.shape, strict=True)
            sizes = [
                min(begin + size, start + count) - least
                for (begin, size, start, count), least in zip(ends, low, strict=True)
            ]
            if min(sizes) <= 0:
                continue
            inner_offset = sum(
                (least - start) * step for least, start, step in zip(low, starts, view.strides, strict=True)
            )
            seen = View(tuple(sizes), view.strides, view.offset + inner_offset)
            place = sum((least - begin) * step for least, begin, step in zip(low, box, strides, strict=True))
            yield _Part(replace(part.operand, view=seen), tuple(strides), offset + place)

    def _computed(self, operand: Operand, inside: set[int]) -> _Computed:
        """What an operand is, by what is not inside."""
        maker = self._maker.get(operand.value)
        if maker is None or maker not in inside:
            view = self._view(operand)
            return _Computed((Instruction("identity", ("i0",)),), (Operand(operand.value, "", view),))
        step = self._graph.steps[maker]
        shape = self._graph.values[operand.value].shape
        seen = self._view(operand)
        axes = axes_of(seen, shape)
        assert axes is not None
        program: list[Instruction] = []
        operands: list[Operand] = []
        names: dict[str, str] = {}
        for index, each in enumerate(step.inputs):
            through = _through(self._view(each), seen, axes)
            part = self._computed(Operand(each.value, "", through), inside)
            if part.program[-1].name == "identity" and len(part.program) == 1:
                if part.operands[0] not in operands:
                    operands.append(part.operands[0])
                names[f"i{index}"] = f"i{operands.index(part.operands[0])}"
                continue
            inner = {f"i{number}": f"i{len(operands) + number}" for number in range(len(part.operands))}
            program += renamed(part.program, inner, len(program))
            operands += part.operands
            names[f"i{index}"] = f"t{len(program) - 1}"
        return _Computed((*program, *renamed(step.program, names, len(program))), tuple(operands))


def _axis(step: Step) -> int:
    axis = step.attributes["axis"]
    assert isinstance(axis, int)
    return axis


def has_small_numbers(step: Step) -> bool:
    """Whether FP16 has the constants of its program."""
    numbers = [each for line in step.program for each in line.arguments if not isinstance(each, str)]
    return all(not math.isfinite(each) or abs(each) <= _MOST_NUMBER for each in numbers)


def coordinates(offset: int, shape: Sequence[int]) -> list[int]:
    found = []
    for step in contiguous(shape):
        found.append(offset // step)
        offset %= step
    return found


def _box(view: View, shape: Sequence[int]) -> list[int] | None:
    """Where a view that is a range of each axis of a dense value begins in each; None where it is anything else."""
    steps = zip(view.shape, view.strides, contiguous(shape), strict=False)
    if len(view.shape) != len(shape) or any(size > 1 and step != whole for size, step, whole in steps):
        return None
    begin = coordinates(view.offset, shape)
    inside = all(low + size <= most for low, size, most in zip(begin, view.shape, shape, strict=True))
    return begin if inside else None


def one_behind_the_other(programs: Iterable[tuple[Sequence[Instruction], int]]) -> list[Instruction]:
    """Programs as one; each with the number of its operands, which come one behind the other, too."""
    whole: list[Instruction] = []
    begin = 0
    for program, operands in programs:
        whole += renamed(program, {f"i{index}": f"i{begin + index}" for index in range(operands)}, len(whole))
        begin += operands
    return whole


def renamed(program: Sequence[Instruction], names: dict[str, str], behind: int) -> list[Instruction]:
    """Behind so many lines."""
    every = names | {f"t{index}": f"t{index + behind}" for index in range(len(program))}
    return [
        Instruction(line.name, tuple(every[each] if isinstance(each, str) else each for each in line.arguments))
        for line in program
    ]


def _moved(distance: int, before: Sequence[int], at: Sequence[int]) -> int:
    """How far two numbers of a dense value are from each other in the larger one that it lies in."""
    moved = 0
    for step, now in zip(before, at, strict=True):
        moved += distance // step * now
        distance %= step
    return moved


def axes_of(view: View, shape: Sequence[int]) -> tuple[tuple[int | None, ...], tuple[int, ...]] | None:
    """Which axis of a dense value each axis of a view goes along, and where the view begins in each of the value's.

    None where there is more to it.
    """
    steps = contiguous(shape)
    begin, rest = [], view.offset
    for step, size in zip(steps, shape, strict=True):
        begin.append(min(rest // step, size - 1))
        rest -= begin[-1] * step
    axes: list[int | None] = []
    last = list(begin)
    for size, stride in zip(view.shape, view.strides, strict=True):
        if size == 1 or stride == 0:
            axes.append(None)
            continue
        place = next((place for place, each in enumerate(steps) if each == stride and shape[place] > 1), None)
        if place is None:
            return None
        axes.append(place)
        last[place] += size - 1
    fits = rest == 0 and all(at < size for at, size in zip(last, shape, strict=True))
    return (tuple(axes), tuple(begin)) if fits else None


def _through(view: View, seen: View, axes: tuple[tuple[int | None, ...], tuple[int, ...]]) -> View:
    """What a step sees in its result's shape, seen as its result is."""
    along, begin = axes
    strides = tuple(0 if place is None else view.strides[place] for place in along)
    offset = view.offset + sum(at * stride for at, stride in zip(begin, view.strides, strict=True))
    return View(seen.shape, strides, offset)
