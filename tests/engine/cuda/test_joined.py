"""Joined layers in torch operators: what ONNX Runtime computes of the layers apart, in every precision."""

from dataclasses import dataclass

import numpy as np
import pytest

pytest.importorskip("torch")

from tests.engine.cuda.reference import Arrays, assert_agrees, error, execute, lowered
from tests.graph.small import graph, normal, run

pytestmark = pytest.mark.torch

SQUEEZED = """w = GlobalAveragePool(x) s = Conv(w, v, b) r = Relu(s) e = Conv(r, u, d)
    g = HardSigmoid <alpha=0.25> (e)"""
WEIGHTS: Arrays = {
    "v": normal(3, 8, 1, 1, seed=1),
    "b": normal(3, seed=2),
    "u": normal(8, 3, 1, 1, seed=3),
    "d": normal(8, seed=4),
    "p": normal(24, 8, 1, 1, seed=5) / 3,
    "q": normal(8, 24, 1, 1, seed=6) / 5,
    "f": normal(24, seed=7),
    "k": normal(8, 2, 3, 3, seed=8) / 4,
}
BEFORE = "x = Conv <group=4, pads=[1,1,1,1]> (i, k)"
"""A map in NHWC that a kernel has just made."""


@dataclass(frozen=True)
class Case:
    text: str
    kinds: tuple[str, ...]
    """Of the steps behind the first, the copies into NHWC and back apart."""


CASES = [
    Case(f"{SQUEEZED} y = Mul(x, g)", ("squeeze_excite", "pointwise")),
    Case(f"{SQUEEZED} m = Mul(g, x) y = Add(x, m)", ("squeeze_excite", "pointwise")),
    Case("a = Conv(x, p, f) h = Gelu(a) y = Conv(h, q, d)", ("mlp",)),
    Case("a = Conv(x, p) c = Conv(a, q) y = Relu(c)", ("conv",)),
    Case("a = Conv(x, p) h = HardSwish(a) c = Conv(h, q) n = Add(c, x) y = Relu(n)", ("mlp",)),
    Case("a = Conv(x, p) h = Relu(a) c = Conv(h, q) s = Relu(c) y = Add(x, s)", ("mlp",)),
    Case("a = Conv(x, p) h = Relu(a) c = Conv(h, q) z = Tanh(x) y = Add(c, z)", ("pointwise", "mlp")),
    Case(
        f"{SQUEEZED} m = Mul(x, g) a = Conv(m, p) h = Gelu(a) c = Conv(h, q) y = Add(m, c)",
        ("squeeze_excite", "mlp"),
    ),
    Case(f"{SQUEEZED} m = Mul(x, g) a = Conv(m, p) h = Gelu(a) y = Conv(h, q)", ("squeeze_excite", "mlp")),
    Case(
        f"{SQUEEZED} m = Mul(x, g) a = Conv(m, p) h = Relu(a) c = Conv(h, q) n = Add(c, x) y = Relu(n)",
        ("squeeze_excite", "mlp"),
    ),
]  # fmt: skip


# 24 bits are good for 6e-8 of each sum, 11 for 5e-4, 8 for 4e-3; a few layers add up.
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-6), ("fp16", 3e-3), ("bf16", 2e-2)])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.text[-60:])
def test_joined_layers_compute_what_they_do_apart(case: Case, batch: int, precision: str, tolerance: float) -> None:
    text = f"(float[{batch},8,6,7] i) => (float[{batch},8,6,7] y) {{ {BEFORE} {case.text} }}"
    model, inputs = graph(text, WEIGHTS, opset=20), {"i": normal(batch, 8, 6, 7)}
    found, weights = lowered(model, inputs)
    assert tuple(step.kind for step in found.steps if step.kind != "copy") == ("conv", *case.kinds)
    assert error(execute(found, weights, inputs, precision)["y"], run(model, inputs)["y"]) < tolerance


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-6), ("fp16", 3e-3), ("bf16", 2e-2)])
@pytest.mark.parametrize("after", ["", "Relu"])
def test_a_convolution_makes_the_gate_of_what_it_makes(after: str, precision: str, tolerance: float) -> None:
    before = "x = Conv <group=8, pads=[1,1,1,1], strides=[1,2]> (i, o, d)"
    if after:
        before = before.replace("x =", "z =") + f" x = {after}(z)"
    text = f"(float[2,8,6,14] i) => (float[2,8,6,7] y) {{ {before} {SQUEEZED} y = Mul(x, g) }}"
    model = graph(text, {**WEIGHTS, "o": normal(8, 1, 3, 3, seed=9) / 3})
    inputs = {"i": normal(2, 8, 6, 14)}
    found, weights = lowered(model, inputs)
    assert [step.kind for step in found.steps if step.kind != "copy"] == ["conv_gate", "pointwise"]
    (step,) = (step for step in found.steps if step.kind == "conv_gate")
    assert len(step.outputs) == 2
    assert error(execute(found, weights, inputs, precision)["y"], run(model, inputs)["y"]) < tolerance


