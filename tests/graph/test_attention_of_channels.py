"""Channels that attend to channels become one step, which reads them where the projection left them."""

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")

from tests.engine.cuda.reference import Arrays, assert_agrees, lowered
from tests.graph.small import graph, normal

pytestmark = pytest.mark.torch

IMAGES, T, HEADS, D = 2, 10, 3, 8
CUT = """r = Reshape(x, s) t = Transpose<perm=[2,0,3,{order},{rows}]>(r)
    q = Gather<axis=0>(t, zero) k = Gather<axis=0>(t, one) v = Gather<axis=0>(t, two)"""
# XCiT: [images, heads, D, T]; DaViT: [images, heads, T, D], turned where it is multiplied.
XCIT = (
    CUT.format(order=4, rows=1)
    + """
    ql = ReduceL2(q, last) qm = Clip(ql, least) qu = Div(q, qm) kl = ReduceL2(k, last) km = Clip(kl, least)
    ku = Div(k, km) u = Transpose<perm=[0,1,3,2]>(ku) d = MatMul(qu, u) e = Mul(d, scales) p = Softmax<axis=-1>(e)
    o = MatMul(p, v) f = Transpose<perm=[0,3,1,2]>(o) y = Reshape(f, back)"""
)
DAVIT = (
    CUT.format(order=1, rows=4)
    + """
    g = Mul(k, scale) u = Transpose<perm=[0,1,3,2]>(g) d = MatMul(u, v) p = Softmax<axis=-1>(d)
    w = Transpose<perm=[0,1,3,2]>(q) o = MatMul(p, w) h = Transpose<perm=[0,1,3,2]>(o)
    f = Transpose<perm=[0,2,1,3]>(h) y = Reshape(f, back)"""
)
WEIGHTS: Arrays = {
    "s": np.array([IMAGES, T, 3, HEADS, D]),
    "back": np.array([IMAGES, T, HEADS * D]),
    "last": np.array([-1]),
    "least": np.float32(1e-12),
    "scale": np.float32(0.25),
    "scales": np.array([3.0, 20.0, 7.0], np.float32).reshape(HEADS, 1, 1),
    "mask": normal(D, D, seed=2),
    **{name: np.array(index) for index, name in enumerate(("zero", "one", "two"))},
}


def model_of(body: str) -> tuple[ir.Model, Arrays]:
    text = f"(float[{IMAGES},{T},{3 * HEADS * D}] x) => (float[{IMAGES},{T},{HEADS * D}] y) {{ {body} }}"
    return graph(text, WEIGHTS, opset=18), {"x": 3.0 * normal(IMAGES, T, 3 * HEADS * D, seed=4)}


@pytest.mark.parametrize(("body", "steps"), [(XCIT, 1), (DAVIT, 2)], ids=["XCiT", "DaViT"])
def test_channels_that_attend_are_one_step(body: str, steps: int) -> None:
    model, inputs = model_of(body)
    found, _ = lowered(model, inputs)
    assert len(found.steps) == steps
    step = found.steps[-1]
    assert step.kind == "channel_attention"
    views = {operand.role: operand.view for operand in step.inputs}
    assert views["v"] is not None
    assert views["v"].shape == (IMAGES, HEADS, T, D)
    assert views["v"].strides[-1] == 1
    assert ("unit" in step.attributes) == ("scales" in views) == (body is XCIT)
    assert_agrees(model, model, inputs, 1e-5)


def test_a_mask_of_channels_is_added_operator_by_operator() -> None:
    model, inputs = model_of(XCIT.replace("Softmax<axis=-1>(e)", "Softmax<axis=-1>(em)").replace(
        "p = Softmax", "em = Add(e, mask) p = Softmax"))  # fmt: skip
    assert "channel_attention" not in {step.kind for step in lowered(model, inputs)[0].steps}
    assert_agrees(model, model, inputs, 1e-5)


def test_more_channels_than_a_kernel_holds_are_left_to_libraries() -> None:
    wide = {
        "s": np.array([IMAGES, 400, 3, 1, 160]),
        "back": np.array([IMAGES, 400, 160]),
        "scales": np.ones((1, 1, 1), np.float32),
    }
    text = f"(float[{IMAGES},400,480] x) => (float[{IMAGES},400,160] y) {{ {XCIT} }}"
    model, inputs = graph(text, WEIGHTS | wide, opset=18), {"x": normal(IMAGES, 400, 480, seed=4)}
    assert "channel_attention" not in {step.kind for step in lowered(model, inputs)[0].steps}
    assert_agrees(model, model, inputs, 1e-5)
