"""What is computed of pieces is computed piece by piece, so that they are never put together for it.

Rotary embeddings are written so: pairs of numbers are split, one is negated, both are stacked again, and the stack is
multiplied with sines and added to what it was made of (EVA-02, DINOv3). Each piece of the reader is cut where the
pieces that it reads meet, and computes what it needs of them itself. A stack of pairs that is read as one axis is seen
as two. Called by the lowering behind `assembling`; what it can't take apart is left as it is.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from penstock.engine.assembling import (
    MOST_LINES,
    MOST_OPERANDS,
    MOST_VALUES,
    axes_of,
    coordinates,
    has_small_numbers,
    one_behind_the_other,
    renamed,
)
from penstock.engine.lowered import FLOATS, Instruction, LoweredGraph, Operand, Step, View, contiguous
from penstock.engine.pieces import MOST, Piece, read, written


@dataclass(frozen=True, slots=True)
class _Part:
    """Of a value: where it lies in it, and what computes it."""

    view: View
    program: tuple[Instruction, ...]
    """`i0` is the first of `operands`, `t0` the first line's result."""
    operands: tuple[Operand, ...]
    """Each with a view of the part's shape."""


def take_apart(graph: LoweredGraph) -> LoweredGraph:
    """The same graph, with steps of kind `pieces` that one other alone reads computed where they are read."""
    steps = dict(enumerate(graph.steps))
    maker = {name: number for number, step in steps.items() for name in step.outputs}
    readers, kept = graph.readers(), {output.value for output in graph.outputs}
    for number, reader in list(steps.items()):
        for value in dict.fromkeys(operand.value for operand in reader.inputs):
            made = steps.get(maker.get(value, -1))
            if made is None or made.kind != "pieces" or value in kept or readers[value] != (number,):
                continue
            joined = _joined(graph, steps[number], made)
            if joined is not None:
                steps[number] = joined
                del steps[maker[value]]
    gone = {name for name, number in maker.items() if number not in steps}
    values = {name: value for name, value in graph.values.items() if name not in gone}
    return replace(graph, steps=tuple(steps[number] for number in sorted(steps)), values=values)


def _joined(graph: LoweredGraph, reader: Step, made: Step) -> Step | None:
    """The reader without the step whose result it reads; None where it can't be, or would be more than a kernel has."""
    value = made.outputs[0]
    parts, inner = _parts(graph, reader), _parts(graph, made)
    if parts is None or inner is None:
        return None
    found: list[_Part] = []
    for part in parts:
        cut = _cut(part, value, graph.values[value].shape, inner)
        if cut is None:
            return None
        found += cut
    operands = [operand for part in found for operand in part.operands]
    lines, values = sum(len(part.program) for part in found), {each.value for each in operands}
    if len(found) > MOST or lines > MOST_LINES or len(operands) > MOST_OPERANDS or len(values) > MOST_VALUES:
        return None
    program = one_behind_the_other([(part.program, len(part.operands)) for part in found])
    pieces = [Piece(len(part.program), part.view.shape, part.view.strides, part.view.offset) for part in found]
    return replace(
        reader,
        kind="pieces",
        inputs=tuple(operands),
        attributes={"pieces": written(pieces)},
        program=tuple(program),
        nodes=(*made.nodes, *reader.nodes),
    )


def _parts(graph: LoweredGraph, step: Step) -> list[_Part] | None:
    """What a step of pieces, or a pointwise one, computes; None of any other, and of what pieces are not made of."""
    if len(step.outputs) != 1 or step.kind not in ("pieces", "pointwise") or not has_small_numbers(step):
        return None
    value = graph.values[step.outputs[0]]
    if value.datatype not in FLOATS or value.scale is not None:
        return None
    if step.kind == "pointwise":
        same = all(graph.shape(each) == value.shape for each in step.inputs)
        whole = View(value.shape, contiguous(value.shape))
        operands = tuple(replace(each, view=_view(graph, each)) for each in step.inputs)
        return [_Part(whole, step.program, operands)] if same else None
    found: list[_Part] = []
    begin = 0
    for piece in read(step.attributes["pieces"], math.prod(value.shape)):
        lines = step.program[begin : begin + piece.lines]
        own = list(dict.fromkeys(each for line in lines for each in line.arguments if _is_operand(each)))
        names: dict[str, str] = {str(each): f"i{index}" for index, each in enumerate(own)}
        names |= {f"t{begin + index}": f"t{index}" for index in range(len(lines))}
        program = tuple(
            Instruction(line.name, tuple(names[each] if isinstance(each, str) else each for each in line.arguments))
            for line in lines
        )
        operands = tuple(step.inputs[int(str(each)[1:])] for each in own)
        view = View(piece.shape, piece.strides, piece.offset)
        found.append(_Part(view, program, tuple(replace(each, view=_view(graph, each)) for each in operands)))
        begin += piece.lines
    return found


def _is_operand(argument: object) -> bool:
    return isinstance(argument, str) and argument.startswith("i")


def _view(graph: LoweredGraph, operand: Operand) -> View:
    shape = graph.shape(operand)
    return operand.view or View(shape, contiguous(shape))