REPEATED = """z = MaxPool <kernel_shape=[2,3], strides=[2,3]> (x) u = Resize <mode="nearest",
    coordinate_transformation_mode="{how[0]}", nearest_mode="{how[1]}"> (z, , t)"""
RESIZES = [
    *(((how, nearest), True) for how, nearest in (("asymmetric", "floor"), ("half_pixel", "round_prefer_ceil"))),
    (("asymmetric", "ceil"), False),  # the first pixel once, the next ones from there on
]


@pytest.mark.parametrize(("rest", "kind"), [("y = Add(x, u)", "pointwise"), ("y = Concat <axis=1> (u, x)", "concat")])
@pytest.mark.parametrize(("how", "joined"), RESIZES)
def test_repeated_pixels_are_read_where_they_are_few(rest: str, kind: str, how: tuple[str, str], joined: bool) -> None:
    channels = 8 if kind == "pointwise" else 16
    text = f"(float[2,8,6,6] x) => (float[2,{channels},6,6] y) {{ {REPEATED.format(how=how)} {rest} }}"
    model = graph(text, {"t": np.array([1, 1, 2, 3], np.float32)})
    found = assert_agrees(model, model, {"x": normal(2, 8, 6, 6)}, 2e-6)
    kinds = [step.kind for step in found.steps if step.kind != "copy"]
    assert kinds == ["max_pool", *([] if joined else ["resize"]), kind]


def test_a_repeated_map_that_others_read_too_is_made() -> None:
    how = ("asymmetric", "floor")
    text = f"(float[2,8,6,6] x) => (float[2,8,6,6] y) {{ {REPEATED.format(how=how)} c = Conv(u, q) y = Add(u, c) }}"
    model = graph(text, {"t": np.array([1, 1, 2, 3], np.float32), "q": normal(8, 8, 1, 1)})
    found = assert_agrees(model, model, {"x": normal(2, 8, 6, 6)}, 2e-6)
    assert "resize" in {step.kind for step in found.steps}


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-6), ("fp16", 3e-3)])
@pytest.mark.parametrize(("batch", "biased", "inner"), [(1, True, "Relu"), (2, False, "LeakyRelu <alpha=0.3> ")])
def test_patches_of_patches_are_two_layers(
    batch: int, biased: bool, inner: str, precision: str, tolerance: float
) -> None:
    first, second = (", f", ", s") if biased else ("", "")
    text = f"""(float[{batch},8,5,6] i) => (float[{batch},2,20,36] y) {{ {BEFORE}
        a = ConvTranspose <strides=[2,3]> (x, p{first}) h = {inner}(a)
        c = ConvTranspose <strides=[2,2]> (h, q{second}) y = Sigmoid(c) }}"""
    weights = {"k": WEIGHTS["k"], "p": normal(8, 4, 2, 3), "q": normal(4, 2, 2, 2)}
    model = graph(text, weights | {"f": normal(4), "s": normal(2)})
    inputs = {"i": normal(batch, 8, 5, 6)}
    found, given = lowered(model, inputs)
    assert [step.kind for step in found.steps if "copy" not in step.name] == ["conv", "mlp", "copy"]
    assert error(execute(found, given, inputs, precision)["y"], run(model, inputs)["y"]) < tolerance


@pytest.mark.parametrize(
    "rest",
    [
        "c = ConvTranspose <strides=[2,2]> (h, q) d = ConvTranspose <strides=[2,2]> (h, r) y = Add(c, d)",
        'c = ConvTranspose <strides=[2,2], pads=[1,1,1,1]> (h, r3) y = Resize <mode="linear"> (c, , , size)',
        "y = ConvTranspose <strides=[2,2], group=2> (h, g)",
    ],
)
def test_patches_that_meet_or_are_read_twice_stay_convolutions(rest: str) -> None:
    text = (
        f"""(float[1,8,5,6] i) => (float[1,2,20,24] y) {{ {BEFORE} h = ConvTranspose <strides=[2,2]> (x, p) {rest} }}"""
    )
    weights = {"k": WEIGHTS["k"], "p": normal(8, 4, 2, 2), "q": normal(4, 2, 2, 2), "r": normal(4, 2, 2, 2, seed=1)}
    weights |= {"r3": normal(4, 2, 4, 4), "g": normal(4, 1, 2, 2), "size": np.array([1, 2, 20, 24])}
    model = graph(text, weights)
    found = assert_agrees(model, model, {"i": normal(1, 8, 5, 6)}, 2e-6)
    assert sum(step.kind == "conv_transpose" for step in found.steps) == (3 if "d =" in rest else 2)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("fp16", 2e-3), ("bf16", 1e-2)])
