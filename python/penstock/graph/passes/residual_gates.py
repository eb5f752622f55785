"""A gated map added to itself, x + x g, becomes x (1 + g) where the gate is smaller than the map.

The same but for rounding, which is of two operations either way; where x g is too large for its type and x (1 + g) is
not, the result is finite now. A squeeze-and-excite block with a residual, as in the pyramids of PP-OCR's detectors,
gates whole channels: 1 + g is a number for each, and one walk over the map is spared of two.

For libraries on a CPU, which walk a map in memory for each of the two. Where kernels are ours, the pattern is one.
"""

from typing import Final

import numpy as np
import onnx_ir as ir

from penstock.graph.editing import Edit, constant, producer

# Half precision is left alone, as by all passes that round in another place.
_TYPES: Final = (ir.DataType.FLOAT, ir.DataType.DOUBLE)


def merge_residual_gates(edit: Edit) -> None:
    for node in edit.nodes("Add"):
        first, second = node.inputs
        if not _merge(edit, node, first, second):
            _merge(edit, node, second, first)


def _merge(edit: Edit, node: ir.Node, value: ir.Value | None, gated: ir.Value | None) -> bool:
    """Whether `gated` was `value` times a smaller gate, and nothing else saw it."""
    product = producer(gated, "Mul")
    if value is None or product is None or edit.only_consumer(gated) is not node or value not in product.inputs:
        return False
    if not edit.replaceable(node.outputs[0]):
        return False
    gate = product.inputs[1 if product.inputs[0] is value else 0]
    if gate is None or value.dtype not in _TYPES or not _smaller(gate, value):
        return False
    raised = _raised(edit, node, gate, product)
    result = edit.insert(node, "Mul", [value, raised], {}, [product, node])
    if not edit.forward(node.outputs[0], result):
        return False
    edit.remove(node, product)
    return True


def _raised(edit: Edit, before: ir.Node, gate: ir.Value, product: ir.Node) -> ir.Value:
    """1 + g, at once where the gate is a constant."""
    known = constant(gate)
    if known is not None:
        return edit.constant(gate, known + known.dtype.type(1))
    one = edit.constant(f"{before.name}_one", np.array(1, gate.dtype.numpy() if gate.dtype else np.float32))
    found = edit.insert(before, "Add", [gate, one], {}, [product])
    found.type, found.shape = gate.type, None if gate.shape is None else ir.Shape(list(gate.shape))
    return found


def _smaller(gate: ir.Value, value: ir.Value) -> bool:
    """Of one number where the map has many; a dimension that is free until a call is taken for many."""
    if gate.shape is None or value.shape is None or len(gate.shape) > len(value.shape):
        return False
    padded = [1] * (len(value.shape) - len(gate.shape)) + list(gate.shape)
    return any(one == 1 != many for one, many in zip(padded, value.shape, strict=True))
