"""Random networks of convolutions and pools of odd sizes answer what ONNX Runtime answers."""

import pytest

pytest.importorskip("torch")

from tests.engine.cuda.drawing import judge
from tests.engine.cuda.random_layers import Layers

pytestmark = pytest.mark.torch

_NETWORKS = 60  # of a test: a second's worth


@pytest.mark.parametrize("block", range(20))
def test_layers_of_odd_sizes_compute_the_same(block: int) -> None:
    seeds = range(block * _NETWORKS, (block + 1) * _NETWORKS)
    judged = sum(judge(Layers(seed), may_refuse=True) for seed in seeds)  # a window that does not fit
    assert judged > _NETWORKS // 2
