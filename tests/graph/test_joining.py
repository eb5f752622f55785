"""Which layers become one step, and which stay as they are."""

from typing import Any

import numpy as np
import pytest

from penstock.engine.lowered import LoweredGraph, from_json, to_json
from penstock.graph import optimize
from penstock.graph.lowering import lower
from tests.graph.small import graph, normal

PAIR = "a = Conv(x, p) h = Gelu(a) c = Conv(h, q)"
SQUEEZED = "w = GlobalAveragePool(x) s = Conv(w, v) r = Relu(s) e = Conv(r, u) g = Sigmoid(e)"


def lowered(
    text: str, shape: tuple[int, ...] = (2, 8, 6, 6), out: tuple[int, ...] = (), **weights: Any
) -> LoweredGraph:
    given = {
        "p": normal(16, 8, 1, 1),
        "q": normal(8, 16, 1, 1),
        "v": normal(2, 8, 1, 1),
        "u": normal(8, 2, 1, 1),
        "k": normal(shape[1], 2, 3, 3),
        **weights,
    }
    sizes, results = (",".join(map(str, each)) for each in (shape, out or shape))
    before = f"x = Conv <group={shape[1] // 2}, pads=[1,1,1,1]> (i, k)"  # a map in NHWC
    model = graph(f"(float[{sizes}] i) => (float[{results}] y) {{ {before} {text} }}", given, opset=20)
    return lower(optimize(model, shapes={"i": shape}).model)[0]


def kinds(found: LoweredGraph) -> list[str]:
    """Of the steps behind the first convolution."""
    first, *rest = (step.kind for step in found.steps if step.kind != "copy")
    assert first == "conv"
    return rest


def test_what_was_two_layers_says_so() -> None:
    found = lowered(f"{SQUEEZED} m = Mul(x, g) a = Conv(m, p) h = LeakyRelu<alpha=0.5>(a) c = Conv(h, q) y = Add(c, m)")
    gate, pair = (step for step in found.steps if step.kind in ("squeeze_excite", "mlp"))
    assert [operand.role for operand in gate.inputs] == ["x", "first", "second"]
    assert gate.attributes == {"inner": "relu", "activation": "sigmoid"}
    assert [operand.role for operand in pair.inputs] == ["x", "gate", "first", "second"]
    assert pair.attributes == {"inner": "leaky_relu", "inner_alpha": 0.5, "residual": "before", "skip": True}
    assert pair.inputs[1].value == gate.outputs[0]
    assert [found.shape(operand) for operand in pair.inputs[2:]] == [(16, 8), (8, 16)]
    assert len(gate.nodes) == 5
    assert len(pair.nodes) == 5
    assert from_json(to_json(found)) == found


APART = {
    "the hidden values are read twice": f"{PAIR} z = Conv(h, q3) y = Mul(c, z)",
    "a window": "a = Conv<pads=[1,1,1,1]>(x, wide) h = Gelu(a) y = Conv(h, q)",
    "a stride": "a = Conv(x, p) h = Gelu(a) b = Conv<strides=[2,2]>(h, q) y = Resize(b, , two)",
    "padding": "a = Conv(x, p) h = Gelu(a) b = Conv<pads=[1,1,1,1]>(h, q) y = Slice(b, one, seven, two_three)",
    "groups": "a = Conv(x, p) h = Gelu(a) y = Conv<group=2>(h, half)",
    "something is added between": "a = Conv(x, q2) n = Add(a, x) h = Gelu(n) y = Conv(h, q2)",
}
MORE = {
    "wide": normal(16, 8, 3, 3),
    "half": normal(8, 8, 1, 1),
    "q2": normal(8, 8, 1, 1),
    "q3": normal(8, 16, 1, 1, seed=1),
    "two": np.array([1, 1, 2, 2], np.float32),
    "one": np.array([1, 1]),
    "seven": np.array([7, 7]),
    "two_three": np.array([2, 3]),
}


@pytest.mark.parametrize("why", APART)
def test_layers_stay_apart_where_one_kernel_cannot_do_both(why: str) -> None:
    assert "mlp" not in kinds(lowered(APART[why], **MORE))
    assert "mlp" in kinds(lowered(f"{PAIR} y = Relu(c)", **MORE))


@pytest.mark.parametrize(
    ("shape", "joined"),
    [
        ((2, 8, 6, 6), True),
        ((1, 8, 5, 6), False),  # 30 rows
        ((1, 8, 1, 64), True),
    ],
)
def test_few_rows_are_not_worth_a_kernel_that_reads_all_weights(shape: tuple[int, ...], joined: bool) -> None:
    assert ("mlp" in kinds(lowered(f"{PAIR} y = Relu(c)", shape))) is joined


