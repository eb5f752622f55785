"""The tuner on a residual network: a choice for each step, and the tuned network still computes the model."""

from collections.abc import Iterator

import onnx_ir as ir
import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch

from penstock.engine.cuda.choices import from_json, to_json
from penstock.engine.cuda.executor import Executor
from penstock.engine.cuda.tuner import Result, tune
from penstock.engine.lowered import LoweredGraph
from penstock.graph.lowering import Weights
from tests.engine.cuda.reference import error, lowered
from tests.gpu.conftest import DEVICE, missing
from tests.graph.residual_network import resnet34
from tests.graph.small import normal, run

pytestmark = [pytest.mark.gpu, pytest.mark.torch, pytest.mark.slow]

TOLERANCE = 5e-3  # FP16 through 36 layers
X = {"x": normal(2, 3, 64, 64, seed=9)}


@pytest.fixture(scope="module")
def network() -> ir.Model:
    return resnet34()


@pytest.fixture(scope="module")
def small(network: ir.Model) -> tuple[LoweredGraph, Weights]:
    return lowered(network, X)


@pytest.fixture(scope="module")
def tuned(small: tuple[LoweredGraph, Weights]) -> Iterator[Result]:
    if why := missing():  # asked for before the fixture of every test
        pytest.skip(why)
    from penstock.engine.cuda.precompile import Compilers

    major, minor = torch.cuda.get_device_capability()
    with Compilers(4, 10 * major + minor) as compilers:
        yield tune(Executor(*small, DEVICE, "fp16"), seconds=90.0, limit=2, compilers=compilers)


def test_every_step_has_a_choice_and_its_time(small: tuple[LoweredGraph, Weights], tuned: Result) -> None:
    assert tuned.choices.keys() == {step.name for step in small[0].steps}
    for row in tuned.rows:
        assert 0 < row.microseconds < 5000, row.site.step.name
        assert row.best in row.times


def test_what_is_chosen_is_no_slower_than_the_reference(tuned: Result) -> None:
    for row in tuned.rows:
        assert row.microseconds <= next(iter(row.times.values()))


@pytest.mark.parametrize("early_launch", [False, True])
def test_the_tuned_network_computes_the_model(
    network: ir.Model, small: tuple[LoweredGraph, Weights], tuned: Result, early_launch: bool
) -> None:
    choices = from_json(to_json(tuned.choices))  # as an engine carries them
    captured = Executor(*small, DEVICE, "fp16", choices=choices, early_launch=early_launch).capture()
    captured.inputs["x"].copy_(torch.from_numpy(X["x"]))
    torch.cuda.synchronize()
    answers = []
    for _ in range(20):
        with torch.cuda.stream(captured.stream):
            captured.outputs["y"].fill_(torch.nan)
            captured.replay()
            answers.append(captured.outputs["y"].clone())
    captured.stream.synchronize()
    assert error(answers[0].cpu().numpy(), run(network, X)["y"]) < TOLERANCE
    assert all(torch.equal(each, answers[0]) for each in answers)
