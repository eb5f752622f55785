"""What drawn graphs share: nodes and weights one after the other, and ONNX Runtime as the judge of what they answer."""

import random

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as told

from penstock.errors import Unsupported
from tests.engine.cuda.reference import Array, error, execute, lowered
from tests.graph.small import run

Shape = tuple[int, ...]


class Drawing:
    """Nodes and weights of a graph with one input `x` of shape `input`, all of them from one seed."""

    input: Shape

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.numbers = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def pick(self, least: int, most: int) -> int:
        return self.random.randint(least, most)

    def node(self, kind: str, inputs: list[str], **attributes: object) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"n{len(self.nodes)}", **attributes))
        return name

    def weight(self, array: Array) -> str:
        self.weights.append(numpy_helper.from_array(array, f"w{len(self.weights)}"))
        return self.weights[-1].name

    def floats(self, *shape: int) -> str:
        return self.weight(self.numbers.standard_normal(shape).astype(np.float32))

    def ints(self, *numbers: int) -> str:
        return self.weight(np.array(numbers, np.int64))

    def model(self) -> onnx.ModelProto:
        raise NotImplementedError

    def model_of(self, answers: dict[str, Shape | None]) -> onnx.ModelProto:
        """From `x` to these values, whose shape may be left to whoever reads the model."""
        x, *others = (
            helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)
            for name, sizes in (("x", self.input), *answers.items())
        )
        graph = helper.make_graph(self.nodes, "drawn", [x], others, self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def judge(drawn: Drawing, *, may_refuse: bool = False) -> bool:
    """Whether answers were compared; False where ONNX Runtime has none, or (`may_refuse`) there are no steps.

    Raises:
        AssertionError: when they differ; it names the seed.
    """
    model, inputs = drawn.model(), {"x": drawn.numbers.standard_normal(drawn.input).astype(np.float32)}
    try:
        expected = run(model.SerializeToString(), inputs)
    except (told.Fail, told.NotImplemented, told.RuntimeException, told.InvalidArgument):  # it knows fewer ways
        return False
    if not all(np.isfinite(each).all() and each.size for each in expected.values()):
        return False
    try:
        graph, weights = lowered(ir.from_proto(model), inputs)
    except Unsupported:
        if may_refuse:
            return False
        raise
    found = execute(graph, weights, inputs)
    for name, right in expected.items():
        assert found[name].shape == right.shape, (drawn.seed, name)
        near = np.abs(found[name] - right).max() < 1e-5  # sums that are nothing
        assert near or error(found[name], right) < 2e-4, (drawn.seed, name)
    return True
