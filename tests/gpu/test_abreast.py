"""Kernels timed abreast on a GPU: what one takes among others, and a network of those that were chosen so."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from penstock.engine.cuda.abreast import BEHIND, _Abreast, chosen_abreast  # noqa: E402
from penstock.engine.cuda.executor import Executor  # noqa: E402
from penstock.engine.cuda.precompile import Compilers  # noqa: E402
from penstock.engine.cuda.sites import capability  # noqa: E402
from penstock.engine.cuda.tuner import random_inputs, tune  # noqa: E402
from tests.engine.cuda.reference import lowered  # noqa: E402
from tests.gpu.conftest import DEVICE  # noqa: E402
from tests.graph.residual_network import resnet34  # noqa: E402
from tests.graph.small import normal  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.torch, pytest.mark.slow]

TOLERANCE = 5e-3  # FP16 through 36 layers, whichever kernels


def test_kernels_are_chosen_by_what_they_take_among_others() -> None:
    steps, weights = lowered(resnet34(), {"x": normal(1, 3, 64, 64, seed=9)})
    executor = Executor(steps, weights, DEVICE, "fp16", early_launch=True)
    with Compilers(4, capability(executor.device)) as compilers:
        result = tune(executor, seconds=60.0, limit=3, compilers=compilers)
    with torch.no_grad(), executor.arithmetic():
        chosen = chosen_abreast(result, 4, 30.0)
        for row in result.rows:
            name = row.steps[0]
            assert chosen[name] in row.times
            assert row.times[chosen[name]] <= BEHIND * row.microseconds
        # A GPU of many multiprocessors computes four short steps at once: one of four takes less than one alone.
        longest = result.rows[0]
        assert _Abreast(4)(longest, chosen[longest.steps[0]]) < _Abreast(1)(longest, chosen[longest.steps[0]])
    inputs = random_inputs(executor)
    expected = executor.run(inputs)
    other = Executor(steps, weights, DEVICE, "fp16", choices=chosen, early_launch=True)
    for name, answer in other.run(inputs).items():
        assert float((answer - expected[name]).float().norm()) <= TOLERANCE * float(expected[name].float().norm())
