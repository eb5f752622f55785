"""A gated map added to itself, x + x g, becomes x (1 + g) where the gate is smaller than the map.

The same but for rounding: of each number at most one more than before. A squeeze-and-excite block with a residual, as
in the pyramids of PP-OCR's detectors, gates whole channels: 1 + g is a number for each, and one walk over the map is
spared of two.

For libraries on a CPU, which walk a map in memory for each of the two. Where kernels are ours, the pattern is one.
"""

from typing import Final

import numpy as np
import onnx_ir as ir

from penstock.graph.editing import Edit, producer

# Half precision is left alone: of a small gate 1 + g keeps fewer digits there than x g.
_TYPES: Final = (ir.DataType.FLOAT, ir.DataType.DOUBLE)


def merge_residual_gates(edit: Edit) -> None:
    for node in edit.nodes("Add"):
        first, second = node.inputs
        # Either may be the map; a node that is gone has no inputs to look at again.
        _ = _merge(edit, node, first, second) or _merge(edit, node, second, first)


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
    one = edit.constant(f"{node.name}_one", np.array(1, value.dtype.numpy()))
    raised = edit.insert(node, "Add", [gate, one], {}, [product])
    raised.type, raised.shape = gate.type, gate.shape
    result = edit.insert(node, "Mul", [value, raised], {}, [product, node])
    if not edit.forward(node.outputs[0], result):
        return False
    edit.remove(node, product)
    return True


def _smaller(gate: ir.Value, value: ir.Value) -> bool:
    """Of one number where the map has many; a dimension that is free until a call is taken for many."""
    if gate.shape is None or value.shape is None or len(gate.shape) > len(value.shape):
        return False
    own = list(value.shape)[len(value.shape) - len(gate.shape) :]
    fewer = len(gate.shape) < len(value.shape)
    return fewer or any(one == 1 != many for one, many in zip(gate.shape, own, strict=True))
