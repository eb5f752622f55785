"""What is left in float where INT8 fails the gate: on verdicts made by rule, of a real network's layers."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from penstock.build.calibrating import enough, left_in_float, out_of_reach, picked
from penstock.build.gate import Cosine, Gate, Metric, Verdict
from penstock.graph import optimize
from penstock.quantize import SCHEMES, Calibration, Recipe, layers, recipes
from penstock.quantize.observe import runner
from tests.quantize.networks import pictures, recurrent, residual

LIMIT = 0.999


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return next(recipes(optimize(residual()).model, pictures(4), methods=["minmax"]))


def quantized(model: ir.Model) -> frozenset[str]:
    """Layers that read eight bits."""
    return frozenset(
        node.name or ""
        for node in model.graph
        if node.op_type in ("Conv", "Gemm", "MatMul")
        and (made := node.inputs[1].producer() if node.inputs[1] is not None else None) is not None
        and made.op_type == "DequantizeLinear"
    )


def losing(losses: Mapping[str, float], asked: list[frozenset[str]] | None = None) -> Callable[[ir.Model], Verdict]:
    """1 less what each quantized layer loses."""

    def judged(model: ir.Model) -> Verdict:
        names = quantized(model)
        if asked is not None:
            asked.append(names)
        cosine = 1 - sum(losses.get(name, 0.0) for name in names)
        return Verdict(cosine >= LIMIT, cosine, LIMIT, output="y")

    return judged


class Heard:
    """What is said while recipes are made."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def stage(self, name: str, detail: str = "") -> None:
        self.stages.append(name)

    def racing(self, event: Any) -> None:
        raise AssertionError("nothing is raced here")


def test_every_scheme_is_polished_before_one_is_picked() -> None:
    """Which is closest before rounding may not be afterwards."""
    model, (learned, unseen) = optimize(recurrent()).model, pictures(24).split()
    schemes = [replace(each, weight_bits=7) for each in SCHEMES.values()]
    heard = Heard()
    with runner(model, ["y"]) as run:
        recipe, cosines = picked(model, learned, unseen, schemes, run, time.monotonic() + 60, heard)
    assert heard.stages == ["improve", "polish"]
    rounded = {name for name in cosines if name.endswith("-rounded")}
    assert {"-both" in name for name in rounded} == {False, True}
    assert cosines[recipe.name] == max(cosines.values())


@pytest.mark.parametrize(
    ("cosine", "gate", "hopeless"),
    [
        (0.991, Cosine(0.999), False),
        (0.989, Cosine(0.999), True),
        (0.98, Cosine(0.999), True),
        (0.98, Cosine(0.99), False),
        (-1.0, Cosine(0.999), True),
        (0.5, Metric(lambda run: 1.0, 0.01), False),  # answers may turn far without a score falling
    ],
)
def test_what_loses_many_times_what_is_allowed_is_not_raced(cosine: float, gate: Gate, hopeless: bool) -> None:
    assert out_of_reach(cosine, gate) is hopeless
    assert not out_of_reach(0.98, Cosine(0.999), 2.5)  # corrections may bring it near enough


def test_what_corrections_can_not_bring_near_is_not_corrected() -> None:
    model, (learned, unseen) = optimize(recurrent()).model, pictures(24).split()
    heard = Heard()
    gate = Cosine(1 - 1e-9)
    with runner(model, ["y"]) as run:
        recipe, cosines = picked(
            model, learned, unseen, list(SCHEMES.values()), run, time.monotonic() + 60, heard, gate
        )
    assert out_of_reach(cosines[recipe.name], gate, 2.5)
    assert heard.stages == []


@pytest.mark.parametrize(
    ("count", "size", "left"), [(40, 1_000_000, 16), (40, 10, 40), (40, 9_000_000, 8), (5, 9_000_000, 5)]
)
def test_of_large_samples_a_few_are_enough(count: int, size: int, left: int) -> None:
    one = np.zeros(1, np.float32)
    data = Calibration(tuple({"x": np.broadcast_to(one + number, (1, size))} for number in range(count)))
    found = enough(data)
    numbers = [int(each["x"][0, 0]) for each in found]
    assert len(numbers) == left
    assert numbers == sorted(set(numbers))
    assert numbers[-1] >= count - -(-count // left)


def test_the_layer_that_does_the_harm_is_left(recipe: Recipe) -> None:
    names = layers(recipe.base)
    found = left_in_float(recipe, names, losing({names[3]: 0.01}), budget_seconds=60)
    assert found.passed
    assert found.layers == {names[3]}


def test_as_many_are_left_as_bring_it_well_inside(recipe: Recipe) -> None:
    """Without `first` it would pass, but use nine tenths of what is allowed."""
    names = layers(recipe.base)
    losses = {"first": 0.002, "second": 0.0006, "mixed": 0.0003}
    assert losses.keys() <= set(names)
    found = left_in_float(recipe, names, losing(losses), budget_seconds=60)
    assert found.passed
    assert {"first", "second"} <= found.layers < set(names)


def test_layers_are_ranked_by_what_is_usually_lost_and_not_by_the_worst_input(recipe: Recipe) -> None:
    """The worst of a few inputs is another one with every set of layers."""
    names = layers(recipe.base)
    losses = {"first": 0.003, "second": 0.002}
    luck = dict(zip(sorted(names), np.random.default_rng(1).random(len(names)), strict=True))

    def judged(model: ir.Model) -> Verdict:
        narrow = quantized(model)
        usual = sum(losses.get(name, 0.0) for name in narrow)
        worst = 1 - usual - (0.02 * sum(luck[name] for name in narrow) if usual else 0)
        return Verdict(not usual, worst, LIMIT, usual=usual, output="y")

    found = left_in_float(recipe, names, judged, budget_seconds=60)
    assert found.passed
    assert found.layers == losses.keys()
    assert found.evaluations == 1 + len(names) + 1  # none, each alone, and the best two


def test_what_passes_is_taken_where_nothing_is_well_inside(recipe: Recipe) -> None:
    names = layers(recipe.base)
    rest = dict.fromkeys(names, 0.0)

    def judged(model: ir.Model) -> Verdict:
        verdict = losing({**rest, "first": 0.01})(model)
        return Verdict(verdict.passed, verdict.measured - 0.0007, LIMIT, output="y")

    found = left_in_float(recipe, names, judged, budget_seconds=60)
    assert found.passed
    assert "first" in found.layers
    assert found.score == pytest.approx(0.0003)


def test_a_recipe_with_next_to_nothing_left_in_eight_bits_is_none(recipe: Recipe) -> None:
    """The cheapest layer alone may be narrow: it is a hundredth of the products."""
    names = layers(recipe.base)
    costs = recipe.costs()
    assert costs.keys() == set(names)
    cheapest = min(names, key=lambda name: costs[name])
    assert costs[cheapest] < 0.05 * sum(costs.values())
    asked: list[frozenset[str]] = []
    losses = {name: 0.01 for name in names if name != cheapest}
    found = left_in_float(recipe, names, losing(losses, asked), budget_seconds=60)
    assert not found.passed
    assert frozenset({cheapest}) in asked


def test_costs_are_multiplications(recipe: Recipe) -> None:
    """64 x 64 x 3 in, a stem of 3 x 3 with stride 2: 32 x 32 places, 16 filters of 27."""
    assert recipe.costs()["stem"] == 32 * 32 * 16 * 27
    assert recipe.costs()["fc"] == 32 * 10
