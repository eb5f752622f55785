"""A small network in a file, and children that run the worker with fake libraries."""

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from penstock.tactics import Form, Limits
from tests import onnx_models
from tests.tactics.helpers import FAULTY, PYTHONPATH


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Limits:
    """Limits of children that run the worker with fake libraries."""
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    return Limits(worker=FAULTY)


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two convolutions with ReLU and a pooled classifier; any batch, any size."""
    rng = np.random.default_rng(5)
    shapes = {"w1": (16, 3, 3, 3), "b1": (16,), "w2": (32, 16, 3, 3), "b2": (32,), "w3": (32, 10)}
    weights = [
        numpy_helper.from_array((0.2 * rng.standard_normal(shape)).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "first", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c1"], ["r1"], "first_relu"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "second", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"], "second_relu"),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("MatMul", ["f", "w3"], ["y"], "classify"),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return onnx_models.save(model, tmp_path_factory.mktemp("network") / "network.onnx")


@pytest.fixture
def forms(network: Path) -> dict[str, Form]:
    return {"source": Form(network, "fp32", False)}


@pytest.fixture(scope="session")
def recogniser() -> Path:
    spec = importlib.util.find_spec("rapidocr")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("rapidocr, whose wheel carries the model, is not installed")
    return Path(spec.submodule_search_locations[0]) / "models" / "PP-OCRv6_rec_small.onnx"
