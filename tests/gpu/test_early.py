"""Launches chosen on a GPU: the graph computes the same, and whoever is told what was chosen launches so."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from penstock.engine.cuda.choices import from_json, to_json  # noqa: E402
from penstock.engine.cuda.early import chosen_early  # noqa: E402
from penstock.engine.cuda.executor import Executor  # noqa: E402
from penstock.engine.cuda.implementations import OURS  # noqa: E402
from penstock.engine.cuda.kernels.replay import Recorder  # noqa: E402
from penstock.engine.cuda.tuner import random_inputs  # noqa: E402
from tests.engine.cuda.reference import lowered  # noqa: E402
from tests.gpu.conftest import DEVICE  # noqa: E402
from tests.graph.residual_network import resnet34  # noqa: E402
from tests.graph.small import normal  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.torch]


def test_an_engine_launches_as_was_chosen_and_computes_the_same() -> None:
    steps, weights = lowered(resnet34(), {"x": normal(2, 3, 64, 64, seed=9)})
    executor = Executor(steps, weights, DEVICE, "fp16", OURS, early_launch=True)
    inputs = random_inputs(executor)
    expected = executor.run(inputs)
    mixed, found = chosen_early(executor, {}, inputs, 2.0)
    assert found is not None
    assert found.milliseconds <= min(found.all_early, found.none_early)
    for name, answer in executor.run(inputs).items():  # all of them early again
        assert torch.equal(answer, expected[name])

    chosen = Executor(steps, weights, DEVICE, "fp16", OURS, from_json(to_json(mixed)), early_launch=True)
    captured = chosen.capture()
    for name, tensor in captured.inputs.items():
        tensor.copy_(inputs[name])
    torch.cuda.synchronize()
    captured.replay()
    torch.cuda.synchronize()
    for name, answer in captured.outputs.items():
        assert torch.equal(answer, expected[name])
    assert isinstance(executor.launcher, Recorder)
    assert isinstance(chosen.launcher, Recorder)
    early = sum(each.pdl for each in chosen.launcher.kernels)
    assert sum(each.pdl for each in executor.launcher.kernels) - early == found.mask.count(False)
