"""A Pad goes into the convolution or the pooling behind it.

* Conv pads with zeros: exact for a constant Pad with 0 of spatial dimensions. AveragePool, too, when it counts the
  padding (`count_include_pad`), or has none of its own yet and is told to count from now on.
* MaxPool ignores its padding: exact where Pad brings in minus infinity, or 0 in front of values that are never
  negative, so that a zero is never the largest by itself.

Pooling wants each pad smaller than its kernel and rounds down (`ceil_mode` 0), or else windows would appear that lie in
the padding alone. Negative pads, which crop, and those of batch or channels stay.
"""

import numpy as np
import onnx_ir as ir

from penstock.graph.editing import Array, Edit, constant, input_of, integer, integers, number, producer, rank, string
from penstock.graph.passes.no_ops import NEVER_NEGATIVE
from penstock.graph.sources import inherit


def fold_pad(edit: Edit) -> None:
    for node in edit.nodes("Pad"):
        layer = edit.only_consumer(node.outputs[0])
        if layer is None or layer.inputs[0] is not node.outputs[0] or string(node, "mode", "constant") != "constant":
            continue
        pads, value = _pads(node), _value(node)
        if pads is None or value is None or (pads < 0).any() or pads[:, :2].any() or pads.shape[1] < 3:
            continue
        own = _own_pads(layer, pads.shape[1] - 2)
        if own is None or not _takes(edit, node, layer, pads[:, 2:], own, value):
            continue
        if layer.op_type == "AveragePool":
            edit.set_attributes(layer, {"count_include_pad": 1})
        total = (pads[:, 2:] + own).reshape(-1)
        edit.set_attributes(layer, {"auto_pad": None, "pads": [int(pad) for pad in total]})
        edit.set_input(layer, 0, node.inputs[0])
        inherit(layer, [node, layer])
        edit.remove(node)


def _pads(node: ir.Node) -> Array | None:
    """All pads as (begin and end, dimensions)."""
    dims = rank(node.inputs[0])
    given = constant(input_of(node, 1)) if len(node.inputs) > 1 else np.array(integers(node, "pads") or (), np.int64)
    if given is None or dims is None:
        return None
    axes_input = input_of(node, 3)
    axes = constant(axes_input)
    if axes_input is not None and axes is None:
        return None
    places = list(range(dims)) if axes is None else [int(axis) % dims for axis in axes]
    if given.size != 2 * len(places) or len(set(places)) != len(places):
        return None
    pads = np.zeros((2, dims), np.int64)
    pads[:, places] = given.reshape(2, -1)
    return pads


def _value(node: ir.Node) -> float | None:
    given = input_of(node, 2)
    if given is None:
        return number(node, "value", 0.0)
    array = constant(given)
    return None if array is None or array.size != 1 else float(array.reshape(-1)[0])


def _own_pads(layer: ir.Node, spatial: int) -> Array | None:
    mode = string(layer, "auto_pad", "NOTSET")
    own = integers(layer, "pads") if mode == "NOTSET" else None
    if mode not in ("NOTSET", "VALID") or (own is not None and len(own) != 2 * spatial):
        return None
    return np.zeros((2, spatial), np.int64) if own is None else np.array(own, np.int64).reshape(2, -1)


def _takes(edit: Edit, node: ir.Node, layer: ir.Node, pads: Array, own: Array, value: float) -> bool:
    if layer.op_type == "Conv":
        return value == 0
    if layer.op_type not in ("MaxPool", "AveragePool") or integer(layer, "ceil_mode", 0) or len(layer.outputs) > 1:
        return False
    kernel = integers(layer, "kernel_shape")
    if kernel is None or ((pads + own) >= np.array(kernel)).any():
        return False
    if layer.op_type == "AveragePool":
        counted = integer(layer, "count_include_pad", 0) == 1 or not own.any()
        return value == 0 and counted
    lowest = value <= float(np.finfo(np.float32).min)
    return lowest or (value == 0 and producer(node.inputs[0], *NEVER_NEGATIVE) is not None)
