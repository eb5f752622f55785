"""The search for layers to keep in float: on scores made by rule, and on a network with one layer that needs it."""

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from penstock.quantize import Scheme, collect, layers, quantize, ranges, rank_by_noise, search, watched
from tests.quantize.networks import answers, cosine, pictures, residual

NAMES = [f"layer{index}" for index in range(12)]


def harm(**costs: float) -> Callable[[frozenset[str]], float]:
    """A score of 1 less what each quantized layer costs."""
    return lambda kept: 1 - sum(cost for name, cost in costs.items() if name not in kept)


def above(least: float) -> Callable[[float], bool]:
    return lambda score: score >= least - 1e-12


@pytest.mark.parametrize(
    ("costs", "expected"),
    [
        ({}, set()),
        ({"layer7": 0.5}, {"layer7"}),
        ({"layer0": 0.5, "layer11": 0.4}, {"layer0", "layer11"}),
        ({"layer2": 0.5, "layer3": 0.2, "layer4": 0.1, "layer9": 0.3}, {"layer2", "layer3", "layer4", "layer9"}),
        (dict.fromkeys(NAMES, 0.2), set(NAMES)),
    ],
)
def test_exactly_the_layers_that_do_harm_are_kept(costs: dict[str, float], expected: set[str]) -> None:
    found = search(NAMES, harm(**costs), above(1.0), budget_seconds=60)
    assert found.layers == expected
    assert (found.passed, found.complete) == (True, True)
    assert found.score == pytest.approx(1.0)


def test_of_layers_that_help_alike_the_cheap_ones_are_kept() -> None:
    """Any four of the twelve would do."""
    evaluate = harm(**dict.fromkeys(NAMES, 0.1))
    costs = {name: 1.0 if index in (1, 4, 8, 11) else 50.0 for index, name in enumerate(NAMES)}
    found = search(NAMES, evaluate, above(0.2), budget_seconds=60, costs=costs)
    assert found.layers == {"layer1", "layer4", "layer8", "layer11"}
    assert found.passed


def test_a_dear_layer_is_kept_where_the_cheap_ones_do_not_help() -> None:
    evaluate = harm(layer3=0.5, layer4=-0.1)
    costs = {"layer3": 1000.0, "layer4": 0.001}
    assert search(NAMES, evaluate, above(1.05), budget_seconds=60, costs=costs).layers == {"layer3"}


def test_a_layer_alone_that_saves_a_broken_model_comes_first() -> None:
    def broken(kept: frozenset[str]) -> float:
        return 0.1 * len(kept) if "layer6" in kept else math.nan

    found = search(NAMES, broken, above(0.2), budget_seconds=60, costs={"layer6": 1000.0})
    assert "layer6" in found.layers
    assert found.passed
    assert len(found.layers) == 2


def test_a_layer_that_alone_is_to_blame_ends_the_search_at_once() -> None:
    found = search(NAMES, harm(layer1=1.0), above(1.0), budget_seconds=60)
    assert found.evaluations == 3  # none, layer0, layer1


def test_layers_that_only_help_together_are_found() -> None:
    def together(kept: frozenset[str]) -> float:
        return 1.0 if {"layer4", "layer5"} <= kept else 0.0

    assert search(NAMES, together, above(1.0), budget_seconds=60).layers == {"layer4", "layer5"}


def test_where_nothing_passes_the_best_is_answered_and_said_to_fail() -> None:
    found = search(NAMES, lambda kept: 0.5 + 0.01 * len(kept), above(1.0), budget_seconds=60)
    assert not found.passed
    assert found.layers == set(NAMES)
    assert found.score == pytest.approx(0.62)


def test_no_set_is_evaluated_twice() -> None:
    asked: list[frozenset[str]] = []
    evaluate = harm(layer2=0.5, layer3=0.2, layer9=0.3)

    def asking(kept: frozenset[str]) -> float:
        asked.append(kept)
        return evaluate(kept)

    found = search(NAMES, asking, above(1.0), budget_seconds=60)
    assert len(asked) == len(set(asked)) == found.evaluations


def test_without_time_the_model_as_it_is_is_evaluated_and_answered() -> None:
    found = search(NAMES, harm(layer3=1.0), above(1.0), budget_seconds=0)
    assert (found.layers, found.passed, found.evaluations) == (frozenset(), False, found.evaluations)
    assert not found.complete
    assert found.evaluations <= 2


