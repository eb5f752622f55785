"""Layer normalization (Ba, Kiros, Hinton 2016), written out in up to nine nodes.

(x - mean) / sqrt(mean((x - mean)^2) + epsilon), then optionally * scale and + offset, as torch, timm and Paddle export
it: the square by Pow or Mul, the difference computed once or twice, division or multiplication with the reciprocal.
Over trailing axes it becomes LayerNormalization (opset 17), with such scale and offset as are constants of the
normalized shape. Over other axes (channels of an image), or where the normalized sizes are not known, it is named
`layer_norm`. Not for FP64, which LayerNormalization would compute in FP32.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import onnx_ir as ir

from penstock.graph.editing import Array, Edit, input_of, producer
from penstock.graph.patterns.matching import constant_of, operands, plus, reduced_axes, scalar
from penstock.graph.patterns.pattern import Match, Operator, Pattern

_TYPES: Final = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True, slots=True)
class _Norm:
    """What was found so far, from the inside out."""

    x: ir.Value
    axes: tuple[int, ...]
    """From the end, sorted; positive only where the rank is unknown."""

    epsilon: float
    nodes: tuple[ir.Node, ...]
    scale: ir.Value | None = None
    offset: ir.Value | None = None


def find(edit: Edit, root: ir.Node) -> Match | None:
    norm = _shifted(root) if root.op_type == "Add" else _scaled(root.outputs[0]) or _core(root.outputs[0])
    if norm is None or norm.x.dtype not in _TYPES:
        return None
    return Match("layer_norm", frozenset(norm.nodes), _operator(norm))


def _shifted(root: ir.Node) -> _Norm | None:
    for inner, offset in operands(root):
        norm = (_scaled(inner) or _core(inner)) if constant_of(offset) is not None else None
        if norm is not None and _fitting(norm, offset) is not None:
            return replace(norm, offset=offset, nodes=(*norm.nodes, root))
    return None


def _scaled(value: ir.Value) -> _Norm | None:
    node = producer(value, "Mul")
    for inner, scale in operands(node):
        norm = _core(inner) if constant_of(scale) is not None else None
        if node is not None and norm is not None and _fitting(norm, scale) is not None:
            return replace(norm, scale=scale, nodes=(*norm.nodes, node))
    return None


def _core(value: ir.Value) -> _Norm | None:
    """(x - mean) / sqrt(variance + epsilon)"""
    for difference, variance, outer in _quotients(value):
        for mean_of_squares, epsilon, add in plus(variance):
            mean, square = _mean_of(mean_of_squares)
            squared = _squared(square)
            centred, again = _centred(difference), _centred(squared[0]) if squared else None
            if mean is None or squared is None or centred is None or again is None:
                continue
            axes = reduced_axes(mean)
            if centred.x is again.x and axes is not None and centred.axes == again.axes == axes:
                nodes = (*centred.nodes, *again.nodes, squared[1], mean, add, *outer)
                return _Norm(centred.x, axes, epsilon, tuple(dict.fromkeys(nodes)))
    return None


def _quotients(value: ir.Value) -> Iterator[tuple[ir.Value, ir.Value, tuple[ir.Node, ...]]]:
    """Every way in which the value is a / sqrt(b): a, b, and the nodes."""
    divide, times = producer(value, "Div"), producer(value, "Mul")
    if divide is not None and divide.inputs[0] is not None:
        root = _power(input_of(divide, 1), 0.5)
        if root is not None:
            yield divide.inputs[0], root[0], (*root[1], divide)
    for left, right in operands(times):
        root = _power(right, -0.5)
        if root is not None and times is not None:
            yield left, root[0], (*root[1], times)


def _power(value: ir.Value | None, exponent: float) -> tuple[ir.Value, tuple[ir.Node, ...]] | None:
    """What is taken to the power 1/2 or -1/2, by Sqrt, Pow, or the Reciprocal of one of them."""
    square_root, power, reciprocal = producer(value, "Sqrt"), producer(value, "Pow"), producer(value, "Reciprocal")
    if square_root is not None and exponent == 0.5 and square_root.inputs[0] is not None:
        return square_root.inputs[0], (square_root,)
    if power is not None and power.inputs[0] is not None and scalar(power.inputs[1], power.inputs[0]) == exponent:
        return power.inputs[0], (power,)
    one = producer(value, "Div") if exponent == -0.5 else None
    if one is not None and scalar(one.inputs[0], one.inputs[1]) == 1.0:
        inner = _power(one.inputs[1], 0.5)
        return (inner[0], (*inner[1], one)) if inner is not None else None
    if reciprocal is not None and exponent == -0.5:
        inner = _power(reciprocal.inputs[0], 0.5)
        return (inner[0], (*inner[1], reciprocal)) if inner is not None else None
    return None


def _mean_of(value: ir.Value) -> tuple[ir.Node | None, ir.Value | None]:
    node = producer(value, "ReduceMean")
    return node, input_of(node, 0) if node is not None else None


def _squared(value: ir.Value | None) -> tuple[ir.Value, ir.Node] | None:
    power, times = producer(value, "Pow"), producer(value, "Mul")
    if power is not None and power.inputs[0] is not None and scalar(power.inputs[1], power.inputs[0]) == 2.0:
        return power.inputs[0], power
    if times is not None and times.inputs[0] is not None and times.inputs[0] is times.inputs[1]:
        return times.inputs[0], times
    return None


@dataclass(frozen=True, slots=True)
class _Centred:
    x: ir.Value
    axes: tuple[int, ...]
    nodes: tuple[ir.Node, ...]


def _centred(value: ir.Value | None) -> _Centred | None:
    """x - mean(x)"""
    subtract = producer(value, "Sub")
    if subtract is None:
        return None
    x, mean = subtract.inputs[0], producer(subtract.inputs[1], "ReduceMean")
    axes = reduced_axes(mean) if mean is not None and mean.inputs[0] is x else None
    return _Centred(x, axes, (mean, subtract)) if x is not None and mean is not None and axes is not None else None


def _operator(norm: _Norm) -> Operator | None:
    sizes = _normalized(norm, norm.scale, norm.offset)
    if sizes is None or norm.x.dtype is None:
        return None
    if norm.scale is None and len(sizes) > 1:
        return None  # ones as large as an image, for nothing
    scale: ir.Value | Array = np.ones(sizes, norm.x.dtype.numpy())
    if norm.scale is not None:
        scale = _input(norm, norm.scale)
    inputs = (norm.x, scale) if norm.offset is None else (norm.x, scale, _input(norm, norm.offset))
    return Operator("LayerNormalization", 17, inputs, {"axis": -len(sizes), "epsilon": norm.epsilon})


def _normalized(norm: _Norm, *constants: ir.Value | None) -> tuple[int, ...] | None:
    """Sizes of the trailing axes that are normalized; None when they are not trailing or not known.

    A size that inference does not know is that of a scale or an offset along it: it could only be 1 otherwise, of which
    normalizing leaves nothing.
    """
    count = len(norm.axes)
    if norm.axes != tuple(range(-count, 0)):
        return None
    arrays = [array for value in constants if (array := constant_of(value)) is not None]
    shape = norm.x.shape
    if shape is not None and len(shape) < count:
        return None
    sizes: list[int] = []
    for axis in norm.axes:
        known = shape[axis] if shape is not None else None
        given = [array.shape[axis] for array in arrays if array.ndim >= -axis and array.shape[axis] > 1]
        size = known if isinstance(known, int) else next(iter(given), None)
        if size is None:
            return None
        sizes.append(size)
    return tuple(sizes)


def _fitting(norm: _Norm, value: ir.Value) -> Array | None:
    """A constant spread over the normalized shape; None where it varies, or broadcasts, over anything else."""
    array, sizes = constant_of(value), _normalized(norm, norm.scale, value)
    dimensions = len(norm.axes) if norm.x.shape is None else len(norm.x.shape)
    if array is None or sizes is None or array.ndim > dimensions:
        return None
    if any(size != 1 for size in array.shape[: -len(sizes)]):
        return None
    try:
        return np.broadcast_to(array.reshape(array.shape[-len(sizes) :]), sizes)
    except ValueError:
        return None


def _input(norm: _Norm, value: ir.Value) -> ir.Value | Array:
    """The constant itself when it has the normalized shape already."""
    array, spread = constant_of(value), _fitting(norm, value)
    assert array is not None
    assert spread is not None
    return value if array.shape == spread.shape else spread


LAYER_NORM: Final = Pattern("layer_norm", ("Add", "Mul", "Div"), find)
