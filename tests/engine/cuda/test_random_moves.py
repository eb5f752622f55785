"""Random graphs of what moves numbers answer what ONNX Runtime answers, however their steps are joined."""

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")

from onnxruntime.capi import onnxruntime_pybind11_state as told

from tests.engine.cuda.random_moves import Drawn
from tests.engine.cuda.reference import error, execute, lowered
from tests.graph.small import run

pytestmark = pytest.mark.torch

_GRAPHS = 40  # of a test: a second's worth


@pytest.mark.parametrize("block", range(20))
def test_what_moves_numbers_computes_the_same(block: int) -> None:
    judged = 0
    for seed in range(block * _GRAPHS, (block + 1) * _GRAPHS):
        drawn = Drawn(seed)
        model, inputs = drawn.model(), {"x": drawn.numbers.standard_normal(drawn.input).astype(np.float32)}
        try:
            expected = run(model.SerializeToString(), inputs)
        except (told.Fail, told.NotImplemented, told.RuntimeException):  # it knows fewer ways to resize than there are
            continue
        if not all(np.isfinite(each).all() for each in expected.values()):
            continue
        found = execute(*lowered(ir.from_proto(model), inputs), inputs)
        judged += 1
        for name, right in expected.items():
            assert found[name].shape == right.shape, (seed, name)
            near = np.abs(found[name] - right).max() < 1e-5  # sums that are nothing
            assert near or error(found[name], right) < 2e-4, (seed, name)
    assert judged > _GRAPHS // 2
