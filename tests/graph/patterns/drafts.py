"""Writes the same formula in all the ways in which exporters might: operands swapped, constants as initialisers or
Constant nodes, numbers as scalars or vectors of one, products in any order and nesting."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from penstock.graph.inference import infer
from tests.graph.small import Array

COMMUTING = ("Add", "Mul", "Min", "Max")


class Choices:
    """Where the variants come from."""

    def pick(self, *options: Any) -> Any:
        """The plain form: the first one always."""
        return options[0]


@dataclass
class Drawn(Choices):
    """Variants drawn by hypothesis."""

    data: st.DataObject

    def pick(self, *options: Any) -> Any:
        return self.data.draw(st.sampled_from(options))


@dataclass
class Draft:
    """A graph with the input x in the making."""

    choices: Choices = field(default_factory=Choices)
    opset: int = 17
    dtype: type = np.float32
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    count: int = 0

    def add(self, operator: str, *inputs: str, attributes: Mapping[str, Any] | None = None) -> str:
        """A node; its output."""
        return self.add_many(operator, *inputs, outputs=1, attributes=attributes)[0]

    def add_many(
        self, operator: str, *inputs: str, outputs: int, attributes: Mapping[str, Any] | None = None
    ) -> list[str]:
        self.count += 1
        names = [f"{operator.lower()}{self.count}_{index}" for index in range(outputs)]
        ordered = list(inputs)
        if operator in COMMUTING and len(inputs) == 2 and self.choices.pick(False, True):
            ordered.reverse()
        node = helper.make_node(operator, ordered, names, f"n{self.count}", None, "")
        for key, value in (attributes or {}).items():
            node.attribute.append(helper.make_attribute(key, value))
        self.nodes.append(node)
        return names

    def weight(self, array: Array | Sequence[int]) -> str:
        """A constant, as it is."""
        self.count += 1
        tensor = numpy_helper.from_array(np.asarray(array), f"c{self.count}")
        if self.choices.pick(False, True):
            node = helper.make_node("Constant", [], [tensor.name], f"n{self.count}")
            node.attribute.append(helper.make_attribute("value", tensor))
            self.nodes.append(node)
        else:
            self.weights.append(tensor)
        return tensor.name

    def number(self, value: float) -> str:
        """A constant of one element."""
        return self.weight(np.full(self.choices.pick((), (1,), (1, 1)), value, self.dtype))

    def scaled(self, value: str, factor: float) -> str:
        """value * factor, by Mul or by Div."""
        if self.choices.pick(False, True):
            return self.add("Div", value, self.number(1 / factor))
        return self.add("Mul", value, self.number(factor))

    def product(self, factor: float, *values: str) -> str:
        """All the values times a number, multiplied in any order."""
        terms: list[str | float] = [*values] if factor == 1 else [*values, factor]
        while len(terms) > 1:
            first = terms.pop(self.choices.pick(*range(len(terms))))
            second = terms.pop(self.choices.pick(*range(len(terms))))
            if isinstance(first, float):
                first, second = second, first
            assert isinstance(first, str)
            terms.append(self.scaled(first, second) if isinstance(second, float) else self.add("Mul", first, second))
        assert isinstance(terms[0], str)
        return terms[0]

    def reduce_mean(self, value: str, axes: Sequence[int]) -> str:
        if self.opset < 18:
            return self.add("ReduceMean", value, attributes={"axes": list(axes), "keepdims": 1})
        return self.add("ReduceMean", value, self.weight(np.array(axes, np.int64)))

    def model(self, shape: Sequence[int | str], *outputs: str) -> ir.Model:
        """With the types and shapes that inference finds."""
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        made = helper.make_graph(
            self.nodes,
            "draft",
            [helper.make_tensor_value_info("x", kind, shape)],
            [helper.make_tensor_value_info(name, kind, None) for name in outputs],
            self.weights,
        )
        proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)
        proto = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
        onnx.checker.check_model(proto)
        model = ir.from_proto(proto)
        infer(model)
        return model


def copy(model: ir.Model) -> ir.Model:
    return model.clone()


def intermediate(model: ir.Model) -> list[str]:
    """Names of the float values between the input and the outputs."""
    return [
        value.name
        for node in model.graph
        if node.op_type != "Constant"
        for value in node.outputs
        if value.name and not value.is_graph_output() and value.dtype == ir.DataType.FLOAT
    ]


def also_answer(model: ir.Model, name: str) -> None:
    """Make an inner value an output of the graph."""
    model.graph.outputs.append(_value(model, name))


def also_read(model: ir.Model, name: str) -> None:
    """Let another node, whose result is an output, read an inner value."""
    value = _value(model, name)
    node = ir.node("Neg", [value], name="reader")
    output = node.outputs[0]
    output.name, output.type, output.shape = "read", value.type, value.shape
    made_by = value.producer()
    assert made_by is not None
    model.graph.insert_after(made_by, node)
    model.graph.outputs.append(output)


def _value(model: ir.Model, name: str) -> ir.Value:
    return next(value for node in model.graph for value in node.outputs if value.name == name)


FLOAT = TensorProto.FLOAT
