"""Strided views of stored values: what Transpose, Reshape, Slice, Expand and their like become, instead of copies.

A `Ref` is how an ONNX value is found in a stored one: the ONNX shape, and a stride for each of its axes. Every function
here is pure; those that can't be answered without moving data give None. Called by the builder.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from penstock.engine.lowered import Operand, View, contiguous
from penstock.engine.plan import Shape

NHWC = (0, 2, 3, 1)


@dataclass(frozen=True, slots=True)
class Ref:
    """An ONNX value inside a stored one."""

    value: str
    shape: Shape
    """In ONNX's order of axes."""

    strides: tuple[int, ...]
    datatype: str
    offset: int = 0


def dense(value: str, shape: Shape, order: Sequence[int], datatype: str) -> Ref:
    """All of a stored value whose axes lie in this order."""
    strides = [0] * len(shape)
    for axis, stride in zip(order, contiguous([shape[axis] for axis in order]), strict=True):
        strides[axis] = stride
    return Ref(value, tuple(shape), tuple(strides), datatype)


def identity(rank: int) -> tuple[int, ...]:
    return tuple(range(rank))


def permuted(ref: Ref, order: Sequence[int]) -> Ref:
    return replace(
        ref, shape=tuple(ref.shape[axis] for axis in order), strides=tuple(ref.strides[axis] for axis in order)
    )


def sliced(ref: Ref, axis: int, start: int, count: int, step: int = 1) -> Ref:
    """`count` entries of an axis from `start` on; the step is positive."""
    shape, strides = list(ref.shape), list(ref.strides)
    shape[axis], strides[axis] = count, strides[axis] * step
    return replace(
        ref, shape=tuple(shape), strides=tuple(strides), offset=ref.offset + (start * ref.strides[axis] if count else 0)
    )


def selected(ref: Ref, axis: int, index: int) -> Ref:
    one = sliced(ref, axis, index, 1)
    keep = [each for each in range(len(ref.shape)) if each != axis]
    return permuted(one, keep)


def expanded(ref: Ref, shape: Sequence[int]) -> Ref:
    """Broadcast as in NumPy; the shapes fit."""
    missing = len(shape) - len(ref.shape)
    sizes, strides = (1,) * missing + ref.shape, (0,) * missing + ref.strides
    repeated = (
        0 if size == 1 and wanted != 1 else stride for size, stride, wanted in zip(sizes, strides, shape, strict=True)
    )
    return replace(ref, shape=tuple(shape), strides=tuple(repeated))


def reshaped(ref: Ref, shape: Sequence[int]) -> Ref | None:
    """The same elements, in ONNX's order, in another shape; None where no strides can say it.

    Axes that are one step apart from their neighbours are merged first; then each run is cut again.
    """
    if math.prod(ref.shape) == 0 or ref.shape == tuple(shape):
        return replace(ref, shape=tuple(shape), strides=contiguous(shape)) if ref.shape != tuple(shape) else ref
    runs: list[tuple[int, int]] = []  # size, stride of the last axis
    for size, stride in zip(ref.shape, ref.strides, strict=True):
        if size == 1:
            continue
        if runs and runs[-1][1] == stride * size:
            runs[-1] = (runs[-1][0] * size, stride)
        else:
            runs.append((size, stride))
    strides: list[int] = []
    rest, step = 1, 1  # of the run being cut, from the last
    for size in reversed(shape):
        if rest == 1 and size != 1:
            if not runs:
                return None
            rest, step = runs.pop()
        if rest % size:
            return None
        strides.append(step)
        rest, step = rest // size, step * size
    return replace(ref, shape=tuple(shape), strides=tuple(reversed(strides))) if rest == 1 and not runs else None


@dataclass(frozen=True, slots=True)
class Woven:
    """What a reshape made that no strides can say: every axis is a row of pieces, size and stride each.

    Attention is often exported so: batch and heads, which lie apart, are one axis for a transpose, and are two again
    behind it. What is woven there comes out as strides, and nothing has to be copied.
    """

    ref: Ref
    """Where it comes from; its shape and strides no longer count."""

    axes: tuple[tuple[tuple[int, int], ...], ...]


def woven(ref: Ref) -> Woven:
    return Woven(ref, tuple(((size, stride),) for size, stride in zip(ref.shape, ref.strides, strict=True)))


def rewoven(whole: Woven, shape: Sequence[int]) -> Woven | None:
    """The same elements, in ONNX's order, in another shape; None where a piece would have to be cut unevenly."""
    pieces = [piece for axis in whole.axes for piece in axis if piece[0] != 1]
    if math.prod(size for size, _ in pieces) != math.prod(shape):
        return None
    axes: list[tuple[tuple[int, int], ...]] = []
    for size in reversed(shape):
        taken: list[tuple[int, int]] = []
        rest = size
        while rest != 1:
            have, stride = pieces.pop()
            if rest % have == 0:
                taken.append((have, stride))
                rest //= have
            elif have % rest == 0:
                taken.append((rest, stride))
                pieces.append((have // rest, stride * rest))
                rest = 1
            else:
                return None
        axes.append(tuple(reversed(taken)) or ((1, 0),))
    return replace(whole, axes=tuple(reversed(axes)))


def unwoven(whole: Woven) -> Ref | None:
    """As strides; None where an axis has pieces that lie apart."""
    shape: list[int] = []
    strides: list[int] = []
    for axis in whole.axes:
        size, stride = axis[-1]
        for more, wider in reversed(axis[:-1]):
            if wider != stride * size:
                return None
            size *= more
        shape.append(size)
        strides.append(stride)
    return replace(whole.ref, shape=tuple(shape), strides=tuple(strides))


def lies_in(ref: Ref, order: Sequence[int]) -> bool:
    """Whether the elements are dense in memory when the axes are taken in this order."""
    sizes = [ref.shape[axis] for axis in order]
    return all(
        size == 1 or ref.strides[axis] == stride
        for axis, size, stride in zip(order, sizes, contiguous(sizes), strict=True)
    )


def by_stride(ref: Ref) -> tuple[int, ...] | None:
    """The axes as they lie in memory, slowest first, of a piece of something; None where elements repeat."""
    wide = [axis for axis, size in enumerate(ref.shape) if size != 1]
    if not wide or any(ref.strides[axis] == 0 for axis in wide):
        return None
    places = iter(sorted(wide, key=lambda axis: -ref.strides[axis]))
    return tuple(axis if size == 1 else next(places) for axis, size in enumerate(ref.shape))


def operand(ref: Ref, stored: Shape, role: str = "", order: Sequence[int] | None = None) -> Operand:
    """How a step reads it, axes in the order given; without a view where that is the stored value as it is."""
    seen = permuted(ref, order) if order is not None else ref
    if seen.shape == stored and lies_in(seen, identity(len(seen.shape))) and seen.offset == 0:
        return Operand(ref.value, role)
    strides = tuple(stride if size != 1 else 0 for size, stride in zip(seen.shape, seen.strides, strict=True))
    if lies_in(seen, identity(len(seen.shape))):
        strides = contiguous(seen.shape)
    return Operand(ref.value, role, View(seen.shape, strides, seen.offset))
