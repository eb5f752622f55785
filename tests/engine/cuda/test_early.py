"""Which kernels are launched early: found by what whole graphs take, whatever each kernel gains or loses."""

import random

import pytest

pytest.importorskip("torch")

from penstock.engine.cuda.choices import Choice, from_json, to_json
from penstock.engine.cuda.early import Mask, best_mask
from penstock.engine.cuda.executor import Executor
from tests.engine.cuda.reference import lowered
from tests.graph.small import graph, normal

pytestmark = pytest.mark.torch


class Graphs:
    """Graphs whose kernels gain or lose so much each by being launched early; a hundredth of a second each."""

    def __init__(self, gains: list[float], noise: float = 0.0) -> None:
        self.gains, self.noise, self.measured, self._draw = gains, noise, 0, random.Random(3)

    def measure(self, mask: Mask) -> float:
        self.measured += 1
        gained = sum(gain for gain, early in zip(self.gains, mask, strict=True) if early)
        return 1.0 - gained + self.noise * self._draw.gauss(0, 1)

    def clock(self) -> float:
        return self.measured / 100


def gains(count: int) -> list[float]:
    draw = random.Random(5)
    return [draw.choice((-0.004, -0.002, 0.001, 0.002)) for _ in range(count)]


@pytest.mark.parametrize("count", [1, 7, 8, 48, 100])
def test_each_kernel_is_launched_as_it_is_faster(count: int) -> None:
    graphs = Graphs(gains(count))
    found = best_mask(count, graphs.measure, 10.0, graphs.clock)
    assert found.mask == tuple(gain > 0 for gain in graphs.gains)
    assert found.milliseconds < min(found.all_early, found.none_early) or count == 1


def test_noise_as_large_as_what_a_kernel_gains_is_averaged_out() -> None:
    graphs = Graphs(gains(48), noise=0.001)
    found = best_mask(48, graphs.measure, 10.0, graphs.clock)
    right = sum(early == (gain > 0) for early, gain in zip(found.mask, graphs.gains, strict=True))
    assert right >= 46


def test_what_is_fastest_whole_is_taken_where_kernels_hinder_each_other() -> None:
    def measure(mask: Mask) -> float:
        return 1.0 if not any(mask) else 2.0 - 0.001 * sum(mask)

    assert best_mask(16, measure, 10.0, iter(range(1000)).__next__).mask == (False,) * 16


@pytest.mark.parametrize(("seconds", "most"), [(0.01, 4), (0.2, 20), (0.5, 50), (1.5, 150)])
def test_no_more_is_measured_than_there_is_time_for(seconds: float, most: int) -> None:
    graphs = Graphs(gains(60))
    found = best_mask(60, graphs.measure, seconds, graphs.clock)
    assert graphs.measured <= most
    assert found.milliseconds <= min(found.all_early, found.none_early)


def test_kernels_that_wait_are_read_back() -> None:
    choices = {"a": Choice("triton", (1, 2), (0, 3)), "b": Choice("cudnn")}
    assert from_json(to_json(choices)) == choices


def test_an_executor_hands_its_steps_choices_to_the_program() -> None:
    network = "(float[1,4,6,6] x) => (float[1,4,6,6] y) { y = Conv <pads=[1,1,1,1]> (x, w) }"
    small, weights = lowered(graph(network, {"w": normal(4, 4, 3, 3)}), {"x": normal(1, 4, 6, 6)})
    step = next(each.name for each in small.steps if each.kind == "conv")
    executor = Executor(small, weights, choices={step: Choice("cudnn", (), (1,))})
    assert {bound.name: bound.apart for bound in executor.program if bound.apart} == {step: (1,)}
