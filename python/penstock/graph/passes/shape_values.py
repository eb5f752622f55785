"""Vectors of sizes that are known in part: which entry of a shape computation is a number, which one is unknown.

Follows INT64 and INT32 values from Shape through what exporters put behind it (Gather, Slice, Concat, Squeeze,
Unsqueeze, Cast, arithmetic). An unknown entry is None: nothing is concluded from names of dimensions. Used by constant
folding alone.
"""

import math
import operator
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import onnx_ir as ir

from penstock.graph.editing import Array, constant, input_of, integer, integers, static_shape

Sizes = tuple[int | None, ...]

_ARITHMETIC: Final[Mapping[str, Callable[[int, int], int]]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
}
_INTEGERS: Final = (ir.DataType.INT64, ir.DataType.INT32)
# Vectors longer than this are no shapes.
_LONGEST: Final = 64


class ShapeValues:
    """What is known of the vectors and scalars that carry sizes, filled node by node in topological order."""

    def __init__(self) -> None:
        self._sizes: dict[ir.Value, tuple[Sizes, int]] = {}
        """Entries, and the dimensions of the tensor that holds them: 0 or 1."""

    def of(self, value: ir.Value | None) -> Sizes | None:
        """Entries of a vector."""
        found = self._find(value)
        return found[0] if found is not None and found[1] == 1 else None

    def known(self, value: ir.Value) -> Array | None:
        """The whole tensor when every entry is a number."""
        found = self._sizes.get(value)
        if found is None or value.dtype not in _INTEGERS:
            return None
        sizes = [size for size in found[0] if size is not None]
        limits = np.iinfo(value.dtype.numpy())
        if len(sizes) != len(found[0]) or any(not limits.min <= size <= limits.max for size in sizes):
            return None
        return np.array(sizes if found[1] else sizes[0], value.dtype.numpy())

    def visit(self, node: ir.Node) -> None:
        rule = _RULES.get(node.op_type)
        found = rule(self, node) if rule is not None else None
        if found is not None and len(found[0]) <= _LONGEST:
            self._sizes[node.outputs[0]] = found

    def _find(self, value: ir.Value | None) -> tuple[Sizes, int] | None:
        if value is None:
            return None
        if value in self._sizes:
            return self._sizes[value]
        array = constant(value)
        if array is None or array.ndim > 1 or array.size > _LONGEST or array.dtype not in (np.int64, np.int32):
            return None
        return tuple(int(each) for each in array.reshape(-1)), array.ndim

    def shape(self, node: ir.Node) -> tuple[Sizes, int] | None:
        value = node.inputs[0]
        if value is None or value.shape is None:
            return None
        sizes = tuple(size if isinstance(size, int) else None for size in value.shape)
        end = integer(node, "end", len(sizes))
        return sizes[integer(node, "start", 0) : end], 1

    def size(self, node: ir.Node) -> tuple[Sizes, int] | None:
        value = node.inputs[0]
        sizes = static_shape(value)
        return None if sizes is None else ((math.prod(sizes),), 0)

    def gather(self, node: ir.Node) -> tuple[Sizes, int] | None:
        found, indices = self._find(node.inputs[0]), constant(input_of(node, 1))
        if (
            found is None
            or found[1] != 1
            or indices is None
            or indices.ndim > 1
            or integer(node, "axis", 0) not in (0, -1)
        ):
            return None
        sizes = found[0]
        if any(not -len(sizes) <= index < len(sizes) for index in indices.reshape(-1)):
            return None
        return tuple(sizes[int(index)] for index in indices.reshape(-1)), indices.ndim

    def slice(self, node: ir.Node) -> tuple[Sizes, int] | None:
        found = self.of(node.inputs[0])
        if found is None or len(node.inputs) < 3:
            return None
        starts, ends = constant(input_of(node, 1)), constant(input_of(node, 2))
        axes, steps = constant(input_of(node, 3)), constant(input_of(node, 4))
        left_out = [
            value for value, array in zip(node.inputs[3:], (axes, steps), strict=False) if value and array is None
        ]
        if starts is None or ends is None or starts.size != 1 or ends.size != 1 or left_out:
            return None
        step = int(steps.item()) if steps is not None else 1
        if step != 1:
            return None
        return found[slice(int(starts.item()), int(ends.item()))], 1

    def concat(self, node: ir.Node) -> tuple[Sizes, int] | None:
        parts: list[int | None] = []
        for value in node.inputs:
            sizes = self.of(value)
            if sizes is None:
                # A vector of known length and unknown entries still has its place.
                length = (
                    value.shape[0] if value is not None and value.shape is not None and len(value.shape) == 1 else None
                )
                if not isinstance(length, int) or length > _LONGEST:
                    return None
                sizes = (None,) * length
            parts += sizes
        return tuple(parts), 1

    def vector(self, node: ir.Node) -> tuple[Sizes, int] | None:
        """Unsqueeze of a scalar, or Reshape of one or a vector to a vector."""
        found = self._find(node.inputs[0])
        if found is None or node.outputs[0].shape is None or len(node.outputs[0].shape) != 1:
            return None
        return found[0], 1

    def squeeze(self, node: ir.Node) -> tuple[Sizes, int] | None:
        found = self._find(node.inputs[0])
        if found is None or found[1] != 1 or len(found[0]) != 1:
            return None
        axes = constant(input_of(node, 1)) if len(node.inputs) > 1 else integers(node, "axes")
        return (found[0], 0) if axes is None or len(axes) else found

    def cast(self, node: ir.Node) -> tuple[Sizes, int] | None:
        return self._find(node.inputs[0]) if ir.DataType(integer(node, "to", 0)) in _INTEGERS else None

    def arithmetic(self, node: ir.Node) -> tuple[Sizes, int] | None:
        left, right = self._find(node.inputs[0]), self._find(node.inputs[1])
        if left is None or right is None:
            return None
        length = max(len(left[0]), len(right[0]))
        if len(left[0]) not in (1, length) or len(right[0]) not in (1, length):
            return None
        entry = _ARITHMETIC[node.op_type]
        pairs = [(left[0][i % len(left[0])], right[0][i % len(right[0])]) for i in range(length)]
        return tuple(None if a is None or b is None else entry(a, b) for a, b in pairs), max(left[1], right[1])


_RULES: Final[Mapping[str, Callable[[ShapeValues, ir.Node], tuple[Sizes, int] | None]]] = {
    "Shape": ShapeValues.shape,
    "Size": ShapeValues.size,
    "Gather": ShapeValues.gather,
    "Slice": ShapeValues.slice,
    "Concat": ShapeValues.concat,
    "Reshape": ShapeValues.vector,
    "Unsqueeze": ShapeValues.vector,
    "Squeeze": ShapeValues.squeeze,
    "Cast": ShapeValues.cast,
    "Add": ShapeValues.arithmetic,
    "Sub": ShapeValues.arithmetic,
    "Mul": ShapeValues.arithmetic,
}
