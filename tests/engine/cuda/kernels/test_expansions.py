"""A layer and the depthwise one behind it as one step, by Triton's two kernels: for GPUs that ours do not know."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
pytest.importorskip("onnx")

from penstock.engine.cuda.choices import Choice  # noqa: E402
from penstock.engine.cuda.executor import Executor  # noqa: E402
from tests.engine.cuda.test_expansions import STRIDED, joined_floats  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("eight", [True, False], ids=["int8", "fp16"])
def test_where_there_is_no_such_gpu_it_is_two_kernels(eight: bool, device: str) -> None:
    graph, weights = STRIDED.narrowed(device)[:2] if eight else joined_floats()
    weights = {name: each.to(device) for name, each in weights.items()}
    (name,) = (step.name for step in graph.steps if step.kind == "expand_depthwise")
    x = STRIDED.inputs(device)
    (right,) = Executor(graph, weights, device, "fp16").run(x).values()
    ours = Executor(graph, weights, device, "fp16", ("triton",), {name: Choice("triton_pair")})
    (found,) = ours.run(x).values()
    assert float((found - right).norm()) <= (1e-2 if eight else 2e-3) * float(right.norm())
