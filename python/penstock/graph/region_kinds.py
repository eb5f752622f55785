"""What operators are to a region, and what they are called in its kind: `conv+bn+add+relu`.

Tables and names only. Called by regions.
"""

import re
from typing import Final

import onnx_ir as ir

from penstock.graph.editing import input_of, integer
from penstock.graph.patterns.matching import data_inputs, words

# What a region is built around; one for each region.
HEAVY: Final = words(
    """
    Conv ConvTranspose ConvInteger QLinearConv DeformConv Gemm MatMul MatMulInteger QLinearMatMul Einsum
    """
)
# One number out for each number in: they can be computed while a result is still in registers.
ACTIVATIONS: Final = words(
    """
    Abs Celu Clip Elu Erf Exp Gelu HardSigmoid HardSwish LeakyRelu Log Mish Neg PRelu Reciprocal Relu Round Selu
    Sigmoid Sign Softplus Softsign Sqrt Swish Tanh ThresholdedRelu Ceil Floor Sin Cos
    """
)
POINTWISE: Final = ACTIVATIONS | words(
    """
    Add Sub Mul Div Pow Min Max Sum Mean Mod And Or Not Xor Equal Less LessOrEqual Greater GreaterOrEqual Where Cast
    BatchNormalization IsNaN IsInf QuantizeLinear Dropout
    """
)
# The same numbers in the same order; Transpose moves them, which a kernel next to it can do while it reads or writes.
VIEWS: Final = words("Reshape Squeeze Unsqueeze Flatten Identity")
MOVES: Final = VIEWS | {"Transpose"}
NAMED_ACTIVATIONS: Final = frozenset({"gelu", "hard_swish", "silu", "quick_gelu"})

_NAMES: Final = {
    "BatchNormalization": "bn",
    "LayerNormalization": "layer_norm",
    "QuantizeLinear": "quantize",
    "DequantizeLinear": "dequantize",
    "MatMul": "matmul",
    "QLinearMatMul": "matmul",
    "MatMulInteger": "matmul",
    "QLinearConv": "conv",
    "ConvInteger": "conv",
    "LSTM": "lstm",
    "GRU": "gru",
    "RNN": "rnn",
    "PRelu": "prelu",
}


def label(node: ir.Node) -> str:
    """The operator's name in a kind: `conv`, `depthwise`, `bias` for an Add of a constant, `hard_swish`."""
    if node.op_type == "Conv" and _is_depthwise(node):
        return "depthwise"
    if node.op_type == "Add" and len(list(data_inputs(node))) == 1:
        return "bias"
    return _NAMES.get(node.op_type) or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", node.op_type).lower()


def _is_depthwise(node: ir.Node) -> bool:
    weight = input_of(node, 1)
    if weight is None or weight.shape is None or len(weight.shape) < 3:
        return False
    return integer(node, "group", 1) > 1 and weight.shape[1] == 1
