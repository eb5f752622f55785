"""Layers with weights: convolutions, matrix products, recurrent ones. Weights are laid out as `engine.lowered` says."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from penstock.engine.lowered import Attribute, Instruction, Operand
from penstock.engine.plan import Shape
from penstock.errors import Unsupported
from penstock.graph.editing import Array, input_of, integer, integers, number, string
from penstock.graph.lowering.builder import Builder
from penstock.graph.lowering.stems import Window, stem
from penstock.graph.lowering.views import NHWC, Ref, expanded, identity, permuted, reshaped


def conv(builder: Builder, node: ir.Node) -> None:
    """2-D convolution, of one dimension too (as an image of one row)."""
    weight = weight_of(builder, node, 1)
    bias = _bias(builder, node, 2)
    x, output = builder.ref(node.inputs[0]), node.outputs[0]
    shape = builder.shape(output)
    flat = len(x.shape) == 3
    if flat:
        x, weight, shape = row(x), weight[:, :, None, :], (shape[0], shape[1], 1, shape[2])
    _expect_images(node, x)
    rows, form, groups = weight.transpose(0, 2, 3, 1), "krsc", integer(node, "group", 1)
    strides, dilations = (_spatial(node, name, 1, flat) for name in ("strides", "dilations"))
    pads = _pads(node, flat)
    products = int(np.prod(rows.shape[1:]))
    found = stem(builder, node, x, Window(rows, strides, pads, dilations, shape[2:])) if groups == 1 else None
    if found is not None:
        seen, rows, form, strides, pads = found.x, found.weight, found.form, found.strides, found.pads
    else:
        seen = builder.operand(builder.stored_as(x, NHWC, node), "x", NHWC)
    operands = [seen, in_role("weight", builder.formed(origin_of(builder, node, 1), form, rows, name_of(node, 1)))]
    if bias is not None:
        operands.append(in_role("bias", builder.formed(bias, "", bias, name_of(node, 2))))
    attributes: dict[str, Attribute] = {
        "kernel": tuple(rows.shape[1:3]),
        "strides": strides,
        "pads": pads,
        "dilations": dilations,
        "groups": groups,
    }
    if found is not None:
        attributes["products"] = products
    result = builder.emit(node, "conv", operands, shape, builder.datatype(output), NHWC, attributes, name=output.name)
    builder.forward(output, without_row(result) if flat else result)


def conv_transpose(builder: Builder, node: ir.Node) -> None:
    """2-D, of one dimension too."""
    weight = weight_of(builder, node, 1)
    bias = _bias(builder, node, 2)
    x, output = builder.ref(node.inputs[0]), node.outputs[0]
    shape = builder.shape(output)
    flat = len(x.shape) == 3
    if flat:
        x, weight, shape = row(x), weight[:, :, None, :], (shape[0], shape[1], 1, shape[2])
    _expect_images(node, x)
    if string(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID") or integers(node, "output_shape") is not None:
        raise Unsupported(f"ConvTranspose of node {node.name!r} asks for a shape; only explicit pads can be lowered")
    x = builder.stored_as(x, NHWC, node)
    rows = builder.formed(origin_of(builder, node, 1), "crsk", weight.transpose(0, 2, 3, 1), name_of(node, 1))
    operands = [builder.operand(x, "x", NHWC), in_role("weight", rows)]
    if bias is not None:
        operands.append(in_role("bias", builder.formed(bias, "", bias, name_of(node, 2))))
    attributes: dict[str, Attribute] = {
        "kernel": tuple(weight.shape[2:]),
        "strides": _spatial(node, "strides", 1, flat),
        "pads": _pads(node, flat),
        "dilations": _spatial(node, "dilations", 1, flat),
        "output_padding": _spatial(node, "output_padding", 0, flat),
        "groups": integer(node, "group", 1),
    }
    datatype = builder.datatype(output)
    result = builder.emit(node, "conv_transpose", operands, shape, datatype, NHWC, attributes, name=output.name)
    builder.forward(output, without_row(result) if flat else result)


def gemm(builder: Builder, node: ir.Node) -> None:
    """A row that is added is the product's bias; all else that is added, and factors of what is computed, are steps."""
    a, c = builder.ref(node.inputs[0]), input_of(node, 2)
    if integer(node, "transA", 0):
        a = permuted(a, (1, 0))
    weight, bias = builder.constant(node.inputs[1]), builder.constant(c)
    alpha, beta = number(node, "alpha", 1.0), number(node, "beta", 1.0)
    if weight is not None:
        rows = weight if integer(node, "transB", 0) else weight.T
        form = "nk" if integer(node, "transB", 0) == 0 else ""
        if alpha != 1.0:
            rows, form = rows * np.asarray(alpha, rows.dtype), f"{form}.times{alpha:g}"
        operand = builder.formed(weight, form, rows, name_of(node, 1))
        result = _product(builder, node, a, operand, rows.shape[0])
    else:
        b = builder.ref(node.inputs[1])
        b = permuted(b, (1, 0)) if integer(node, "transB", 0) else b
        operands, output = [builder.operand(a, "a"), builder.operand(b, "b")], node.outputs[0]
        shape = builder.shape(output)
        result = builder.emit(node, "matmul", operands, shape, builder.datatype(output), name=output.name)
        if alpha != 1.0:
            result = _computed(builder, node, (result,), (Instruction("mul", ("i0", alpha)),))
    whole = _row_of(bias, result.shape) if bias is not None else None
    if bias is not None and whole is not None and weight is not None:
        if np.any(bias):
            scaled = whole if beta == 1.0 else whole * np.asarray(beta, whole.dtype)
            form = f"row{whole.size}.times{beta:g}"  # one number may be the rows of several widths
            result = _with_bias(builder, result, bias, scaled, form, name_of(node, 2))
    elif c is not None:
        addend = builder.ref(c)
        scale = (Instruction("mul", ("i1", beta)),) if beta != 1.0 else ()
        line = Instruction("add", ("i0", "t0" if scale else "i1"))
        result = _computed(builder, node, (result, expanded(addend, result.shape)), (*scale, line))
    builder.forward(node.outputs[0], result)