class Clock:
    """Time that passes where something is evaluated and nowhere else."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("penstock.quantize.sensitivity.time", self)

    def monotonic(self) -> float:
        return self.now

    def timed(self, evaluate: Callable[[frozenset[str]], float], seconds: float) -> Callable[[frozenset[str]], float]:
        def found(kept: frozenset[str]) -> float:
            self.now += seconds
            return evaluate(kept)

        return found


def test_without_time_for_each_layer_it_ends_where_half_of_them_do_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the twelve is needed."""
    clock = Clock(monkeypatch)
    evaluate = clock.timed(harm(**dict.fromkeys(NAMES, 0.1)), 2.0)
    found = search(NAMES, evaluate, above(1.0), budget_seconds=40)
    assert (found.passed, found.complete) == (False, False)
    assert found.evaluations == 2
    assert found.layers == set(NAMES[:6])


def test_without_time_for_each_layer_what_the_suspects_allow_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    evaluate = clock.timed(harm(layer1=0.5, layer4=0.4), 2.0)
    found = search(NAMES, evaluate, above(1.0), budget_seconds=40)
    assert found.passed
    assert found.layers == {"layer1", "layer4"}
    # By their costs the first two are the half of it, and one of the two that do harm is not among them.
    costs = {name: 100.0 if index < 2 else 1.0 for index, name in enumerate(NAMES)}
    clock.now = 0.0
    assert not search(NAMES, evaluate, above(1.0), budget_seconds=40, costs=costs).passed


def test_a_score_that_is_no_number_never_wins() -> None:
    found = search(
        ["a", "b"], lambda kept: math.nan if kept == {"a"} else 0.1 * len(kept), above(1.0), budget_seconds=60
    )
    assert found.layers == {"a", "b"}


# ---- a real network ----


def poisoned(layer: str) -> ir.Model:
    """One input channel of a layer is 3,000 times as large as the others, and the weights that read it as small.

    Computed in float nothing changes; with one scale for the tensor all the other channels vanish.
    """
    model = residual()
    channel, factor = 5, np.float32(3000)
    for name, index in (("side_w", np.s_[channel]), ("side_b", np.s_[channel])):
        _scale(model, name, index, factor)
    # `side` feeds channels 32.. of `joined`, which `mixed` reads.
    _scale(model, f"{layer}_w", np.s_[:, 32 + channel], 1 / factor)
    return model


def _scale(model: ir.Model, name: str, index: object, factor: np.float32) -> None:
    value = model.graph.initializers[name]
    assert value.const_value is not None
    array = value.const_value.numpy().copy()
    array[index] *= factor  # type: ignore[index]
    value.const_value = ir.tensor(array, name=name)


def test_noise_ranks_the_poisoned_layer_worst() -> None:
    model, data, scheme = poisoned("mixed"), pictures(8), Scheme()
    spans = ranges(collect(model, data, watched(model, [scheme])), "minmax", scheme)
    noise = rank_by_noise(model, spans, data, scheme=scheme)
    assert {each.layer for each in noise} == set(layers(model))
    assert noise[0].layer == "mixed"
    assert noise[0].sqnr_db < noise[1].sqnr_db - 10


@pytest.mark.parametrize("ordered", [True, False], ids=["by noise", "in any order"])
def test_the_search_saves_a_poisoned_network_by_naming_exactly_that_layer(ordered: bool) -> None:
    model, data, scheme = poisoned("mixed"), pictures(8), Scheme()
    held_out = pictures(4, seed=21)
    expected = answers(model, held_out)
    spans = ranges(collect(model, data, watched(model, [scheme])), "minmax", scheme)

    def evaluate(kept: frozenset[str]) -> float:
        return cosine(expected, answers(quantize(model, spans, keep=kept, scheme=scheme), held_out))

    names = [each.layer for each in rank_by_noise(model, spans, data, scheme=scheme)]
    found = search(names if ordered else sorted(names), evaluate, above(0.998), budget_seconds=120)
    assert evaluate(frozenset()) < 0.998
    assert (found.layers, found.passed) == ({"mixed"}, True)
    if ordered:
        assert found.evaluations == 2
