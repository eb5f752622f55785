"""Attention of windows becomes one step: what is added to its scores, unit rows, factors of heads."""

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")

import torch

from penstock.engine.lowered import LoweredGraph, Step
from penstock.graph import to_bytes
from penstock.graph.lowering import masks
from tests.engine.cuda.reference import Arrays, assert_agrees, error, execute, lowered
from tests.graph.small import graph, normal, run

pytestmark = pytest.mark.torch

IMAGES, WINDOWS, HEADS, T, D = 3, 4, 2, 6, 8
B = IMAGES * WINDOWS

BIAS = normal(1, HEADS, T, T, seed=1)
SHIFTED = np.where(normal(1, WINDOWS, 1, T, T, seed=2) > 0.5, np.float32(-100), np.float32(0))

CUT = """r = Reshape(x, s) t = Transpose<perm=[2,0,3,1,4]>(r)
    q = Gather<axis=0>(t, zero) k = Gather<axis=0>(t, one) v = Gather<axis=0>(t, two)"""
UNIT = """ql = ReduceL2(q, last) qm = Clip(ql, least) {expand} qu = Div(q, {q})
    kl = ReduceL2(k, last) km = {bound} ku = Div(k, km)"""
END = "p = Softmax<axis=-1>({scores}) o = MatMul(p, v) f = Transpose<perm=[0,2,1,3]>(o) y = Reshape(f, back)"
WEIGHTS: Arrays = {
    "s": np.array([B, T, 3, HEADS, D]),
    "back": np.array([B, T, HEADS * D]),
    "apart": np.array([IMAGES, WINDOWS, HEADS, T, T]),
    "along": np.array([1, B, HEADS, T, T]),
    "together": np.array([B, HEADS, T, T]),
    "whole": np.array([B, HEADS, T, D]),
    "last": np.array([-1]),
    "least": np.float32(1e-12),
    "scale": np.float32(0.25),
    "scales": np.array([3.0, 20.0], np.float32).reshape(HEADS, 1, 1),
    "rows": np.linspace(0.5, 2.0, T, dtype=np.float32).reshape(1, T, 1),
    "bias": BIAS,
    "shifted": SHIFTED,
    "one_more": np.float32(30),
    "rather": np.float32(1e-6),
    "columns": np.array([-2]),
    "each": normal(1, B, 1, T, T, seed=6),
    "images": normal(IMAGES, 1, 1, 1, T, seed=3),
    **{name: np.array(index) for index, name in enumerate(("zero", "one", "two"))},
}


def one(between: str, scores: str, unit: str = "", more: str = "") -> tuple[ir.Model, Arrays]:
    """Attention of windows, `between` from d, the first product, to `scores`."""
    q, k = ("qu", "ku") if unit else ("q", "k")
    text = f"""(float[{B},{T},{3 * HEADS * D}] x{more}) => (float[{B},{T},{HEADS * D}] y) {{ {CUT} {unit}
        u = Transpose<perm=[0,1,3,2]>({k}) d = MatMul({q}, u) {between} {END.format(scores=scores)} }}"""
    return graph(text, WEIGHTS, opset=18), {"x": 3.0 * normal(B, T, 3 * HEADS * D, seed=4)}


def the_step(found: LoweredGraph) -> Step:
    """It reads q, k and v where they came in."""
    (step,) = found.steps
    assert step.kind == "attention"
    assert [(each.role, each.value) for each in step.inputs[:3]] == [(role, "x") for role in "qkv"]
    return step


EXPANDED = UNIT.format(expand="qe = Expand(qm, whole)", q="qe", bound="Clip(kl, least)")
BOUNDED = UNIT.format(expand="", q="qm", bound="Max(kl, least)")


