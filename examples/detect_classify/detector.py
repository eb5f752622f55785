"""Detectors with one signature: x FP32 [batch, 3, side, side] in 0..1 to boxes [batch, n, 4] and scores [batch, n].

Boxes are centre and size in pixels of the input. Two kinds of networks are brought into that form, as ONNX:

* `of_yolo`: an export of the YOLOv5 kind, whose one output has centre, size, objectness and chances of classes.
* `of_classifier`: a classifier that ends in a mean over places and one product. Its features at a larger input are
  classified place by place, and the logits averaged over windows of several sizes, which is the same as classifying the
  averages (Sermanet et al. 2014, OverFeat): one pass over the picture, and every window is a box. Coarser than a
  network that was taught boxes, with the classifier's weights.

The class that the detector thinks of stays in the graph: a score a box is 1 % of the bytes of 80 chances. Called by
`networks`.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

SIDE = 320
"""Pixels of the input of `of_classifier`: ten places across, and a thing that fills half of it is 160 pixels wide, not
far from what the classifier was trained with."""
STRIDE = 32  # pixels between places of the features
WINDOWS = ((4, 4), (4, 6), (6, 4), (6, 6), (6, 8), (8, 6), (6, 10), (10, 6), (8, 8), (8, 10), (10, 8), (10, 10))
"""Height and width, in places."""
MIDDLE, HALF = 127.0, 128.0  # pixels are (x - MIDDLE) / HALF for EfficientNet-Lite


def of_yolo(model: onnx.ModelProto) -> onnx.ModelProto:
    """Of a copy of an export of the YOLOv5 kind. Raises ValueError for another."""
    network = _copy(model)
    graph = network.graph
    sizes = _sizes(graph.output[0])
    if len(graph.output) != 1 or len(sizes) != 3 or not (sizes[2] or 6) > 5:
        raise ValueError(
            f"expected one output [batch, boxes, 5 + classes], got {[_sizes(one) for one in graph.output]}"
        )
    answer = graph.output[0].name
    width = sizes[2]
    if width is None:
        raise ValueError(f"output {answer!r}: its last dimension must be known")
    nodes = [
        helper.make_node("Split", [answer, _add(graph, "parts", [4, 1, width - 5])], ["boxes", "thing", "classes"],
                         name="parts", axis=2),
        _largest(network, "classes", "likeliest", keepdims=1),
        helper.make_node("Mul", ["thing", "likeliest"], ["together"]),
        helper.make_node("Squeeze", ["together", _add(graph, "behind", [2])], ["scores"]),
    ]  # fmt: skip
    return _finished(network, nodes, sizes[1])


def of_classifier(model: onnx.ModelProto, side: int = SIDE) -> onnx.ModelProto:
    """Of a copy of a classifier with a stride of 32. Raises ValueError where it does not end as expected."""
    network = _copy(model)
    graph = network.graph
    features, weight, bias, dropped = _ending(graph)
    for node in dropped:
        graph.node.remove(node)
    given = graph.input[0].name
    for node in graph.node:
        node.input[:] = ["signed" if each == given else each for each in node.input]
    scaled = [
        helper.make_node("Mul", [given, _add(graph, "contrast", np.float32(255 / HALF))], ["wide"]),
        helper.make_node("Add", ["wide", _add(graph, "light", np.float32(-MIDDLE / HALF))], ["signed"]),
    ]
    body = list(graph.node)
    del graph.node[:]
    graph.node.extend([*scaled, *body])
    graph.input[0].CopyFrom(helper.make_tensor_value_info(given, TensorProto.FLOAT, ["batch", 3, side, side]))
    product = [features, _add(graph, "of_class", weight[:, :, None, None]), _add(graph, "bias_of_class", bias)]
    boxes, nodes = _windows(graph, "logits_of_places", side // STRIDE)
    nodes = [
        helper.make_node("Conv", product, ["logits_of_places"], kernel_shape=[1, 1]),
        *nodes,
        helper.make_node("Softmax", ["each"], ["chances"], axis=2),
        _largest(network, "chances", "scores", keepdims=0),
        # The same boxes for every picture of the batch.
        helper.make_node("Shape", [given], ["pictures"], start=0, end=1),
        helper.make_node("Concat", ["pictures", _add(graph, "a_picture", boxes.shape)], ["all"], axis=0),
        helper.make_node("Expand", [_add(graph, "windows", boxes[None]), "all"], ["boxes"]),
    ]
    return _finished(network, nodes, len(boxes))


def _windows(graph: onnx.GraphProto, logits: str, places: int) -> tuple[np.ndarray, list[onnx.NodeProto]]:
    """Boxes FP32 [n, 4], and what makes `each` [batch, n, classes] of the logits of places."""
    boxes: list[np.ndarray] = []
    nodes, parts = [], []
    flat = _add(graph, "flat", [0, 0, -1])
    for height, width in WINDOWS:
        if height > places or width > places:
            continue
        name = f"window_{height}_{width}"
        nodes += [
            helper.make_node("AveragePool", [logits], [name], kernel_shape=[height, width], strides=[1, 1]),
            helper.make_node("Reshape", [name, flat], [f"{name}_flat"]),
        ]
        parts.append(f"{name}_flat")
        top, left = np.meshgrid(np.arange(places - height + 1), np.arange(places - width + 1), indexing="ij")
        centre = np.stack((left + width / 2, top + height / 2), axis=-1).reshape(-1, 2)
        boxes.append(np.concatenate((centre, np.broadcast_to((width, height), centre.shape)), axis=1) * STRIDE)
    nodes += [
        helper.make_node("Concat", parts, ["pooled"], axis=2),
        helper.make_node("Transpose", ["pooled"], ["each"], perm=[0, 2, 1]),
    ]
    return np.concatenate(boxes).astype(np.float32), nodes


def _ending(graph: onnx.GraphProto) -> tuple[str, np.ndarray, np.ndarray, list[onnx.NodeProto]]:
    """The features' name, weight [classes, channels], bias [classes], and the nodes behind the features."""
    by_output = {node.output[0]: node for node in graph.node}
    weights = {each.name: each for each in graph.initializer}
    nodes, name = [], graph.output[0].name
    for kind in ("Gemm", "Reshape", "ReduceMean"):
        node = by_output.get(name)
        if node is None or node.op_type != kind:
            raise ValueError(f"expected a classifier that ends in ReduceMean, Reshape and Gemm, got "
                             f"{node.op_type if node else 'an input'} for {kind}")  # fmt: skip
        nodes.append(node)
        name = node.input[0]
    product = nodes[0]
    attributes = {each.name: helper.get_attribute_value(each) for each in product.attribute}
    weight, bias = (numpy_helper.to_array(weights[each]) for each in product.input[1:3])
    return name, weight if attributes.get("transB", 0) else weight.T, bias, nodes