def test_the_likeliest_class_is_told_with_its_softmax(precision: str, tolerance: float) -> None:
    model = graph(
        """(float[N,5,70] x) => (int64[N,5] index, float[N,5] score) {
        z = Identity(x) s = Softmax <axis=-1> (z) index = ArgMax <axis=2, keepdims=0> (s)
        score = ReduceMax <keepdims=0> (s, axis) }""",
        {"axis": np.array([2])},
        opset=20,
    )
    given = {"x": 2 * normal(3, 5, 70)}
    found, right = execute(*lowered(model, given), given, precision), run(model, given)
    assert error(found["score"], right["score"]) < tolerance
    assert np.mean(found["index"] == right["index"]) > 0.9
    if precision == "fp32":
        np.testing.assert_array_equal(found["index"], right["index"])


OVERHANGING = "kernel_shape=[2,2], pads=[0,0,1,1]"


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-6), ("fp16", 3e-3), ("bf16", 2e-2)])
@pytest.mark.parametrize(
    ("order", "kinds"), [("m, c", ["conv", "fork"]), ("c, m", ["conv", "conv", "conv", "max_pool", "concat"])]
)
def test_a_pool_beside_two_convolutions_is_one_step(
    order: str, kinds: list[str], precision: str, tolerance: float
) -> None:
    text = f"""(float[2,8,6,7] i) => (float[2,16,6,7] y) {{ x = Conv <group=4, pads=[1,1,1,1]> (i, k)
        a = Conv <{OVERHANGING}> (x, p, f) b = Relu(a) e = Conv <{OVERHANGING}> (b, q, g) c = Gelu(e)
        m = MaxPool <{OVERHANGING}> (x) y = Concat <axis=1> ({order}) }}"""
    weights = {"k": WEIGHTS["k"], "p": normal(4, 8, 2, 2) / 4, "q": normal(8, 4, 2, 2, seed=1) / 3}
    model = graph(text, weights | {"f": normal(4), "g": normal(8)}, opset=20)
    inputs = {"i": normal(2, 8, 6, 7)}
    found, given = lowered(model, inputs)
    assert sorted(step.kind for step in found.steps if step.kind != "copy") == sorted(kinds)
    assert error(execute(found, given, inputs, precision)["y"], run(model, inputs)["y"]) < tolerance


GATED = """w{0} = GlobalAveragePool(c{0}) s{0} = Conv(w{0}, v, b) r{0} = Relu(s{0}) e{0} = Conv(r{0}, u, d)
    g{0} = HardSigmoid <alpha=0.25> (e{0}) m{0} = Mul(c{0}, g{0}) n{0} = Add(c{0}, m{0})"""
