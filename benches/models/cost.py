"""What a model costs by its graph: parameters, and multiplications with an accumulation at batch 1.

Counted from the file alone, with ONNX's shape inference, and so a check on the makers. Convolutions, matrix products
and LSTMs are counted, as the field does when it quotes GMAC; what is done once per element is not.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import numpy_helper, shape_inference

# Statistics of batch norms are in the file but were never learnt: papers don't count them. Grids are no parameters.
_NOT_LEARNT = ("running_mean", "running_var", "grid", "anchors")


@dataclass(frozen=True)
class Cost:
    parameters: int
    multiplications: int
    nodes: int
    """All but constants."""


def cost_of(path: Path, batch: int = 1) -> Cost:
    """Raises ValueError where a shape that is needed can't be inferred."""
    model = onnx.load(path)
    parameters = sum(
        math.prod(weight.dims)
        for weight in model.graph.initializer
        if weight.data_type == onnx.TensorProto.FLOAT and not weight.name.endswith(_NOT_LEARNT)
    )
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    shapes = _shapes(shape_inference.infer_shapes(model, data_prop=True).graph)
    multiplications = sum(_multiplications(node, shapes) for node in model.graph.node)
    return Cost(parameters, multiplications, sum(node.op_type != "Constant" for node in model.graph.node))


def _shapes(graph: onnx.GraphProto) -> dict[str, Sequence[int]]:
    found: dict[str, Sequence[int]] = {each.name: tuple(each.dims) for each in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        found[value.name] = tuple(size.dim_value for size in value.type.tensor_type.shape.dim)
    for node in graph.node:
        if node.op_type == "Constant":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t).shape
    return found


def _multiplications(node: onnx.NodeProto, shapes: Mapping[str, Sequence[int]]) -> int:
    if node.op_type not in ("Conv", "MatMul", "Gemm", "LSTM"):
        return 0
    try:
        given, weights, made = (shapes[name] for name in (node.input[0], node.input[1], node.output[0]))
    except KeyError as error:
        raise ValueError(f"{node.name}: the shape of {error} can't be inferred") from None
    if node.op_type == "Conv":
        found = math.prod(made) * math.prod(weights[1:])
    elif node.op_type == "LSTM":  # time x batch x (weights from the input and from the state)
        found = given[0] * given[1] * (math.prod(weights) + math.prod(shapes[node.input[2]]))
    else:
        found = math.prod(made) * given[-1]
    if found == 0:
        raise ValueError(f"{node.name}: a size of {[*given]} x {[*weights]} -> {[*made]} is not known")
    return found