def _row_of(bias: Array, shape: Shape) -> Array | None:
    """A constant as the row that it adds to every row of this many columns; None where rows get different ones."""
    whole = np.broadcast_to(bias, shape)
    return np.ascontiguousarray(whole[0]) if whole.strides[0] == 0 or shape[0] == 1 else None


def _computed(builder: Builder, node: ir.Node, refs: Sequence[Ref], program: Sequence[Instruction]) -> Ref:
    """Number by number of what lies in the first one's order."""
    first, order = builder.dense(refs[0], node)
    operands = [builder.operand(each, "", order) for each in (first, *refs[1:])]
    name = node.outputs[0].name
    return builder.emit(node, "pointwise", operands, first.shape, first.datatype, order, program=program, name=name)


def matmul(builder: Builder, node: ir.Node) -> None:
    """With a constant right matrix a `gemm`; otherwise a `matmul`, batched, its operands read as they lie."""
    weight = builder.constant(node.inputs[1])
    output = node.outputs[0]
    if weight is not None and weight.ndim == 2:
        operand = builder.formed(weight, "nk", weight.T, name_of(node, 1))
        builder.forward(output, _product(builder, node, builder.ref(node.inputs[0]), operand, weight.shape[1]))
        return
    a, b = builder.ref(node.inputs[0]), builder.ref(node.inputs[1])
    if min(len(a.shape), len(b.shape)) < 2:
        raise Unsupported(f"MatMul of node {node.name!r} multiplies a vector; reshape it to a matrix")
    shape = builder.shape(output)
    a, b = expanded(a, (*shape[:-2], *a.shape[-2:])), expanded(b, (*shape[:-2], *b.shape[-2:]))
    operands = [builder.operand(a, "a"), builder.operand(b, "b")]
    builder.forward(output, builder.emit(node, "matmul", operands, shape, builder.datatype(output), name=output.name))


def _product(builder: Builder, node: ir.Node, a: Ref, weight: Operand, columns: int) -> Ref:
    """a [.., K] with rows in any order, so long as the numbers of a row lie together."""
    rank = len(a.shape)
    order = builder.order_of(a)
    if rank == 4 and order is not None and order[-1] != 3:
        order = None
    if order is None or order[-1] != rank - 1:
        a, order = builder.stored_as(a, identity(rank), node), identity(rank)
    operands = [builder.operand(a, "x", order), in_role("weight", weight)]
    shape = (*a.shape[:-1], columns)
    output = node.outputs[0]
    return builder.emit(node, "gemm", operands, shape, builder.datatype(output), order, name=output.name)


def _with_bias(builder: Builder, result: Ref, origin: Array, bias: Array, form: str, name: str) -> Ref:
    step = builder.steps.pop()
    operand = in_role("bias", builder.formed(origin, form, bias, name))
    builder.steps.append(
        type(step)(
            step.name, step.kind, (*step.inputs, operand), step.outputs, step.attributes, step.program, step.nodes
        )
    )
    return result


# ---- shared ----


def weight_of(builder: Builder, node: ir.Node, index: int) -> Array:
    array = builder.constant(input_of(node, index))
    if array is None:
        raise Unsupported(f"{node.op_type} of node {node.name!r} has weights that are computed; they must be constant")
    return array


def origin_of(builder: Builder, node: ir.Node, index: int) -> Array:
    array = builder.constant(input_of(node, index))
    assert array is not None
    return array


def _bias(builder: Builder, node: ir.Node, index: int) -> Array | None:
    value = input_of(node, index)
    array = builder.constant(value)
    if value is not None and array is None:
        raise Unsupported(f"{node.op_type} of node {node.name!r} has a bias that is computed; it must be constant")
    return array if array is not None and np.any(array) else None


def name_of(node: ir.Node, index: int) -> str:
    value = input_of(node, index)
    return (value.name if value is not None else None) or f"{node.name}.{index}"


def in_role(role: str, operand: Operand) -> Operand:
    return Operand(operand.value, role, operand.view)


def _expect_images(node: ir.Node, x: Ref) -> None:
    if len(x.shape) != 4:
        raise Unsupported(
            f"{node.op_type} of node {node.name!r} works on {len(x.shape) - 2} dimensions, those on 2 can be lowered"
        )


def row(x: Ref) -> Ref:
    """What has one dimension as an image of one row."""
    batch, channels, size = x.shape
    row = reshaped(x, (batch, channels, 1, size))
    assert row is not None  # an axis of one can be put anywhere
    return row


def without_row(result: Ref) -> Ref:
    """The other way."""
    keep = permuted(result, (0, 1, 3, 2))
    return Ref(keep.value, keep.shape[:3], keep.strides[:3], keep.datatype, keep.offset)


def _spatial(node: ir.Node, name: str, default: int, flat: bool) -> tuple[int, ...]:
    found = integers(node, name)
    if flat:
        return (1 if name != "output_padding" else 0, *(found or (default,)))
    return found or (default, default)


def _pads(node: ir.Node, flat: bool) -> tuple[int, ...]:
    """Top, left, bottom, right."""
    if string(node, "auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
        raise Unsupported(f"{node.op_type} of node {node.name!r} pads by itself; optimize the model before lowering it")
    found = integers(node, "pads")
    if flat:
        return (0, found[0], 0, found[1]) if found else (0, 0, 0, 0)
    return found or (0, 0, 0, 0)
