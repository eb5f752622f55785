"""Small graphs in ONNX's text form, and the judge of every pass: ONNX Runtime without any optimisation of its own."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from penstock.graph import to_bytes

Array = NDArray[Any]
Arrays = Mapping[str, Array]


def graph(text: str, weights: Arrays | None = None, opset: int = 17) -> ir.Model:
    """`(float[N,3,8,8] x) => (float[N,4,8,8] y) { y = Conv(x, w) }` with `weights` as initialisers."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> small {text}')
    for name, array in (weights or {}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    for index, node in enumerate(proto.graph.node):
        node.name = node.name or f"n{index}"
    onnx.checker.check_model(proto)
    return ir.from_proto(proto)


def run(model: ir.Model | bytes, inputs: Arrays) -> dict[str, Array]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    data = model if isinstance(model, bytes) else to_bytes(model)
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def assert_same(before: ir.Model | bytes, after: ir.Model | bytes, inputs: Arrays, tolerance: float = 2e-5) -> None:
    """Same outputs in the same order, of the same type and shape, with the same numbers.

    Folding changes the order of a few thousand FP32 operations at most, each off by 6e-8 of numbers as large as the
    largest of the tensor: 2e-5 of that is the bound. What is not finite fails.
    """
    expected, got = run(before, inputs), run(after, inputs)
    assert list(expected) == list(got)
    for name, reference in expected.items():
        found = got[name]
        assert found.dtype == reference.dtype
        assert found.shape == reference.shape
        if reference.dtype.kind != "f":
            assert np.array_equal(found, reference), name
            continue
        assert np.isfinite(reference).all(), name
        assert np.isfinite(found).all(), name
        scale = max(1.0, float(np.abs(reference).max(initial=0)))
        assert float(np.abs(found - reference).max(initial=0)) <= tolerance * scale, name


def operators(model: ir.Model) -> dict[str, int]:
    """How many nodes of which operator the main graph has."""
    return dict(Counter(node.op_type for node in model.graph))


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)
