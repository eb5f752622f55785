"""Binding shapes: what becomes a number, what stays free, and what is refused."""

import numpy as np
import onnx_ir as ir
import pytest

from penstock.errors import InvalidArgument
from penstock.graph import bind, mend_outputs, optimize, signature
from tests.graph.small import assert_same, graph, normal, operators

# A row of ones as long as x is wide, counted from its shape, and a Reshape by computed sizes.
COMPUTED = """(float[N,T,8] x) => (float[?,?,?] y) {
    s = Shape(x)
    n = Gather<axis=0>(s, zero)
    t = Gather<axis=0>(s, one)
    steps = Range(zero, t, one)
    numbers = Cast<to=1>(steps)
    column = Unsqueeze(numbers, last)
    moved = Add(x, column)
    u = Unsqueeze(n, first)
    target = Concat<axis=0>(u, minus, two)
    halves = Reshape(moved, target)
    v = Unsqueeze(t, first)
    w = Mul(v, four)
    shape = Concat<axis=0>(u, w, two)
    filled = ConstantOfShape<value = float[1] {2}>(shape)
    y = Mul(halves, filled)
}"""
NUMBERS = {
    "zero": np.array(0),
    "one": np.array(1),
    "last": np.array([-1]),
    "first": np.array([0]),
    "minus": np.array([-1]),
    "two": np.array([2]),
    "four": np.array([4]),
}


def test_shape_arithmetic_becomes_constants() -> None:
    model = graph(COMPUTED, NUMBERS)
    fixed = bind(model, {"x": (3, 5, 8)})
    assert operators(fixed) == {"Add": 1, "Reshape": 1, "Mul": 1}
    assert [value.shape for value in signature(fixed)[1]] == [(3, 20, 2)]
    assert_same(model, fixed, {"x": normal(3, 5, 8)})


def test_a_batch_that_stays_free_leaves_its_own_arithmetic_only() -> None:
    model = graph(COMPUTED, NUMBERS)
    fixed = optimize(model, shapes={"x": (-1, 5, 8)}).model
    assert "Range" not in operators(fixed)
    assert signature(fixed)[0][0].shape == (-1, 5, 8)
    assert signature(fixed)[0][0].axes == ("N", None, None)
    for batch in (1, 4):
        assert_same(model, fixed, {"x": normal(batch, 5, 8)})


def test_inputs_that_are_not_named_stay_free() -> None:
    model = graph("(float[N,2] a, float[N,2] b) => (float[N,2] y) { y = Add(a, b) }")
    fixed = bind(model, {"a": (3, 2)})
    assert [spec.shape for spec in signature(fixed)[0]] == [(3, 2), (-1, 2)]


def test_a_claimed_shape_inside_the_graph_is_not_believed() -> None:
    model = graph("(float[N,3] x) => (float[N,3] y) { a = Relu(x) y = Neg(a) }")
    model.graph[0].outputs[0].shape = ir.Shape([7, 3])
    assert [spec.shape for spec in signature(bind(model, {"x": (2, 3)}))[1]] == [(2, 3)]


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"z": (1,)}, "no input 'z' to bind, the model has a, b"),
        ({"a": (1,)}, "'a' has 2 dimensions, got a shape of 1"),
        ({"a": (1, 4)}, "'a' has 3 at dimension 1, got 4"),
        ({"a": (0, 3)}, "0 is no size"),
        ({"a": (-2, 3)}, "-2 is no size"),
        ({"a": (2, 3), "b": (4, 3)}, "can't take the shapes a:2x3, b:4x3"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes: dict[str, tuple[int, ...]], words: str) -> None:
    model = graph("(float[N,3] a, float[N,3] b) => (float[?,3] y) { y = Add(a, b) }")
    with pytest.raises(InvalidArgument, match=words):
        bind(model, shapes)
    with pytest.raises(InvalidArgument, match=words):
        optimize(model, shapes=shapes)


def test_an_output_that_claims_another_rank_gets_the_one_that_is_computed() -> None:
    model = graph("(float[N,4] x) => (float[1,1,N,4] y, float[N,4] z) { y = Unsqueeze(x, first) z = Relu(x) }", NUMBERS)
    assert mend_outputs(model) == [
        "the model says that output 'y' has 4 axes, and computes 3: its exporter was mistaken"
    ]
    assert [each.shape for each in signature(model)[1]] == [(1, -1, 4), (-1, 4)]
    assert mend_outputs(model) == []
    model.graph.outputs[0].shape = None
    assert mend_outputs(model) == []
    assert signature(model)[1][0].shape == (1, -1, 4)