@pytest.mark.parametrize("unit", [EXPANDED, BOUNDED], ids=["expanded", "a maximum"])
def test_rows_of_length_one_and_factors_of_heads(unit: str) -> None:
    model, inputs = one("e = Mul(d, scales) g = Add(e, bias)", "g", unit)
    found = assert_agrees(model, model, inputs, 1e-6)
    step = the_step(found)
    assert step.attributes["unit"] == pytest.approx(1e-12)
    assert [each.role for each in step.inputs[3:]] == ["mask", "scales"]
    assert found.weights[step.inputs[4].value].shape == (HEADS,)
    assert len(step.nodes) >= 11


SHAPED = "a = Reshape({0}, apart) {1} n = Reshape({2}, together)"
MASKS = {
    "bias and windows": ("g = Add(e, bias) " + SHAPED.format("g", "h = Add(a, shifted)", "h"), WINDOWS),
    "windows alone": (SHAPED.format("e", "h = Add(a, shifted)", "h"), WINDOWS),
    "images alone": (SHAPED.format("e", "h = Add(a, images)", "h"), B),
    "windows and images": (SHAPED.format("e", "h = Add(shifted, a) m = Add(h, images)", "m"), B),
    "bias seen among windows": (SHAPED.format("e", "h = Add(a, bias)", "h"), B),
    "all windows": ("a = Reshape(e, along) h = Add(a, each) n = Reshape(h, together)", B),
}


@pytest.mark.parametrize("name", MASKS)
def test_constants_that_are_added_are_one_mask(name: str) -> None:
    between, period = MASKS[name]
    model, inputs = one(f"e = Mul(d, scale) {between}", "n")
    found = assert_agrees(model, model, inputs, 1e-6)
    step = the_step(found)
    assert [each.role for each in step.inputs[3:]] == ["mask"]
    assert found.shape(step.inputs[3]) == (period, HEADS, T, T)
    assert step.attributes == {"scale": 0.25}


def test_a_mask_that_comes_in_repeats_where_it_lies() -> None:
    between = "e = Mul(d, scale) a = Reshape(e, apart) h = Add(a, w) n = Reshape(h, together)"
    model, inputs = one(between, "n", more=f", float[1,{WINDOWS},1,{T},{T}] w")
    step = the_step(assert_agrees(model, model, dict(inputs) | {"w": SHIFTED}, 1e-6))
    mask = step.operand("mask")
    assert mask is not None
    assert mask.value == "w"
    assert mask.view is not None
    assert mask.view.shape == (WINDOWS, HEADS, T, T)


LEFT = {
    # between the product and the softmax, what makes unit rows, and another input
    "a mask that comes in beside a constant": ("g = Add(d, bias) h = Add(g, w)", "h", "", f", float[1,1,{T},{T}] w"),
    "a factor for each row": ("h = Mul(d, rows)", "h", "", ""),
    "a factor behind the mask": ("g = Add(d, bias) h = Mul(g, scales)", "h", "", ""),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_not_understood_stays_in_steps(name: str) -> None:
    between, scores, unit, more = LEFT[name]
    model, inputs = one(between, scores, unit, more)
    given = dict(inputs) | ({"w": normal(1, 1, T, T, seed=5)} if more else {})
    found = assert_agrees(model, model, given, 1e-6)
    assert "attention" not in {step.kind for step in found.steps}


CLIPPED = UNIT.format(expand="", q="qm", bound="Clip(kl, least, one_more)")
OTHER = UNIT.format(expand="", q="qm", bound="Max(kl, rather)")
OF_COLUMNS = EXPANDED.replace("ReduceL2(k, last)", "ReduceL2(k, columns)")


@pytest.mark.parametrize("unit", [CLIPPED, OTHER, OF_COLUMNS], ids=["clipped", "another least length", "columns"])
def test_rows_that_are_not_of_length_one_are_read_as_they_are(unit: str) -> None:
    model, inputs = one("e = Mul(d, scales)", "e", unit)
    found = assert_agrees(model, model, inputs, 1e-6)
    (step,) = (step for step in found.steps if step.kind == "attention")
    assert "unit" not in step.attributes
    assert len(found.steps) > 1


def test_a_sum_of_masks_has_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "_MOST", WINDOWS * HEADS * T * T - 1)
    model, inputs = one(MASKS["bias and windows"][0].replace("(e,", "(d,"), "n")
    found = assert_agrees(model, model, inputs, 1e-6)
    assert "attention" not in {step.kind for step in found.steps}


