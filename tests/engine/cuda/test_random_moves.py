"""Random graphs of what moves numbers answer what ONNX Runtime answers, however their steps are joined."""

import pytest

pytest.importorskip("torch")

from tests.engine.cuda.drawing import judge
from tests.engine.cuda.random_moves import Drawn

pytestmark = pytest.mark.torch

_GRAPHS = 40  # of a test: a second's worth


@pytest.mark.parametrize("block", range(20))
def test_what_moves_numbers_computes_the_same(block: int) -> None:
    judged = sum(judge(Drawn(seed)) for seed in range(block * _GRAPHS, (block + 1) * _GRAPHS))
    assert judged > _GRAPHS // 2
