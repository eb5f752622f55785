"""What passes make of graphs that libraries on a CPU run, and which they must leave alone; results are compared."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from penstock.graph import FOR_CPU, optimize
from penstock.graph.passes import depth_to_space
from tests.graph.small import assert_same, graph, normal, operators
from tests.graph.test_rules import Case

UP = {"w": normal(3, 5, 2, 2), "b": normal(5, seed=1), "low": np.float32(-0.5), "high": np.float32(0.5)}
SPREAD = [
    Case(
        "a transposed convolution", "{ y = ConvTranspose<strides=[2,2]>(x, w, b) }", UP, {"Conv": 1, "DepthToSpace": 1}
    ),
    Case(
        "one without a bias, in three by three",
        "{ y = ConvTranspose<strides=[3,3]>(x, w) }",
        {"w": normal(3, 2, 3, 3)},
        {"Conv": 1, "DepthToSpace": 1},
    ),
    Case(
        "activations go with the convolution",
        "{ c = ConvTranspose<strides=[2,2]>(x, w, b) l = Clip(c, low, high) y = Sigmoid(l) }",
        UP,
        {"Conv": 1, "Clip": 1, "Sigmoid": 1, "DepthToSpace": 1},
    ),
    Case(
        "what somebody else reads stays in place",
        "{ c = ConvTranspose<strides=[2,2]>(x, w, b) r = Relu(c) y = Add(c, r) }",
        UP,
        {"Conv": 1, "Relu": 1, "DepthToSpace": 1, "Add": 1},
    ),
    Case("kernels that overlap", "{ y = ConvTranspose<strides=[1,1]>(x, w, b) }", UP, {"ConvTranspose": 1}),
    Case("padding", "{ y = ConvTranspose<strides=[2,2], pads=[1,0,0,1]>(x, w) }", UP, {"ConvTranspose": 1}),
    Case("more output", "{ y = ConvTranspose<strides=[2,2], output_padding=[1,1]>(x, w) }", UP, {"ConvTranspose": 1}),
    Case(
        "a gap in the kernel", "{ y = ConvTranspose<strides=[2,2], dilations=[2,2]>(x, w) }", UP, {"ConvTranspose": 1}
    ),
    Case(
        "groups",
        "{ y = ConvTranspose<strides=[2,2], group=3>(x, w) }",
        {"w": normal(3, 2, 2, 2)},
        {"ConvTranspose": 1},
    ),
    Case(
        "unlike sides",
        "{ y = ConvTranspose<strides=[2,1]>(x, w) }",
        {"w": normal(3, 2, 2, 1)},
        {"ConvTranspose": 1},
    ),
]
TWELVE = "(float[1,12,4,4] x) => (float[?,?,?,?] y)"
SPREADS = {
    "w": normal(12, 5, 2, 2),
    "b": normal(5, seed=1),
    "v": normal(5, 1, 2, 2, seed=2),
    "o": normal(1, seed=3),
    "four": normal(4, 5, 1, 1, seed=6),
    "fours": normal(4, seed=7),
    "of_four": normal(1, 4, 1, 1, seed=8),
    "of_three": normal(4, 3, 1, 1, seed=9),
    "three_left": normal(3, 3, 1, 1, seed=10),
}
UPPER = '{ d = DepthToSpace<blocksize=2, mode="CRD">(x) '
# Operators that are there in the end, in order.
SUNK = {
    "two transposed convolutions": (
        "{ c = ConvTranspose<strides=[2,2]>(x, w, b) r = Relu(c) "
        "d = ConvTranspose<strides=[2,2]>(r, v, o) y = Sigmoid(d) }",
        ["Conv", "Relu", "Conv", "Sigmoid", "DepthToSpace"],
    ),
    "a convolution to few channels": (
        "{ c = ConvTranspose<strides=[2,2]>(x, w, b) y = Conv(c, four, fours) }",
        ["Conv", "Conv", "DepthToSpace"],
    ),
    "and another one": (
        "{ c = ConvTranspose<strides=[2,2]>(x, w, b) e = Conv(c, four, fours) f = Conv(e, of_four) y = Relu(f) }",
        ["Conv", "Conv", "Conv", "Relu", "DepthToSpace"],
    ),
    "blocks in another order after it": (
        UPPER + 'c = Conv(d, of_three) y = DepthToSpace<blocksize=2, mode="DCR">(c) }',
        ["Conv", "DepthToSpace", "DepthToSpace"],
    ),
    "blocks in another order": (
        '{ d = DepthToSpace<blocksize=2, mode="DCR">(x) y = Conv(d, of_three) }',
        ["DepthToSpace", "Conv"],
    ),
    "what somebody else reads": (
        UPPER + 'c = Conv(d, of_three) r = Relu(c) e = DepthToSpace<blocksize=2, mode="CRD">(r) '
        "m = GlobalAveragePool(c) n = Conv(m, of_four) y = Add(e, n) }",
        ["Conv", "DepthToSpace", "Relu", "DepthToSpace", "GlobalAveragePool", "Conv", "Add"],
    ),
}
FOLLOWED = [
    Case("many channels", "{ y = Conv(d, v) }", {"v": normal(5, 3, 1, 1)}, {}),
    Case("three by three", "{ y = Conv(d, v) }", {"v": normal(1, 3, 3, 3)}, {}),
    Case("strides", "{ y = Conv<strides=[2,2]>(d, v) }", {"v": normal(1, 3, 1, 1)}, {}),
    Case("padding", "{ y = Conv<pads=[1,1,1,1]>(d, v) }", {"v": normal(1, 3, 1, 1)}, {}),
    Case("groups", "{ y = Conv<group=3>(d, v) }", {"v": normal(3, 1, 1, 1)}, {}),
    Case("another reader", "{ c = Conv(d, v) y = Add(c, d) }", {"v": normal(1, 3, 1, 1)}, {}),
]
POOLED = "{ m = GlobalAveragePool(x) g = Sigmoid(m) "
GATED = [
    Case("a gate with a residual", POOLED + "p = Mul(x, g) y = Add(x, p) }", {}, {}),
    Case("the other way round", POOLED + "p = Mul(g, x) y = Add(p, x) }", {}, {}),
    Case("of a row", "{ m = ReduceMean<axes=[3]>(x) g = Tanh(m) p = Mul(x, g) y = Add(p, x) }", {}, {}),
    Case("of fewer dimensions", "{ g = Sigmoid(k) p = Mul(x, g) y = Add(p, x) }", {"k": normal(8)}, {}),
    Case(
        "of free sizes",
        POOLED + "p = Mul(x, g) y = Add(x, p) }",
        {},
        {},
        text_of_input="(float[N,C,H,W] x) => (float[?,?,?,?] y)",
    ),
]
NOT_GATED = [
    Case("as large as the map", "{ g = Sigmoid(x) p = Mul(x, g) y = Add(x, p) }", {}, {}),
    Case("of another map", POOLED + "r = Relu(x) p = Mul(x, g) y = Add(r, p) }", {}, {}),
    Case("of fewer dimensions but as large", "{ g = Squeeze(x) p = Mul(x, g) y = Add(x, p) }", {}, {}),
    Case("the square", "{ p = Mul(x, x) y = Add(x, p) }", {}, {}),
    Case("read twice", POOLED + "p = Mul(x, g) a = Add(x, p) y = Add(a, p) }", {}, {}),
    Case(
        "in half precision",
        POOLED + "p = Mul(x, g) y = Add(x, p) }",
        {},
        {},
        text_of_input="(float16[1,3,8,8] x) => (float16[?,?,?,?] y)",
    ),
]


@pytest.mark.parametrize("case", SPREAD, ids=lambda case: case.name)
def test_what_libraries_on_a_cpu_get_of_transposed_convolutions(case: Case) -> None:
    model = graph(f"{case.text_of_input} {case.text}", case.weights, case.opset)
    changed = optimize(model, then=FOR_CPU).model
    assert operators(changed) == case.left
    last = changed.graph.outputs[0].producer()
    assert last is not None
    assert last.op_type != "Sigmoid"
    assert_same(model, changed, {"x": normal(*case.shape, seed=9)})


@pytest.mark.parametrize("name", SUNK)
def test_depth_to_space_comes_after_convolutions_that_cost_no_more_before_it(name: str) -> None:
    text, left = SUNK[name]
    model = graph(f"{TWELVE} {text}", SPREADS)
    changed = optimize(model, then=FOR_CPU).model
    assert [node.op_type for node in changed.graph] == left
    assert all(value.uses() for value in changed.graph.initializers.values())
    assert_same(model, changed, {"x": normal(1, 12, 4, 4, seed=9)})


@pytest.mark.parametrize(("first", "then"), [(2, 3), (3, 2)])
def test_unlike_blocks_are_joined_in_the_order_of_both(first: int, then: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depth_to_space, "_LANES", 128)  # with the 16 that there are only blocks of two are worth it
    weights = {"w": normal(12, 2, first, first), "v": normal(2, 3, then, then, seed=1), "o": normal(3, seed=2)}
    model = graph(
        f"{TWELVE} {{ c = ConvTranspose<strides=[{first},{first}]>(x, w) r = Relu(c) "
        f"y = ConvTranspose<strides=[{then},{then}]>(r, v, o) }}",
        weights,
    )
    changed = optimize(model, then=FOR_CPU).model
    assert [node.op_type for node in changed.graph] == ["Conv", "Relu", "Conv", "DepthToSpace"]
    assert_same(model, changed, {"x": normal(1, 12, 4, 4, seed=9)})


def test_a_foreign_operator_of_the_same_name_is_none() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 17, "foreign" : 1]> small '
        f"{TWELVE} {UPPER} c = Conv(d, of_three) "
        'y = foreign.DepthToSpace<blocksize=2, mode="CRD">(c) }'
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(SPREADS["of_three"], "of_three"))
    changed = optimize(ir.from_proto(proto), then=FOR_CPU).model
    assert [(node.domain, node.op_type) for node in changed.graph] == [
        ("", "Conv"),
        ("", "DepthToSpace"),
        ("foreign", "DepthToSpace"),
    ]


def test_channels_that_do_not_fill_the_next_blocks_break_nothing() -> None:
    text = UPPER + 'c = Conv(d, three_left) y = DepthToSpace<blocksize=2, mode="CRD">(c) }'
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 17]> small {TWELVE} {text}')
    proto.graph.initializer.append(onnx.numpy_helper.from_array(SPREADS["three_left"], "three_left"))
    changed = optimize(ir.from_proto(proto), then=FOR_CPU).model
    assert [node.op_type for node in changed.graph].count("DepthToSpace") == 2


@pytest.mark.parametrize("case", FOLLOWED, ids=lambda case: case.name)
def test_depth_to_space_stays_ahead_of_what_costs_more_before_it(case: Case) -> None:
    model = graph(f"{TWELVE} {UPPER}{case.text.removeprefix('{')}", case.weights)
    changed = optimize(model, then=FOR_CPU).model
    assert changed.graph[0].op_type == "DepthToSpace"
    assert_same(model, changed, {"x": normal(1, 12, 4, 4, seed=9)})


@pytest.mark.parametrize("case", GATED, ids=lambda case: case.name)
def test_libraries_on_a_cpu_walk_a_gated_map_once(case: Case) -> None:
    model = graph(f"{case.text_of_input} {case.text}", case.weights)
    changed = optimize(model, then=FOR_CPU).model
    last = changed.graph.outputs[0].producer()
    assert last is not None
    assert last.op_type == "Mul"
    gates = [value for value in last.inputs if value is not changed.graph.inputs[0]]
    assert len(gates) == 1
    added = gates[0].producer() if gates[0] is not None else None
    if added is not None:  # else it was a constant, and so is 1 + g
        assert added.op_type == "Add"
        assert any(value is not None and value.is_initializer() for value in added.inputs)
    assert_same(model, changed, {"x": normal(*case.shape, seed=9)})


@pytest.mark.parametrize("case", NOT_GATED, ids=lambda case: case.name)
def test_a_gate_stays_as_it_is(case: Case) -> None:
    model = graph(f"{case.text_of_input} {case.text}", case.weights)
    changed = optimize(model, then=FOR_CPU).model
    assert [node.op_type for node in changed.graph] == [node.op_type for node in optimize(model).model.graph]
    kind = np.float16 if "float16" in case.text_of_input else np.float32
    assert_same(model, changed, {"x": normal(*case.shape, seed=9).astype(kind)})
