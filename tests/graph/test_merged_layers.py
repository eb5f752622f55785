"""Two 1 x 1 convolutions with nothing between them are one, unless something else needs what lies between."""

import numpy as np
import pytest

from penstock.graph import optimize
from penstock.graph.lowering import lower
from tests.graph.small import graph, normal

NARROW = "c = Conv(x, a) "  # 8 channels become 4
MERGED = ["copy", "conv", "copy"]
APART = ["copy", "conv", "conv", "copy"]


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        (NARROW + "y = Conv(c, b)", MERGED),
        (NARROW + "d = Conv(c, b) y = Add(d, x)", MERGED),
        (NARROW + "d = Conv(c, b) y = Relu(d)", MERGED),
        (NARROW + "r = Relu(c) y = Conv(r, b)", ["copy", "mlp", "copy"]),
        ("c = Conv(x, e) d = Conv(c, e) y = Add(d, c)", APART),  # c is added to what is made of it
        ("c = Conv(x, e) s = Add(c, x) y = Conv(s, e)", APART),
    ],
)
def test_layers_are_one_where_nothing_else_is_between(text: str, kinds: list[str]) -> None:
    weights = {"a": normal(4, 8, 1, 1), "b": normal(8, 4, 1, 1), "e": normal(8, 8, 1, 1)}
    model = graph(f"(float[2,8,6,6] x) => (float[2,8,6,6] y) {{ {text} }}", weights)
    found, given = lower(optimize(model, shapes={"x": (2, 8, 6, 6)}).model)
    assert [step.kind for step in found.steps] == kinds
    if kinds is MERGED:
        step = found.steps[1]
        weight = step.operand("weight")
        assert weight is not None
        whole = given[weight.value].reshape(8, 8)
        product = weights["b"].reshape(8, 4).astype(np.float64) @ weights["a"].reshape(4, 8)
        assert np.abs(whole - product).max() < 1e-5
