"""Joined layers of residual blocks in torch operators: what ONNX Runtime computes of the layers apart."""

from dataclasses import dataclass

import pytest

pytest.importorskip("torch")

from tests.engine.cuda.reference import Arrays, error, execute, lowered
from tests.graph.small import graph, normal, run

pytestmark = pytest.mark.torch

# 120 x 100 pixels of 64 channels: enough for blocks that keep their maps.
LARGE = (1, 64, 120, 100)
SMALL = (2, 64, 9, 8)
WEIGHTS: Arrays = {
    "k": normal(64, 64, 3, 3, seed=1) / 24,
    "kb": normal(64, seed=2),
    "p": normal(128, 64, 1, 1, seed=3) / 8,
    "pb": normal(128, seed=4),
    "s": normal(128, 64, 1, 1, seed=5) / 8,
    "sb": normal(128, seed=6),
    "t": normal(64, 128, 1, 1, seed=7) / 12,
    "tb": normal(64, seed=8),
    "m": normal(64, 64, 3, 3, seed=9) / 24,
    "u": normal(64, 128, 3, 3, seed=10) / 34,
}
BEFORE = "x = Relu(i)"
WINDOW = "a = Conv <pads=[1,1,1,1]> (x, k, kb) h = Relu(a)"
NARROW = "z = Relu(w) n = Conv(z, t, tb) y = Relu(n)"


@dataclass(frozen=True)
class Case:
    text: str
    kinds: tuple[str, ...]
    """Of the layers' steps."""
    shape: tuple[int, int, int, int] = LARGE
    out: tuple[int, int, int] = (64, 120, 100)


CASES = {
    "a shortcut": Case(
        f"{WINDOW} b = Conv(h, p, pb) c = Conv(x, s, sb) y = Add(b, c)", ("conv", "conv_shortcut"), SMALL, (128, 9, 8)
    ),
    "a shortcut that came first": Case(
        f"c = Conv(x, s, sb) {WINDOW} b = Conv(h, p) d = Add(c, b) y = Relu(d)",
        ("conv", "conv_shortcut"), SMALL, (128, 9, 8),
    ),
    "a shortcut of every other pixel": Case(
        """a = Conv <pads=[1,1,1,1], strides=[2,2]> (x, k, kb) h = Relu(a)
        b = Conv(h, p, pb) c = Conv <strides=[2,2]> (x, s, sb) d = Add(b, c) y = Relu(d)""",
        ("conv", "conv_shortcut"), SMALL, (128, 5, 4),
    ),
    "two windows are added": Case(
        "a = Conv <pads=[0,0,2,2]> (x, k) b = Conv <pads=[2,2,0,0]> (x, m) y = Add(a, b)",
        ("conv", "conv"), SMALL, (64, 9, 8),
    ),
    "a sum that somebody else reads too": Case(
        f"{WINDOW} b = Conv(h, p, pb) c = Conv(x, s, sb) d = Add(b, c) e = Sigmoid(c) y = Mul(d, e)",
        ("conv", "conv", "conv"), SMALL, (128, 9, 8),
    ),
    "a bottleneck": Case(
        f"{WINDOW} b = Conv(h, p, pb) c = Conv(x, s, sb) w = Add(b, c) y = Relu(w)", ("bottleneck",),
        out=(128, 120, 100),
    ),
    "a bottleneck and the layer behind it": Case(
        f"{WINDOW} b = Conv(h, p, pb) c = Conv(x, s, sb) w = Add(b, c) {NARROW}", ("bottleneck_next",)
    ),
    "a bottleneck that adds what it read": Case(
        """g = Conv(x, s) r = Relu(g) q = Conv <pads=[1,1,1,1]> (r, u) f = Relu(q) a = Conv <pads=[1,1,1,1]> (f, k)
        h = Relu(a) b = Conv(h, p, pb) w = Add(b, r) z = Relu(w) n = Conv(z, t, tb) y = Sigmoid(n)""",
        ("conv", "conv", "bottleneck_next"),
    ),
    "a bottleneck of every other pixel": Case(
        """a = Conv <pads=[0,1,1,1], strides=[2,1]> (x, k) h = Relu(a) b = Conv(h, p)
        c = Conv <strides=[2,1]> (x, s) w = Add(b, c) z = Relu(w) y = Conv(z, t)""",
        ("bottleneck_next",), (2, 64, 124, 101), (64, 62, 101),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-6), ("fp16", 3e-3), ("bf16", 2e-2)])
@pytest.mark.parametrize("name", CASES)
def test_a_block_s_layers_compute_what_they_do_apart(name: str, precision: str, tolerance: float) -> None:
    case = CASES[name]
    batch, *rest = case.shape
    shapes = [",".join(map(str, each)) for each in ((batch, *rest), (batch, *case.out))]
    text = f"(float[{shapes[0]}] i) => (float[{shapes[1]}] y) {{ {BEFORE} {case.text} }}"
    used = {weight: array for weight, array in WEIGHTS.items() if f" {weight}," in text or f" {weight})" in text}
    model, inputs = graph(text, used, opset=20), {"i": normal(*case.shape)}
    found, weights = lowered(model, inputs)
    layers = [step.kind for step in found.steps if step.kind not in ("copy", "pointwise")]
    assert tuple(layers) == case.kinds
    assert error(execute(found, weights, inputs, precision)["y"], run(model, inputs)["y"]) < tolerance
