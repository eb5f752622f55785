"""Regions hold every node exactly once, can run one after the other, and are what one kernel should execute."""

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.graph import optimize
from penstock.graph.inference import infer
from penstock.graph.patterns import GROUP_KEY, recognise
from penstock.graph.regions import cut, layers, listing, regions
from tests.graph import random_graphs as steps
from tests.graph.patterns import formulas
from tests.graph.patterns.drafts import Draft, Drawn, copy
from tests.graph.patterns.test_attention import attention
from tests.graph.patterns.test_squeeze_excite import squeeze_excite
from tests.graph.random_graphs import graphs
from tests.graph.residual_network import resnet34
from tests.graph.small import Array, graph, normal


def assert_partition(model: ir.Model) -> None:
    """Every node once; each region needs only regions before it; only a region's last node is read outside."""
    pieces = cut(model)
    expected = [node for node in model.graph if node.op_type != "Constant"]
    assert Counter(node for piece in pieces for node in piece.nodes) == Counter(expected)
    position = {node: number for number, piece in enumerate(pieces) for node in piece.nodes}
    for number, piece in enumerate(pieces):
        assert piece.kind
        for node in piece.nodes:
            made_by = [value.producer() for value in node.inputs if value is not None]
            assert all(position[maker] <= number for maker in made_by if maker in position)
            if node is not piece.nodes[-1]:
                assert not any(value.is_graph_output() for value in node.outputs)
                assert all(position[use.node] == number for value in node.outputs for use in value.uses())


_SETTINGS = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])


@given(
    graphs(
        *(steps.conv, steps.conv_transpose, steps.batch_norm, steps.arithmetic, steps.residual, steps.pool, steps.pad),
        *(steps.transpose, steps.reshape, steps.unary, steps.no_op, steps.constants, steps.product, steps.repeated),
    )
)
@_SETTINGS
def test_random_graphs_are_partitioned(made: tuple[ir.Model, dict[str, Array]]) -> None:
    model, _ = made
    assert_partition(model)
    infer(model)
    recognise(model)
    assert_partition(model)


@given(st.data())
@_SETTINGS
def test_wrong_groups_do_no_harm(data: st.DataObject) -> None:
    """Names left by an older state of the graph, or by anyone: still a partition that can run."""
    made, _ = data.draw(graphs(steps.conv, steps.residual, steps.unary, steps.arithmetic, steps.reshape))
    for node in made.graph:
        name = data.draw(st.sampled_from(["", "attention#0", "attention#1", "squeeze_excite#0", "gelu#0", "gelu"]))
        if name:
            node.metadata_props[GROUP_KEY] = name
    assert_partition(made)


@given(st.data())
@settings(deadline=None, max_examples=40)
def test_recognised_formulas_are_partitioned(data: st.DataObject) -> None:
    draft = Draft(Drawn(data))
    value = "x"
    for _ in range(data.draw(st.integers(1, 4))):
        formula = data.draw(
            st.sampled_from([formulas.gelu_erf, formulas.silu, formulas.hard_swish, formulas.layer_norm])
        )
        value = draft.add("Add", value, formula(draft, value)) if data.draw(st.booleans()) else formula(draft, value)
    model = draft.model((2, 4, 8), value)
    assert_partition(model)
    recognise(model)
    assert_partition(model)


def kinds(text: str, weights: dict[str, Array], opset: int = 20) -> list[str]:
    model = graph(text, weights, opset)
    infer(model)
    recognise(model)
    assert_partition(model)
    return [region.kind for region in regions(model)]