def test_rows_that_lie_across_are_left_in_steps() -> None:
    """Cross-covariance attention: the rows of q and k are what all tokens have in one channel."""
    cut = CUT.replace("perm=[2,0,3,1,4]", "perm=[2,0,3,4,1]")
    text = f"""(float[{B},{T},{3 * HEADS * D}] x) => (float[{B},{HEADS},{D},{T}] y) {{ {cut} {BOUNDED}
        u = Transpose<perm=[0,1,3,2]>(ku) d = MatMul(qu, u) e = Mul(d, scales) p = Softmax<axis=-1>(e)
        y = MatMul(p, v) }}"""
    model = graph(text, WEIGHTS, opset=18)
    found = assert_agrees(model, model, {"x": 3.0 * normal(B, T, 3 * HEADS * D, seed=4)}, 1e-6)
    assert "attention" not in {step.kind for step in found.steps}


def cosine(found: Arrays, expected: Arrays) -> float:
    (name,) = expected
    a, b = (each[name].astype(np.float64).ravel() for each in (found, expected))
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", ["swin_transformer", "swin_transformer_v2"])
def test_networks_of_timm(name: str, batch: int) -> None:
    pytest.importorskip("onnxscript")
    timm = pytest.importorskip(f"timm.models.{name}")
    torch.manual_seed(batch)
    kind = timm.SwinTransformerV2 if name.endswith("v2") else timm.SwinTransformer
    sizes = {"depths": (2, 2), "num_heads": (2, 4)}
    network = kind(img_size=64, window_size=4, embed_dim=32, num_classes=10, **sizes).eval()
    with torch.no_grad():
        for parameter in network.parameters():  # biases and temperatures begin at numbers that hide mistakes
            parameter.add_(0.1 * torch.randn(parameter.shape))
    program = torch.onnx.export(
        network, (torch.randn(batch, 3, 64, 64),), input_names=["x"], opset_version=18, dynamo=True, verbose=False
    )
    assert program is not None
    inputs = {"x": normal(batch, 3, 64, 64, seed=7)}
    found, weights = lowered(program.model, inputs)
    kinds = [step.kind for step in found.steps]
    assert kinds.count("attention") == 4
    assert not {"softmax", "matmul"} & set(kinds)
    assert kinds.count("reduce") == 1  # at the end
    for step in found.steps:
        if step.kind == "attention":
            assert len({operand.value for operand in step.inputs[:3]}) == 1
            assert ("unit" in step.attributes) == name.endswith("v2")
    expected, answer = run(to_bytes(program.model), inputs), execute(found, weights, inputs)
    assert cosine(answer, expected) > 0.99999
    (output,) = expected
    assert error(answer[output], expected[output]) < 1e-5


@pytest.mark.parametrize("answers", ["m", "s", "p"])
def test_scores_that_are_answered_are_made(answers: str) -> None:
    """What a model answers is there, even if one step could do without it."""
    text = f"""(float[2,3,5,4] x) => (float[2,3,5,4] y, float[2,3,5,5] {answers}) {{
        k = Relu(x) t = Transpose <perm=[0,1,3,2]> (k) m = MatMul(x, t) s = Mul(m, h) p = Softmax <axis=-1> (s)
        y = MatMul(p, k) }}"""
    model = graph(text, {"h": np.array(0.5, np.float32)}, opset=18)
    found = assert_agrees(model, to_bytes(model), {"x": normal(2, 3, 5, 4)}, 1e-6)
    assert "attention" not in {step.kind for step in found.steps}
