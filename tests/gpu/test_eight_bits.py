"""Eight bits on the GPU: programs sealed and loaded again, and a build that ends in INT8."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import penstock as ps
from penstock import graph, quantize
from penstock.build.forms import add_fp8, add_int8, prepare
from penstock.build.options import BuildOptions, profiles
from penstock.engine.cuda.runtime import CudaRuntime
from penstock.engine.cuda.tuning import Tuning
from penstock.engine.plan import CUDA, PLAIN_STEPS, TUNED_STEPS, Tactic
from tests.graph.small import graph as made
from tests.graph.small import normal

pytestmark = pytest.mark.gpu

SECONDS = float(os.environ.get("PENSTOCK_BUILD_SECONDS", "150"))
SHAPE = (16, 3, 64, 64)


class Shelf:
    """Where the engine keeps its forms."""

    def __init__(self, path: Path) -> None:
        self.path, self.kept = path, dict[str, Any]()

    def form(self, name: str) -> memoryview:
        del name
        return memoryview(self.path.read_bytes())


def pictures(rows: int, seed: int) -> np.ndarray:
    """Patches with some noise: what is independent from pixel to pixel is no picture."""
    random = np.random.default_rng(seed)
    patches = np.kron(random.standard_normal((rows, 3, 8, 8)), np.ones((1, 1, 8, 8)))
    return (patches + 0.2 * random.standard_normal(patches.shape)).astype(np.float32)


def error(found: np.ndarray, right: np.ndarray) -> float:
    return float(np.linalg.norm(found.astype(np.float64) - right) / np.linalg.norm(right))


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_a_program_in_eight_bits_is_played_back_as_it_was_tuned(precision: str, tmp_path: Path) -> None:
    if precision == "int8":
        text = """(float[B,32,24,24] x) => (float[B,10] y) {
            a = Conv <pads=[1,1,1,1]> (x, one) b = Relu(a) c = Conv <pads=[1,1,1,1]> (b, one) d = Add(c, b) e = Relu(d)
            m = MaxPool <kernel_shape=[2,2], strides=[2,2]> (e) f = Conv <strides=[2,2]> (m, two) g = Relu(f)
            h = GlobalAveragePool(g) i = Flatten(h) y = Gemm <transB=1> (i, three) }"""
        weights = {"one": normal(32, 32, 3, 3) / 17, "two": normal(64, 32, 1, 1) / 6, "three": normal(10, 64) / 8}
        shape = (4, 32, 24, 24)
    else:
        text = """(float[B,20,128] x) => (float[B,20,128] y) {
            n = LayerNormalization <axis=-1> (x, g, g) a = MatMul(n, one)
            c = Gelu(a) d = MatMul(c, two) y = Add(d, x) }"""
        weights = {"g": normal(128), "one": normal(128, 256) / 11, "two": normal(256, 128) / 16}
        shape = (4, 20, 128)
    model = made(text, weights, 20)
    inputs = graph.signature(model)[0]
    size = "x".join(map(str, shape))
    options = BuildOptions.of(shapes=f"x:{size}")
    forms = prepare(model, tmp_path, reduce=(), profiles=profiles(options, inputs), on_gpu=True)
    data = quantize.load([{"x": normal(*shape, seed=each)} for each in range(2)], inputs, allow_random=True)
    (recipe,) = quantize.recipes(forms.plain, data, schemes=[quantize.GPU], methods=["minmax"])
    if precision == "int8":
        form = add_int8(forms, "lowered-int8", recipe.model, [{"x": shape}])
    else:
        form = add_fp8(forms, "lowered-fp8", forms.optimized, recipe.ranges, [{"x": shape}])
    Tuning.prepare(form.path, 20.0)
    x = normal(*shape, seed=7)
    answers = {}
    for steps in (PLAIN_STEPS, TUNED_STEPS):
        tactic = Tactic(CUDA, precision, form.path.stem, "static", options=steps)
        program = CudaRuntime.compile(form.path, tactic, shapes={"x": shape}, instances=1, threads=None)
        answers[steps] = program(x=x)["y"]
    exact, tuned = answers.values()
    assert error(tuned, exact) < 0.02
    regions = program.regions({"x": x})
    assert {region.precision for region in regions if region.kind.startswith(("conv", "gemm"))} >= {precision}
    assert any(region.tactic.startswith("triton") and region.precision == precision for region in regions)
    artifact = program.export()
    again = CudaRuntime.reopen(
        memoryview(artifact), tactic, ("y",), "sealed", instances=1, threads=None, shelf=Shelf(form.path)
    )
    np.testing.assert_array_equal(again(x=x)["y"], tuned)


def wide_network() -> Any:
    """Two residual blocks whose products take far longer than the copies of what goes in and out."""
    text = """(float[B,3,64,64] x) => (float[B,10] y) {
        a = Conv <pads=[1,1,1,1]> (x, stem) b = Relu(a)
        c = Conv <pads=[1,1,1,1]> (b, one) d = Relu(c) e = Conv <pads=[1,1,1,1]> (d, two) f = Add(e, b) g = Relu(f)
        h = Conv <pads=[1,1,1,1]> (g, three) i = Relu(h) j = Conv <pads=[1,1,1,1]> (i, four) k = Add(j, g) l = Relu(k)
        p = GlobalAveragePool(l) q = Flatten(p) y = Gemm <transB=1> (q, last) }"""
    weights = {
        name: normal(256, 256, 3, 3, seed=seed) / 34 for seed, name in enumerate(("one", "two", "three", "four"))
    }
    return made(text, {**weights, "stem": normal(256, 3, 3, 3) / 4, "last": normal(10, 256) / 16}, 20)


def test_a_build_with_calibration_data_ends_in_int8(tmp_path: Path) -> None:
    graph.save(wide_network(), tmp_path / "m.onnx")
    size = "x".join(map(str, SHAPE))
    engine = ps.build(
        tmp_path / "m.onnx", device="cuda:0", shapes=f"x:{size}", budget_seconds=SECONDS, accuracy="cosine>=0.99",
        calibration=[{"x": pictures(1, seed)} for seed in range(12)], output=tmp_path / "m.engine",
    )  # fmt: skip
    timed = [each for each in engine.evidence["timings"] if each["tactic"]["runtime"] == CUDA]
    spent = {
        precision: min(each["median_us"] for each in timed if each["tactic"]["precision"] == precision)
        for precision in ("fp16", "int8")
    }
    assert spent["int8"] < 0.8 * spent["fp16"], timed
    assert engine.manifest.precision == "int8"
    assert {region.precision for region in engine.manifest.regions} == {"int8", "fp16"}
    x = pictures(SHAPE[0], 99)
    right = np.asarray(ps.load(tmp_path / "m.onnx")(x=x)["y"])
    assert error(engine(x=x)["y"], right) < 0.1