_W, _D = normal(8, 8, 3, 3), normal(8, 1, 3, 3)
_IMAGE = "(float[N,8,9,9] x) => "
KINDS: dict[str, tuple[str, dict[str, Array], list[str]]] = {
    "conv and activation": (
        _IMAGE + "(float[N,8,7,7] y) { a = Conv(x, w) y = Relu(a) }",
        {"w": _W},
        ["conv+relu"],
    ),
    "depthwise, bias, norm, two-node activation": (
        _IMAGE + "(float[N,8,7,7] y) { a = Conv<group = 8>(x, d) b = Add(a, c) s = Sigmoid(b) y = Mul(b, s) }",
        {"d": _D, "c": normal(8, 1, 1)},
        ["depthwise+bias+silu"],
    ),
    "the later of two convolutions takes the sum": (
        _IMAGE + "(float[N,8,7,7] y) { a = Conv(x, w) b = Conv(x, v) c = Add(a, b) y = Relu(c) }",
        {"w": _W, "v": _W + 1},
        ["conv", "conv+add+relu"],
    ),
    "an output inside ends the epilogue": (
        _IMAGE + "(float[N,8,7,7] y, float[N,8,7,7] a) { a = Conv(x, w) y = Relu(a) }",
        {"w": _W},
        ["conv", "relu"],
    ),
    "the stem takes its pool, others don't": (
        _IMAGE + "(float[N,8,2,2] y) { a = Conv(x, w) b = Relu(a) c = MaxPool<kernel_shape = [2, 2]>(b) "
        "d = Conv(c, w) e = Relu(d) y = MaxPool<kernel_shape = [3, 3]>(e) }",
        {"w": _W},
        ["conv+relu+max_pool", "conv+relu", "max_pool"],
    ),
    "a small result does not swallow what it scales": (
        _IMAGE + "(float[N,8,9,9] y) { a = Relu(x) m = GlobalAveragePool(a) g = Conv(m, p) t = Tanh(g) y = Mul(a, t) }",
        {"p": normal(8, 8, 1, 1)},
        ["relu", "global_average_pool", "conv+tanh", "mul"],
    ),
    "views go with a neighbour": (
        _IMAGE + "(float[N,5] y) { m = GlobalAveragePool(x) f = Flatten(m) g = Gemm(f, w, b) y = Softmax(g) }",
        {"w": normal(8, 5), "b": normal(5)},
        ["global_average_pool", "gemm", "softmax"],
    ),
    "a view of an input goes with its reader": (
        "(float[4,6] x) => (float[6,5] y) { t = Transpose<perm = [1, 0]>(x) y = MatMul(t, w) }",
        {"w": normal(4, 5)},
        ["matmul"],
    ),
    "views alone": (
        "(float[4,6] x) => (float[2,12] y) { t = Transpose<perm = [1, 0]>(x) y = Reshape(t, s) }",
        {"s": np.array([2, 12], np.int64)},
        ["transpose+reshape"],
    ),
    "a chain": (
        "(float[4,6] x) => (float[4,6] y) { a = Neg(x) b = Exp(a) y = Add(b, x) }",
        {},
        ["neg+exp+add"],
    ),
    "a long chain": (
        "(float[4] x) => (float[4] y) { a = Neg(x) b = Exp(a) c = Abs(b) d = Sqrt(c) e = Sin(d) "
        "f = Cos(e) y = Tanh(f) }",
        {},
        ["elementwise"],
    ),
    "a reshape takes the arithmetic of its shape along": (
        "(float[A,B,C] x) => (float[D,E] y) { s = Shape(x) f = Slice(s, zero, one) t = Concat<axis = 0>(f, rest) "
        "r = Relu(x) y = Reshape(r, t) }",
        {"zero": np.array([0]), "one": np.array([1]), "rest": np.array([-1])},
        ["relu"],
    ),
    "quantized": (
        "(float[N,8,9,9] x) => (uint8[N,8,7,7] y) { q = QuantizeLinear(x, s, z) a = DequantizeLinear(q, s, z) "
        "k = DequantizeLinear(w, s, o) c = Conv(a, k) r = Relu(c) y = QuantizeLinear(r, s, z) }",
        {
            "s": np.array(0.1, np.float32),
            "z": np.array(128, np.uint8),
            "o": np.array(0, np.int8),
            "w": np.ones((8, 8, 3, 3), np.int8),
        },
        ["quantize", "conv+relu+quantize"],
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds_say_what_one_kernel_executes(name: str) -> None:
    text, weights, expected = KINDS[name]
    assert kinds(text, weights) == expected


def test_groups_are_regions() -> None:
    draft = Draft()
    model = draft.model((2, 6, 16), attention(draft))
    recognise(model)
    assert [region.kind for region in regions(model)] == ["matmul", "attention", "matmul"]
    draft = Draft()
    model = draft.model((2, 8, 5, 5), draft.add("Relu", draft.add("Add", "x", squeeze_excite(draft))))
    recognise(model)
    assert [region.kind for region in regions(model)] == ["squeeze_excite+add+relu"]


def test_regions_name_the_nodes_of_the_source() -> None:
    draft = Draft()
    model = draft.model((2, 8), formulas.gelu_erf(draft, draft.add("MatMul", "x", draft.weight(normal(8, 8)))))
    names = [node.name for node in model.graph]
    recognise(model)
    (region,) = regions(model)
    assert region.kind == "matmul+gelu"
    assert list(region.nodes) == names


def test_constants_identities_and_shapes_are_no_layers() -> None:
    text = (
        "(float[A,B,C] x) => (float[D,E] y) { one = Constant<value = int64[1] {1}>() s = Shape(x) i = Identity(x) "
        "f = Slice(s, zero, one) t = Concat<axis = 0>(f, rest) r = Relu(i) y = Reshape(r, t) }"
    )
    model = graph(text, {"zero": np.array([0]), "rest": np.array([-1])})
    assert [node.op_type for node in layers(model)] == ["Relu", "Reshape"]


def test_a_tensor_filled_by_shape_is_a_layer() -> None:
    text = "(float[A,B] x) => (float[A,B] y) { s = Shape(x) z = ConstantOfShape(s) y = Add(x, z) }"
    assert [node.op_type for node in layers(graph(text))] == ["ConstantOfShape", "Add"]


def test_resnet34_becomes_one_region_for_each_convolution() -> None:
    source = resnet34()
    assert Counter(node.op_type for node in source.graph)["Conv"] == 36
    after = copy(optimize(source).model)
    recognise(after)
    assert_partition(after)
    made = listing(source, after)
    assert made.layers_before >= 120
    # 33 convolutions and 3 on the side branches, the global pool, the classifier.
    assert len(made.regions) == 38
    assert Counter(region.kind for region in made.regions) == {
        "conv+relu+max_pool": 1,
        "conv+relu": 16,
        "conv+add+relu": 16,
        "conv": 3,
        "global_average_pool": 1,
        "gemm": 1,
    }
    named = [name for region in made.regions for name in region.nodes]
    assert Counter(named) == Counter(node.name for node in source.graph)


def test_unsimplified_networks_have_the_same_regions_with_their_norms() -> None:
    source = resnet34()
    assert_partition(source)
    made = listing(source, source)
    assert len(made.regions) == 38
    assert Counter(region.kind for region in made.regions)["conv+bn+add+relu"] == 16
