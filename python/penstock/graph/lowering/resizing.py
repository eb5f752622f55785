"""Resize and Upsample: images by repeating pixels or between four of them, as steps; all else as products.

Along one axis every mode is linear in what it reads, so that a constant matrix [out, in] says it: cubic, antialiased,
any number of axes. One whose rows each pick an entry is a gather, any other a product. Called by `lower`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from penstock.engine.lowered import FLOATS, Attribute
from penstock.engine.places import ROUND, Numbers, places
from penstock.errors import Unsupported
from penstock.graph.editing import input_of, integer, integers, number, string
from penstock.graph.lowering.builder import Builder
from penstock.graph.lowering.moves import expect_known
from penstock.graph.lowering.views import NHWC, Ref, dense, expanded, identity, permuted, reshaped


def resize(builder: Builder, node: ir.Node) -> None:
    """Attributes of the step are ONNX's own; `scales` are height and width."""
    expect_known(builder, node)
    x, output = builder.ref(node.inputs[0]), node.outputs[0]
    asked = _asked(builder, node, x.shape, builder.shape(output))
    if asked.coordinates == "tf_crop_and_resize":
        raise Unsupported(f"Resize of node {node.name!r} with tf_crop_and_resize")
    if asked.moves_nothing:
        builder.forward(output, x)
    elif asked.is_a_step:
        operands = [builder.operand(builder.stored_as(x, NHWC, node), "x", NHWC)]
        attributes: dict[str, Attribute] = {
            "mode": asked.mode,
            "coordinates": asked.coordinates,
            "nearest": asked.nearest,
            "scales": asked.scales[2:],
        }
        made = builder.emit(node, "resize", operands, asked.shape, x.datatype, NHWC, attributes, name=output.name)
        builder.forward(output, made)
    else:
        for axis in range(len(x.shape)):
            matrix = asked.along(axis)
            if not np.array_equal(matrix, np.eye(x.shape[axis])):
                x = _multiplied(builder, node, x, axis, matrix)
        builder.forward(output, x)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a Resize does; `scales` of all axes, as its places are computed with."""

    before: tuple[int, ...]
    shape: tuple[int, ...]
    scales: tuple[float, ...]
    mode: str
    coordinates: str
    nearest: str
    cubic: float
    antialias: bool
    exclude_outside: bool

    @property
    def moves_nothing(self) -> bool:
        return self.shape == self.before and set(self.scales) == {1.0}

    @property
    def is_a_step(self) -> bool:
        """Whether it is a map's height and width alone, by the means that steps have."""
        maps = len(self.shape) == 4 and self.shape[:2] == self.before[:2] and self.scales[:2] == (1.0, 1.0)
        return maps and self.mode in ("nearest", "linear") and not self.antialias and not self.exclude_outside

    def along(self, axis: int) -> Numbers:
        """[out, in]: how much of each entry there is in each of the result."""
        size, out, scale = self.before[axis], self.shape[axis], self.scales[axis]
        if size == out and scale == 1.0:
            return np.eye(size)
        there = places(self.coordinates, size, out, scale)
        matrix, rows = np.zeros((out, size)), np.arange(out)
        if self.mode == "nearest":
            matrix[rows, np.clip(ROUND[self.nearest](there), 0, size - 1).astype(np.int64)] = 1.0
            return matrix
        # Antialiased, a filter is as much wider as the image gets smaller.
        narrowed = min(scale, 1.0) if self.antialias else 1.0
        reach = _REACH[self.mode] / narrowed
        first = np.floor(there - reach).astype(np.int64)
        for step in range(math.ceil(2 * reach) + 2):
            entry = first + step
            share = _KERNELS[self.mode]((entry - there) * narrowed, self.cubic)
            inside = (entry >= 0) & (entry < size)
            if self.exclude_outside:
                share = np.where(inside, share, 0.0)
            np.add.at(matrix, (rows, np.clip(entry, 0, size - 1)), share)
        scaled: Numbers = matrix / matrix.sum(axis=1, keepdims=True)
        return scaled


