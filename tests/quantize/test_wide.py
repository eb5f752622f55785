"""Layers that stay in FP32: what is marked with a convolution, and the search for a run of them."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from penstock.engine.plan import ROUNDED_KEY, WIDE_KEY
from penstock.quantize import convolutions, keeping, search_run
from tests.quantize.networks import Builder, residual

NAMES = [f"layer{index}" for index in range(24)]


def run(begin: int, end: int) -> frozenset[str]:
    return frozenset(NAMES[begin:end])


def marked(model: ir.Model) -> set[str]:
    return {node.name or "" for node in model.graph if node.metadata_props.get(WIDE_KEY) == "fp32"}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), set()),
        (("stem",), {"stem", "stem_relu", "pool"}),  # and what reads nothing else
        (("second",), {"second", "sum", "sum_relu"}),  # the sum is in the kernel of what it is added to
        (("mixed",), {"mixed", "gate", "swish"}),
        (("pointwise",), {"pointwise", "pointwise_relu"}),  # what is joined has another part
        (("pointwise", "side"), {"pointwise", "pointwise_relu", "side", "side_relu", "joined"}),
        (("first", "last"), {"first", "first_relu", "last", "last_relu", "average", "flat"}),
        (("fc", "pool", "absent"), set()),  # no convolutions
    ],
)
def test_a_convolution_is_marked_with_what_belongs_to_it(names: tuple[str, ...], expected: set[str]) -> None:
    model = residual()
    assert marked(keeping(model, names)) == expected
    assert marked(model) == set()


def rounded(model: ir.Model) -> set[str]:
    return {node.name or "" for node in model.graph if node.metadata_props.get(ROUNDED_KEY) == "bf16"}


def weight(model: ir.Model, name: str) -> npt.NDArray[Any]:
    (node,) = (node for node in model.graph if node.name == name)
    value = node.inputs[1]
    assert value is not None
    assert value.const_value is not None
    found: npt.NDArray[Any] = value.const_value.numpy()
    return found


def test_layers_that_are_not_kept_get_the_weights_that_are_given() -> None:
    model = residual()
    names = ("stem", "first", "fc")
    own = {name: weight(model, name).copy() for name in names}
    given = {name: array + 1 for name, array in own.items()}
    size = len(model.graph.initializers)
    made = keeping(model, ("stem", "second"), given)
    assert marked(made) == {"stem", "stem_relu", "pool", "second", "sum", "sum_relu"}
    assert rounded(made) == {"first", "fc"}
    assert len(made.graph.initializers) == size  # what nothing reads any more is gone
    np.testing.assert_array_equal(weight(made, "stem"), own["stem"])
    for name in ("first", "fc"):
        np.testing.assert_array_equal(weight(made, name), given[name])
    assert rounded(model) == set()
    for name in names:
        np.testing.assert_array_equal(weight(model, name), own[name])


def test_layers_that_share_a_weight_are_given_one_each() -> None:
    b = Builder()
    b.weight("shared", np.ones((4, 4, 1, 1), np.float32))
    b.node("Conv", [b.node("Conv", ["x", "shared"], "one"), "shared"], "two")
    model = b.model(["n", 4, 8, 8], "two", ["n", 4, 8, 8])
    made = keeping(model, (), {"one": np.full((4, 4, 1, 1), 2, np.float32)})
    assert (weight(made, "one") == 2).all()
    assert (weight(made, "two") == 1).all()
    both = keeping(model, (), {name: np.full((4, 4, 1, 1), at, np.float32) for at, name in enumerate(("one", "two"))})
    assert (weight(both, "one") == 0).all()
    assert (weight(both, "two") == 1).all()


def test_what_stands_before_the_first_layer_is_marked_with_it() -> None:
    b = Builder()
    b.weight("mean", np.full((1, 3, 1, 1), 0.5, np.float32))
    b.weight("scale", np.full((1, 3, 1, 1), 4.0, np.float32))
    normal = b.node("Mul", [b.node("Sub", ["x", "mean"], "centred"), "scale"], "normal")
    b.conv(b.relu(b.conv(normal, (3, 8), "first")), (8, 8), "second")
    model = b.model(["n", 3, 8, 8], "second", ["n", 8, 8, 8])
    assert marked(keeping(model, ["first"])) == {"centred", "normal", "first", "first_relu"}
    assert marked(keeping(model, ["second"])) == {"second"}


def test_convolutions_come_in_the_order_of_execution() -> None:
    assert convolutions(residual()) == (
        *("stem", "first", "second", "depthwise", "pointwise", "side", "mixed", "last"),
    )  # fmt: skip


def containing(begin: int, end: int) -> Callable[[frozenset[str]], float]:
    """Passes where all of these are kept."""
    return lambda kept: float(run(begin, end) <= kept)


@pytest.mark.parametrize(
    ("needed", "most"),
    [
        ((0, 1), (0, 1)),
        ((0, 3), (0, 3)),
        ((0, 7), (0, 7)),
        ((0, 24), (0, 24)),
        ((10, 12), (8, 12)),
        ((22, 24), (20, 24)),
    ],
)
def test_a_run_that_has_what_is_needed_and_little_more(needed: tuple[int, int], most: tuple[int, int]) -> None:
    found = search_run(NAMES, containing(*needed), lambda score: score >= 1, budget_seconds=60)
    assert run(*needed) <= found.layers <= run(*most)
    assert (found.passed, found.complete) == (True, True)
    assert found.evaluations <= 12


@pytest.mark.parametrize(
    ("needed", "share", "asked"), [((0, 14), 1 / 16, 12), ((0, 14), 1 / 2, 10), ((0, 12), 1 / 2, 9)]
)
def test_a_good_first_guess_saves_trials(needed: tuple[int, int], share: float, asked: int) -> None:
    tried: list[frozenset[str]] = []

    def evaluate(kept: frozenset[str]) -> float:
        tried.append(kept)
        return containing(*needed)(kept)

    found = search_run(NAMES, evaluate, lambda score: score >= 1, budget_seconds=60, first_share=share)
    assert run(*needed) <= found.layers
    assert tried[0] == run(0, max(1, int(24 * share)))
    assert found.evaluations == asked


def test_where_nothing_passes_all_were_tried() -> None:
    found = search_run(NAMES, lambda kept: len(kept) / 100, lambda score: score >= 1, budget_seconds=60)
    assert (found.passed, found.complete, found.layers) == (False, True, frozenset(NAMES))


def test_the_budget_ends_the_search_with_what_passed() -> None:
    """The first try passes and takes all the time there is: a second one would come too late."""

    def slow(kept: frozenset[str]) -> float:
        until = time.monotonic() + 0.02
        while time.monotonic() < until:
            pass
        return 1.0

    found = search_run(NAMES, slow, lambda score: score >= 1, budget_seconds=0.03)
    assert (found.passed, found.complete, found.evaluations) == (True, False, 1)
    assert found.layers == run(0, 1)


def test_without_layers_nothing_is_evaluated() -> None:
    found = search_run([], lambda _: pytest.fail("evaluated"), lambda _: True, budget_seconds=60)
    assert (found.passed, found.evaluations) == (False, 0)
