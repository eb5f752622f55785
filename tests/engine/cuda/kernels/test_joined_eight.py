"""Joined layers in INT8, and stems with their pools: what is joined, and that all ways make the same of it."""

from dataclasses import dataclass

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch

from penstock.engine.cuda.choices import Choice
from penstock.engine.cuda.executor import Executor
from penstock.engine.cuda.implementations import add_triton, fitting
from penstock.engine.lowered import LoweredGraph, from_json, to_json, validate
from tests.engine.cuda.narrowing import Network
from tests.engine.cuda.reference import execute, lowered
from tests.graph.small import graph, normal, run

pytestmark = pytest.mark.torch

LAYERS = {"k": (64, 64, 3, 3), "p": (128, 64, 1, 1), "s": (128, 64, 1, 1), "t": (64, 128, 1, 1), "e": (64, 16, 1, 1)}
BIASES = {"kb": (64,), "pb": (128,), "sb": (128,)}
WEIGHTS = {**LAYERS, **BIASES, "stem": (32, 3, 7, 7), "v": (32,), "after": (16, 32, 1, 1), "f": (64, 64, 1, 1)}
BEGIN = "o = Conv(x, e) i = Relu(o)"
END = "z = Relu(w) n = Conv(z, t) q = Relu(n) y = Conv(q, f)"
WINDOW = "a = Conv <pads=[1,1,1,1]> (i, k, kb) h = Relu(a) b = Conv(h, p, pb)"


@dataclass(frozen=True)
class Case:
    text: str
    shape: tuple[int, ...]
    out: tuple[int, ...]
    kinds: tuple[str, ...]
    """Of the layers' steps in INT8."""
    ours: bool = True
    """Whether a kernel that the interpreter runs takes the joined step."""

    def network(self) -> Network:
        shapes = [",".join(map(str, each)) for each in (self.shape, self.out)]
        used = {name: shape for name, shape in WEIGHTS.items() if f" {name}," in self.text or f" {name})" in self.text}
        text = f"(float[{shapes[0]}] x) => (float[{shapes[1]}] y) {{ {self.text} }}"
        return Network("joined", text, self.shape, used, frozenset(), ())


LARGE, WIDE = (1, 16, 120, 100), (1, 64, 120, 100)
PICTURE = (2, 3, 20, 36)
STEM = "s = Conv <strides=[2,2], pads=[3,3,3,3]> (x, stem, v) r = Relu(s)"
POOL = "p = MaxPool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]> (r)"
CASES = {
    "a shortcut": Case(f"{BEGIN} {WINDOW} c = Conv(i, s, sb) w = Add(b, c) {END}", LARGE, WIDE,
                       ("conv", "bottleneck_next", "conv")),
    "a shortcut that has the sum": Case(f"{BEGIN} {WINDOW} c = Conv(i, s) w = Add(c, b) {END}", LARGE, WIDE,
                                        ("conv", "bottleneck_next", "conv")),
    "a residual, which Triton joins no faster": Case(
        f"{BEGIN} g = Conv(i, s) j = Relu(g) l = Conv(j, t) m = Relu(l) a = Conv <pads=[1,1,1,1]> (m, k) h = Relu(a)"
        f" b = Conv(h, p) w = Add(b, j) {END}", LARGE, WIDE, ("conv",) * 7,
    ),
    "few pixels": Case(f"{BEGIN} {WINDOW} c = Conv(i, s, sb) w = Add(b, c) {END}", (1, 16, 9, 8), (1, 64, 9, 8),
                       ("conv",) * 6),
    "a stem": Case(f"{STEM} {POOL} y = Conv(p, after)", PICTURE, (2, 16, 5, 9), ("conv_pool", "conv")),
    "a stem that another layer reads": Case(
        f"{STEM} {POOL} c = Conv(p, after) d = Conv <strides=[2,2]> (r, after) y = Add(c, d)", PICTURE, (2, 16, 5, 9),
        ("conv", "max_pool", "conv", "conv"),
    ),
    "a stem of an odd picture": Case(f"{STEM} {POOL} y = Conv(p, after)", (2, 3, 18, 34), (2, 16, 5, 9),
                                     ("conv", "max_pool", "conv")),
}  # fmt: skip


def kinds(found: LoweredGraph) -> tuple[str, ...]:
    return tuple(step.kind for step in found.steps if step.kind not in ("copy", "pad", "pointwise"))


@pytest.mark.parametrize("name", CASES)
def test_joined_layers_in_eight_bits_are_near_the_floats(name: str, device: str) -> None:
    case = CASES[name]
    network = case.network()
    found, weights, _ = network.narrowed(device)
    validate(found)
    assert from_json(to_json(found)) == found
    assert kinds(found) == case.kinds
    before, floats = network.lowered()
    x = network.inputs(device)
    right = Executor(before, {name: each.to(device) for name, each in floats.items()}, device, "fp32").run(x)["y"]
    exact = Executor(found, weights, device, "fp16")
    answer = exact.run(x)["y"]
    assert 0 < float((answer - right).norm() / right.norm()) < 0.06
    add_triton()
    joined = [site for site in exact.sites if site.step.kind in ("bottleneck_next", "conv_pool")]
    for site in joined:
        names = [each for each in fitting(site) if each.startswith(("triton", "cuda"))]
        assert "triton" in names or "triton_row" in names
        for way in names:
            ours = Executor(found, weights, device, "fp16", choices={site.step.name: Choice(way)}).run(x)["y"]
            assert float((ours - answer).norm()) <= 0.01 * float(answer.norm())


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-6), ("fp16", 3e-3), ("bf16", 2e-2)])
def test_a_stem_and_its_pool_in_floats_are_one_step(precision: str, tolerance: float, device: str) -> None:
    weights = {"stem": normal(32, 3, 7, 7, seed=1) / 12, "v": normal(32, seed=2), "after": normal(16, 32, 1, 1) / 6}
    text = f"(float[2,3,20,36] x) => (float[2,16,5,9] y) {{ {STEM} {POOL} y = Conv(p, after) }}"
    model, inputs = graph(text, weights, opset=20), {"x": normal(*PICTURE)}
    found, tensors = lowered(model, inputs)
    assert kinds(found) == ("picture_pool", "conv")
    right = run(model, inputs)["y"]
    answer = execute(found, tensors, inputs, precision)["y"]
    assert float(((answer - right) ** 2).sum() ** 0.5) < tolerance * float((right**2).sum() ** 0.5)
    if precision == "fp32" or (precision == "bf16" and device == "cpu"):  # of which Triton's interpreter is no judge
        return
    add_triton()
    step = next(step.name for step in found.steps if step.kind == "picture_pool")
    executor = Executor(found, tensors, device, precision, choices={step: Choice("triton_row")})
    ours = executor.run({"x": torch.from_numpy(inputs["x"]).to(device)})["y"].float().cpu().numpy()
    assert float(((ours - right) ** 2).sum() ** 0.5) < tolerance * float((right**2).sum() ** 0.5)
