"""What the tests of lowered graphs share: ONNX Runtime as the judge, and the error that is measured."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from penstock.engine.cuda.executor import Executor
from penstock.engine.lowered import LoweredGraph
from penstock.graph import optimize
from penstock.graph.lowering import SUPPORTED, Weights, lower
from tests.graph.small import run

Array = NDArray[Any]
Arrays = Mapping[str, Array]


def lowered(model: ir.Model, inputs: Arrays) -> tuple[LoweredGraph, Weights]:
    """The model's steps for inputs of these shapes."""
    shapes = {name: array.shape for name, array in inputs.items()}
    return lower(optimize(model, shapes=shapes, known=SUPPORTED).model)


def execute(graph: LoweredGraph, weights: Weights, inputs: Arrays, precision: str = "fp32") -> dict[str, Array]:
    executor = Executor(graph, weights, "cpu", precision)
    outputs = executor.run({name: torch.from_numpy(np.array(array)) for name, array in inputs.items()})
    return {name: tensor.numpy() for name, tensor in outputs.items()}


def error(found: Array, expected: Array) -> float:
    """Norm-relative: the length of the difference over the length of what is right."""
    assert found.shape == expected.shape
    assert np.isfinite(expected).all()
    length = float(np.linalg.norm(expected.astype(np.float64)))
    return float(np.linalg.norm(found.astype(np.float64) - expected.astype(np.float64))) / max(length, 1e-30)


def assert_agrees(model: ir.Model, source: bytes | ir.Model, inputs: Arrays, tolerance: float) -> LoweredGraph:
    """The steps answer what ONNX Runtime answers for the source, in names, types, shapes and numbers."""
    graph, weights = lowered(model, inputs)
    expected, found = run(source, inputs), execute(graph, weights, inputs)
    assert list(found) == list(expected)
    for name, right in expected.items():
        assert found[name].dtype == right.dtype, name
        if right.dtype.kind == "f":
            assert error(found[name], right) < tolerance, name
        else:
            assert np.array_equal(found[name], right), name
    return graph
