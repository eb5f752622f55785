"""BatchNormalization goes into the convolution or matrix product before it, or into the one after it.

In inference y = (x - mean) * scale / sqrt(variance + epsilon) + shift, per channel (Ioffe and Szegedy 2015): a factor
and an offset. After Conv, ConvTranspose, Gemm or MatMul both are linear in the weights; `affine` has the rules, which
this pass reaches by taking the node apart. Before a layer, the offset is exact only without padding, since padding adds
zeros behind the normalisation. What no layer takes stays a BatchNormalization. Computed in FP64 and rounded once.
"""

import numpy as np
import onnx_ir as ir

from penstock.graph.editing import Edit, exact_constant, input_of, integer, number
from penstock.graph.passes.affine import Affine, after_layer, after_product, before_layer


def fold_batch_norm(edit: Edit) -> None:
    for node in edit.nodes("BatchNormalization"):
        affine = affine_of_norm(edit, node)
        if affine is not None and not (after_layer(edit, node, affine) or after_product(edit, node, affine)):
            before_layer(edit, node, affine)


def affine_of_norm(edit: Edit, node: ir.Node) -> Affine | None:
    if integer(node, "training_mode", 0) or any(value.uses() or edit.is_output(value) for value in node.outputs[1:]):
        return None
    if integer(node, "spatial", 1) == 0:  # before opset 9: each position by itself
        return None
    parameters = [exact_constant(input_of(node, index)) for index in range(1, 5)]
    scale, shift, mean, variance = parameters
    if scale is None or shift is None or mean is None or variance is None or node.inputs[0] is None:
        return None
    # A variance below zero gives NaN at run time, too: leave such a model to say so itself.
    with np.errstate(all="ignore"):
        factor = scale / np.sqrt(variance + number(node, "epsilon", 1e-5))
        return Affine.of(node.inputs[0], factor, shift - mean * factor, axis=1)
