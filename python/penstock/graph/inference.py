"""Shapes and types of every tensor, from ONNX's own inference run on the graph without its weights.

Shapes that a file claims for its inner tensors are not trusted: `forget` drops them and `infer` computes them anew.
Called by bind and optimize; passes read `Value.shape`.
"""

from collections.abc import Iterable

import onnx
import onnx_ir as ir

from penstock.graph import windows
from penstock.graph.editing import has_graphs
from penstock.graph.external import take_inside

# Weights larger than this take no part in shapes; every shape vector is smaller.
_SHAPE_DATA_BYTES = 1024
# What the library's inference calls dimensions that it can't name.
_MADE_UP = "unk__"


def skeleton(model: ir.Model) -> onnx.ModelProto:
    """The model with large weights turned into inputs of the same type: what checks and inference need, and small."""
    copy = model.clone()
    graph = copy.graph
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and tensor.nbytes > _SHAPE_DATA_BYTES and not value.is_graph_output():
            value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(list(tensor.shape.numpy()))
            del graph.initializers[name]
            value.const_value = None
            graph.inputs.append(value)
    take_inside(copy)
    return ir.to_proto(copy)


def forget(model: ir.Model) -> None:
    """Drop the shapes of tensors inside the main graph; foreign operators' outputs keep their rank."""
    outputs = set(model.graph.outputs)
    for node in model.graph:
        known = node.domain in ("", "ai.onnx") and not has_graphs(node)
        for value in node.outputs:
            if value in outputs or value.shape is None:
                continue
            value.shape = None if known else ir.Shape([None] * len(value.shape))


class ShapesContradict(Exception):  # noqa: N818  (says what happened)
    """An operator can't take the shapes that reach it."""


def infer(model: ir.Model, *, strict: bool = False) -> bool:
    """Fill in what ONNX's inference finds; True when anything new was learnt.

    A graph's output keeps the dimensions that it declares and gains those that it left free. With `strict`, shapes that
    contradict each other raise ShapesContradict; otherwise what can't be inferred stays unknown.
    """
    proto = skeleton(model)
    _leave_out_norms(proto)
    try:
        _leave_out_late_windows(proto)
        inferred = _inferred(proto, strict=strict)
    except Exception as error:  # the library raises several kinds, some of them not its own
        if strict and isinstance(error, onnx.shape_inference.InferenceError):
            raise ShapesContradict(_reason(str(error))) from None
        return False
    for info in inferred.graph.output:  # made-up names of dimensions are no business of the signature
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_param.startswith(_MADE_UP):
                dim.ClearField("dim_param")
    found = {info.name: info.type for info in (*inferred.graph.value_info, *inferred.graph.output)}
    changed = False
    for value in _inner(model.graph):
        if value.name in found:
            changed = learn(value, found[value.name]) or changed
    return changed


def _leave_out_norms(proto: onnx.ModelProto) -> None:
    """MeanVarianceNormalization keeps the shape; strict inference refuses what ONNX itself says that it computes."""
    for node in proto.graph.node:
        if node.op_type == "MeanVarianceNormalization" and node.domain in ("", "ai.onnx"):
            node.op_type = "Identity"
            del node.attribute[:]


def _leave_out_late_windows(proto: onnx.ModelProto) -> None:
    poolings = [node for node in proto.graph.node if windows.is_rounding_up(node)]
    for _ in poolings:  # the first alone: what is inferred behind it is wrong
        known = _shapes(_inferred(proto, strict=False).graph)
        if not any(windows.leave_out_late(node, known.get(node.input[0], ())) for node in poolings):
            return


def _inferred(proto: onnx.ModelProto, *, strict: bool) -> onnx.ModelProto:
    return onnx.shape_inference.infer_shapes(proto, check_type=False, strict_mode=strict, data_prop=True)


def _shapes(graph: onnx.GraphProto) -> dict[str, list[windows.Dim]]:
    known = (*graph.input, *graph.value_info, *graph.output)
    return {info.name: dims_of(info.type) for info in known if info.type.tensor_type.HasField("shape")}


def dims_of(kind: onnx.TypeProto) -> list[windows.Dim]:
    """A tensor's sizes: a number, a name, or None where neither is known."""
    return [
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else dim.dim_param or None
        for dim in kind.tensor_type.shape.dim
    ]


def learn(value: ir.Value, kind: onnx.TypeProto) -> bool:
    """Take over a type and the dimensions that were unknown; True when there were any."""
    changed = False
    if value.type is None and kind.WhichOneof("value") is not None:
        value.type = ir.serde.deserialize_type_proto_for_type(kind)
        changed = True
    if not kind.tensor_type.HasField("shape"):
        return changed
    dims = dims_of(kind)
    if value.shape is None:
        value.shape = ir.Shape(dims)
        return True
    if len(value.shape) != len(dims):
        return changed
    merged = [
        _more(old if isinstance(old, int) else old.value, new) for old, new in zip(value.shape, dims, strict=True)
    ]
    if merged != [dim if isinstance(dim, int) else dim.value for dim in value.shape]:
        value.shape = ir.Shape(merged)
        return True
    return changed


def _more(old: windows.Dim, new: windows.Dim) -> windows.Dim:
    if isinstance(old, int):
        return old
    return new if isinstance(new, int) or old is None else old


def _inner(graph: ir.Graph) -> Iterable[ir.Value]:
    for node in graph:
        yield from (value for value in node.outputs if value.name)


def _reason(text: str) -> str:
    """The library's last line that says something, without its tags."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].replace("[ShapeInferenceError] ", "") if lines else "no reason given"
