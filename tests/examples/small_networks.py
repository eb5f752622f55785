"""A small classifier and a small detector of the YOLOv5 kind with seeded weights, for tests of `detect_classify`."""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES = ("cup", "cat", "moped", "helmet", "rocket")
YOLO_SIDE = 160
_OPSET = [helper.make_opsetid("", 18)]


def classifier(folder: Path, names: tuple[str, ...] = CLASSES) -> Path:
    """A strided convolution, the mean over places, one product: what `detector.of_classifier` takes."""
    random = np.random.default_rng(3)
    weights = {
        "filters": (random.standard_normal((16, 3, 32, 32)) / 20).astype(np.float32),
        "axes": np.array([2, 3]),
        "flat": np.array([-1, 16]),
        "matrix": (4 * random.standard_normal((len(CLASSES), 16))).astype(np.float32),
        "bias": random.standard_normal(len(CLASSES)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "filters"], ["places"], strides=[32, 32]),
        helper.make_node("Relu", ["places"], ["features"]),
        helper.make_node("ReduceMean", ["features", "axes"], ["mean"]),
        helper.make_node("Reshape", ["mean", "flat"], ["row"]),
        helper.make_node("Gemm", ["row", "matrix", "bias"], ["logits"], transB=1),
    ]
    return _saved(nodes, weights, ["n", 3, 224, 224], ["n", len(CLASSES)], folder / "small.onnx", names)


def yolo(folder: Path) -> Path:
    """[n, 25, 9]: centre and size in pixels, objectness, four classes."""
    random = np.random.default_rng(5)
    scale = np.array([YOLO_SIDE, YOLO_SIDE, YOLO_SIDE / 2, YOLO_SIDE / 2, 1, 1, 1, 1, 1], np.float32)
    weights = {
        "filters": (random.standard_normal((9, 3, 32, 32)) / 10).astype(np.float32),
        "flat": np.array([0, 9, -1]),
        "scale": scale,
    }
    nodes = [
        helper.make_node("Conv", ["x", "filters"], ["places"], strides=[32, 32]),
        helper.make_node("Reshape", ["places", "flat"], ["row"]),
        helper.make_node("Transpose", ["row"], ["each"], perm=[0, 2, 1]),
        helper.make_node("Sigmoid", ["each"], ["shares"]),
        helper.make_node("Mul", ["shares", "scale"], ["boxes"]),
    ]
    side = YOLO_SIDE
    return _saved(nodes, weights, ["n", 3, side, side], ["n", (side // 32) ** 2, 9], folder / "small_yolo.onnx", ())


def _saved(
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    taken: list[str | int],
    given: list[str | int],
    path: Path,
    names: tuple[str, ...],
) -> Path:
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, taken)],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, given)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=_OPSET, ir_version=9)
    if names:
        helper.set_model_props(model, {"names": json.dumps(names)})
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path
