"""Operators that move numbers: most become views, which cost nothing; what is left is copied once."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import onnx_ir as ir

from penstock.engine.lowered import Attribute
from penstock.engine.plan import Shape
from penstock.errors import Unsupported
from penstock.graph.editing import Array, input_of, integer, integers, number, string
from penstock.graph.lowering.builder import Builder
from penstock.graph.lowering.views import (
    NHWC,
    Ref,
    expanded,
    identity,
    permuted,
    reshaped,
    rewoven,
    selected,
    sliced,
    unwoven,
    woven,
)


def transpose(builder: Builder, node: ir.Node) -> None:
    x = builder.ref(node.inputs[0])
    order = integers(node, "perm") or tuple(reversed(range(len(x.shape))))
    builder.forward(node.outputs[0], permuted(x, order))
    whole = builder.woven(node.inputs[0])
    if whole is not None:
        builder.weave(node.outputs[0], replace(whole, axes=tuple(whole.axes[axis] for axis in order)))


def reshape(builder: Builder, node: ir.Node) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze, Identity: the new shape is known, so that they are one operator."""
    expect_known(builder, node)
    x, shape = builder.ref(node.inputs[0]), builder.shape(node.outputs[0])
    whole = builder.woven(node.inputs[0])
    seen = reshaped(x, shape) if whole is None else None
    if seen is None and 0 not in shape:
        whole = rewoven(whole or woven(x), shape)
        seen = unwoven(whole) if whole is not None else None
        if whole is not None and seen is None:
            builder.weave(node.outputs[0], whole)
    if seen is None:  # copied, unless whoever reads it weaves it back
        seen = reshaped(builder.stored_as(x, identity(len(x.shape)), node), shape)
    assert seen is not None
    builder.forward(node.outputs[0], seen)


def expand(builder: Builder, node: ir.Node) -> None:
    expect_known(builder, node)
    builder.forward(node.outputs[0], expanded(builder.ref(node.inputs[0]), builder.shape(node.outputs[0])))


