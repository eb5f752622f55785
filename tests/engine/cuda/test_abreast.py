"""Kernels for several contexts: chosen among those near the best alone, by what they take abreast, in time."""

import math
from collections.abc import Mapping

import pytest

pytest.importorskip("torch")

from penstock.engine.cuda.abreast import BEHIND, chosen_abreast
from penstock.engine.cuda.candidates import Tuned
from penstock.engine.cuda.choices import Choice
from penstock.engine.cuda.executor import Executor
from penstock.engine.cuda.tuner import Result
from tests.engine.cuda.reference import lowered
from tests.graph.small import graph, normal

pytestmark = pytest.mark.torch

ALONE, NEAR, SMALL = Choice("alone"), Choice("near"), Choice("small")


def tuned(*rows: Mapping[Choice, float]) -> Result:
    """Of one step each, in this order."""
    model = graph("(float[1,4] x) => (float[1,4] y) { y = Relu(x) }", {})
    site = Executor(*lowered(model, {"x": normal(1, 4)})).sites[0]
    found = [Tuned(site, [f"step{number}"], times=dict(times)) for number, times in enumerate(rows)]
    return Result({row.steps[0]: row.best for row in found if row.best}, found, 0, 1.0)


def test_the_least_abreast_is_chosen_among_those_near_the_best_alone() -> None:
    result = tuned({ALONE: 10.0, NEAR: 10.0 * BEHIND - 0.1, SMALL: 10.0 * BEHIND + 0.1})
    abreast = {ALONE: 8.0, NEAR: 5.0, SMALL: 1.0}
    assert chosen_abreast(result, 4, 1.0, lambda row, choice: abreast[choice]) == {"step0": NEAR}
    assert result.choices == {"step0": ALONE}


def test_what_has_no_rival_is_not_timed_again() -> None:
    result = tuned({ALONE: 10.0, SMALL: 100.0})
    assert chosen_abreast(result, 4, 1.0, lambda row, choice: pytest.fail("timed")) == {"step0": ALONE}


def test_steps_without_time_keep_their_choice() -> None:
    result = tuned({ALONE: 10.0, NEAR: 11.0}, {ALONE: 1.0, NEAR: 1.1})
    ticks = iter([0.0, 0.5, 1.5])
    found = chosen_abreast(result, 4, 1.0, lambda row, choice: float(choice == ALONE), lambda: next(ticks))
    assert found == {"step0": NEAR, "step1": ALONE}


def test_where_none_can_be_timed_abreast_the_best_alone_stays() -> None:
    assert chosen_abreast(tuned({NEAR: 11.0, ALONE: 10.0}), 4, 1.0, lambda row, choice: math.inf) == {"step0": ALONE}
