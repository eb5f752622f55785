"""MatMul and the Add after it become one Gemm, where both factors are matrices.

Exact: Gemm with alpha = beta = 1 is A B + C. Only for two dimensions, since Gemm knows no others: a product of more
dimensions stays a MatMul, which libraries fuse with its Add themselves. C must broadcast to the product without
enlarging it.
"""

import onnx_ir as ir

from penstock.graph.editing import Edit, producer, rank, static_shape

_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16)


def merge_bias(edit: Edit) -> None:
    for node in edit.nodes("Add"):
        if not edit.replaceable(node.outputs[0]):
            continue
        for product, bias in (tuple(node.inputs), tuple(reversed(node.inputs))):
            matmul = producer(product, "MatMul")
            if matmul is None or bias is None or edit.only_consumer(product) is not node or not _is_gemm(matmul, bias):
                continue
            # In the place of the sum: the bias may be computed after the product.
            result = edit.insert(node, "Gemm", (*matmul.inputs, bias), {}, [matmul, node])
            if edit.forward(node.outputs[0], result):
                edit.remove(node)
                edit.remove(matmul)
                break


def _is_gemm(matmul: ir.Node, bias: ir.Value) -> bool:
    output, shape = matmul.outputs[0], static_shape(bias)
    if any(rank(value) != 2 for value in matmul.inputs) or output.dtype not in _FLOATS or bias.dtype != output.dtype:
        return False
    if shape is None or len(shape) > 2 or output.shape is None:
        return False
    sizes = list(output.shape)[2 - len(shape) :]
    return all(size in (1, known) for size, known in zip(shape, sizes, strict=True))
