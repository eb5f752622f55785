"""Factors behind a turned or reshaped map that are along none of its layer's channels, and stay as they are."""

import pytest

from penstock.graph import optimize
from tests.graph.small import assert_same, graph, normal, operators
from tests.graph.test_rules import CONV, Case, integers

STAYING = [
    Case(
        "a factor along what is no channel of a turned map",
        "{ c = Conv(x, w) t = Transpose<perm=[0,1,3,2]>(c) y = Mul(t, f) }",
        CONV | {"f": normal(6, seed=6)},
        {"Conv": 1, "Transpose": 1, "Mul": 1},
    ),
    Case(
        "a factor of as many rows as a turned map has channels",
        "{ c = Conv(x, w) t = Transpose<perm=[0,1,3,2]>(c) y = Mul(t, f) }",
        CONV | {"f": normal(4, seed=6)},
        {"Conv": 1, "Transpose": 1, "Mul": 1},
        shape=(1, 3, 6, 6),
        text_of_input="(float[1,3,6,6] x) => (float[?,?,?,?] y)",
    ),
    Case(
        "a factor of as many columns as a map has channels",
        "{ c = Conv(x, w) t = Transpose<perm=[0,1,3,2]>(c) y = Mul(t, f) }",
        CONV | {"f": normal(4, 1, seed=6)},
        {"Conv": 1, "Transpose": 1, "Mul": 1},
        shape=(1, 3, 6, 6),
        text_of_input="(float[1,3,6,6] x) => (float[?,?,?,?] y)",
    ),
    Case(
        "a factor of as many columns as channels that were cut",
        "{ c = Conv(x, w) r = Reshape(c, s) y = Mul(r, f) }",
        CONV | {"s": integers(1, 2, 8, 4), "f": normal(4, seed=6)},
        {"Conv": 1, "Reshape": 1, "Mul": 1},
        shape=(1, 3, 6, 6),
        text_of_input="(float[1,3,6,6] x) => (float[?,?,?,?] y)",
    ),
    Case(
        "a factor of as many as channels behind a Reshape that moves them",
        "{ c = Conv(x, w) r = Reshape(c, s) y = Mul(r, f) }",
        CONV | {"s": integers(1, 16, 4, 1), "f": normal(4, 1, seed=6)},
        {"Conv": 1, "Reshape": 1, "Mul": 1},
        shape=(1, 3, 6, 6),
        text_of_input="(float[1,3,6,6] x) => (float[?,?,?,?] y)",
    ),
    Case(
        "a factor along what channels were joined to",
        "{ c = Conv(x, w) r = Reshape(c, s) y = Mul(r, f) }",
        CONV | {"s": integers(1, 8, 3, 6), "f": normal(8, 1, 1, seed=6)},
        {"Conv": 1, "Reshape": 1, "Mul": 1},
    ),
    Case(
        "a factor of tokens that are read before it, too",
        "{ c = Conv(x, w) t = Transpose<perm=[0,2,3,1]>(c) m = Mul(t, f) y = Add(m, t) }",
        CONV | {"f": normal(4, seed=6)},
        {"Conv": 1, "Transpose": 1, "Mul": 1, "Add": 1},
    ),
]


@pytest.mark.parametrize("case", STAYING, ids=lambda case: case.name)
def test_what_is_left_of_a_graph(case: Case) -> None:
    model = graph(f"{case.text_of_input} {case.text}", case.weights, case.opset)
    optimized = optimize(model)
    assert operators(optimized.model) == case.left
    assert_same(model, optimized.model, {"x": normal(*case.shape, seed=9)})
