"""Factors and offsets per channel go into the weights and the bias of the layer before them, or of the one after.

y = x * factor + offset along one axis is what Mul, Div, Add and Sub with a constant do, and BatchNormalization. With W
the weights and b the bias of a layer (Conv, ConvTranspose, Gemm, MatMul with constant weights):

* after the layer: (W*x + b) * f + t = (f W)*x + (f b + t), per output channel;
* before the layer: W*(f x + t) + b = (W f)*x + (b + sum of W t), per input channel. The offset is exact only where no
  padding brings in zeros that did not pass it, so a padded convolution takes the factor alone.

Between a convolution or Gemm and what comes after it there may be Reshapes and Transposes, as where a map becomes
tokens.

A MatMul of more than two dimensions has no bias: the factor goes into its weights and the offset into an Add behind it,
also where Reshapes that leave the channels last stand between, as between a linear layer and its batch norm.

A constant that would enlarge the tensor by broadcasting is left alone. Only FP32 and FP64: the new weights are computed
in FP64 and rounded once, which differs from the two steps by a rounding, as any order of summation does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from penstock import limits
from penstock.graph.editing import (
    Edit,
    constant,
    exact_constant,
    input_of,
    integer,
    integers,
    is_operator,
    number,
    producer,
    rank,
    string,
)
from penstock.graph.sources import inherit

Vector = NDArray[np.float64]

_LAYERS: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """x * factor + offset; both have one entry, or one for each channel along `axis` of x."""

    x: ir.Value
    factor: Vector
    offset: Vector
    axis: int
    """Counts only where a vector has more than one entry."""

    @classmethod
    def of(cls, x: ir.Value, factor: Vector, offset: Vector, axis: int) -> "Affine | None":
        """None where a number is no number, as folding would spread it."""
        if not (np.isfinite(factor).all() and np.isfinite(offset).all()):
            return None
        return cls(x, factor.reshape(-1), offset.reshape(-1), axis)

    @property
    def channels(self) -> int:
        return max(self.factor.size, self.offset.size)

    def fits(self, axis: int, channels: int) -> bool:
        return self.channels == 1 or (self.axis == axis and self.channels == channels)

    def spread(self, channels: int) -> tuple[Vector, Vector]:
        return np.broadcast_to(self.factor, channels), np.broadcast_to(self.offset, channels)


def fold_affine(edit: Edit) -> None:
    for node in edit.nodes("Mul", "Div", "Add", "Sub"):
        affine = affine_of(node)
        if affine is not None and not (after_layer(edit, node, affine) or after_product(edit, node, affine)):
            before_layer(edit, node, affine)


def affine_of(node: ir.Node) -> Affine | None:
    left, right = node.inputs
    swapped = constant(left) is not None
    x, values = (right, exact_constant(left)) if swapped else (left, exact_constant(right))
    if x is None or values is None or constant(x) is not None or x.shape is None or values.size == 0:
        return None
    shape = (1,) * (len(x.shape) - values.ndim) + values.shape
    axis = int(np.argmax(shape)) if shape else 0
    if len(shape) > len(x.shape) or (values.size > 1 and (shape[axis] != values.size or x.shape[axis] != shape[axis])):
        return None  # not along one axis, or it would enlarge x, or nobody knows
    factor, offset = np.ones(1), np.zeros(1)
    if node.op_type == "Mul":
        factor = values
    elif node.op_type == "Div":
        with np.errstate(divide="ignore"):  # division by 0, and of a constant by x, is not affine
            factor = np.full(1, np.nan) if swapped else 1 / values
    elif node.op_type == "Add":
        offset = values
    else:
        factor, offset = (-factor, values) if swapped else (factor, -values)
    return Affine.of(x, factor, offset, axis)


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A node with constant weights and bias: W has its channels in and out where the operator wants them."""

    node: ir.Node
    weights: Vector
    bias: Vector | None
    """In full, one for each output channel and with Gemm's beta; None where there is none."""
    groups: int
    channels_in: int
    channels_out: int
    in_axis: int
    """Axis of the layer's input that holds the channels; of its output, too."""

    def scaled(self, factors: Vector, side: str) -> Vector:
        """The weights times a factor for each channel that comes `in` or goes `out`."""
        shape, groups = self.weights.shape, self.groups
        kernel = (1,) * (len(shape) - 2)
        split = self.weights.reshape(groups, shape[0] // groups, *shape[1:])
        if self.node.op_type == "Conv":  # (groups * out, in, kernel)
            on_rows = side == "out"
        elif self.node.op_type == "ConvTranspose":  # (groups * in, out, kernel)
            on_rows = side == "in"
        else:  # (in, out), or (out, in) when transposed
            on_rows = (side == "out") == bool(integer(self.node, "transB", 0))
        spread = factors.reshape(groups, -1, 1, *kernel) if on_rows else factors.reshape(groups, 1, -1, *kernel)
        return (split * spread).reshape(shape)


def layer_of(node: ir.Node | None) -> Layer | None:
    if node is None or not is_operator(node, *_LAYERS):
        return None
    value, given = input_of(node, 1), input_of(node, 2)
    weights, bias = exact_constant(value), exact_constant(given)
    if weights is None or value is None or weights.size == 0 or (given is not None and bias is None):
        return None
    if len(value.uses()) > 1 and weights.size > limits.FOLDED_BYTES:
        return None  # shared weights would be kept twice
    found = (_convolution if node.op_type in ("Conv", "ConvTranspose") else _product)(node, weights)
    if found is None or bias is None:
        return found
    channels = found.channels_out
    if bias.size not in (1, channels) or (bias.ndim == 2 and bias.shape[0] != 1) or bias.ndim > 2:
        return None
    return replace(found, bias=np.broadcast_to(bias.reshape(-1) * number(node, "beta", 1.0), channels))


def _convolution(node: ir.Node, weights: Vector) -> Layer | None:
    groups = integer(node, "group", 1)
    if weights.ndim < 3 or groups < 1 or weights.shape[0] % groups:
        return None
    rows, columns = weights.shape[0], weights.shape[1] * groups
    come, go = (columns, rows) if node.op_type == "Conv" else (rows, columns)
    return Layer(node, weights, None, groups, come, go, in_axis=1)


def _product(node: ir.Node, weights: Vector) -> Layer | None:
    dims = rank(input_of(node, 0))
    if weights.ndim != 2 or integer(node, "transA", 0) or dims is None or dims < 2:
        return None
    come, go = reversed(weights.shape) if integer(node, "transB", 0) else weights.shape
    return Layer(node, weights, None, 1, come, go, in_axis=dims - 1)


def after_layer(edit: Edit, node: ir.Node, affine: Affine) -> bool:
    """Fold `node`, which computes `affine`, into the layer that makes its input; False, and nothing changed, if not.

    What the layer made may have been turned into tokens on the way.
    """
    layer = _layer_behind(edit, node, affine)
    if layer is None:
        return False
    factor, offset = affine.spread(layer.channels_out)
    bias = offset if layer.bias is None else layer.bias * factor + offset
    weights = layer.scaled(factor, "out")
    if not applicable(layer, weights, bias) or not edit.forward(node.outputs[0], affine.x):
        return False
    apply(edit, layer, weights, bias)
    inherit(layer.node, [layer.node, node])
    edit.remove(node)
    return True


def _layer_behind(edit: Edit, node: ir.Node, affine: Affine) -> Layer | None:
    """Whose result comes, alone, to the node, maybe by way of Reshapes and Transposes that leave its channels whole."""
    value, reader, axis = affine.x, node, affine.axis
    while edit.only_consumer(value) is reader and (maker := producer(value, "Reshape", "Transpose")) is not None:
        before = maker.inputs[0]
        found = axis if affine.channels == 1 else _axis_before(maker, axis)
        if before is None or found is None:
            return None
        value, reader, axis = before, maker, found
    layer = layer_of(producer(value, *_LAYERS))
    if layer is None or edit.only_consumer(value) is not reader:
        return None
    if reader is not node and layer.node.op_type == "MatMul":
        return None  # which `after_product` knows
    fits = affine.channels == 1 or (axis == layer.in_axis and affine.channels == layer.channels_out)
    return layer if fits else None


def _axis_before(maker: ir.Node, axis: int) -> int | None:
    """Which axis of its input a Reshape's or Transpose's axis is; None where it is not one alone, or nobody knows."""
    before, after = (None if value is None else value.shape for value in (maker.inputs[0], maker.outputs[0]))
    if before is None or after is None:
        return None
    if maker.op_type == "Transpose":
        order = integers(maker, "perm") or tuple(reversed(range(len(after))))
        return order[axis]
    left = len(before) - len(after) + axis
    if _same(before[: axis + 1], after[: axis + 1]):
        return axis
    return left if left >= 0 and _same(before[left:], after[axis:]) else None


def _same(some: Sequence[int | ir.SymbolicDim], others: Sequence[int | ir.SymbolicDim]) -> bool:
    """Whether sizes are equal, by number or by name."""
    known = all(isinstance(size, int) or size.value is not None for size in some)
    return known and tuple(some) == tuple(others)


@dataclass(frozen=True, slots=True, eq=False)
class _Product:
    """A MatMul whose result comes, alone, to the node that asks."""

    layer: Layer
    reader: ir.Node
    """Of what the MatMul makes."""
    add: ir.Node | None
    bias: Affine | None
    """What `add` computes."""


def after_product(edit: Edit, node: ir.Node, affine: Affine) -> bool:
    """Fold the factor of `node` into the MatMul that makes its input, the offset into an Add behind that; else False.

    That Add may be there already. Nothing is changed where nothing is gained: an Add right behind its MatMul stays.
    """
    found = _product_behind(edit, node, affine)
    if found is None or not edit.replaceable(node.outputs[0]):
        return False
    if found.reader is node and node.op_type in ("Add", "Sub"):
        return False
    layer = found.layer
    factor, offset = affine.spread(layer.channels_out)
    bias = offset if found.bias is None else found.bias.spread(layer.channels_out)[1] * factor + offset
    weights, dtype = layer.scaled(factor, "out"), _dtype(layer)
    if not (_finite(weights, dtype) and _finite(bias, dtype)):
        return False
    result = affine.x
    if found.add is not None:
        place = int(constant(found.add.inputs[1]) is not None)
        edit.set_input(found.add, place, edit.constant(_near(found.add, place), bias.astype(dtype)))
        inherit(found.add, [found.add, node])
    elif bias.any():
        product, added = layer.node.outputs[0], edit.constant(f"{node.name}_offset", bias.astype(dtype))
        shifted = edit.insert(found.reader, "Add", (product, added), {}, [node])
        shifted.type, shifted.shape = product.type, product.shape
        if found.reader is node:
            result = shifted
        else:
            edit.set_input(found.reader, 0, shifted)
    edit.set_input(layer.node, 1, edit.constant(_near(layer.node, 1), weights.astype(dtype)))
    inherit(layer.node, [layer.node, node])
    edit.forward(node.outputs[0], result)
    edit.remove(node)
    return True


def _product_behind(edit: Edit, node: ir.Node, affine: Affine) -> _Product | None:
    channels, value, reader = _last(affine.x), affine.x, node
    add = bias = None
    if channels is None or not affine.fits(len(affine.x.shape or ()) - 1, channels):
        return None
    while edit.only_consumer(value) is reader and (maker := producer(value, "Add", "Reshape")) is not None:
        before = maker.inputs[0]
        if maker.op_type == "Add":
            if add is not None or (bias := affine_of(maker)) is None:
                return None
            if not bias.fits(len(bias.x.shape or ()) - 1, channels):
                return None
            add, before = maker, bias.x
        if before is None or _last(before) != channels:
            return None
        value, reader = before, maker
    layer = layer_of(producer(value, "MatMul"))
    if layer is None or layer.channels_out != channels or edit.only_consumer(value) is not reader:
        return None
    return _Product(layer, reader, add, bias)


def _last(value: ir.Value | None) -> int | None:
    """How many numbers a row has, if that is known."""
    size = value.shape[-1] if value is not None and value.shape is not None and len(value.shape) else None
    return size if isinstance(size, int) else None


def before_layer(edit: Edit, node: ir.Node, affine: Affine) -> bool:
    """Fold `node`, which computes `affine`, into the layer that alone reads it; False, and nothing changed, if not."""
    layer = layer_of(edit.only_consumer(node.outputs[0]))
    if layer is None or layer.node.inputs[0] is not node.outputs[0]:
        return False
    if not affine.fits(layer.in_axis, layer.channels_in):
        return False
    factor, offset = affine.spread(layer.channels_in)
    bias = np.zeros(layer.channels_out) if layer.bias is None else layer.bias
    if offset.any():
        if layer.node.op_type == "ConvTranspose" or (layer.node.op_type == "Conv" and not _unpadded(layer.node)):
            return False
        bias = bias + _response(layer, offset) * number(layer.node, "alpha", 1.0)
    weights = layer.scaled(factor, "in")
    if not applicable(layer, weights, bias):
        return False
    edit.set_input(layer.node, 0, affine.x)
    apply(edit, layer, weights, bias)
    inherit(layer.node, [node, layer.node])
    edit.remove(node)
    return True


def _response(layer: Layer, offset: Vector) -> Vector:
    """What a constant input gives at each output channel, before the bias."""
    if layer.node.op_type == "Conv":
        by_row: Vector = layer.scaled(offset, "in").reshape(layer.channels_out, -1).sum(axis=1)
        return by_row
    response: Vector = offset @ (layer.weights.T if integer(layer.node, "transB", 0) else layer.weights)
    return response


def _unpadded(node: ir.Node) -> bool:
    mode = string(node, "auto_pad", "NOTSET")
    return mode == "VALID" or (mode == "NOTSET" and not any(integers(node, "pads") or ()))


def applicable(layer: Layer, weights: Vector, bias: Vector) -> bool:
    """A MatMul has room for a bias only as Gemm, of two dimensions; and numbers must stay finite in their own type."""
    if layer.node.op_type == "MatMul" and bias.any() and layer.in_axis != 1:
        return False
    dtype = _dtype(layer)
    return _finite(weights, dtype) and _finite(bias, dtype)


def _finite(numbers: Vector, dtype: "np.dtype[np.floating]") -> bool:
    with np.errstate(over="ignore"):
        return bool(np.isfinite(numbers.astype(dtype)).all())


def apply(edit: Edit, layer: Layer, weights: Vector, bias: Vector) -> None:
    node, dtype = layer.node, _dtype(layer)
    if not np.array_equal(weights, layer.weights):
        edit.set_input(node, 1, edit.constant(_near(node, 1), weights.astype(dtype)))
    if bias.any() or layer.bias is not None:
        if node.op_type == "MatMul":
            node.op_type = "Gemm"
        edit.set_input(node, 2, edit.constant(_near(node, 2), bias.astype(dtype)))
        edit.set_attributes(node, {"beta": None})


def _dtype(layer: Layer) -> "np.dtype[np.floating]":
    value = layer.node.inputs[1]
    assert value is not None
    assert value.const_value is not None
    return np.dtype(value.const_value.dtype.numpy())


def _near(node: ir.Node, index: int) -> str:
    value = input_of(node, index)
    return value.name if value is not None and value.name else f"{node.name}_bias"