def _multiplied(builder: Builder, node: ir.Node, x: Ref, axis: int, matrix: Numbers) -> Ref:
    """x with another size of one axis, stored in the order that it has."""
    picked = matrix.argmax(axis=1)
    shape = (*x.shape[:axis], len(matrix), *x.shape[axis + 1 :])
    x, order = builder.dense(x, node)
    place, name = order.index(axis), f"{node.name}.{axis}"
    if np.array_equal(matrix, np.eye(matrix.shape[1])[picked]):
        operands = [builder.operand(x, "x", order), builder.operand(builder.weight(picked, name), "indices")]
        return builder.emit(node, "gather", operands, shape, x.datatype, order, {"axis": place})
    if x.datatype not in FLOATS:
        raise Unsupported(f"Resize of node {node.name!r}: {string(node, 'mode', 'nearest')} of {x.datatype}")
    weight = builder.weight(matrix.astype(np.float32), name)
    lying = permuted(x, order)
    ahead, behind = math.prod(lying.shape[:place]), math.prod(lying.shape[place + 1 :])
    flat = reshaped(lying, (ahead, len(matrix[0]), behind) if behind > 1 else (ahead, len(matrix[0])))
    assert flat is not None  # there are no gaps in it
    if behind == 1:
        operands = [builder.operand(flat, "x"), builder.operand(weight, "weight")]
        made = builder.emit(node, "gemm", operands, (ahead, len(matrix)), x.datatype)
    else:
        seen = expanded(weight, (ahead, *matrix.shape))
        operands = [builder.operand(seen, "a"), builder.operand(flat, "b")]
        made = builder.emit(node, "matmul", operands, (ahead, len(matrix), behind), x.datatype)
    return dense(made.value, shape, order, x.datatype)


def _asked(builder: Builder, node: ir.Node, before: tuple[int, ...], shape: tuple[int, ...]) -> _Asked:
    old = builder.opset < 11  # no modes yet: pixels begin where they begin
    axes = tuple(axis % len(before) for axis in integers(node, "axes") or identity(len(before)))
    scales = [out / size if size else 1.0 for out, size in zip(shape, before, strict=True)]
    given = builder.constant(input_of(node, 1 if old else 2))
    policy = string(node, "keep_aspect_ratio_policy", "stretch")
    if given is not None and given.size:
        for axis, scale in zip(axes, np.asarray(given, np.float64).reshape(-1), strict=True):
            scales[axis] = float(scale)
    elif policy != "stretch":
        wanted = builder.constant(input_of(node, 3))
        assert wanted is not None  # known, and there are no scales
        each = [int(size) / before[axis] for axis, size in zip(axes, wanted.reshape(-1), strict=True)]
        for axis in axes:
            scales[axis] = max(each) if policy == "not_smaller" else min(each)
    return _Asked(
        before,
        shape,
        tuple(scales),
        string(node, "mode", "nearest"),
        "asymmetric" if old else string(node, "coordinate_transformation_mode", "half_pixel"),
        "floor" if old else string(node, "nearest_mode", "round_prefer_floor"),
        number(node, "cubic_coeff_a", -0.75),
        bool(integer(node, "antialias", 0)),
        bool(integer(node, "exclude_outside", 0)),
    )


def _cubic(distances: Numbers, a: float) -> Numbers:
    """Keys 1981, "Cubic convolution interpolation for digital image processing"."""
    x = np.abs(distances)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


_KERNELS: Final[dict[str, Callable[[Numbers, float], Numbers]]] = {
    "linear": lambda distances, _: np.maximum(0.0, 1.0 - np.abs(distances)),
    "cubic": _cubic,
}
_REACH: Final = {"linear": 1.0, "cubic": 2.0}
