"""Small ONNX models made by script, for tests of runtimes and of the repository."""

from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import TensorProto, helper

Shape = Sequence[int | str | None]


def save(model: onnx.ModelProto, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def identity(path: Path, datatype: int = TensorProto.FLOAT, shape: Shape = ("n", 4)) -> Path:
    """y = x."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "identity",
        [helper.make_tensor_value_info("x", datatype, shape)],
        [helper.make_tensor_value_info("y", datatype, shape)],
    )
    return save(_model(graph), path)


def double(path: Path, shape: Shape = ("n", 16)) -> Path:
    """y = x + x."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "double",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    return save(_model(graph), path)


def scale(path: Path, factor: float, shape: Shape = ("n", 4)) -> Path:
    """y = x * factor, the factor kept in an initialiser."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        "scale",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [helper.make_tensor("factor", TensorProto.FLOAT, [1], [factor])],
    )
    return save(_model(graph), path)


def add_and_subtract(path: Path, left: Shape = ("n", 3), right: Shape = ("n", 3)) -> Path:
    """sum = a + b, difference = a - b."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["difference"])],
        "both",
        [
            helper.make_tensor_value_info("a", TensorProto.FLOAT, left),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, right),
        ],
        [
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, left),
            helper.make_tensor_value_info("difference", TensorProto.FLOAT, left),
        ],
    )
    return save(_model(graph), path)


def external(path: Path, entries: dict[str, str], nested: bool = False) -> Path:
    """y = x + w with w kept outside the file as `entries` say; `nested` hides w in the branches of an If."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        weight.external_data.add(key=key, value=value)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])]
    if not nested:
        graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "outside", inputs, outputs, [weight])
    else:
        branch = helper.make_graph(
            [helper.make_node("Add", ["x", "w"], ["inner"])],
            "branch",
            [],
            [helper.make_tensor_value_info("inner", TensorProto.FLOAT, ["n", 4])],
            [weight],
        )
        condition = helper.make_tensor("condition", TensorProto.BOOL, [], [True])
        node = helper.make_node("If", ["condition"], ["y"], then_branch=branch, else_branch=branch)
        graph = helper.make_graph([node], "nested", inputs, outputs, [condition])
    return save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
