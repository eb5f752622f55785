"""The cases that the `onnx` package has for each operator: what has steps answers what the specification answers."""

from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.backend.test.case.node import collect_testcases
from onnx.backend.test.case.test_case import TestCase

pytest.importorskip("torch")

from penstock.errors import PenstockError
from tests.engine.cuda.reference import Array, Arrays, execute, lowered

pytestmark = pytest.mark.torch

_BLOCKS = 12
# Their corners are those of a size that isn't whole (2.4 pixels); ONNX Runtime and PyTorch take those of the output.
_OTHERWISE = [f"test_resize_downsample_scales_{kind}_align_corners" for kind in ("linear", "cubic")]
_TYPES = ("bool", "int8", "uint8", "int32", "int64", "float16", "float32", "float64")


@cache
def _cases() -> list[TestCase]:
    """Those whose inputs and outputs are arrays of ordinary types."""
    return [case for case in collect_testcases(None) if case.name not in _OTHERWISE and _plain(case)]


def _plain(case: TestCase) -> bool:
    if case.model is None:
        return False
    arrays = [array for side in case.data_sets[0] for array in side]
    return all(isinstance(array, np.ndarray) and array.dtype.name in _TYPES for array in arrays)


def _given(case: TestCase, computed: int) -> tuple[onnx.ModelProto, Arrays]:
    """The model with its inputs from this one on as weights, and what it is fed."""
    model, feeds = onnx.ModelProto(), {}
    model.CopyFrom(case.model)
    for place, (value, array) in enumerate(zip(case.model.graph.input, case.data_sets[0][0], strict=False)):
        if place < computed:
            feeds[value.name] = array
        else:
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
    del model.graph.input[computed:]
    return model, feeds


def _assert_right(found: Array, right: Array, case: TestCase) -> None:
    assert found.dtype == right.dtype, case.name
    assert found.shape == right.shape, case.name
    if right.dtype.kind == "f":
        near = 1e-4 if right.dtype != np.float16 else 2e-3
        assert np.allclose(found, right, rtol=max(case.rtol, 10 * near), atol=near, equal_nan=True), case.name
    else:
        assert np.array_equal(found, right), case.name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("computed", [1, 100], ids=["one-input", "all-inputs"])
@pytest.mark.parametrize("block", range(_BLOCKS))
def test_steps_answer_what_the_specification_answers(block: int, computed: int) -> None:
    judged = 0
    for case in _cases()[block::_BLOCKS]:
        model, feeds = _given(case, computed)
        try:
            graph, weights = lowered(ir.from_proto(model), feeds)
            outputs = execute(graph, weights, feeds)
        except PenstockError:  # says what it doesn't do
            continue
        for found, right in zip(outputs.values(), case.data_sets[0][1], strict=True):
            _assert_right(found, right, case)
        judged += 1
    assert judged > 40