@pytest.mark.parametrize(
    ("channels", "hidden", "joined"), [(64, 2048, True), (64, 2056, False), (512, 16, True), (520, 16, False)]
)
def test_large_weights_stay_apart(channels: int, hidden: int, joined: bool) -> None:
    weights = {"p": normal(hidden, channels, 1, 1), "q": normal(channels, hidden, 1, 1)}
    assert ("mlp" in kinds(lowered(f"{PAIR} y = Relu(c)", (1, channels, 6, 6), **weights))) is joined


def test_a_gated_map_that_others_read_too_is_made() -> None:
    found = lowered(f"{SQUEEZED} m = Mul(x, g) a = Conv(m, p) h = Relu(a) c = Conv(h, q) z = Exp(m) y = Mul(c, z)")
    assert kinds(found) == ["squeeze_excite", "pointwise", "mlp", "pointwise"]
    (pair,) = (step for step in found.steps if step.kind == "mlp")
    assert pair.operand("gate") is None


def test_a_depthwise_convolution_makes_the_gate_too() -> None:
    text = (
        f"(float[2,8,6,6] i) => (float[2,8,6,6] y) {{ z = Conv<group=8>(i, o) x = Relu(z) {SQUEEZED} y = Mul(x, g) }}"
    )
    weights = {"o": normal(8, 1, 1, 1), "v": normal(2, 8, 1, 1), "u": normal(8, 2, 1, 1)}
    found = lower(optimize(graph(text, weights), shapes={"i": (2, 8, 6, 6)}).model)[0]
    (step,) = (step for step in found.steps if step.kind == "conv_gate")
    assert [operand.role for operand in step.inputs] == ["x", "weight", "first", "second"]
    assert [found.values[name].shape for name in step.outputs] == [(2, 6, 6, 8), (2, 1, 1, 8)]
    assert (step.attributes["activation"], step.attributes["inner"], step.attributes["outer"]) == (
        "relu",
        "relu",
        "sigmoid",
    )
    assert from_json(to_json(found)) == found


UNLIKE = {
    "the mean is read twice": "w = GlobalAveragePool(x) s = Conv(w, v) r = Relu(s) e = Conv(r, u) n = Add(e, w) "
    "y = Mul(x, n)",
    "largest values": "w = GlobalMaxPool(x) s = Conv(w, v) r = Relu(s) e = Conv(r, u) y = Mul(x, e)",
    "one layer": "w = GlobalAveragePool(x) s = Conv(w, one_layer) y = Mul(x, s)",
    "another size": "w = GlobalAveragePool(x) s = Conv(w, v) r = Relu(s) e = Conv(r, single) y = Mul(x, e)",
}


@pytest.mark.parametrize("why", UNLIKE)
def test_what_is_no_squeeze_and_excite_stays_apart(why: str) -> None:
    more = {"one_layer": normal(8, 8, 1, 1), "single": normal(1, 2, 1, 1)}
    assert "squeeze_excite" not in kinds(lowered(UNLIKE[why], **more))
    assert "squeeze_excite" in kinds(lowered(f"{SQUEEZED} y = Mul(x, g)", **more))


TOPS = "s = Softmax <axis=-1> (x) index = ArgMax <axis=2, keepdims=0> (s) score = ReduceMax <keepdims=0> (s, axis)"


@pytest.mark.parametrize(
    ("text", "outputs", "joined"),
    [
        (TOPS, "int64[2,5] index, float[2,5] score", True),
        (f"{TOPS} p = Neg(s)", "int64[2,5] index, float[2,5] score, float[2,5,7] p", False),
        (TOPS, "int64[2,5] index, float[2,5] score, float[2,5,7] s", False),
        (TOPS.replace("ArgMax", "ArgMin"), "int64[2,5] index, float[2,5] score", False),
        (TOPS.replace("axis=-1", "axis=1"), "int64[2,5] index, float[2,5] score", False),
        (TOPS.replace("ReduceMax", "ReduceMin"), "int64[2,5] index, float[2,5] score", False),
    ],
)
def test_of_a_softmax_the_largest_is_one_step_where_nobody_reads_the_rest(
    text: str, outputs: str, joined: bool
) -> None:
    model = graph(f"(float[2,5,7] x) => ({outputs}) {{ {text} }}", {"axis": np.array([2])}, opset=20)
    found = lower(optimize(model, shapes={"x": (2, 5, 7)}).model)[0]
    tops = [step for step in found.steps if step.kind == "top_1"]
    assert len(tops) == joined
    if joined:
        assert [step.kind for step in found.steps] == ["top_1"]
        assert len(tops[0].nodes) == 3
        assert from_json(to_json(found)) == found
