"""A network under construction: every node that is added is also carried out, on real inputs, at once.

So a layer's statistics are known when it is made, and the next one can be set to them: that is how batch norms get
running statistics, and biases their place, without training. Promises the same bytes for the same calls on the same
library versions: one seeded generator, one thread, names given in order. Called by `layers` and the architectures.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import helper, numpy_helper

Array = npt.NDArray[Any]
Attributes = Mapping[str, int | float | str | Sequence[int]]

# What exporters write by default today; LayerNormalization is an operator since 17.
OPSET, IR_VERSION = 17, 9
BATCH = "N"


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the graph, and what it holds for the inputs the network is made with."""

    name: str
    array: Array


class Network:
    """Nodes, weights and the generator they come from."""

    def __init__(self, name: str, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self._name = name
        self._scopes: list[str] = []
        self._names: dict[str, int] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Names inside begin with the module's, as an exporter writes them."""
        self._scopes.append(name)
        yield
        self._scopes.pop()

    def input(self, name: str, array: Array) -> Value:
        """An input whose first dimension is the batch and free; `array`: real inputs to make the network with."""
        self._inputs.append(_information(name, array))
        return Value(name, array)

    def weight(self, name: str, array: Array) -> Value:
        """A parameter, in the module that is being made."""
        full = self._unique(".".join([*self._scopes, name]))
        array = np.ascontiguousarray(array)
        self._weights.append(numpy_helper.from_array(array, full))
        return Value(full, array)

    def constant(self, array: Array) -> Value:
        """Not a parameter but a number of the operator: shapes, axes, limits. A node, as exporters write it."""
        name = self._node_name("Constant")
        output = f"{name}_output_0"
        tensor = numpy_helper.from_array(array)
        self._nodes.append(helper.make_node("Constant", [], [output], name, value=tensor))
        return Value(output, array)

    def integers(self, *values: int) -> Value:
        return self.constant(np.array(values, np.int64))

    def add(
        self, kind: str, *inputs: Value | None, attributes: Attributes | None = None, outputs: int = 1
    ) -> tuple[Value, ...]:
        """Add a node and carry it out; None stands for an input left out."""
        name = self._node_name(kind)
        names = [f"{name}_output_{index}" for index in range(outputs)]
        given = [value.name if value else "" for value in inputs]
        # Not keywords: attributes are data here, and some are called like arguments of make_node.
        node = helper.make_node(kind, given, names, name)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in sorted((attributes or {}).items()))
        self._nodes.append(node)
        present = {value.name: value.array for value in inputs if value}
        arrays = _carry_out(node, present)
        return tuple(Value(output, array) for output, array in zip(names, arrays, strict=True))

    def one(self, kind: str, *inputs: Value | None, attributes: Attributes | None = None) -> Value:
        """`add` for a node with one output."""
        return self.add(kind, *inputs, attributes=attributes)[0]

    def finish(self, outputs: Mapping[str, Value]) -> onnx.ModelProto:
        """The model; `outputs` names what it answers with, whose first dimension is the batch."""
        renamed = {value.name: name for name, value in outputs.items()}
        for node in self._nodes:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    names[index] = renamed.get(name, name)
        graph = helper.make_graph(
            self._nodes,
            self._name,
            self._inputs,
            [_information(name, value.array) for name, value in outputs.items()],
            self._weights,
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="penstock benches",
        )

    def _node_name(self, kind: str) -> str:
        return self._unique("/" + "/".join([*self._scopes, kind]))

    def _unique(self, name: str) -> str:
        count = self._names[name] = self._names.get(name, -1) + 1
        return f"{name}_{count}" if count else name


def _information(name: str, array: Array) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(name, kind, [BATCH, *array.shape[1:]])


def _carry_out(node: onnx.NodeProto, inputs: Mapping[str, Array]) -> list[Array]:
    """Run one node alone. One thread, so that no sum depends on how many cores there are."""
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in inputs.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in node.output],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False  # a session lives for one call: its arena would only be given back
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: list[Array] = session.run(None, dict(inputs))
    return found
