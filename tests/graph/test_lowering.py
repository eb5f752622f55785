"""What ONNX graphs become as steps: which are joined, how values lie, what is refused. No step is executed here."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.lib.stride_tricks import as_strided

from penstock.engine.lowered import (
    Input,
    Instruction,
    LoweredGraph,
    Operand,
    Output,
    Step,
    Value,
    View,
    Weight,
    from_json,
    to_json,
    validate,
)
from penstock.engine.narrowing import narrowed
from penstock.errors import InvalidArgument, Unsupported
from penstock.graph import optimize
from penstock.graph.lowering import lower
from penstock.graph.lowering.views import Ref, dense, lies_in, permuted, reshaped, sliced
from tests.graph.residual_network import resnet34
from tests.graph.small import graph, normal


def lowered(model: ir.Model, **shapes: tuple[int, ...]) -> LoweredGraph:
    return lower(optimize(model, shapes=shapes).model)[0]


def layer(text: str, opset: int = 20, **weights: Any) -> LoweredGraph:
    """`y = f(c, x)` behind a convolution c of x, both [2, 8, 6, 6]."""
    given = {"w": normal(8, 8, 1, 1), **weights}
    model = graph(f"(float[2,8,6,6] x) => (float[2,8,6,6] y) {{ c = Conv(x, w) {text} }}", given, opset)
    return lowered(model, x=(2, 8, 6, 6))


@dataclass(frozen=True)
class Joined:
    text: str
    activation: str = "none"
    residual: str = ""
    roles: tuple[str, ...] = ("x", "weight")
    opset: int = 20


RESIDUAL = ("x", "weight", "residual")
JOINED = [
    Joined("y = Relu(c)", "relu"),
    Joined("y = Gelu(c)", "gelu", opset=20),
    Joined("y = HardSwish(c)", "hard_swish"),
    Joined("s = Sigmoid(c) y = Mul(c, s)", "silu"),
    Joined("s = Sigmoid(c) y = Mul(s, c)", "silu"),
    Joined("q = Constant<value_float=1.702>() t = Mul(c, q) s = Sigmoid(t) y = Mul(c, s)", "quick_gelu"),
    Joined("y = HardSigmoid<alpha=0.3>(c)", "hard_sigmoid"),
    Joined("l = Constant<value_float=0.0>() h = Constant<value_float=6.0>() y = Clip(c, l, h)", "relu6"),
    Joined("y = LeakyRelu<alpha=0.2>(c)", "leaky_relu"),
    Joined("r = Relu(c) y = Mul(r, r)", "star_relu"),
    Joined("q = Constant<value_float=2.0>() r = Relu(c) y = Pow(r, q)", "star_relu"),
    Joined("y = Add(c, x)", "none", "before", RESIDUAL),
    Joined("a = Add(x, c) y = Relu(a)", "relu", "before", RESIDUAL),
    Joined("s = Sigmoid(c) m = Mul(c, s) y = Add(m, x)", "silu", "after", RESIDUAL),
]


@pytest.mark.parametrize("case", JOINED, ids=lambda case: case.text)
def test_a_layer_takes_in_what_follows(case: Joined) -> None:
    found = layer(case.text, case.opset)
    step = next(step for step in found.steps if step.kind == "conv")
    assert [each.kind for each in found.steps] == ["copy", "conv", "copy"]  # to NHWC and back
    assert step.attributes.get("activation", "none") == case.activation
    assert step.attributes.get("residual", "") == case.residual
    assert tuple(operand.role for operand in step.inputs) == case.roles


def test_the_square_of_what_relu_leaves_has_its_factors_and_terms() -> None:
    numbers = " ".join(
        f"{name} = Constant<value_float={value}>()" for name, value in zip("qfgt", (2.0, 3.0, 0.5, 7.0), strict=True)
    )
    found = layer(f"{numbers} r = Relu(c) s = Pow(r, q) a = Mul(s, f) b = Add(t, a) y = Mul(b, g)")
    step = next(step for step in found.steps if step.kind == "conv")
    assert [each.kind for each in found.steps] == ["copy", "conv", "copy"]
    assert (step.attributes["activation"], step.attributes["alpha"], step.attributes["beta"]) == ("star_relu", 1.5, 3.5)
    assert step.nodes[-5:] == ("n5", "n6", "n7", "n8", "n9")


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("q = Constant<value_float=3.0>() r = Relu(c) y = Pow(r, q)", ["copy", "conv", "pointwise", "copy"]),
        ("r = Relu(c) s = Mul(r, r) y = Add(r, s)", ["copy", "conv", "pointwise", "copy"]),  # r is read twice
        ("a = Relu(c) b = Tanh(c) y = Add(a, b)", ["copy", "conv", "pointwise", "copy"]),  # c is read twice
        ("a = Relu(c) y = Exp(a)", ["copy", "conv", "pointwise", "copy"]),  # no epilogue says exp
        ("m = GlobalAveragePool(c) y = Mul(c, m)", ["copy", "conv", "reduce", "pointwise", "copy"]),
    ],
)
def test_what_no_epilogue_can_say_stays_a_step(text: str, kinds: list[str]) -> None:
    assert [step.kind for step in layer(text).steps] == kinds


def test_elementwise_operators_in_a_row_are_one_step() -> None:
    model = graph("(float[4,5] x, float[5] z) => (float[4,5] y) { a = Exp(x) b = Mul(a, z) c = Tanh(b) y = Add(c, x) }")
    (step,) = lowered(model, x=(4, 5), z=(5,)).steps
    assert [line.name for line in step.program] == ["exp", "mul", "tanh", "add"]
    assert [operand.value for operand in step.inputs] == ["x", "z"]
    assert step.inputs[1].view == View((4, 5), (0, 1))
    assert step.nodes == ("n0", "n1", "n2", "n3")


def test_a_residual_network_stays_in_nhwc() -> None:
    found = lowered(resnet34(), x=(2, 3, 64, 64))
    layers = {"conv", "conv_shortcut", "picture_pool"}
    assert {step.kind for step in found.steps} <= {"reduce", "gemm", "pointwise", *layers}
    assert [step.kind for step in found.steps].count("picture_pool") == 1  # which the picture goes into as it came
    assert all(
        found.values[name].layout == "nhwc" for step in found.steps if step.kind in layers for name in step.outputs
    )


def test_transposes_and_reshapes_cost_no_step() -> None:
    text = """(float[2,6,4,8] x) => (float[2,24,5] y) {
        t = Transpose<perm=[0,2,1,3]>(x) r = Reshape(t, s) y = MatMul(r, w) }"""
    model = graph(text, {"w": normal(8, 5), "s": np.array([2, 24, 8])})
    found = lowered(model, x=(2, 6, 4, 8))
    assert [step.kind for step in found.steps] == ["copy", "gemm"]  # rows in another order must be moved once
    text = "(float[2,6,4,8] x) => (float[2,6,32] y) { r = Reshape(x, s) y = Relu(r) }"
    (step,) = lowered(graph(text, {"s": np.array([2, 6, 32])}), x=(2, 6, 4, 8)).steps
    assert step.kind == "pointwise"


def test_an_activation_of_tokens_goes_into_the_convolution_that_made_a_map() -> None:
    text = """(float[2,6,4,4] x) => (float[2,16,5] y) {
        c = Conv<group=6, pads=[1,1,1,1]>(x, w) r = Reshape(c, s) t = Transpose<perm=[0,2,1]>(r)
        g = Gelu(t) m = Mul(g, two) y = MatMul(m, v) }"""
    weights = {"w": normal(6, 1, 3, 3), "s": np.array([2, 6, 16]), "v": normal(6, 5), "two": np.float32(2)}
    found = lowered(graph(text, weights, 20), x=(2, 6, 4, 4))
    assert [step.kind for step in found.steps] == ["copy", "conv", "gemm"]
    assert found.steps[1].attributes["activation"] == "gelu"
    assert found.steps[2].inputs[0].view == View((2, 16, 6), (96, 6, 1))
    # Two readers of the map: the activation is a step, of tokens as they were.
    both = graph(text.replace("y = MatMul(m, v)", "a = Add(m, t) y = MatMul(a, v)"), weights, 20)
    assert [step.kind for step in lowered(both, x=(2, 6, 4, 4)).steps] == ["copy", "conv", "pointwise", "gemm"]


def test_channels_that_attend_to_channels_are_products() -> None:
    text = """(float[2,8,300] x) => (float[2,8,300] y) {
        u = Transpose<perm=[0,2,1]>(x) d = MatMul(x, u) e = Mul(d, scale) p = Softmax<axis=-1>(e) y = MatMul(p, x) }"""
    model = graph(text, {"scale": np.float32(0.05)})
    assert [step.kind for step in lowered(model, x=(2, 8, 300)).steps] == ["matmul", "pointwise", "softmax", "matmul"]
    model = graph(text.replace("300", "16"), {"scale": np.float32(0.05)})
    assert next(step.kind for step in lowered(model, x=(2, 8, 16)).steps) == "attention"


def test_a_rolled_map_is_put_together_in_pieces() -> None:
    text = """(float[2,6,4] x) => (float[2,6,4] y) {
        a = Slice(x, two, end, one) b = Slice(x, zero, two, one) y = Concat<axis=1>(a, b) }"""
    numbers = {"zero": 0, "one": 1, "two": 2, "end": 6}
    model = graph(text, {name: np.array([number]) for name, number in numbers.items()})
    (step,) = lowered(model, x=(2, 6, 4)).steps
    assert step.kind == "pieces"
    assert [operand.view for operand in step.inputs] == [View((2, 4, 4), (24, 4, 1), 8), View((2, 2, 4), (24, 4, 1))]


def test_attention_is_one_step_that_reads_its_operands_where_they_lie() -> None:
    text = """(float[2,7,24] x) => (float[2,7,8] y) {
        r = Reshape(x, s) t = Transpose<perm=[2,0,3,1,4]>(r)
        q = Gather<axis=0>(t, zero) k = Gather<axis=0>(t, one) v = Gather<axis=0>(t, two)
        u = Transpose<perm=[0,1,3,2]>(k) d = MatMul(q, u) e = Mul(d, scale) p = Softmax<axis=-1>(e)
        o = MatMul(p, v) f = Transpose<perm=[0,2,1,3]>(o) y = Reshape(f, back) }"""
    weights = {
        "s": np.array([2, 7, 3, 2, 4]),
        "back": np.array([2, 7, 8]),
        "scale": np.float32(0.5),
        **{name: np.array(index) for index, name in enumerate(("zero", "one", "two"))},
    }
    (step,) = lowered(graph(text, weights), x=(2, 7, 24)).steps
    assert step.kind == "attention"
    assert step.attributes["scale"] == 0.5
    assert [operand.view.offset for operand in step.inputs if operand.view is not None] == [0, 8, 16]
    assert {operand.value for operand in step.inputs} == {"x"}
    assert len(step.nodes) >= 4


REFUSED = [
    ('s = Slice(x, z, a) y = Einsum<equation="ij,ij->ij">(x, s)', "Einsum of node 'n1': 'i' has 5 entries and 1"),
    ("y = Det(x)", "operator Det of node 'n0'"),
    ('y = Einsum<equation="ij,jk,kl->il">(x, x, x)', "Einsum of node 'n0' has 3 operands"),
    ("k = ArgMax(x) y = ScatterElements(x, k, x)", "ScatterElements of node 'n1' with places that are"),
    ("y = GatherND(x, far)", "GatherND of node 'n0' has places beyond"),
    ("y = GatherElements(x, far)", "GatherElements of node 'n0' has places beyond"),
    ("y = ScatterND(x, far, v)", "ScatterND of node 'n0' has places beyond"),
    ("y = Celu<alpha=-1.0>(x)", "Celu of node 'n0' with alpha -1"),
    ('y = Pad<mode="reflect">(x, p5)', "Pad of node 'n0' reflects 5 of 5 entries"),
    ('i = Cast<to=6>(x) j = Einsum<equation="ij,jk->ik">(i, i) y = Cast<to=1>(j)', "Einsum of node 'n1' multiplies"),
    ("t = Unsqueeze(x, z) s = Slice(x, z, a) c = MatMul(s, m) y, h = LSTM<hidden_size=1>(t, w, r, c)",
     "LSTM of node 'n3'"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_what_has_no_step_is_refused_by_name(text: str, message: str) -> None:
    weights = {
        "a": np.array([1]), "z": np.array([0]), "p": np.array([1, 0, 1, 0]), "p5": np.array([5, 0, 0, 0]),
        "far": np.array([[0, -6], [5, 1]]), "v": normal(2), "m": normal(5, 8),
        "w": normal(1, 4, 5), "r": normal(1, 4, 1),
    }  # fmt: skip
    model = graph(f"(float[5,5] x) => (float[M,N] y) {{ {text} }}", weights)
    with pytest.raises(Unsupported, match=message.replace("(", r"\(")):
        lowered(model, x=(5, 5))


def test_sizes_that_depend_on_the_data_are_refused() -> None:
    model = graph("(float[4] x) => (int64[1,N] y) { y = NonZero(x) }")
    with pytest.raises(Unsupported, match="NonZero"):
        lowered(model, x=(4,))
    model = graph("(float[4] x, int64[1] n) => (float[M] y) { y = Expand(x, n) }")
    with pytest.raises(Unsupported, match="not known before the model runs"):
        lowered(model, x=(4,), n=(1,))


# ---- as data ----


def small() -> LoweredGraph:
    """relu(x + b), then half of it."""
    program = (Instruction("add", ("i0", "i1")), Instruction("relu", ("t0",)))
    row = Operand("b", view=View((2, 3), (0, 1)))
    half = Operand("t", view=View((2, 2), (3, 1), 1))
    return LoweredGraph(
        (Input("x", (2, 3), "FP32"),),
        (Output("y", "y", (4,)),),
        {"x": Value((2, 3), "FP32"), "t": Value((2, 3), "FP32"), "y": Value((2, 2), "FP32")},
        {"b": Weight((3,), "FP32")},
        (
            Step("t", "pointwise", (Operand("x"), row), ("t",), program=program, nodes=("a", "b")),
            Step("y", "concat", (half,), ("y",), {"axis": 0}, implementation="torch"),
        ),
    )


def test_a_lowered_graph_survives_json() -> None:
    for found in (small(), layer("a = Add(x, c) y = Clip(a)")):
        assert from_json(to_json(found)) == found


def changed(number: int, **changes: Any) -> LoweredGraph:
    found = small()
    steps = [replace(step, **changes) if index == number else step for index, step in enumerate(found.steps)]
    return replace(found, steps=tuple(steps))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (changed(1, inputs=(Operand("t", view=View((2, 2), (3, 1), 3)),)), "beyond"),
        (changed(1, inputs=(Operand("t", view=View((2, 2), (4, 1), 1)),)), "beyond"),
        (changed(1, inputs=(Operand("t", view=View((2, 2), (3,), 0)),)), "beyond"),
        (changed(1, inputs=(Operand("z"),)), "before anything made it"),
        (changed(0, inputs=(Operand("y"), Operand("b"))), "before anything made it"),
        (changed(1, kind="shell"), "has kind 'shell'"),
        (changed(1, kind="conv"), "no operand 'x'"),
        (changed(1, kind="mlp", inputs=(Operand("t", "x"), Operand("b", "first"))), "no operand 'second'"),
        (changed(1, outputs=()), "writes 0"),
        (changed(1, outputs=("y", "z")), "writes 2"),
        (changed(1, attributes={"axis": 1.0}), "has axis 1.0, expected one integer"),
        (changed(1, attributes={}), "no attribute 'axis'"),
        (changed(1, attributes={"axis": 2}), "does not fit 2 axes"),
        (changed(1, attributes={"axis": 0, "color": 1}), "an attribute 'color'"),
        (changed(0, program=(Instruction("relu", (1.0,)),)), "of a number"),
        (changed(0, program=(Instruction("clip", ("i0", "i1", 2.0)),)), "clip by what is no number"),
        (replace(small(), weights={"b": Weight((3, 2**40), "FP32")}), "numbers"),
        (changed(1, outputs=("t",)), "there already"),
        (changed(1, outputs=("b",)), "there already"),
        (changed(0, program=()), "only pointwise steps and pads have programs"),
        (changed(0, program=(Instruction("add", ("i0", "t0")),)), "'t0' before it is there"),
        (changed(0, program=(Instruction("system", ("i0",)),)), "no instruction system"),
        (changed(0, program=(Instruction("add", ("i0",)),)), "no instruction add"),
        (replace(small(), outputs=(Output("y", "y", (5,)),)), "no value of its size"),
        (replace(small(), inputs=(Input("x", (3, 2), "FP32"),)), "no value of its shape"),
    ],
)
def test_steps_that_reach_outside_are_refused(broken: LoweredGraph, message: str) -> None:
    validate(small())
    with pytest.raises(InvalidArgument, match=message):
        validate(broken)


@pytest.mark.parametrize(
    "edit",
    [
        ("", "["),
        ('"FP32"', '"FP99"'),
        ('"format":1', '"format":2'),
        ("[2,3]", "[2,-3]"),
        ("[2,3]", '["2",3]'),
        ('"pointwise"', "7"),
        ('"plain"', '"nchw"'),
        ('"axis":0', '"axis":{}'),
        ('"axis":0', '"axis":Infinity'),
        ('"axis":0', '"axis":' + "1" + "0" * 400),
        ('"axis":0', '"axis":0,"kernel":[1,1]'),
        ('"relu","t0"', '"add","t0",' + "1" + "0" * 400),
        ("[2,3]", "[Infinity,3]"),
        ('"inputs"', '"input"'),
    ],
)
def test_text_that_no_graph_wrote_is_refused(edit: tuple[str, str]) -> None:
    with pytest.raises(InvalidArgument):
        from_json(to_json(small()).replace(*edit) if edit[0] else edit[1])


def test_narrowed_values_keep_the_signature_and_wide_numbers() -> None:
    model = graph("(float[2,4] x, float[2,4] m) => (float[2,3] y) { a = Mul(m, big) b = Add(x, a) y = MatMul(b, w) }",
                  {"w": normal(4, 3), "big": np.float32(-3e38)})  # fmt: skip
    found = lowered(model, x=(2, 4), m=(2, 4))
    half = narrowed(found, "FP16")
    validate(half)
    assert {half.values[name].datatype for name in ("x", "m", "y")} == {"FP32"}
    (masked,) = (step for step in half.steps if "e+38" in str(step.program))
    assert half.values[masked.outputs[0]].datatype == "FP32"
    (product,) = (step for step in half.steps if step.kind == "gemm")
    assert half.values[product.inputs[0].value].datatype == "FP16"
    with pytest.raises(InvalidArgument):
        narrowed(found, "INT8")


@pytest.mark.parametrize("own", ["FP16", "BF16", "FP32", "FP64"])
@pytest.mark.parametrize("datatype", ["FP16", "BF16", "FP32"])
def test_what_heavy_steps_read_is_of_the_type_of_weights_whatever_the_model_has(own: str, datatype: str) -> None:
    model = graph("(float[2,4] x) => (float[2,3] y) { a = Relu(x) b = MatMul(a, w) c = Exp(b) y = MatMul(c, v) }",
                  {"w": normal(4, 4), "v": normal(4, 3)})  # fmt: skip
    found = lowered(model, x=(2, 4))
    declared = replace(
        found,
        inputs=tuple(replace(each, datatype=own) for each in found.inputs),
        values={name: replace(each, datatype=own) for name, each in found.values.items()},
        weights={name: replace(each, datatype=own) for name, each in found.weights.items()},
    )
    narrow = narrowed(declared, datatype)
    validate(narrow)
    assert {narrow.values[name].datatype for name in ("x", "y")} == {own}
    products = [step for step in narrow.steps if step.kind == "gemm"]
    assert [narrow.values[step.inputs[0].value].datatype for step in products] == [datatype] * 2
    if own == datatype:
        assert narrow == declared


# ---- views ----


def numbers(ref: Ref, stored: int) -> np.ndarray[Any, Any]:
    """What a view shows of 0, 1, 2, ..."""
    return as_strided(
        np.arange(stored, dtype=np.int64)[ref.offset :], ref.shape, [8 * stride for stride in ref.strides]
    )


SHAPES = [(2, 3, 4), (6, 4), (24,), (2, 12), (1, 2, 1, 3, 4, 1), (4, 6), (3, 8), (2, 2, 2, 3), (8, 3), (2, 3, 2, 2)]


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (0, 2, 1), (2, 1, 0)])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_reshape_without_moving_shows_the_same_numbers(order: tuple[int, ...], shape: tuple[int, ...]) -> None:
    ref = dense("v", (2, 3, 4), order, "FP32")
    found = reshaped(ref, shape)
    expected = numbers(ref, 24).reshape(shape)
    if found is None:  # NumPy agrees that this can't be a view
        assert not np.shares_memory(numbers(ref, 24), expected)
        return
    assert np.array_equal(numbers(found, 24), expected)


def test_slices_of_transposed_values_show_the_right_numbers() -> None:
    ref = permuted(dense("v", (4, 5, 6), (0, 1, 2), "FP32"), (2, 0, 1))
    found = sliced(sliced(ref, 0, 1, 2, 3), 2, 2, 3)
    assert np.array_equal(numbers(found, 120), np.arange(120).reshape(4, 5, 6).transpose(2, 0, 1)[1:5:3, :, 2:5])
    assert lies_in(ref, (1, 2, 0))
    assert not lies_in(ref, (0, 1, 2))
