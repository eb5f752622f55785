"""What can be computed without inputs is computed: constants, shapes, and arithmetic on them.

One sweep in topological order. A node whose inputs are all constants is evaluated by ONNX's reference implementation;
Shape and Size of what has a known shape become numbers; shape vectors known in part are followed through Gather, Slice,
Concat and the like, so that a dimension of fixed size is found behind them, and a Reshape whose target lacks one
dimension gets -1 for it. Where a constant settles a later shape, that shape is inferred at once.

Exact: only operators that the reference computes as the specification says (a test compares each with ONNX Runtime) and
that are not random; the result may not be larger than its constant inputs twice over, or than `limits.FOLDED_BYTES`,
nor may all results together outgrow their inputs by more than `limits.FOLDED_TOTAL_BYTES`.
Weights behind DequantizeLinear stay quantized.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
import onnx
import onnx.reference.ops
import onnx_ir as ir

from penstock import limits
from penstock.graph import windows
from penstock.graph.editing import Array, Edit, constant, input_of, integer, static_shape
from penstock.graph.inference import dims_of, learn
from penstock.graph.passes.shape_values import ShapeValues

# Pure functions of small cost: shape arithmetic, elementwise arithmetic, movement of data.
FOLDED: Final = frozenset(
    {
        *(
            "Abs",
            "Add",
            "And",
            "ArgMax",
            "ArgMin",
            "BatchNormalization",
            "Cast",
            "Ceil",
            "Clip",
            "Concat",
            "ConstantOfShape",
            "Cos",
            "CumSum",
        ),
        *(
            "Div",
            "Equal",
            "Erf",
            "Exp",
            "Expand",
            "Flatten",
            "Floor",
            "Gather",
            "GatherElements",
            "GatherND",
            "Greater",
        ),
        *("GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Log", "MatMul", "Max", "Min", "Mod", "Mul", "Neg"),
        *("NonZero", "Not", "Or", "Pad", "Pow", "Range", "Reciprocal", "ReduceL2", "ReduceMax", "ReduceMean"),
        *(
            "ReduceMin",
            "ReduceProd",
            "ReduceSum",
            "Relu",
            "Reshape",
            "ScatterND",
            "Sigmoid",
            "Sign",
            "Sin",
            "Slice",
            "Split",
            "Sqrt",
        ),
        *("Squeeze", "Sub", "Sum", "Tanh", "Tile", "Transpose", "Trilu", "Unsqueeze", "Where", "Xor"),
    }
)
# Only for numbers of these types does NumPy compute what ONNX asks for; half precision differs by implementation.
_MOVED: Final = frozenset(
    {
        "Cast",
        "Concat",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Reshape",
        "Slice",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
_COMPUTED: Final = frozenset({np.dtype(name) for name in ("bool", "int32", "int64", "float32", "float64")})
_GROWN: Final = "penstock.grown"
"""Of a value that was computed: bytes that it has more than what it was made of."""


def fold_constants(edit: Edit) -> None:
    _lift(edit)
    sweep = _Sweep(edit)
    for node in list(edit.graph):
        sweep.visit(node)


def _lift(edit: Edit) -> None:
    """Constant nodes become initialisers, which every other pass asks for."""
    for node in edit.nodes("Constant"):
        old = node.outputs[0]
        array = _constant_array(node)
        if array is not None and not edit.is_output(old):
            edit.forward(old, edit.constant(old, array))
            edit.remove(node)


def _constant_array(node: ir.Node) -> Array | None:
    if len(node.attributes) != 1:
        return None
    (attribute,) = node.attributes.values()
    if attribute.is_ref() or attribute.name not in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        return None
    if attribute.name == "value":
        tensor = attribute.as_tensor()
        return None if tensor.dtype == ir.DataType.STRING else tensor.numpy()
    return np.array(attribute.value, np.float32 if "float" in attribute.name else np.int64)


class _Sweep:
    def __init__(self, edit: Edit) -> None:
        self.edit = edit
        self.shapes = ShapeValues()
        self.learnt: set[ir.Value] = set()
        """Values that became constant, or whose shape became known, in this sweep."""
        made = (value.meta.get(_GROWN, 0) for value in edit.graph.initializers.values())
        self.left = limits.FOLDED_TOTAL_BYTES - sum(made)

    def visit(self, node: ir.Node) -> None:
        if node.domain not in ("", "ai.onnx") or not node.outputs:
            return
        if any(value in self.learnt for value in node.inputs):
            self._infer(node)
        if self._evaluate(node):
            return
        self.shapes.visit(node)
        known = self.shapes.known(node.outputs[0])
        if known is not None:
            self._replace(node, [known])
        elif node.op_type == "Reshape":
            self._complete(node)

    def _replace(self, node: ir.Node, arrays: list[Array], grown: int = 0) -> bool:
        """`grown`: bytes that the results have more than what they are made of."""
        edit = self.edit
        if any(edit.is_output(value) for value in node.outputs):
            return False
        for value, array in zip(node.outputs, arrays, strict=True):
            new = edit.constant(value, array)
            edit.forward(value, new)
            self.learnt.add(new)
        new.meta[_GROWN] = grown
        self.left -= grown
        edit.remove(node)
        return True

    def _evaluate(self, node: ir.Node) -> bool:
        if node.op_type not in FOLDED or any(self.edit.is_output(value) for value in node.outputs):
            return False
        given = [constant(value) for value in node.inputs]
        arrays = [array for array in given if array is not None]
        if len(arrays) != sum(value is not None for value in node.inputs) or not arrays:
            return False
        moved = node.op_type in _MOVED
        if not all(array.dtype in _COMPUTED or (moved and array.dtype.kind in "biuf") for array in arrays):
            return False
        held = sum(array.nbytes for array in arrays)
        bound = min(max(limits.FOLDED_BYTES, 2 * held), held + self.left)
        if not self._small(node, arrays, bound):
            return False
        results = self._run(node, given)
        made = sum(array.nbytes for array in results) if results is not None else 0
        return results is not None and made <= bound and self._replace(node, results, max(0, made - held))

    def _small(self, node: ir.Node, arrays: list[Array], bound: int) -> bool:
        """Whether the result surely fits, before it is computed."""
        if static_shape(node.outputs[0]) is None:
            self._infer(node)
        sizes = [static_shape(value) for value in node.outputs]
        if any(size is None for size in sizes):  # depends on the numbers: at most their indices
            return node.op_type in ("NonZero", "Range") and self._count(node, arrays) * 8 <= bound
        widest = max(array.itemsize for array in arrays)
        widths = [value.dtype.itemsize if value.dtype else widest for value in node.outputs]
        counts = [float(np.prod(size, dtype=np.float64)) for size in sizes if size is not None]
        return sum(count * width for count, width in zip(counts, widths, strict=True)) <= bound

    @staticmethod
    def _count(node: ir.Node, arrays: list[Array]) -> float:
        if node.op_type == "NonZero":
            return float(arrays[0].size * max(arrays[0].ndim, 1))
        start, limit, step = (float(array) for array in arrays)
        return abs((limit - start) / step) if step else float("inf")

    def _run(self, node: ir.Node, given: list[Array | None]) -> list[Array] | None:
        version = self.edit.opset
        attributes = {name: _plain(attribute) for name, attribute in node.attributes.items()}
        try:
            # A float that no integer holds becomes a different one on every processor: such a Cast stays.
            with np.errstate(all="ignore", invalid="raise" if node.op_type == "Cast" else "ignore"):
                if node.op_type in ("Div", "Mod") and given[1] is not None and given[1].dtype.kind in "iu":
                    results: object = _integer_division(node.op_type, given, attributes)
                else:
                    results = onnx.reference.ops.load_op("", node.op_type, version).eval(*given, **attributes)
        except Exception:  # the reference lacks a case, or the node is wrong: it stays, and says so at run time
            return None
        found = list(results) if isinstance(results, tuple | list) else [results]
        arrays = [np.asarray(each) for each in found]
        if len(arrays) != len(node.outputs):
            return None
        for value, array in zip(node.outputs, arrays, strict=True):
            if value.dtype is None or array.dtype != value.dtype.numpy() or array.dtype.kind not in "biuf":
                return None
        return arrays

    def _infer(self, node: ir.Node) -> None:
        """Shapes of the outputs from what is known of the inputs by now."""
        if all(static_shape(value) is not None for value in node.outputs) or not onnx.defs.has(node.op_type):
            return
        types: dict[str, onnx.TypeProto] = {}
        data: dict[str, onnx.TensorProto] = {}
        for value in node.inputs:
            if value is None or not value.name:
                continue
            if value.type is None:
                return
            info = ir.to_proto(value)
            types[value.name] = info.type
            array = constant(value)
            if array is not None and array.size <= limits.TENSOR_DIMS:
                data[value.name] = ir.to_proto(ir.Tensor(array, name=value.name))
        try:
            schema = onnx.defs.get_schema(node.op_type, self.edit.opset, "")
            opsets = [onnx.helper.make_opsetid("", self.edit.opset)]
            proto = ir.to_proto(node)
            if windows.is_rounding_up(proto):
                windows.leave_out_late(proto, dims_of(types[proto.input[0]]))
            found = onnx.shape_inference.infer_node_outputs(schema, proto, types, data, opset_imports=opsets)
        except Exception:  # what can't be inferred stays unknown
            return
        for value in node.outputs:
            if value.name in found and learn(value, found[value.name]):
                self.learnt.add(value)

    def _complete(self, node: ir.Node) -> None:
        """A Reshape to a shape that is known but for one dimension."""
        target = input_of(node, 1)
        if target is None or constant(target) is not None or integer(node, "allowzero", 0):
            return
        sizes = self.shapes.of(target)
        if sizes is None or sum(not isinstance(size, int) for size in sizes) != 1:
            return
        if any(size <= 0 for size in sizes if isinstance(size, int)):
            return
        shape = np.array([size if isinstance(size, int) else -1 for size in sizes], np.int64)
        self.edit.set_input(node, 1, self.edit.constant(target, shape))
        self.learnt.update(node.outputs)


def _plain(attribute: ir.Attr) -> object:
    value: object = attribute.value
    if attribute.type == ir.AttributeType.TENSOR:
        return ir.to_proto(attribute.as_tensor())
    return list(value) if isinstance(value, tuple) else value


def _integer_division(operator: str, given: list[Array | None], attributes: Mapping[str, object]) -> Array:
    """Div rounds towards zero, where NumPy rounds down; Mod follows the divisor's sign, with `fmod` the dividend's."""
    left, right = given
    if left is None or right is None or not np.all(right):
        raise ZeroDivisionError
    if operator == "Mod":
        return np.fmod(left, right) if attributes.get("fmod") else np.mod(left, right)
    quotient: Array = (np.abs(left) // np.abs(right)) * np.sign(left) * np.sign(right)
    return quotient.astype(left.dtype)