def _largest(network: onnx.ModelProto, name: str, output: str, *, keepdims: int) -> onnx.NodeProto:
    """Over the last of three dimensions."""
    opset = max(each.version for each in network.opset_import if each.domain in {"", "ai.onnx"})
    if opset < 18:  # its axes were an attribute
        return helper.make_node("ReduceMax", [name], [output], axes=[2], keepdims=keepdims)
    return helper.make_node("ReduceMax", [name, _add(network.graph, "last", [2])], [output], keepdims=keepdims)


def _finished(network: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], count: int | None) -> onnx.ModelProto:
    graph = network.graph
    graph.node.extend(nodes)
    del graph.output[:]
    del graph.value_info[:]
    graph.output.extend(
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["batch", count, 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", count]),
        ]
    )
    used = {name for node in graph.node for name in node.input}
    kept = [each for each in graph.initializer if each.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    onnx.checker.check_model(network)
    return network


def _add(graph: onnx.GraphProto, name: str, value: object) -> str:
    array = np.asarray(value)
    graph.initializer.append(numpy_helper.from_array(array, name))
    return name


def _sizes(value: onnx.ValueInfoProto) -> list[int | None]:
    return [each.dim_value or None for each in value.type.tensor_type.shape.dim]


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """With a prefix before all names but the inputs', so that new ones are free."""
    copied: onnx.ModelProto = compose.add_prefix(model, "network/", rename_nodes=False, rename_inputs=False)
    return copied
