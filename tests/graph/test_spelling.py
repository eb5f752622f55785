"""Operators that a target doesn't know become those it knows, and compute what they did."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from penstock import graph as graphs
from penstock.graph.lowering import SUPPORTED
from tests.graph.small import assert_same, graph

_RANDOM = np.random.default_rng(7)
_Weights = Mapping[str, NDArray[np.generic]]


def _floats(*shape: int) -> NDArray[np.float32]:
    return _RANDOM.standard_normal(shape).astype(np.float32)


_PER_CHANNEL: _Weights = {
    "s": np.array([0.1, 0.02, 0.5], np.float32),
    "z": np.array([3, -7, 0], np.int8),
}
_PER_TENSOR: _Weights = {"s": np.array(0.03, np.float32), "z": np.array(120, np.uint8)}

CASES: list[tuple[str, tuple[int, ...], _Weights, int]] = [
    ("q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)", (2, 3, 4, 5), _PER_CHANNEL, 17),
    ("q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)", (2, 3, 4, 5), _PER_TENSOR, 17),
    ("q = QuantizeLinear<axis=-3>(x, s, z) y = DequantizeLinear<axis=1>(q, s, z)", (2, 3, 4, 5), _PER_CHANNEL, 21),
    ("y = LRN<size=3, alpha=0.1, beta=0.5, bias=2.0>(x)", (2, 7, 4, 5), {}, 17),
    ("y = LRN<size=5, alpha=0.1>(x)", (2, 7, 4, 5), {}, 17),
    ("y = LpNormalization<p=1, axis=1>(x)", (2, 7, 4), {}, 17),
    ("y = LpNormalization(x)", (2, 7, 4), {}, 17),
    ("h = Hardmax<axis=1>(x) y = Mul(h, x)", (2, 7, 4), {}, 17),
    ("y = MatMul(w, x)", (2, 7, 4), {"w": _floats(7)}, 17),
    ("y = MatMul(x, w)", (2, 7, 4), {"w": _floats(4)}, 17),
    ("a = ReduceMax<keepdims=0>(x, axes) b = Neg(a) y = Clip(x, b, a)", (2, 7), {"axes": np.array([0, 1])}, 18),
    ("y = MeanVarianceNormalization<axes=[2, 3]>(x)", (2, 3, 4, 5), {}, 11),
    ("y = MeanVarianceNormalization(x)", (2, 3, 4, 5), {}, 17),
    ("y = GroupNormalization<num_groups=2>(x, s, b)", (2, 6, 4, 4), {"s": _floats(6), "b": _floats(6)}, 21),
    ("y = RMSNormalization(x, w)", (2, 3, 8), {"w": _floats(8)}, 23),
]


@pytest.mark.parametrize(("text", "shape", "weights", "opset"), CASES, ids=[case[0][:70] for case in CASES])
def test_what_is_spelled_out_computes_the_same(
    text: str, shape: tuple[int, ...], weights: _Weights, opset: int
) -> None:
    sizes = ",".join(map(str, shape))
    model = graph(f"(float[{sizes}] x) => (float y) {{ {text} }}", weights, opset)
    spelled = graphs.optimize(model, shapes={"x": shape}, known=SUPPORTED).model
    assert {node.op_type for node in spelled.graph} <= SUPPORTED
    assert_same(model, spelled, {"x": _floats(*shape)})


def test_without_a_target_operators_keep_their_names() -> None:
    model = graph("(float[2,7,4,5] x) => (float[2,7,4,5] y) { y = LRN<size=3>(x) }")
    assert [node.op_type for node in graphs.optimize(model).model.graph] == ["LRN"]


def test_stored_eight_bits_become_the_weights_they_stand_for() -> None:
    weights = {"q": np.array([[1, -3], [5, 127]], np.int8), "s": np.array([0.5, 0.25], np.float32)}
    text = "w = DequantizeLinear<axis=1>(q, s) y = MatMul(x, w)"
    model = graph(f"(float[3,2] x) => (float[3,2] y) {{ {text} }}", weights)
    spelled = graphs.optimize(model, known=SUPPORTED).model
    assert [node.op_type for node in spelled.graph] == ["MatMul"]
    assert_same(model, spelled, {"x": _floats(3, 2)})


def test_what_has_no_definition_stays() -> None:
    model = graph("(float[2,3] x) => (float[2,3] y) { y = Asinh(x) }")
    assert [node.op_type for node in graphs.optimize(model, known=()).model.graph] == ["Asinh"]


@pytest.mark.parametrize("choice", [True, False])
def test_a_choice_that_is_made_goes(choice: bool) -> None:
    weights = {"c": np.array([choice]), "o": _floats(2, 3)}
    model = graph("(float[2,3] x) => (float[2,3] y) { a = Exp(x) b = Mul(x, o) y = Where(c, a, b) }", weights)
    simple = graphs.optimize(model).model
    assert [node.op_type for node in simple.graph] == ["Exp" if choice else "Mul"]
    assert_same(model, simple, {"x": _floats(2, 3)})


def test_a_choice_that_makes_its_branch_larger_stays() -> None:
    weights = {"c": np.ones((4, 2, 3), bool), "o": _floats(2, 3)}
    model = graph("(float[2,3] x) => (float[4,2,3] y) { y = Where(c, x, o) }", weights)
    assert_same(model, graphs.optimize(model).model, {"x": _floats(2, 3)})


def test_parts_without_an_entry_go() -> None:
    weights = {"none": _floats(2, 0), "more": _floats(2, 1)}
    model = graph("(float[2,3] x) => (float[2,4] y) { y = Concat<axis=1>(none, x, more, none) }", weights)
    simple = graphs.optimize(model).model
    (node,) = list(simple.graph)
    assert isinstance(node, ir.Node)
    assert len(node.inputs) == 2
    assert_same(model, simple, {"x": _floats(2, 3)})
