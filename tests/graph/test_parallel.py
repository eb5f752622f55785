"""Blocks that are trained as sums of branches become one convolution; what only looks like one stays.

Results are compared with those of the whole graph in every case; `tests/graph/test_passes_keep_results.py` adds up
branches at random.
"""

import time

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from penstock.graph import optimize, sources
from tests.graph.small import Array, Arrays, assert_same, graph, normal, operators

SAME = "(float[N,4,H,W] x) => (float[?,?,?,?] y)"
K3, K1 = "Conv<pads=[1,1,1,1]>", "Conv"
ROWS = {"w3": normal(4, 4, 3, 3), "w1": normal(4, 4, 1, 1), "b3": normal(4, seed=1), "b1": normal(4, seed=2)}
WIDE = ROWS | {"w5": normal(4, 4, 5, 5), "row": normal(4, 4, 1, 3), "column": normal(4, 4, 3, 1)}
DEPTH = {"w3": normal(4, 1, 3, 3), "w7": normal(4, 1, 7, 7), "w1": normal(4, 1, 1, 1), "g": normal(4, 1, 1)}
NORM = {
    "scale": normal(4, seed=3),
    "shift": normal(4, seed=4),
    "mean": normal(4, seed=5),
    "variance": np.abs(normal(4, seed=6)) + 0.2,
}
BN = "BatchNormalization({}, scale, shift, mean, variance)"

MERGED: dict[str, tuple[str, Arrays]] = {
    "as RepVGG is trained, with a norm behind each branch": (
        f"{{ a = {K3}(x, w3) an = {BN.format('a')} b = {K1}(x, w1) bn = {BN.format('b')} "
        f"c = {BN.format('x')} s = Add(an, bn) y = Add(s, c) }}",
        ROWS | NORM,
    ),
    "as MobileOne is trained, several of each": (
        f"{{ c = {BN.format('x')} k = {K1}(x, w1, b1) s = Add(k, c) a = {K3}(x, w3) b = {K3}(x, w3, b3) "
        "t = Add(s, a) y = Add(t, b) }",
        ROWS | NORM,
    ),
    "as RepViT is trained, with the map itself and a norm behind the sum": (
        "{ a = Conv<pads=[1,1,1,1], group=4>(x, w3) b = Conv<group=4>(x, w1) s = Add(a, b) t = Add(s, x) "
        f"y = {BN.format('t')} }}",
        DEPTH | NORM,
    ),
    "as FastViT mixes, a norm subtracted and the difference scaled": (
        "{ a = Conv<pads=[3,3,3,3], group=4>(x, w7) b = Conv<pads=[1,1,1,1], group=4>(x, w3) s = Add(a, b) "
        f"n = {BN.format('x')} d = Sub(s, n) y = Mul(d, g) }}",
        DEPTH | NORM,
    ),
    "crossed kernels beside a square one": (
        "{ a = Conv<pads=[0,1,0,1]>(x, row) b = Conv<pads=[1,0,1,0]>(x, column) c = Conv<pads=[1,1,1,1]>(x, w3) "
        "y = Sum(a, b, c) }",
        WIDE,
    ),
    "with steps of two, and a kernel at the edge of another": (
        "{ a = Conv<pads=[2,2,2,2], strides=[2,2]>(x, w5) b = Conv<pads=[2,2,0,0], strides=[2,2]>(x, w3, b3) "
        "y = Sub(a, b) }",
        WIDE,
    ),
    "one tap beside taps that lie apart": (
        "{ a = Conv<pads=[2,2,2,2], dilations=[2,2]>(x, w3) b = Conv<dilations=[3,3]>(x, w1, b1) y = Add(b, a) }",
        WIDE,
    ),
    "a multiple of the map, taken away": (
        "{ m = Div(x, g) a = Conv<pads=[1,1,1,1], group=4>(x, w3) y = Sub(a, m) }",
        DEPTH,
    ),
    "without pads": ('{ a = Conv<auto_pad="VALID">(x, w3) b = Conv(x, w3, b3) y = Add(a, b) }', ROWS),
}


def feed(*shape: int) -> dict[str, Array]:
    return {"x": normal(*(shape or (2, 4, 9, 8)), seed=9)}


@pytest.mark.parametrize(("text", "weights"), MERGED.values(), ids=MERGED)
@pytest.mark.parametrize("bound", [False, True], ids=["free", "bound"])
def test_branches_become_one_convolution(text: str, weights: Arrays, bound: bool) -> None:
    model = graph(f"{SAME} {text}", weights)
    optimized = optimize(model, shapes={"x": (2, 4, 9, 8)} if bound else None).model
    assert operators(optimized) == {"Conv": 1}
    assert_same(model, optimized, feed())
    (left,) = optimized.graph
    assert set(sources(left)) == {node.name for node in model.graph}


def test_a_residual_stays_beside_its_branches() -> None:
    text = "{ a = Conv<pads=[1,1,1,1]>(x, w3) b = Conv(x, w1) s = Add(a, b) t = Relu(s) u = Conv(t, w1) y = Add(u, x) }"
    model = graph(f"{SAME} {text}", ROWS)
    optimized = optimize(model).model
    assert operators(optimized) == {"Conv": 2, "Relu": 1, "Add": 1}
    assert_same(model, optimized, feed())


def test_branches_of_two_maps_become_two() -> None:
    text = "{ n = Neg(x) a = Conv(x, w1) b = Conv(n, w1) c = Conv(n, w1, b1) d = Conv(x, w1, b1) y = Sum(a, b, c, d) }"
    model = graph(f"{SAME} {text}", ROWS)
    optimized = optimize(model).model
    assert operators(optimized) == {"Neg": 1, "Conv": 2, "Sum": 1}
    assert_same(model, optimized, feed())


