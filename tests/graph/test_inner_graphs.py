"""If, Loop and Scan: their graphs stay as they are, and what they read from outside stays right."""

import numpy as np
import onnx_ir as ir
import pytest

from penstock.graph import bind, optimize, to_bytes
from tests.graph.small import assert_same, graph, normal, operators

CAPTURE = """(float[1,3,6,6] x, bool choice) => (float[?,?,?,?] y) {
    i = Identity(x)
    c = Conv(i, w)
    s = Mul(c, f)
    y = If (choice) <
        then_branch = yes () => (float[?,?,?,?] t) { inner = Identity(c) t = Add(inner, s) },
        else_branch = no () => (float[?,?,?,?] e) { doubled = Add(f, f) e = Mul(s, doubled) }
    >
}"""
LOOP = """(float[2,3] x, int64 count) => (float[2,3] y) {
    always = Constant<value = bool {1}>()
    one = Identity(x)
    other = Identity(one)
    y = Loop (count, always, one) <
        body = body (int64 step, bool go, float[2,3] state) => (bool again, float[2,3] next) {
            again = Identity(go)
            sum = Add(state, other)
            next = Mul(sum, half)
        }
    >
}"""


def _inner(model: ir.Model) -> list[str]:
    outer = set(model.graph)
    return [node.op_type for node in model.graph.all_nodes() if node not in outer]


@pytest.mark.parametrize("choice", [True, False])
@pytest.mark.parametrize("bound", [True, False])
def test_values_captured_by_a_branch_survive(choice: bool, bound: bool) -> None:
    model = graph(CAPTURE, {"w": normal(4, 3, 3, 3), "f": normal(4, 1, 1)})
    optimized = optimize(model, shapes={"x": (1, 3, 6, 6)} if bound else None).model
    # The Mul stays a node: its input is read in a branch, too.
    assert operators(optimized) == {"Conv": 1, "Mul": 1, "If": 1}
    assert _inner(optimized) == _inner(model)
    assert_same(model, optimized, {"x": normal(1, 3, 6, 6), "choice": np.array(choice)})


def test_values_captured_by_a_loop_survive() -> None:
    model = graph(LOOP, {"half": np.float32(0.5)})
    optimized = optimize(model).model
    assert operators(optimized) == {"Loop": 1}
    assert _inner(optimized) == _inner(model)
    assert_same(model, optimized, {"x": normal(2, 3), "count": np.array(3)})


def test_a_constant_captured_by_a_branch_is_kept() -> None:
    text = """(float[2] x, bool choice) => (float[?] y) {
        k = Constant<value = float[2] {1, 2}>()
        m = Neg(k)
        y = If (choice) <
            then_branch = yes () => (float[?] t) { t = Add(x, m) },
            else_branch = no () => (float[?] e) { e = Mul(x, k) }
        >
    }"""
    model = graph(text)
    optimized = optimize(model).model
    assert operators(optimized) == {"If": 1}
    for choice in (True, False):
        assert_same(model, optimized, {"x": normal(2), "choice": np.array(choice)})


def test_shapes_that_a_branch_claims_are_forgotten_when_others_are_bound() -> None:
    text = """(float[N,2] x, bool choice) => (float[N,2] y) {
        y = If (choice) <
            then_branch = yes () => (float[N,2] t) { t = Neg(x) },
            else_branch = no () => (float[N,2] e) { e = Abs(x) }
        >
    }"""
    model = graph(text)
    fixed = bind(model, {"x": (5, 2)})
    assert_same(model, fixed, {"x": normal(5, 2), "choice": np.array(True)})


def test_functions_are_put_in_place() -> None:
    import onnx

    text = """<ir_version: 10, opset_import: ["" : 17, "own" : 1]>
        g (float[N,3] x) => (float[N,3] y) { a = own.twice(x) y = own.twice(a) }
        <domain: "own", opset_import: ["" : 17]> twice (p) => (q) { r = Identity(p) q = Add(r, r) }"""
    proto = onnx.parser.parse_model(text)
    proto.graph.node[0].name, proto.graph.node[1].name = "first", "second"
    model = ir.from_proto(proto)
    optimized = optimize(model).model
    assert operators(optimized) == {"Add": 2}
    assert [node.metadata_props["penstock.source"] for node in optimized.graph] == ['["first"]', '["second"]']
    assert_same(proto.SerializeToString(), to_bytes(optimized), {"x": normal(4, 3)})
