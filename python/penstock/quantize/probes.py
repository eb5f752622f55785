"""Nodes that watch: added to a copy of a graph so that numbers come out of it instead of whole tensors.

They go to the end of the list of nodes and change nothing that was there. Called by observe, branches, smoothing and
bias.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import onnx_ir as ir

from penstock.graph.editing import Edit

# From this operator set on, reductions take their axes as an input.
_AXES_AS_INPUT: Final = 18


def probe(
    edit: Edit,
    operator: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, int | Sequence[int]] | None = None,
    *,
    datatype: ir.DataType = ir.DataType.FLOAT,
) -> ir.Value:
    """The output of a new node; the graph has to be sorted before it is used."""
    value = edit.insert(next(iter(reversed(edit.graph))), operator, inputs, dict(attributes or {}), [])
    value.type = ir.TensorType(datatype)
    return value


def reduced(edit: Edit, operator: str, value: ir.Value, axis: int) -> ir.Value:
    """ReduceMax, ReduceMean, ... along one axis, which is gone afterwards."""
    if edit.opset < _AXES_AS_INPUT:
        return probe(edit, operator, [value], {"axes": [axis], "keepdims": 0})
    return probe(edit, operator, [value, edit.constant("axes", np.array([axis], np.int64))], {"keepdims": 0})


def by_channel(edit: Edit, value: ir.Value, axis: int, rank: int, channels: int) -> ir.Value:
    """[..., channels, ...] as a matrix [everything else, channels]; with axis -1 the rank does not matter."""
    if axis != -1:
        order = [*(each for each in range(rank) if each != axis), axis]
        value = probe(edit, "Transpose", [value], {"perm": order})
    shape = edit.constant("rows", np.array([-1, channels], np.int64))
    return probe(edit, "Reshape", [value, shape])
