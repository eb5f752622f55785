"""Raises the opset of a whole model, when nothing in it changes its meaning on the way.

Every operator is looked up in the tables below: its definition did not change between the two versions, it only gained
types, optional inputs or attributes whose default is the old meaning, or it is rewritten here. One operator that is in
no table, and nothing is changed. Tables read from the definitions in `onnx.defs` for versions 11 to 20; `version` of
each is where the change came. Called by the patterns whose operator is newer than the model.
"""

from collections.abc import Callable, Collection, Mapping
from functools import cache
from typing import Final

import numpy as np
import onnx
import onnx_ir as ir

from penstock.graph.editing import Edit, input_of, integer, integers, rank, string
from penstock.graph.patterns.matching import words

_OLDEST: Final = 11
# Beyond it come operators that the CPU libraries of the product's oldest supported versions do not run.
_NEWEST: Final = 20

# Only types, optional inputs, or attributes that default to what the operator did before.
_GAINED: Final = words(
    """
    Abs Add ArgMax ArgMin AveragePool Cast CastLike Ceil Clip Concat Constant ConstantOfShape CumSum DepthToSpace
    DequantizeLinear Div Equal Exp Expand Flatten Floor Gather GatherElements GatherND Gemm Greater GreaterOrEqual
    GRU Identity If IsInf IsNaN LeakyRelu Less LessOrEqual Log Loop LRN LSTM MatMul Max MaxPool Mean Min Mod Mul Neg
    NonZero Pad Pow PRelu QuantizeLinear Reciprocal Relu Reshape Resize RNN Scan ScatterElements ScatterND Shape Sigmoid
    Sign Size Slice SpaceToDepth Sqrt Sub Sum Tanh Tile Transpose Where
    """
)
_REDUCTIONS: Final = words(
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSumSquare"
)


def raise_opset(edit: Edit, version: int) -> bool:
    """Bring the model to at least this version of the standard operators; False, and nothing changed, if it can't."""
    current = edit.opset
    if current >= version:
        return True
    if current < _OLDEST or version > _NEWEST or edit.model.functions:
        return False
    nodes = [node for node in edit.graph.all_nodes() if node.domain in ("", "ai.onnx")]
    plans = [(node, _plan(node, current, version)) for node in nodes]
    if any(plan is None for _, plan in plans):
        return False
    for node, plan in plans:
        for rewrite in plan or ():
            rewrite(edit, node)
    for node in nodes:
        node.version = None
    imports = edit.model.opset_imports
    imports["ai.onnx" if "ai.onnx" in imports and "" not in imports else ""] = version
    edit.model.ir_version = max(edit.model.ir_version, onnx.helper.OP_SET_ID_VERSION_MAP["ai.onnx", version])
    edit.changed = True
    return True


_Rewrite = Callable[[Edit, ir.Node], None]


def _plan(node: ir.Node, current: int, version: int) -> tuple[_Rewrite, ...] | None:
    """What to do to a node, in order; None where it can't follow."""
    known = _changes(node.op_type)
    changes = [change for change in known if current < change <= version]
    if not known or known[0] > current:
        return None  # no such operator at the model's version
    if not changes or node.op_type in _GAINED:
        return ()
    rows = [row for row in _REWRITES if node.op_type in row[0]]
    passed = [row for row in rows if row[1] in changes]
    if not rows or not all(fits(node) for _, _, _, fits in passed):
        return None
    return tuple(rewrite for _, _, rewrite, _ in passed)


@cache
def _changes(operator: str) -> tuple[int, ...]:
    """Versions at which the definition of a standard operator changed."""
    return _histories().get(operator, ())


@cache
def _histories() -> Mapping[str, tuple[int, ...]]:
    histories: dict[str, list[int]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            histories.setdefault(schema.name, []).append(schema.since_version)
    return {name: tuple(sorted(versions)) for name, versions in histories.items()}


def _keep(edit: Edit, node: ir.Node) -> None:
    """Nodes that fit mean the same."""


def _axes_to_input(edit: Edit, node: ir.Node) -> None:
    axes = integers(node, "axes")
    if axes is not None:
        edit.set_input(node, 1, edit.constant(f"{node.name}_axes", np.array(axes, np.int64)))
        edit.set_attributes(node, {"axes": None})


def _split_to_input(edit: Edit, node: ir.Node) -> None:
    sizes = integers(node, "split")
    if sizes is not None:
        edit.set_input(node, 1, edit.constant(f"{node.name}_split", np.array(sizes, np.int64)))
        edit.set_attributes(node, {"split": None})


def _count_parts(edit: Edit, node: ir.Node) -> None:
    """Without sizes, parts were equal and no others allowed; `num_outputs` says the same and is needed now."""
    if input_of(node, 1) is None:
        edit.set_attributes(node, {"num_outputs": len(node.outputs)})


def _last_axis(edit: Edit, node: ir.Node) -> None:
    edit.set_attributes(node, {"axis": -1})


def _drop_ratio(edit: Edit, node: ir.Node) -> None:
    """In inference the ratio has no effect; as an input it may be left out."""
    edit.set_attributes(node, {"ratio": None})


def _always(node: ir.Node) -> bool:
    return True


def _over_last_axis(node: ir.Node) -> bool:
    """Before 13 all dimensions from `axis` on were one; over the last axis that is what it is now."""
    axis = integer(node, "axis", 1)
    # What goes in has the shape of what comes out, of which the model may know more.
    return axis == -1 or axis + 1 in (rank(node.inputs[0]), rank(node.outputs[0]))


def _one_output(node: ir.Node) -> bool:
    return len(node.outputs) == 1


def _of_floats(node: ir.Node) -> bool:
    """Integers were dropped."""
    kind = node.inputs[0].dtype if node.inputs[0] is not None else None
    return kind in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)


def _nearest(node: ir.Node) -> bool:
    """The other modes were renamed."""
    return string(node, "mode", "bilinear") == "nearest"


# Operators, the version of the change, how to follow it, and for which nodes that is possible.
_REWRITES: Final[tuple[tuple[Collection[str], int, _Rewrite, Callable[[ir.Node], bool]], ...]] = (
    (("Softmax", "LogSoftmax", "Hardmax"), 13, _last_axis, _over_last_axis),
    (("Squeeze", "Unsqueeze", "ReduceSum"), 13, _axes_to_input, _always),
    (_REDUCTIONS, 18, _axes_to_input, _always),
    (("BatchNormalization",), 14, _keep, _one_output),
    (("Dropout",), 12, _drop_ratio, _one_output),
    (("Erf",), 13, _keep, _of_floats),
    (("GridSample",), 20, _keep, _nearest),
    (("Split",), 13, _split_to_input, _always),
    (("Split",), 18, _count_parts, _always),
)
