"""Launches chosen on a GPU: the graph computes the same, and whoever is told what was chosen launches so."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from penstock.engine.cuda.choices import Choice, from_json, to_json  # noqa: E402
from penstock.engine.cuda.contexts import GraphContext, InputMemory  # noqa: E402
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


def test_in_company_a_context_launches_all_early_and_answers_with_the_same_bits() -> None:
    steps, weights = lowered(resnet34(), {"x": normal(2, 3, 64, 64, seed=9)})
    plain = Executor(steps, weights, DEVICE, "fp16", OURS, early_launch=True)
    # Every second step waits for the one ahead, by choice.
    apart = {each.name: Choice(each.implementation, (), (0,)) for each in plain.program[::2]}
    executor = Executor(steps, weights, DEVICE, "fp16", OURS, apart, early_launch=True)
    assert executor.keeps_apart
    assert not plain.keeps_apart
    computing: set[int] = set()
    context = GraphContext(executor, InputMemory.of([executor]), computing=computing)
    replayed: list[str] = []
    alone, in_company = context._start, context._in_company
    context._start = lambda: (replayed.append("alone"), alone())
    context._in_company = lambda: (replayed.append("in company"), in_company())
    inputs = {"x": normal(2, 3, 64, 64, seed=3).astype(np.float16)}
    expected = {name: array.copy() for name, array in context.run(inputs).items()}
    computing.update((-1, -2))  # others
    found = {name: array.copy() for name, array in context.run(inputs).items()}
    assert replayed == ["alone", "in company"]
    assert computing == {-1, -2}
    for name, array in expected.items():
        assert np.isfinite(array).all()
        assert np.array_equal(found[name], array)
    other = {"x": normal(2, 3, 64, 64, seed=4).astype(np.float16)}
    assert not np.array_equal(context.run(other)["y"], expected["y"])