def tile(builder: Builder, node: ir.Node) -> None:
    expect_known(builder, node)
    x, shape = builder.ref(node.inputs[0]), builder.shape(node.outputs[0])
    apart = reshaped(x, [size for each in x.shape for size in (1, each)])
    assert apart is not None
    repeated = expanded(
        apart, [size for each, whole in zip(x.shape, shape, strict=True) for size in (whole // each, each)]
    )
    seen = reshaped(repeated, shape)
    if seen is None:
        seen = reshaped(builder.stored_as(repeated, identity(len(repeated.shape)), node), shape)
    assert seen is not None
    builder.forward(node.outputs[0], seen)


def depth_to_space(builder: Builder, node: ir.Node) -> None:
    """Channels become blocks of pixels."""
    batch, channels, height, width = builder.ref(node.inputs[0]).shape
    block = integer(node, "blocksize", 1)
    by_column = string(node, "mode", "DCR") == "DCR"
    apart = (batch, block, block, -1, height, width) if by_column else (batch, -1, block, block, height, width)
    shape = [channels // block**2 if size == -1 else size for size in apart]
    # batch, channel, row, row of the block, column, column of the block
    _woven_pixels(builder, node, shape, (0, 3, 4, 1, 5, 2) if by_column else (0, 1, 4, 2, 5, 3), (0, 2, 3, 4, 5, 1))


def space_to_depth(builder: Builder, node: ir.Node) -> None:
    """Blocks of pixels become channels."""
    batch, channels, height, width = builder.ref(node.inputs[0]).shape
    block = integer(node, "blocksize", 1)
    shape = [batch, channels, height // block, block, width // block, block]
    crd = string(node, "mode", "DCR") == "CRD"  # since opset 28
    order = (0, 1, 3, 5, 2, 4) if crd else (0, 3, 5, 1, 2, 4)
    _woven_pixels(builder, node, shape, order, (0, 4, 5, 1, 2, 3))


def _woven_pixels(
    builder: Builder, node: ir.Node, shape: Sequence[int], order: Sequence[int], stored: Sequence[int]
) -> None:
    """A map cut into these axes, in another order, as one in NHWC: `stored` is how the new axes lie there."""
    x, output = builder.ref(node.inputs[0]), node.outputs[0]
    apart = reshaped(x, shape)
    assert apart is not None  # axes are cut
    made = reshaped(builder.stored_as(permuted(apart, order), stored, node), builder.shape(output))
    assert made is not None
    builder.forward(output, made)


def slice_(builder: Builder, node: ir.Node) -> None:
    """A view; what goes backwards (torch's flip) is picked row by row."""
    x = builder.ref(node.inputs[0])
    starts, ends, axes, steps = (_numbers(builder, node, index, name) for index, name in enumerate(_SLICE, 1))
    if starts is None or ends is None:
        raise Unsupported(f"Slice of node {node.name!r} has bounds that are computed")
    axes = axes if axes is not None else tuple(range(len(starts)))
    for axis, start, end, step in zip(axes, starts, ends, steps or (1,) * len(starts), strict=True):
        if step == 0:
            raise Unsupported(f"Slice of node {node.name!r} has a step of 0")
        first, last, _ = slice(start, end, step).indices(x.shape[axis])
        if step < 0 and last < first - 1:
            x = _backwards(builder, node, x, axis % len(x.shape), np.arange(first, last, step))
            continue
        x = sliced(x, axis % len(x.shape), first, max(0, math.ceil((last - first) / step)), max(step, 1))
    builder.forward(node.outputs[0], x)


def _backwards(builder: Builder, node: ir.Node, x: Ref, axis: int, places: Array) -> Ref:
    x, order = builder.dense(x, node)
    shape = (*x.shape[:axis], len(places), *x.shape[axis + 1 :])
    indices = builder.weight(places.astype(np.int64), f"{node.name}.{axis}.places")
    operands = [builder.operand(x, "x", order), builder.operand(indices, "indices")]
    return builder.emit(node, "gather", operands, shape, x.datatype, order, {"axis": order.index(axis)})


_SLICE: Final = ("starts", "ends", "axes", "steps")


def split(builder: Builder, node: ir.Node) -> None:
    x = builder.ref(node.inputs[0])
    axis = integer(node, "axis", 0) % len(x.shape)
    start = 0
    for value in node.outputs:
        size = builder.shape(value)[axis]
        builder.forward(value, sliced(x, axis, start, size))
        start += size


def gather(builder: Builder, node: ir.Node) -> None:
    """One constant index is a view, and so are those that go up evenly along each of their axes, as windows are taken
    (HaloNet, Unfold); anything else picks rows."""
    x, output = builder.ref(node.inputs[0]), node.outputs[0]
    axis = integer(node, "axis", 0) % len(x.shape)
    indices = builder.constant(node.inputs[1])
    if indices is not None and indices.size == 1:
        picked = selected(x, axis, int(indices.reshape(-1)[0]) % x.shape[axis])
        shaped = reshaped(picked, builder.shape(output))
        assert shaped is not None  # axes of one are added anywhere
        builder.forward(output, shaped)
        return
    even = _even(indices, x.shape[axis]) if indices is not None else None
    if even is not None:
        builder.forward(output, _stepping(x, axis, *even))
        return
    where = builder.ref(node.inputs[1])
    source = builder.stored_as(x, identity(len(x.shape)), node)
    order = identity(len(where.shape))
    operands = [builder.operand(source, "x"), builder.operand(builder.stored_as(where, order, node), "indices")]
    shape, datatype = builder.shape(output), builder.datatype(output)
    builder.forward(
        output, builder.emit(node, "gather", operands, shape, datatype, attributes={"axis": axis}, name=output.name)
    )


def _even(indices: Array, size: int) -> tuple[Shape, int, tuple[int, ...]] | None:
    """Shape, first and steps along each axis of places that go up evenly; None of others."""
    if indices.size == 0 or indices.min() < -size or indices.max() >= size:
        return None
    places = indices.astype(np.int64) % size
    first = int(places.flat[0])
    steps = tuple(
        int(np.take(places, 1, axis).flat[0]) - first if many > 1 else 0 for axis, many in enumerate(places.shape)
    )
    weighed = (step * place for step, place in zip(steps, np.indices(places.shape), strict=True))
    if min(steps) < 0 or not np.array_equal(places, sum(weighed, np.full(places.shape, first))):
        return None
    return places.shape, first, steps


def _stepping(x: Ref, axis: int, shape: Shape, first: int, steps: Sequence[int]) -> Ref:
    """The axis as several, along each of which places go up by so many."""
    one = sliced(x, axis, first, 1)
    strides = (step * x.strides[axis] for step in steps)
    return replace(
        one,
        shape=(*x.shape[:axis], *shape, *x.shape[axis + 1 :]),
        strides=(*x.strides[:axis], *strides, *x.strides[axis + 1 :]),
    )


def concat(builder: Builder, node: ir.Node) -> None:
    output = node.outputs[0]
    shape = builder.shape(output)
    axis = integer(node, "axis", 0) % len(shape)
    refs = [builder.ref(value) for value in node.inputs]
    orders = [builder.order_of(ref) for ref in refs if ref.value in builder.values]
    orders.sort(key=lambda order: order != NHWC)  # one feature map among them decides
    order = next((each for each in orders if each is not None), identity(len(shape)))
    operands = [builder.operand(ref, "", order) for ref in refs]
    attributes: dict[str, Attribute] = {"axis": order.index(axis)}
    builder.forward(
        output,
        builder.emit(node, "concat", operands, shape, builder.datatype(output), order, attributes, name=output.name),
    )


def pad(builder: Builder, node: ir.Node) -> None:
    x, output = builder.ref(node.inputs[0]), node.outputs[0]
    mode = string(node, "mode", "constant")
    pads = _numbers(builder, node, 1, "pads")
    if pads is None:
        raise Unsupported(f"Pad of node {node.name!r} with pads that are computed")
    fill = builder.constant(input_of(node, 2))
    if fill is None and input_of(node, 2) is not None:
        raise Unsupported(f"Pad of node {node.name!r} with a number that is computed")
    amount = float(fill.reshape(-1)[0]) if fill is not None and fill.size else number(node, "value", 0.0)
    rank = len(x.shape)
    axes = _numbers(builder, node, 3, "axes") or identity(rank)
    begin, end = [0] * rank, [0] * rank
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        begin[axis], end[axis] = before, after
    for axis in range(rank):  # a negative pad cuts off
        if begin[axis] < 0 or end[axis] < 0:
            first = max(0, -begin[axis])
            x = sliced(x, axis, first, x.shape[axis] - first - max(0, -end[axis]))
            begin[axis], end[axis] = max(0, begin[axis]), max(0, end[axis])
    if mode != "constant":
        builder.forward(output, _repeated(builder, node, x, begin, end, mode))
        return
    x, order = builder.dense(x, node)
    attributes: dict[str, Attribute] = {
        "begin": tuple(begin[axis] for axis in order),
        "end": tuple(end[axis] for axis in order),
        "value": amount,
    }
    operands = [builder.operand(x, "x", order)]
    builder.forward(
        output,
        builder.emit(node, "pad", operands, builder.shape(output), x.datatype, order, attributes, name=output.name),
    )


def _repeated(builder: Builder, node: ir.Node, x: Ref, begin: Sequence[int], end: Sequence[int], mode: str) -> Ref:
    """Padded with what is there: entries of an axis picked once more."""
    for axis, around in enumerate(zip(begin, end, strict=True)):
        if not any(around):
            continue
        if mode == "reflect" and max(around) >= x.shape[axis]:
            raise Unsupported(f"Pad of node {node.name!r} reflects {max(around)} of {x.shape[axis]} entries")
        x, order = builder.dense(x, node)
        numbers = np.pad(np.arange(x.shape[axis]), around, mode=mode)  # type: ignore[call-overload]  # as NumPy calls it
        where = builder.weight(numbers, f"{node.name}.{axis}")
        operands = [builder.operand(x, "x", order), builder.operand(where, "indices")]
        shape = tuple(numbers.size if each == axis else size for each, size in enumerate(x.shape))
        x = builder.emit(node, "gather", operands, shape, x.datatype, order, {"axis": order.index(axis)})
    return x


def grid_sample(builder: Builder, node: ir.Node) -> None:
    """Images between their pixels, where a computed grid says."""
    x, grid, output = builder.ref(node.inputs[0]), builder.ref(node.inputs[1]), node.outputs[0]
    if len(x.shape) != 4:
        raise Unsupported(f"GridSample of node {node.name!r} works on {len(x.shape) - 2} dimensions, expected 2")
    mode = string(node, "mode", "linear")
    attributes: dict[str, Attribute] = {
        "mode": _SAMPLED.get(mode, mode),
        "padding": string(node, "padding_mode", "zeros"),
        "align": bool(integer(node, "align_corners", 0)),
    }
    places = builder.stored_as(grid, identity(4), node)
    operands = [builder.operand(builder.stored_as(x, NHWC, node), "x", NHWC), builder.operand(places, "grid")]
    shape = builder.shape(output)
    builder.forward(
        output, builder.emit(node, "grid_sample", operands, shape, x.datatype, NHWC, attributes, name=output.name)
    )


# Names since operator set 20, and before.
_SAMPLED: Final = {"linear": "bilinear", "cubic": "bicubic"}


def expect_known(builder: Builder, node: ir.Node) -> None:
    """Sizes must be constants: shape inference may take a size that a call decides for one that does nothing."""
    if any(value is not None and builder.constant(value) is None for value in node.inputs[1:]):
        raise Unsupported(f"{node.op_type} of node {node.name!r} has sizes that are not known before the model runs")


def _numbers(builder: Builder, node: ir.Node, index: int, name: str) -> tuple[int, ...] | None:
    """A list of integers, as an input or (in older operator sets) an attribute."""
    value = input_of(node, index)
    if value is None:
        return integers(node, name)
    array: Array | None = builder.constant(value)
    return None if array is None else tuple(int(each) for each in np.asarray(array).reshape(-1))