"""What a map times its gate is added to it."""


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-6), ("fp16", 3e-3), ("bf16", 2e-2)])
@pytest.mark.parametrize("biased", ["", ", d"])
def test_a_gated_convolution_takes_its_gate_from_the_mean_of_what_it_reads(
    biased: str, precision: str, tolerance: float
) -> None:
    text = f"""(float[2,16,6,4] i) => (float[2,8,6,4] y) {{ x = Conv <group=4, pads=[1,1,1,1]> (i, k) z = Relu(x)
        c1 = Conv(z, a{biased}) {GATED.format(1)} l = MaxPool <kernel_shape=[3,2], strides=[3,2]> (n1)
        o = Resize <mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"> (l, , t)
        c2 = Conv(z, h) {GATED.format(2)} y = Add(n2, o) }}"""
    weights = {"k": normal(16, 4, 3, 3) / 5, "a": normal(8, 16, 1, 1) / 3, "h": normal(8, 16, 1, 1, seed=3) / 3}
    model = graph(text, {**WEIGHTS, **weights, "t": np.array([1, 1, 3, 2], np.float32)})
    inputs = {"i": normal(2, 16, 6, 4)}
    found, given = lowered(model, inputs)
    kinds = [step.kind for step in found.steps if step.kind != "copy"]
    assert sorted(kinds) == sorted(["conv", *["squeeze_excite", "gated_layers"] * 2, "max_pool"])
    assert error(execute(found, given, inputs, precision)["y"], run(model, inputs)["y"]) < tolerance


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-6), ("fp16", 3e-3), ("bf16", 2e-2)])
def test_gated_convolutions_are_put_side_by_side_by_one_step(precision: str, tolerance: float) -> None:
    text = f"""(float[2,16,6,4] i) => (float[2,16,6,4] y) {{
        z = Conv <group=16, pads=[1,1,1,1]> (i, k) j = MaxPool <kernel_shape=[3,2], strides=[3,2]> (i)
        c1 = Conv(j, a) {GATED.format(1)} c2 = Conv(z, h) {GATED.format(2)}
        o = Resize <mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"> (n1, , t)
        y = Concat <axis=1> (o, n2) }}"""
    weights = {"k": normal(16, 1, 3, 3), "a": normal(8, 16, 1, 1) / 3, "h": normal(8, 16, 1, 1, seed=3) / 3}
    model = graph(text, {**WEIGHTS, **weights, "t": np.array([1, 1, 3, 2], np.float32)})
    inputs = {"i": normal(2, 16, 6, 4)}
    found, given = lowered(model, inputs)
    kinds = [step.kind for step in found.steps if step.kind != "copy"]
    assert sorted(kinds) == ["conv_gate", "gated_layers", "max_pool", "squeeze_excite"]
    assert error(execute(found, given, inputs, precision)["y"], run(model, inputs)["y"]) < tolerance


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-6), ("fp16", 3e-3), ("bf16", 2e-2)])
@pytest.mark.parametrize(("stride", "kinds"), [(2, ["conv", "expand_depthwise"]), (1, ["conv", "conv", "conv"])])
def test_a_layer_joins_the_depthwise_convolution_that_strides(
    stride: int, kinds: list[str], precision: str, tolerance: float
) -> None:
    size = 6 // stride
    text = f"""(float[2,8,6,6] i) => (float[2,24,{size},{size}] y) {{ {BEFORE} z = Relu(x) a = Conv(z, p, f) h = Gelu(a)
        c = Conv <group=24, strides=[{stride},{stride}], pads=[1,1,1,1]> (h, o, f) y = LeakyRelu <alpha=0.2> (c) }}"""
    model = graph(text, {**WEIGHTS, "o": normal(24, 1, 3, 3, seed=9) / 3}, opset=20)
    inputs = {"i": normal(2, 8, 6, 6)}
    found, given = lowered(model, inputs)
    assert [step.kind for step in found.steps if step.kind != "copy"] == kinds
    assert error(execute(found, given, inputs, precision)["y"], run(model, inputs)["y"]) < tolerance


@pytest.mark.parametrize(
    ("rest", "convolutions"),
    [
        ("c = Conv(a, w, e) y = Relu(c)", 2),
        ("c = Conv(a, w) y = Add(c, o)", 3),  # of them one makes what is added
        ("r = Relu(a) y = Conv(r, w, e)", 1),  # the two others are one step of another kind
        ("c = Conv(a, w, e) m = Conv(a, w) y = Mul(c, m)", 4),
    ],
)
def test_layers_with_nothing_between_them_are_one(rest: str, convolutions: int) -> None:
    text = f"(float[2,8,6,7] i) => (float[2,24,6,7] y) {{ {BEFORE} a = Conv(x, v, b) {rest} }}"
    weights = {"k": WEIGHTS["k"], "v": normal(6, 8, 1, 1) / 3, "b": normal(6), "w": normal(24, 6, 1, 1) / 2}
    text = text.replace("y = Add(c, o)", "o = Conv <pads=[1,1,1,1]> (i, j) y = Add(c, o)")
    model = graph(text, {**weights, "e": normal(24), "j": normal(24, 8, 3, 3) / 8})
    found = assert_agrees(model, model, {"i": normal(2, 8, 6, 7)}, 2e-6)
    assert sum(step.kind == "conv" for step in found.steps) == convolutions


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("fp16", 3e-3), ("bf16", 2e-2)])
@pytest.mark.parametrize(("activation", "kind"), [("Identity", "gemm_top_1"), ("Relu", "top_1")])
def test_the_likeliest_class_is_told_by_the_layer_that_makes_them(
    activation: str, kind: str, precision: str, tolerance: float
) -> None:
    model = graph(
        f"""(float[N,5,12] x) => (int64[N,5] index, float[N,5] score) {{
        m = MatMul(x, w) z = Add(m, b) r = {activation}(z) s = Softmax <axis=-1> (r)
        index = ArgMax <axis=2, keepdims=0> (s) score = ReduceMax <keepdims=0> (s, axis) }}""",
        {"axis": np.array([2]), "w": normal(12, 70), "b": normal(70)},
        opset=20,
    )
    given = {"x": normal(3, 5, 12)}
    graph_, weights = lowered(model, given)
    assert [step.kind for step in graph_.steps][-1] == kind
    found, right = execute(graph_, weights, given, precision), run(model, given)
    assert error(found["score"], right["score"]) < tolerance
    if precision == "fp32":
        assert np.array_equal(found["index"], right["index"])
