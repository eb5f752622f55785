"""What each pass makes of the graphs that it is for, and which ones it must leave alone; results are compared, too."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from penstock.graph import optimize
from tests.graph.small import Array, assert_same, graph, normal, operators

CHANNELS = np.array([0.5, -2.0, 3.0], np.float32)
PER_CHANNEL = CHANNELS.reshape(3, 1, 1)
CONV = {"w": normal(4, 3, 3, 3), "b": normal(4, seed=1)}
NORM = {
    "scale": normal(4, seed=2),
    "shift": normal(4, seed=3),
    "mean": normal(4, seed=4),
    "variance": np.abs(normal(4, seed=5)) + 0.2,
}
NORM_OF_INPUT = {name: array[:3] for name, array in NORM.items()}
IMAGE = "(float[1,3,8,8] x) => (float[?,?,?,?] y)"


def integers(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


@dataclass(frozen=True)
class Case:
    name: str
    text: str
    weights: dict[str, Array]
    left: dict[str, int]
    opset: int = 17
    shape: tuple[int, ...] = (1, 3, 8, 8)
    text_of_input: str = field(default=IMAGE)


FOLDED = [
    Case(
        "normalisation after a convolution",
        "{ c = Conv(x, w, b) y = BatchNormalization(c, scale, shift, mean, variance) }",
        CONV | NORM,
        {"Conv": 1},
    ),
    Case(
        "normalisation before a convolution without padding",
        "{ n = BatchNormalization(x, scale, shift, mean, variance) y = Conv(n, w, b) }",
        CONV | NORM_OF_INPUT,
        {"Conv": 1},
    ),
    Case(
        "normalisation after a grouped transposed convolution",
        "{ c = ConvTranspose<group=3>(x, w) y = BatchNormalization(c, scale, shift, mean, variance) }",
        {"w": normal(3, 2, 2, 2), **{name: np.concatenate([array, array[:2]]) for name, array in NORM.items()}},
        {"ConvTranspose": 1},
    ),
    Case(
        "a factor before a padded convolution",
        "{ m = Mul(x, c) y = Conv<pads=[1,1,1,1]>(m, w) }",
        CONV | {"c": PER_CHANNEL},
        {"Conv": 1},
    ),
    Case(
        "subtraction and division before an unpadded convolution",
        "{ s = Sub(x, c) d = Div(s, c) y = Conv(d, w) }",
        {"w": CONV["w"], "c": PER_CHANNEL},
        {"Conv": 1},
    ),
    Case(
        "a constant minus a convolution",
        "{ c = Conv(x, w) y = Sub(one, c) }",
        {"w": CONV["w"], "one": np.float32(1)},
        {"Conv": 1},
    ),
    Case(
        "a factor and an offset of tokens that a convolution made",
        """{ c = Conv<pads=[1,1,1,1]>(x, w) r = Reshape(c, s) t = Transpose<perm=[0,2,1]>(r) m = Mul(t, f)
        y = Add(m, o) }""",
        CONV | {"s": integers(0, 0, -1), "f": normal(4, seed=6), "o": normal(1, 1, 4, seed=7)},
        {"Conv": 1, "Reshape": 1, "Transpose": 1},
        text_of_input="(float[1,3,8,8] x) => (float[?,?,?] y)",
    ),
    Case(
        "a factor of parts of a map whose channels are last",
        "{ c = Conv(x, w) t = Transpose<perm=[0,2,3,1]>(c) r = Reshape(t, s) y = Mul(r, f) }",
        CONV | {"s": integers(3, 2, 6, 4), "f": normal(4, seed=6)},
        {"Conv": 1, "Transpose": 1, "Reshape": 1},
    ),
    Case(
        "a pad before a convolution",
        "{ p = Pad(x, pads) y = Conv<pads=[1,0,0,0]>(p, w) }",
        {"w": CONV["w"], "pads": integers(0, 0, 1, 2, 0, 0, 0, 1)},
        {"Conv": 1},
    ),
    Case(
        "a pad of named axes before a convolution",
        "{ p = Pad(x, pads, , axes) y = Conv(p, w) }",
        {"w": CONV["w"], "pads": integers(1, 2, 3, 4), "axes": integers(-1, 2)},
        {"Conv": 1},
        opset=18,
    ),
    Case(
        "a pad of zeros between Relu and the largest",
        "{ r = Relu(x) p = Pad(r, pads) y = MaxPool<kernel_shape=[3,3]>(p) }",
        {"pads": integers(0, 0, 1, 1, 0, 0, 1, 1)},
        {"Relu": 1, "MaxPool": 1},
    ),
    Case(
        "a pad of zeros between Relu and the largest with padding of its own",
        "{ r = Relu(x) p = Pad(r, pads) y = MaxPool<kernel_shape=[3,3], pads=[1,1,0,0]>(p) }",
        {"pads": integers(0, 0, 1, 1, 0, 0, 1, 1)},
        {"Relu": 1, "MaxPool": 1},
    ),
    Case(
        "a pad before an average",
        "{ p = Pad(x, pads) y = AveragePool<kernel_shape=[3,3]>(p) }",
        {"pads": integers(0, 0, 1, 1, 0, 0, 1, 1)},
        {"AveragePool": 1},
    ),
    Case(
        "a matrix product of two dimensions and its bias",
        "{ m = MatMul(x, w) y = Add(m, b) }",
        {"w": normal(8, 5), "b": normal(5)},
        {"Gemm": 1},
        shape=(3, 8),
        text_of_input="(float[N,8] x) => (float[?,5] y)",
    ),
    Case(
        "scaled and normalised around a Gemm",
        "{ m = Mul(x, f) a = Sub(m, f) g = Gemm<transB=1, alpha=0.5, beta=2.0>(a, w, b) "
        "y = BatchNormalization(g, scale, shift, mean, variance) }",
        {"f": normal(8), "w": normal(4, 8), "b": normal(4), **NORM},
        {"Gemm": 1},
        shape=(3, 8),
        text_of_input="(float[N,8] x) => (float[?,4] y)",
    ),
    Case(
        "factors around a matrix product of three dimensions",
        "{ m = Mul(x, f) p = MatMul(m, w) y = Mul(p, g) }",
        {"f": normal(8), "w": normal(8, 5), "g": normal(5)},
        {"MatMul": 1},
        shape=(2, 3, 8),
        text_of_input="(float[N,T,8] x) => (float[?,?,5] y)",
    ),
    Case(
        "a scale behind the bias of a matrix product of three dimensions",
        "{ m = MatMul(x, w) a = Add(b, m) y = Mul(g, a) }",
        {"w": normal(8, 5), "b": normal(5), "g": normal(5, seed=1)},
        {"MatMul": 1, "Add": 1},
        shape=(2, 3, 8),
        text_of_input="(float[N,T,8] x) => (float[?,?,5] y)",
    ),
    Case(
        "normalisation of a flattened product, with a bias behind it",
        "{ m = MatMul(x, w) f = Reshape(m, flat) n = BatchNormalization(f, scale, shift, mean, variance) "
        "r = Reshape(n, whole) a = Relu(r) y = Add(a, x) }",
        {"w": normal(4, 4), "flat": integers(-1, 4), "whole": integers(-1, 3, 4), **NORM},
        {"MatMul": 1, "Add": 2, "Relu": 1},
        shape=(2, 3, 4),
        text_of_input="(float[N,3,4] x) => (float[?,3,4] y)",
    ),
    Case(
        "a scale and an offset behind a bias and a flattened product",
        "{ m = MatMul(x, w) b = Add(m, c) f = Reshape(b, flat) s = Mul(f, g) a = Sub(s, h) y = Tanh(a) }",
        {"w": normal(4, 4), "c": normal(4), "flat": integers(-1, 4), "g": normal(4, seed=1), "h": normal(1, seed=2)},
        {"MatMul": 1, "Add": 1, "Reshape": 1, "Tanh": 1},
        shape=(2, 3, 4),
        text_of_input="(float[N,3,4] x) => (float[?,4] y)",
    ),
    Case(
        "transpositions that cancel",
        "{ a = Transpose<perm=[0,2,3,1]>(x) r = Relu(a) b = Transpose<perm=[0,3,1,2]>(r) "
        "c = Transpose<perm=[0,2,3,1]>(b) y = Neg(c) }",
        {},
        {"Transpose": 1, "Relu": 1, "Neg": 1},
    ),
    Case(
        "reshapes in a row",
        "{ a = Reshape(x, s) b = Flatten<axis=1>(a) c = Reshape(b, t) y = Neg(c) }",
        {"s": integers(1, 3, 64), "t": integers(-1, 3, 8, 8)},
        {"Neg": 1},
    ),
    Case(
        "the same computed twice",
        "{ a = Tanh(x) b = Tanh(x) c = Add(a, b) d = Mul(a, b) e = Mul(b, c) y = Add(d, e) }",
        {},
        {"Tanh": 1, "Add": 2, "Mul": 2},
    ),
    Case(
        "shape arithmetic around one free dimension",
        "{ s = Shape(x) n = Gather<axis=0>(s, zero) u = Unsqueeze(n, axes) "
        "t = Concat<axis=0>(u, rest) y = Reshape(x, t) }",
        {"zero": np.array(0, np.int64), "axes": integers(0), "rest": integers(12, 16)},
        {"Reshape": 1},
        text_of_input="(float[N,3,8,8] x) => (float[?,?,?] y)",
    ),
    Case(
        "a part of a shape",
        "{ s = Shape<start=1, end=3>(x) t = Concat<axis=0>(minus, s) r = Reshape(x, t) y = Neg(r) }",
        {"minus": integers(-1)},
        {"Reshape": 1, "Neg": 1},
        shape=(5, 3, 8, 8),
        text_of_input="(float[N,3,8,W] x) => (float[?,?,?] y)",
    ),
    Case(
        "SAME padding of an even size and stride 2",
        '{ y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w) }',
        {"w": CONV["w"]},
        {"Conv": 1},
    ),
]

KEPT = [
    Case(
        "normalisation before a padded convolution",
        "{ n = BatchNormalization(x, scale, shift, mean, variance) y = Conv<pads=[1,1,1,1]>(n, w, b) }",
        CONV | NORM_OF_INPUT,
        {"BatchNormalization": 1, "Conv": 1},
    ),
    Case(
        "an offset before a padded convolution",
        "{ s = Sub(x, c) y = Conv<pads=[0,0,0,1]>(s, w) }",
        {"w": CONV["w"], "c": PER_CHANNEL},
        {"Sub": 1, "Conv": 1},
    ),
    Case(
        "an offset before SAME padding",
        '{ s = Sub(x, c) y = Conv<auto_pad="SAME_LOWER">(s, w) }',
        {"w": CONV["w"], "c": PER_CHANNEL},
        {"Sub": 1, "Conv": 1},
    ),
    Case(
        "a convolution that is answered, too",
        "{ c = Conv(x, w) y = Mul(c, c2) z = Neg(c) }",
        {"w": CONV["w"], "c2": np.float32(2)},
        {"Conv": 1, "Mul": 1, "Neg": 1},
        text_of_input="(float[1,3,8,8] x) => (float[?,?,?,?] y, float[?,?,?,?] z)",
    ),
    Case(
        "a constant that differs along the width",
        "{ c = Conv(x, w) y = Mul(c, f) }",
        {"w": CONV["w"], "f": normal(6)},
        {"Conv": 1, "Mul": 1},
    ),
    Case(
        "a constant that enlarges the batch",
        "{ c = Conv(x, w) y = Add(c, f) }",
        {"w": CONV["w"], "f": normal(2, 4, 1, 1)},
        {"Conv": 1, "Add": 1},
    ),
    Case(
        "a constant that enlarges the channels before a convolution",
        "{ m = Mul(x, f) y = Conv(m, w) }",
        {"w": CONV["w"], "f": PER_CHANNEL},
        {"Conv": 1, "Mul": 1},
        shape=(1, 1, 8, 8),
        text_of_input="(float[1,1,8,8] x) => (float[?,?,?,?] y)",
    ),
    Case(
        "a matrix product of three dimensions and its bias",
        "{ m = MatMul(x, w) y = Add(m, b) }",
        {"w": normal(8, 5), "b": normal(5)},
        {"MatMul": 1, "Add": 1},
        shape=(2, 3, 8),
        text_of_input="(float[N,T,8] x) => (float[?,?,5] y)",
    ),
    Case(
        "a scale of heads that a product was cut into",
        "{ m = MatMul(x, w) f = Reshape(m, heads) s = Mul(f, g) y = Tanh(s) }",
        {"w": normal(8, 6), "heads": integers(0, 0, 2, 3), "g": normal(3)},
        {"MatMul": 1, "Reshape": 1, "Mul": 1, "Tanh": 1},
        shape=(2, 3, 8),
        text_of_input="(float[N,T,8] x) => (float[?,?,2,3] y)",
    ),
    Case(
        "a scale of a product that others read without it",
        "{ m = MatMul(x, w) a = Add(m, b) s = Mul(a, g) y = Add(s, a) }",
        {"w": normal(8, 5), "b": normal(5), "g": normal(5, seed=1)},
        {"MatMul": 1, "Add": 2, "Mul": 1},
        shape=(2, 3, 8),
        text_of_input="(float[N,T,8] x) => (float[?,?,5] y)",
    ),
    Case(
        "a bias with more rows than the product",
        "{ m = MatMul(x, w) y = Add(m, b) }",
        {"w": normal(8, 5), "b": normal(3, 5)},
        {"MatMul": 1, "Add": 1},
        shape=(1, 8),
        text_of_input="(float[N,8] x) => (float[?,5] y)",
    ),
    Case(
        "a pad of ones before a convolution",
        "{ p = Pad(x, pads, one) y = Conv(p, w) }",
        {"w": CONV["w"], "pads": integers(0, 0, 1, 1, 0, 0, 1, 1), "one": np.float32(1)},
        {"Pad": 1, "Conv": 1},
    ),
    Case(
        "a pad by reflection before a convolution",
        '{ p = Pad<mode="reflect">(x, pads) y = Conv(p, w) }',
        {"w": CONV["w"], "pads": integers(0, 0, 1, 1, 0, 0, 1, 1)},
        {"Pad": 1, "Conv": 1},
    ),
    Case(
        "a pad that crops before a convolution",
        "{ p = Pad(x, pads) y = Conv(p, w) }",
        {"w": CONV["w"], "pads": integers(0, 0, -1, 0, 0, 0, 0, 1)},
        {"Pad": 1, "Conv": 1},
    ),
    Case(
        "a pad of channels before a convolution",
        "{ p = Pad(x, pads) y = Conv(p, w) }",
        {"w": normal(4, 4, 3, 3), "pads": integers(0, 1, 0, 0, 0, 0, 0, 0)},
        {"Pad": 1, "Conv": 1},
    ),
    Case(
        "a pad of zeros before the largest of any numbers",
        "{ p = Pad(x, pads) y = MaxPool<kernel_shape=[3,3]>(p) }",
        {"pads": integers(0, 0, 1, 1, 0, 0, 1, 1)},
        {"Pad": 1, "MaxPool": 1},
    ),
    Case(
        "a pad as wide as the kernel of the pool",
        "{ r = Relu(x) p = Pad(r, pads) y = MaxPool<kernel_shape=[2,2]>(p) }",
        {"pads": integers(0, 0, 2, 2, 0, 0, 2, 2)},
        {"Relu": 1, "Pad": 1, "MaxPool": 1},
    ),
    Case(
        "a pad before an average that does not count its own padding",
        "{ p = Pad(x, pads) y = AveragePool<kernel_shape=[3,3], pads=[1,1,0,0]>(p) }",
        {"pads": integers(0, 0, 1, 1, 0, 0, 1, 1)},
        {"Pad": 1, "AveragePool": 1},
    ),
    Case(
        "a reshape that copies a dimension of its input",
        "{ a = Reshape(x, s) y = Reshape(a, c) }",
        {"s": integers(3, 64), "c": integers(0, 4, 16)},
        {"Reshape": 2},
        text_of_input="(float[1,3,8,8] x) => (float[?,?,?] y)",
    ),
    Case(
        "a reshape that exchanges two free dimensions",
        "{ s = Shape(x) o = Gather<axis=0>(s, order) r = Reshape(x, o) y = Neg(r) }",
        {"order": integers(1, 0)},
        {"Shape": 1, "Gather": 1, "Reshape": 1, "Neg": 1},
        shape=(2, 3),
        text_of_input="(float[N,T] x) => (float[?,?] y)",
    ),
    Case(
        "zero minus and one divided by a tensor",
        "{ a = Sub(zero, x) b = Div(one, a) y = Neg(b) }",
        {"zero": np.float32(0), "one": np.float32(1)},
        {"Sub": 1, "Div": 1, "Neg": 1},
    ),
    Case(
        "every second column",
        "{ s = Slice(x, from, to, axis, step) y = Neg(s) }",
        {"from": integers(0), "to": integers(2**62), "axis": integers(3), "step": integers(2)},
        {"Slice": 1, "Neg": 1},
    ),
    Case(
        "the same operator with another attribute",
        "{ a = Softmax<axis=1>(x) b = Softmax<axis=2>(x) y = Mul(a, b) }",
        {},
        {"Softmax": 2, "Mul": 1},
    ),
    Case(
        "a node whose second output alone is read",
        "{ values, places = TopK(x, two) y = Cast<to=1>(places) }",
        {"two": integers(2)},
        {"TopK": 1, "Cast": 1},
    ),
    Case(
        "a cast to a narrower type and back",
        "{ a = Cast<to=10>(x) y = Cast<to=1>(a) }",
        {},
        {"Cast": 2},
    ),
    Case(
        "numbers drawn at random",
        "{ a = RandomUniformLike<seed=1.0>(x) b = RandomUniformLike<seed=2.0>(x) y = Mul(x, zero) z = Sub(a, b) }",
        {"zero": np.float32(0)},
        {"RandomUniformLike": 2, "Mul": 1, "Sub": 1},
        text_of_input="(float[1,3,8,8] x) => (float[?,?,?,?] y, float[?,?,?,?] z)",
    ),
]


@pytest.mark.parametrize("case", [*FOLDED, *KEPT], ids=lambda case: case.name)
def test_what_is_left_of_a_graph(case: Case) -> None:
    model = graph(f"{case.text_of_input} {case.text}", case.weights, case.opset)
    inputs = {"x": normal(*case.shape, seed=9)}
    optimized = optimize(model)
    assert operators(optimized.model) == case.left
    if "RandomUniformLike" not in case.left:
        assert_same(model, optimized.model, inputs)


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize(("size", "free"), [("8,8", False), ("7,9", False), ("H,W", True)])
def test_pads_are_explicit_where_they_do_not_depend_on_a_free_size(mode: str, size: str, free: bool) -> None:
    text = f'{{ a = Conv<auto_pad="{mode}">(x, w) y = Conv<auto_pad="{mode}", strides=[2,2]>(a, v) }}'
    weights = {"w": normal(3, 3, 3, 3), "v": normal(2, 3, 3, 3, seed=1)}
    model = graph(f"(float[1,3,{size}] x) => (float[?,?,?,?] y) {text}", weights)
    optimized = optimize(model).model
    assert ["auto_pad" in node.attributes for node in optimized.graph] == [False, free and mode != "VALID"]
    height, width = (11, 6) if free else map(int, size.split(","))
    assert_same(model, optimized, {"x": normal(1, 3, height, width)})


def test_a_graph_of_an_old_operator_set_is_left_as_it_is() -> None:
    model = graph("(float[2,3] x) => (float[2,3] y) { a = Identity(x) y = Relu(a) }", opset=6)
    assert operators(optimize(model).model) == {"Identity": 1, "Relu": 1}


def test_half_precision_is_not_folded() -> None:
    text = "(float16[1,3,8,8] x) => (float16[?,?,?,?] y) { c = Conv(x, w) y = Mul(c, f) }"
    model = graph(text, {"w": CONV["w"].astype(np.float16), "f": np.float16(3)})
    assert operators(optimize(model).model) == {"Conv": 1, "Mul": 1}


def test_weights_that_would_overflow_stay() -> None:
    weights = {"w": np.full((4, 3, 3, 3), 1e30, np.float32), "f": np.float32(1e30)}
    model = graph(f"{IMAGE} {{ c = Conv(x, w) y = Mul(c, f) }}", weights)
    assert operators(optimize(model).model) == {"Conv": 1, "Mul": 1}


def test_equal_weights_are_kept_once() -> None:
    weights = {"w": normal(3, 3, 1, 1), "v": normal(3, 3, 1, 1)}
    model = optimize(graph(f"{IMAGE} {{ a = Conv(x, w) b = Relu(a) y = Conv(b, v) }}", weights)).model
    assert len(model.graph.initializers) == 1


def test_outputs_that_are_one_value_keep_both_names() -> None:
    answers = "(float[2] x) => (float[2] y, float[2] z, float[2] v)"
    model = graph(f"{answers} {{ a = Tanh(x) y = Identity(a) z = Tanh(x) v = Identity(x) }}")
    optimized = optimize(model).model
    assert operators(optimized)["Tanh"] <= 2
    assert_same(model, optimized, {"x": normal(2)})


def test_records_say_what_each_pass_did() -> None:
    records = optimize(graph("(float[2] x) => (float[2] y) { a = Identity(x) y = Tanh(a) }")).records
    (removed,) = [record for record in records if record.changed and record.name == "remove-no-ops"]
    assert (removed.nodes_before, removed.nodes_after) == (2, 1)
    assert all(record.seconds >= 0 for record in records)
    assert not any(record.changed for record in records[-11:])


def test_the_model_that_came_in_is_not_touched() -> None:
    model = graph(
        f"{IMAGE} {{ c = Conv(x, w, b) y = BatchNormalization(c, scale, shift, mean, variance) }}", CONV | NORM
    )
    before = (
        operators(model),
        {name: value.const_value.numpy().tobytes() for name, value in model.graph.initializers.items()},
    )
    optimize(model, shapes={"x": (1, 3, 8, 8)})
    after = (
        operators(model),
        {name: value.const_value.numpy().tobytes() for name, value in model.graph.initializers.items()},
    )
    assert before == after
    assert not any(node.metadata_props for node in model.graph)
