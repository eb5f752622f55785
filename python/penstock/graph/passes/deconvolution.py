"""A transposed convolution whose kernel is its stride becomes a 1 x 1 convolution and DepthToSpace.

Exact: such kernels do not overlap, so entry (h b + i, w b + j) of output channel c is one sum over the input channels
at (h, w), with the weights [:, c, i, j]. A 1 x 1 convolution with channel c b² + i b + j for each of them computes the
same sums, and DepthToSpace (CRD) puts them in place. What is done to each number alone moves in between, where
libraries fuse it with the convolution.

For libraries on a CPU: they keep channels in blocks of sixteen, so that a map of one channel is written and read
sixteen times over, here at a quarter of the size; and they have kernels in eight and sixteen bits for convolutions
only. Of PP-OCR's detector at 960 x 896 the last two layers took 29 of 160 ms in BF16, activations included.
"""

from typing import Final

import numpy as np
import onnx_ir as ir

from penstock.graph.editing import Edit, constant, input_of, integer, integers, string
from penstock.graph.passes.pointwise import again, describe, followers

# DepthToSpace has had modes since then.
_OPSET: Final = 11


def spread_deconvolutions(edit: Edit) -> None:
    if edit.opset < _OPSET:
        return
    for node in edit.nodes("ConvTranspose"):
        block = _block(node)
        if block is not None:
            _spread(edit, node, block)


def _block(node: ir.Node) -> int | None:
    """The stride, where the kernel is as large and nothing is padded; None for all else."""
    value, weight, bias = node.inputs[0], input_of(node, 1), input_of(node, 2)
    weights = constant(weight)
    if value is None or weights is None or weights.ndim != 4 or (bias is not None and constant(bias) is None):
        return None
    height, width = weights.shape[2:]
    plain = (
        integer(node, "group", 1) == 1
        and string(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID")
        and integers(node, "output_shape") is None
        and not any(integers(node, "pads") or ())
        and not any(integers(node, "output_padding") or ())
        and set(integers(node, "dilations") or (1,)) == {1}
    )
    square = height == width > 1 and (integers(node, "strides") or (1, 1)) == (height, width)
    return int(height) if plain and square else None


def _spread(edit: Edit, node: ir.Node, block: int) -> None:
    chain = followers(edit, node)
    last = [node, *chain][-1]
    source, weight, bias = node.inputs[0], node.inputs[1], input_of(node, 2)
    weights, offsets = constant(weight), constant(bias)
    if source is None or weight is None or weights is None or not edit.replaceable(last.outputs[0]):
        return
    inputs, outputs = weights.shape[:2]
    spread = weights.transpose(1, 2, 3, 0).reshape(outputs * block**2, inputs, 1, 1)
    operands = [source, edit.constant(weight, spread)]
    if bias is not None and offsets is not None:
        operands.append(edit.constant(bias, np.repeat(offsets, block**2)))
    value = edit.insert(last, "Conv", operands, {"kernel_shape": (1, 1)}, [node])
    describe(value, source, outputs * block**2)
    value = again(edit, last, value, chain)
    result = edit.insert(last, "DepthToSpace", [value], {"blocksize": block, "mode": "CRD"}, [node])
    if edit.forward(last.outputs[0], result):
        edit.remove(*reversed(chain), node)
