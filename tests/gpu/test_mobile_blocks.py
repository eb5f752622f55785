"""Blocks of mobile networks by our kernels in CUDA C++, from a captured graph with early launches."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from penstock.engine.cuda.executor import Executor  # noqa: E402
from tests.engine.cuda.reference import error, lowered  # noqa: E402
from tests.gpu.conftest import DEVICE  # noqa: E402
from tests.graph.small import graph, normal, run  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.torch]

PREFERRED = ("cuda_pair", "cuda_walk", "cuda_short")
WEIGHTS = {
    "e": normal(48, 16, 1, 1) / 4,
    "b": normal(48, seed=1),
    "d": normal(48, 1, 3, 3, seed=2) / 3,
    "p": normal(16, 48, 1, 1, seed=3) / 7,
    "r": normal(12, 48, 1, 1, seed=4) / 7,
    "s": normal(48, 12, 1, 1, seed=5) / 4,
    "zero": np.array(0, np.float32),
    "six": np.array(6, np.float32),
}
BLOCKS = {
    "cuda_walk": "k = Conv <group=48, pads=[1,1,1,1]> (h, d, b) c = Clip(k, zero, six)",
    "cuda_pair": "k = Conv <group=48, pads=[0,0,1,1], strides=[2,2]> (h, d, b) c = Clip(k, zero, six)",
    "cuda_walk gate": """k = Conv <group=48, pads=[1,1,1,1]> (h, d, b) a = GlobalAveragePool(k) q = Conv(a, r)
        z = Relu(q) v = Conv(z, s) g = Sigmoid(v) c = Mul(k, g)""",
}


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 3e-3), ("bf16", 2e-2)])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_agrees_with_onnx_runtime(name: str, precision: str, tolerance: float) -> None:
    side = 7 if "pair" in name else 14
    text = f"""(float[2,16,14,14] x) => (float[2,16,{side},{side}] y) {{ f = Conv(x, e, b) h = Clip(f, zero, six)
        {BLOCKS[name]} y = Conv(c, p) }}"""
    model, inputs = graph(text, WEIGHTS, 20), {"x": normal(2, 16, 14, 14, seed=7)}
    executor = Executor(*lowered(model, inputs), DEVICE, precision, PREFERRED, early_launch=True)
    found = {bound.implementation for bound in executor.program}
    assert name.split(maxsplit=1)[0] in found
    assert found & {"cuda_short", "cuda_pair"}
    captured = executor.capture()
    captured.inputs["x"].copy_(torch.from_numpy(inputs["x"]))
    torch.cuda.synchronize()
    answers = []
    for _ in range(2):
        captured.replay()
        torch.cuda.synchronize()
        answers.append(captured.outputs["y"].cpu().numpy())
    assert np.array_equal(*answers)
    assert error(answers[0], run(model, inputs)["y"]) < tolerance