TWO = "{{ a = {}(x, {}) b = {}(x, {}) y = Add(a, b) }}"
LEFT: dict[str, tuple[str, Arrays, dict[str, int]]] = {
    "a residual alone": (f"{{ a = {K3}(x, w3) y = Add(a, x) }}", ROWS, {"Conv": 1, "Add": 1}),
    "kernels that reach over different edges": (
        TWO.format("Conv<pads=[2,2,0,0]>", "w3", "Conv<pads=[0,0,2,2]>", "w3"),
        ROWS,
        {"Conv": 2, "Add": 1},
    ),
    "taps that lie otherwise apart": (
        TWO.format("Conv<pads=[2,2,2,2], dilations=[2,2]>", "w3", "Conv<pads=[1,1,1,1]>", "w3"),
        ROWS,
        {"Conv": 2, "Add": 1},
    ),
    "taps between those of the other": (
        TWO.format("Conv<pads=[2,2,2,2], dilations=[2,2]>", "w3", "Conv<pads=[1,1,3,3], dilations=[2,2]>", "w3"),
        ROWS,
        {"Conv": 2, "Add": 1},
    ),
    "cut in other groups": (
        TWO.format("Conv<pads=[1,1,1,1]>", "w3", "Conv<group=4>", "d1"),
        ROWS | {"d1": DEPTH["w1"]},
        {"Conv": 2, "Add": 1},
    ),
    "nothing left to subtract from": (
        "{ a = Conv<pads=[1,1,1,1]>(x, w3) b = Conv(x, w1) y = Sub(b, a) }",
        ROWS,
        {"Conv": 2, "Sub": 1},
    ),
    "other steps": (
        "{ a = Conv<strides=[2,2]>(x, w1) b = Conv(x, w1) c = MaxPool<kernel_shape=[1,1], strides=[2,2]>(b) "
        "y = Add(a, c) }",
        ROWS,
        {"Conv": 2, "MaxPool": 1, "Add": 1},
    ),
    "a branch that is answered, too": (
        f"{{ a = {K3}(x, w3) z = {K1}(x, w1) y = Add(a, z) }}",
        ROWS,
        {"Conv": 2, "Add": 1},
    ),
    "weights from outside": (
        f"{{ v = Abs(w1) w = Add(v, zero) p = ReduceMax<keepdims=1>(x) q = Mul(w, p) a = {K3}(x, w3) b = Conv(x, q) "
        "y = Add(a, b) }",
        ROWS | {"zero": np.zeros(1, np.float32)},
        {"ReduceMax": 1, "Mul": 1, "Conv": 2, "Add": 1},
    ),
}


@pytest.mark.parametrize(("text", "weights", "left"), LEFT.values(), ids=LEFT)
def test_what_can_not_be_one_kernel_stays(text: str, weights: Arrays, left: dict[str, int]) -> None:
    more = ", float[?,?,?,?] z" if " z = " in text else ""
    model = graph(f"(float[N,4,9,8] x) => (float[?,?,?,?] y{more}) {text}", weights)
    optimized = optimize(model).model
    assert operators(optimized) == left
    assert_same(model, optimized, feed())


def test_a_sum_that_a_small_term_broadcasts_in_keeps_its_size() -> None:
    text = "{ g = GlobalAveragePool(x) a = Conv(x, w1) s = Sum(a, g, t) b = Conv(x, w1, b1) y = Add(b, s) }"
    model = graph(f"(float[2,4,9,8] x) => (float[?,?,?,?] y) {text}", ROWS | {"t": normal(4, 1, 1)})
    assert_same(model, optimize(model).model, feed())


def test_half_precision_and_sums_that_overflow_stay() -> None:
    half = {name: array.astype(np.float16) for name, array in ROWS.items()}
    text = TWO.format(K3, "w3", K1, "w1")
    model = graph(f"(float16[N,4,H,W] x) => (float16[?,?,?,?] y) {text}", half)
    assert operators(optimize(model).model) == {"Conv": 2, "Add": 1}
    large = {"w3": np.full((4, 4, 3, 3), 3e38, np.float32), "w1": np.full((4, 4, 1, 1), 3e38, np.float32)}
    assert operators(optimize(graph(f"{SAME} {text}", large)).model) == {"Conv": 2, "Add": 1}


@pytest.mark.parametrize("flat", [False, True], ids=["a chain of Adds", "one Sum"])
def test_a_sum_of_thousands_of_branches_takes_no_longer_than_its_nodes(flat: bool) -> None:
    """A tree is compared pair by pair, so one that no block has is left as it is."""
    count = 3000
    nodes = [helper.make_node("Conv", ["x", f"w{at}"], [f"c{at}"], name=f"conv{at}") for at in range(count)]
    if flat:
        sums = [helper.make_node("Sum", [f"c{at}" for at in range(count)], ["y"], name="sum")]
    else:
        sums = [
            helper.make_node("Add", [f"s{at - 1}" if at else "x", f"c{at}"], [f"s{at}"], name=f"sum{at}")
            for at in range(count)
        ]
        sums[-1].output[0] = "y"
    weights = [helper.make_tensor(f"w{at}", TensorProto.FLOAT, [1, 1, 1, 1], [1.0 + at]) for at in range(count)]
    whole = helper.make_graph(
        [*nodes, *sums],
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 4, 4])],
        weights,
    )
    proto = helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    begun = time.process_time()
    optimized = optimize(ir.from_proto(proto)).model
    assert operators(optimized)["Conv"] == count
    assert time.process_time() - begun < 20
