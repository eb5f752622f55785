"""Small ONNX models made by script, and the repository of them that the load and unload tests use."""

from pathlib import Path

import onnx
from onnx import TensorProto, helper


def write_scale(path: Path, factor: float, size: int = 4, name: str = "scale") -> None:
    """y = factor * x, both FP32 [batch, size]."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", size])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", size])
    constant = helper.make_tensor("factor", TensorProto.FLOAT, [1], [factor])
    node = helper.make_node("Mul", ["x", "factor"], ["y"])
    _write(path, helper.make_graph([node], name, [x], [y], [constant]))


def write_wide(path: Path, size: int) -> None:
    """y = x repeated: FP32 [batch, 1] to FP32 [batch, size], so that a small request has a large answer."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", size])
    repeats = helper.make_tensor("repeats", TensorProto.INT64, [2], [1, size])
    _write(path, helper.make_graph([helper.make_node("Tile", ["x", "repeats"], ["y"])], "wide", [x], [y], [repeats]))


def _write(path: Path, graph: onnx.GraphProto) -> None:
    # IR 8 and opset 17 are read by every runtime release of the last years.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))


def write_explicit(repository: Path) -> None:
    """`first` (one version), `second` (versions 1 and 2) and `broken`, which never loads."""
    write_scale(repository / "first/1/model.onnx", 2)
    write_scale(repository / "second/1/model.onnx", 2)
    write_scale(repository / "second/2/model.onnx", 2)
    (repository / "broken/1").mkdir(parents=True)
    (repository / "broken/1/model.onnx").write_bytes(b"this is no ONNX file")
