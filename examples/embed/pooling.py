"""A graph that answers with one vector a text in place of one a token: masked sum over the tokens, then length 1.

The mean and the sum have the same direction, so the division by the count is left out. In the graph and not behind it:
384 numbers leave the network in place of 384 for every token, and an engine is judged by what clients get.
"""

from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OUTPUT: Final = "sentence_embedding"
WIDTH: Final = 384
_LEAST: Final = 1e-12
"""Added to a length before dividing by it, as torch's `normalize` bounds it: no NaN, whatever the weights."""


def pooled(path: Path) -> onnx.ModelProto:
    """ids and mask INT64 [n, t] to FP32 [n, 384] of length 1."""
    model = onnx.load(path)
    graph = model.graph
    (each,) = graph.output
    graph.initializer.extend(
        numpy_helper.from_array(value, name)
        for name, value in (
            ("pool_tokens", np.array([1], np.int64)),
            ("pool_width", np.array([2], np.int64)),
            ("pool_least", np.array([_LEAST], np.float32)),
        )
    )
    graph.node.extend(
        [
            helper.make_node("Cast", ["attention_mask"], ["pool_mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["pool_mask", "pool_width"], ["pool_weights"]),
            helper.make_node("Mul", [each.name, "pool_weights"], ["pool_counted"]),
            helper.make_node("ReduceSum", ["pool_counted", "pool_tokens"], ["pool_sum"], keepdims=0),
            helper.make_node("ReduceL2", ["pool_sum", "pool_tokens"], ["pool_length"], keepdims=1),
            helper.make_node("Add", ["pool_length", "pool_least"], ["pool_divisor"]),
            helper.make_node("Div", ["pool_sum", "pool_divisor"], [OUTPUT]),
        ]
    )
    rows = each.type.tensor_type.shape.dim[0].dim_param
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [rows, WIDTH]))
    onnx.checker.check_model(model)
    return model
