"""The lowered graph in the making: where each ONNX value is stored, and the steps so far.

Feature maps lie in NHWC because convolutions ask for it (`stored_as`) and everything after keeps the order it finds
(`order_of`). Constants stay NumPy arrays until a step reads them. Used by the functions that lower one operator each.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from penstock.engine.lowered import (
    Attribute,
    Input,
    Instruction,
    Layout,
    LoweredGraph,
    Operand,
    Output,
    Step,
    Value,
    Weight,
    validate,
)
from penstock.engine.plan import Shape
from penstock.errors import Unsupported
from penstock.graph.editing import Array, constant, static_shape
from penstock.graph.lowering.views import NHWC, Ref, Woven, by_stride, dense, identity, lies_in, operand
from penstock.graph.sources import sources

_DATATYPES: Mapping[ir.DataType, str] = {
    ir.DataType.BOOL: "BOOL",
    ir.DataType.UINT8: "UINT8",
    ir.DataType.INT8: "INT8",
    ir.DataType.INT16: "INT16",
    ir.DataType.INT32: "INT32",
    ir.DataType.INT64: "INT64",
    ir.DataType.FLOAT16: "FP16",
    ir.DataType.BFLOAT16: "BF16",
    ir.DataType.FLOAT: "FP32",
    ir.DataType.DOUBLE: "FP64",
}


class Builder:
    """State of one lowering."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.opset = next(
            (model.opset_imports[domain] for domain in ("", "ai.onnx") if domain in model.opset_imports), 1
        )
        self.values: dict[str, Value] = {}
        self.weights: dict[str, Array] = {}
        self.steps: list[Step] = []
        self.inputs: list[Input] = []
        self.outputs: list[Output] = []
        self._refs: dict[ir.Value, Ref] = {}
        self._woven: dict[ir.Value, Woven] = {}
        self._orders: dict[str, tuple[int, ...]] = {}
        self._constants: dict[ir.Value, Array] = {}
        self._copies: dict[tuple[Ref, tuple[int, ...]], Ref] = {}
        self._weight_names: dict[tuple[int, str], str] = {}
        self._kept: list[Array] = []  # so that ids stay theirs

    # ---- asking ----

    def constant(self, value: ir.Value | None) -> Array | None:
        """The numbers of a value that no call changes."""
        if value is None:
            return None
        if value not in self._constants:
            array = constant(value) if value.producer() is None else None
            if array is None:
                return None
            self._constants[value] = array  # once: weights are told apart by identity
        return self._constants[value]

    def shape(self, value: ir.Value) -> Shape:
        """Raises Unsupported where binding the inputs did not fix it."""
        array = self.constant(value)
        if array is not None:
            return tuple(array.shape)
        shape = static_shape(value)
        if shape is None:
            raise Unsupported(
                f"the shape of {value.name!r} is not known before the model runs: {value.shape}; "
                "models with sizes that depend on the data can't be lowered"
            )
        return shape

    def datatype(self, value: ir.Value) -> str:
        kind = _DATATYPES.get(value.dtype) if value.dtype is not None else None
        if kind is None:
            raise Unsupported(
                f"{value.name!r} has type {value.dtype}, expected one of {', '.join(_DATATYPES.values())}"
            )
        return kind

    def ref(self, value: ir.Value | None) -> Ref:
        """Where a value is stored; constants become weights in ONNX's layout. Unsupported where none makes it."""
        assert value is not None
        if value not in self._refs:
            array = self.constant(value)
            if array is None:  # a further output of an operator that is lowered for its first alone
                node = value.producer()
                origin = f"{node.op_type} of node {node.name!r}" if node is not None else "nothing"
                raise Unsupported(f"{value.name!r}, which {origin} makes, has no GPU step")
            self._refs[value] = self.weight(array, value.name or "constant")
        return self._refs[value]

    def woven(self, value: ir.Value | None) -> Woven | None:
        """How a value that had to be copied is made of the one before; None where there was no need."""
        return self._woven.get(value) if value is not None else None

    def order_of(self, ref: Ref) -> tuple[int, ...] | None:
        """The axes as they lie in memory, slowest first, where the elements are dense; ONNX's order if it can be."""
        rank = len(ref.shape)
        stored = self.values.get(ref.value)
        if rank == 4 and stored is not None and stored.layout == "nhwc" and lies_in(ref, NHWC):
            return NHWC
        orders = (identity(rank), by_stride(ref))
        return next((order for order in orders if order is not None and lies_in(ref, order)), None)

    # ---- making ----

    def forward(self, value: ir.Value, ref: Ref) -> None:
        """The ONNX value is found here."""
        self._refs[value] = ref

    def weave(self, value: ir.Value, whole: Woven) -> None:
        """The ONNX value, besides being found somewhere, is this."""
        self._woven[value] = whole

    def fold(self, value: ir.Value, array: Array) -> None:
        self._constants[value] = array

    def weight(self, array: Array, name: str, form: str = "") -> Ref:
        """A constant that steps read; the same array in the same form is stored once."""
        key = (id(array), form)
        if key not in self._weight_names:
            self._kept.append(array)
            fresh = self.fresh(f"{name}.{form}" if form else name, taken=set(self.weights) | set(self.values))
            self._weight_names[key] = fresh
            self.weights[fresh] = np.ascontiguousarray(array).reshape(array.shape)
        stored = self._weight_names[key]
        return dense(stored, tuple(array.shape), identity(array.ndim), numpy_datatype(array))

    def formed(self, array: Array, form: str, made: Array, name: str) -> Operand:
        """A weight in the layout that kernels want; `form` names what was done to it."""
        key = (id(array), form)
        if key not in self._weight_names:
            self._kept.append(array)
            fresh = self.fresh(f"{name}.{form}" if form else name, taken=set(self.weights) | set(self.values))
            self._weight_names[key] = fresh
            self.weights[fresh] = np.ascontiguousarray(made)
        return Operand(self._weight_names[key])

    def operand(self, ref: Ref, role: str = "", order: Sequence[int] | None = None) -> Operand:
        stored = self.values[ref.value].shape if ref.value in self.values else tuple(self.weights[ref.value].shape)
        return operand(ref, stored, role, order)

    def stored_as(self, ref: Ref, order: Sequence[int], node: ir.Node) -> Ref:
        """The same ONNX value, dense in this order of axes; a copy where it is not."""
        if lies_in(ref, order):
            return ref
        key = (ref, tuple(order))
        if key not in self._copies:
            seen = self.operand(ref, "", order)
            self._copies[key] = self.emit(node, "copy", [seen], ref.shape, ref.datatype, order)
        return self._copies[key]

    def padded(self, ref: Ref, begin: tuple[int, ...], end: tuple[int, ...], node: ir.Node) -> Ref:
        """A feature map in NHWC with zeros before and behind what each of its stored axes has."""
        key = (ref, (*begin, *end))  # twice as long as an order of axes
        if key not in self._copies:
            sizes = [ref.shape[axis] for axis in NHWC]
            batch, height, width, channels = map(sum, zip(begin, sizes, end, strict=True))
            attributes: dict[str, Attribute] = {"begin": begin, "end": end, "value": 0.0}
            shape, seen = (batch, channels, height, width), self.operand(ref, "x", NHWC)
            self._copies[key] = self.emit(node, "pad", [seen], shape, ref.datatype, NHWC, attributes)
        return self._copies[key]

    def copied(self, ref: Ref, order: Sequence[int]) -> Ref:
        """The copy in this order of axes that something asked for before, if there is one; else the value itself."""
        return ref if lies_in(ref, order) else self._copies.get((ref, tuple(order)), ref)

    def dense(self, ref: Ref, node: ir.Node) -> tuple[Ref, tuple[int, ...]]:
        """The same value without gaps, in whatever order of axes it has."""
        order = self.order_of(ref)
        if order is not None:
            return ref, order
        order = identity(len(ref.shape))
        return self.stored_as(ref, order, node), order

    def emit(
        self,
        node: ir.Node,
        kind: str,
        inputs: Sequence[Operand],
        shape: Shape,
        datatype: str,
        order: Sequence[int] | None = None,
        attributes: Mapping[str, Attribute] | None = None,
        program: Sequence[Instruction] = (),
        name: str | None = None,
    ) -> Ref:
        """A step with one output of this ONNX shape, stored in this order of axes (ONNX's own by default)."""
        order = tuple(order) if order is not None else identity(len(shape))
        value = self.value(name or f"{node.name}.{kind}", shape, datatype, order)
        self.append(node, kind, inputs, [value.value], attributes, program)
        return value

    def value(self, name: str, shape: Shape, datatype: str, order: Sequence[int]) -> Ref:
        """A new stored value."""
        fresh = self.fresh(name, taken=set(self.values) | set(self.weights))
        layout: Layout = "nhwc" if len(shape) == 4 and tuple(order) == NHWC else "plain"
        self.values[fresh] = Value(tuple(shape[axis] for axis in order), datatype, layout)
        return dense(fresh, shape, order, datatype)

    def append(
        self,
        node: ir.Node,
        kind: str,
        inputs: Sequence[Operand],
        outputs: Sequence[str],
        attributes: Mapping[str, Attribute] | None = None,
        program: Sequence[Instruction] = (),
    ) -> None:
        step = Step(
            outputs[0], kind, tuple(inputs), tuple(outputs), dict(attributes or {}), tuple(program), sources(node)
        )
        self.steps.append(step)

    def fresh(self, hint: str, taken: set[str]) -> str:
        name, count = hint, 0
        while name in taken:
            count += 1
            name = f"{hint}.{count}"
        return name

    # ---- the ends ----

    def add_input(self, value: ir.Value) -> None:
        name, shape, datatype = value.name or "", self.shape(value), self.datatype(value)
        self.inputs.append(Input(name, shape, datatype))
        self.values[name] = Value(shape, datatype)
        self._refs[value] = dense(name, shape, identity(len(shape)), datatype)

    def add_output(self, value: ir.Value, node: ir.Node) -> None:
        ref = self.ref(value)
        stored = self.stored_as(ref, identity(len(ref.shape)), node)
        whole = stored.value in self.values and math.prod(stored.shape) == math.prod(self.values[stored.value].shape)
        given = any(each.name == stored.value for each in self.inputs)
        if not whole or given:  # a part of a value, a constant, or an input given back
            seen = self.operand(stored)
            stored = self.emit(node, "copy", [seen], stored.shape, stored.datatype)
        self.outputs.append(Output(value.name or "", stored.value, stored.shape))

    def finish(self) -> LoweredGraph:
        graph = LoweredGraph(
            tuple(self.inputs),
            tuple(self.outputs),
            dict(self.values),
            {name: Weight(tuple(each.shape), numpy_datatype(each)) for name, each in self.weights.items()},
            tuple(self.steps),
        )
        validate(graph)
        return graph


def numpy_datatype(array: Array) -> str:
    kind = _DATATYPES.get(ir.DataType.from_numpy(array.dtype))
    if kind is None:
        raise Unsupported(f"a constant has type {array.dtype}, expected one of {', '.join(_DATATYPES.values())}")
    return kind