def _cut(part: _Part, value: str, shape: Sequence[int], inner: Sequence[_Part]) -> list[_Part] | None:
    """The part as it is where it doesn't read the value, else as parts that read what the value's are made of."""
    places = [index for index, operand in enumerate(part.operands) if operand.value == value]
    if not places:
        return [part]
    if len(places) > 1:
        return None
    seen = part.operands[places[0]].view
    assert seen is not None
    sizes = _sizes(seen, shape)
    if sizes is None:
        return None
    fine = _Part(
        _finer(part.view, sizes),
        part.program,
        tuple(replace(each, view=_finer(each.view, sizes)) for each in part.operands if each.view is not None),
    )
    return list(_crossed(fine, places[0], shape, inner)) if _can_cross(fine, places[0], shape, inner) else None


def _can_cross(part: _Part, place: int, shape: Sequence[int], inner: Sequence[_Part]) -> bool:
    seen = part.operands[place].view
    assert seen is not None
    along = axes_of(seen, shape)
    if along is None:
        return False
    wide = [axis for axis, size in zip(along[0], seen.shape, strict=True) if size > 1]
    once = None not in wide and len(set(wide)) == len(wide)  # nothing is computed twice
    return once and all(_is_box(each.view, shape) for each in inner)


def _crossed(part: _Part, place: int, shape: Sequence[int], inner: Sequence[_Part]) -> Iterator[_Part]:
    """Where the part and those that it reads have numbers in common."""
    seen = part.operands[place].view
    along = axes_of(seen, shape) if seen is not None else None
    assert along is not None
    assert seen is not None
    axes, begin = along
    for other in inner:
        starts = coordinates(other.view.offset, shape)
        low, sizes = list(begin), list(seen.shape)
        for at, axis in enumerate(axes):
            if axis is not None:
                low[axis] = max(begin[axis], starts[axis])
                sizes[at] = min(begin[axis] + seen.shape[at], starts[axis] + other.view.shape[axis]) - low[axis]
        inside = zip(low, starts, other.view.shape, strict=True)
        if min(sizes) <= 0 or not all(first <= at < first + size for at, first, size in inside):
            continue
        moved = [0 if axis is None else low[axis] - begin[axis] for axis in axes]
        operands = [
            replace(each, view=_narrowed(each.view, sizes, moved)) for each in part.operands if each.view is not None
        ]
        behind = len(operands)
        for each in other.operands:
            assert each.view is not None
            first = sum((at - start) * step for at, start, step in zip(low, starts, each.view.strides, strict=True))
            strides = tuple(0 if axis is None else each.view.strides[axis] for axis in axes)
            operands.append(replace(each, view=View(tuple(sizes), strides, each.view.offset + first)))
        program = renamed(other.program, {f"i{at}": f"i{behind + at}" for at in range(len(other.operands))}, 0)
        names = {f"i{at}": f"i{at}" for at in range(behind)} | {f"i{place}": f"t{len(program) - 1}"}
        lines = (*program, *renamed(part.program, names, len(program)))
        yield _without(_Part(_narrowed(part.view, sizes, moved), lines, tuple(operands)), place)


def _without(part: _Part, place: int) -> _Part:
    """Without an operand that no line reads, and without axes of one."""
    names = {f"i{at}": f"i{at - (at > place)}" for at in range(len(part.operands))}
    program = tuple(renamed(part.program, names, 0))
    operands = (*part.operands[:place], *part.operands[place + 1 :])
    axes = [axis for axis, size in enumerate(part.view.shape) if size > 1] or [0]
    return _Part(
        _of_axes(part.view, axes),
        program,
        tuple(replace(each, view=_of_axes(each.view, axes)) for each in operands if each.view is not None),
    )


def _of_axes(view: View, axes: Sequence[int]) -> View:
    return View(tuple(view.shape[axis] for axis in axes), tuple(view.strides[axis] for axis in axes), view.offset)


def _narrowed(view: View, sizes: Sequence[int], moved: Sequence[int]) -> View:
    first = sum(many * step for many, step in zip(moved, view.strides, strict=True))
    return View(tuple(sizes), view.strides, view.offset + first)


def _is_box(view: View, shape: Sequence[int]) -> bool:
    """Whether a part of a dense value is a range of each of its axes."""
    steps = zip(view.shape, view.strides, contiguous(shape), strict=False)
    return len(view.shape) == len(shape) and all(size == 1 or step == whole for size, step, whole in steps)


def _sizes(view: View, shape: Sequence[int]) -> list[tuple[int, ...]] | None:
    """Each axis of a view as the axes of a dense value that it runs through; None where it cuts one unevenly."""
    steps = contiguous(shape)
    found: list[tuple[int, ...]] = []
    for size, stride in zip(view.shape, view.strides, strict=True):
        places = [at for at, each in enumerate(steps) if each == stride and shape[at] > 1]
        if size == 1 or stride == 0 or not places:
            found.append((size,))
            continue
        cut: list[int] = []
        at, rest = places[0], size
        while at > 0 and rest > shape[at]:
            if rest % shape[at]:
                return None
            cut.insert(0, shape[at])
            rest //= shape[at]
            at -= 1
        found.append((rest, *cut))
    return found


def _finer(view: View, sizes: Sequence[Sequence[int]]) -> View:
    """The same numbers, with each axis as several."""
    strides = [
        step * stride for cut, step in zip(sizes, view.strides, strict=True) for stride in contiguous(tuple(cut))
    ]
    return View(tuple(size for cut in sizes for size in cut), tuple(strides), view.offset)
