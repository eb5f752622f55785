"""Small towers made by script, with inputs and outputs as the large one's."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.onnx_models import save

NUMBERS = 32
_FILTERS, _PATCH, _PATCHES = 8, 32, 49


def small_tower(path: Path) -> Path:
    """A convolution of patches and a product: x FP32 [n, 3, 224, 224] to embedding [n, 32], in FP32."""
    random = np.random.default_rng(0)
    filters = random.standard_normal((_FILTERS, 3, _PATCH, _PATCH), np.float32) / _PATCH
    matrix = random.standard_normal((_FILTERS * _PATCHES, NUMBERS), np.float32) / 20
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "filters"], ["patches"], strides=[_PATCH, _PATCH]),
            helper.make_node("Tanh", ["patches"], ["bent"]),
            helper.make_node("Flatten", ["bent"], ["flat"]),
            helper.make_node("MatMul", ["flat", "matrix"], ["embedding"]),
        ],
        "small_tower",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 224, 224])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", NUMBERS])],
        [numpy_helper.from_array(filters, "filters"), numpy_helper.from_array(matrix, "matrix")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return save(model, path)
