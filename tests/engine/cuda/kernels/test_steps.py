"""Our kernels as implementations of steps: where they fit, that they compute the step, and compiling ahead."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch

from penstock.engine.blocks import join_blocks
from penstock.engine.cuda.choices import Choice
from penstock.engine.cuda.executor import Executor
from penstock.engine.cuda.implementations import add_triton, fitting
from penstock.engine.cuda.precompile import Compilers
from penstock.engine.cuda.triton_steps import launch
from penstock.engine.cuda.tuner import tune
from penstock.errors import InvalidArgument
from tests.engine.cuda.reference import Arrays, error, lowered
from tests.graph.small import graph, normal, run

pytestmark = pytest.mark.torch

OURS = ("triton", "triton_depthwise", "triton_gate")

CONV = "(float[1,16,6,6] x) => (float[1,16,6,6] y) {{ a = Conv <pads=[1,1,1,1]> (x, w, b) {rest} }}"
WIDE = {"w": normal(16, 16, 3, 3, seed=1) / 12, "b": normal(16, seed=2)}
X = {"x": normal(1, 16, 6, 6)}

EXCITED = """(float[2,16,6,6] i) => (float[2,16,6,6] y) {{ x = Conv <group={group}, pads=[1,1,1,1]> (i, k{group})
    w = GlobalAveragePool(x) s = Conv(w, v, b) r = Relu(s)
    e = Conv(r, u, d) g = HardSigmoid <alpha=0.25> (e) {rest} }}"""
SMALL = {
    "k16": normal(16, 1, 3, 3, seed=9) / 3,
    "k8": normal(16, 2, 3, 3, seed=9) / 4,
    "v": normal(4, 16, 1, 1, seed=3),
    "b": normal(4, seed=4),
    "u": normal(16, 4, 1, 1, seed=5),
    "d": normal(16, seed=6),
    "p": normal(32, 16, 1, 1, seed=7) / 4,
    "q": normal(16, 32, 1, 1, seed=8) / 5,
}

# name: text, weights, inputs, kind of the step that is ours
MODELS: dict[str, tuple[str, Arrays, Arrays, str]] = {
    "relu": (CONV.format(rest="y = Relu(a)"), WIDE, X, "conv"),
    "clip": (
        CONV.format(rest="y = Clip(a, low, high)"),
        WIDE | {"low": np.float32(-0.25), "high": np.float32(0.5)},
        X,
        "conv",
    ),
    "quick gelu": (
        CONV.format(rest="m = Mul(a, c) s = Sigmoid(m) y = Mul(a, s)"),
        WIDE | {"c": np.float32(1.702)},
        X,
        "conv",
    ),
    "star relu": (
        CONV.format(rest="r = Relu(a) q = Pow(r, two) m = Mul(q, s) y = Add(m, t)"),
        WIDE | {"two": np.float32(2), "s": np.float32(0.9), "t": np.float32(-0.4)},
        X,
        "conv",
    ),
    "residual": (CONV.format(rest="r = Add(a, x) y = Relu(r)"), WIDE, X, "conv"),
    "residual after": (CONV.format(rest="r = Relu(a) y = Add(r, x)"), WIDE, X, "conv"),
    "uneven pads and strides": (
        "(float[1,16,7,6] x) => (float[1,16,4,3] y) { y = Conv <pads=[1,0,1,1], strides=[2,2]> (x, w, b) }",
        WIDE,
        {"x": normal(1, 16, 7, 6)},
        "conv",
    ),
    "depthwise": (
        "(float[1,16,6,6] x) => (float[1,16,6,6] y) { a = Conv <pads=[1,1,1,1], group=16> (x, w, b) y = Relu(a) }",
        {"w": normal(16, 1, 3, 3, seed=1) / 3, "b": normal(16, seed=2)},
        X,
        "conv",
    ),
    "gemm": (
        "(float[2,5,16] x) => (float[2,5,24] y) { a = MatMul(x, w) y = Add(a, b) }",
        {"w": normal(16, 24, seed=1) / 4, "b": normal(24, seed=2)},
        {"x": normal(2, 5, 16)},
        "gemm",
    ),
    "layer norm": (
        "(float[3,40] x) => (float[3,40] y) { y = LayerNormalization <axis=-1, epsilon=1e-5> (x, w, b) }",
        {"w": normal(40, seed=1), "b": normal(40, seed=2)},
        {"x": normal(3, 40)},
        "layer_norm",
    ),
    "pool": (
        "(float[2,16,6,6] x) => (float[2,16,1,1] y) { a = Conv <pads=[1,1,1,1]> (x, w, b) y = GlobalAveragePool(a) }",
        WIDE, {"x": normal(2, 16, 6, 6)}, "reduce",
    ),
    "max pool": (
        "(float[1,16,6,6] x) => (float[1,16,3,3] y) { y = MaxPool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]> "
        "(x) }", {}, X, "max_pool",
    ),
    "average pool": (
        "(float[2,16,6,6] x) => (float[2,16,2,3] y) { y = AveragePool <kernel_shape=[3,2], strides=[3,2]> (x) }", {},
        {"x": normal(2, 16, 6, 6)}, "average_pool",
    ),
    "norm of groups": (
        """(float[2,16,6,6] x) => (float[2,16,6,6] y) { a = Conv <pads=[1,1,1,1]> (x, w, b) c = Reshape(a, cut)
        n = InstanceNormalization(c, ones, zeros) d = Reshape(n, whole) m = Mul(d, s) e = Add(m, o) g = Sigmoid(e)
        y = Mul(e, g) }""",
        WIDE | {
            "cut": np.array([2, 4, 144]), "whole": np.array([2, 16, 6, 6]), "s": normal(16, 1, 1, seed=4),
            "o": normal(16, 1, 1, seed=5), "ones": np.ones(4, np.float32), "zeros": np.zeros(4, np.float32),
        }, {"x": normal(2, 16, 6, 6)}, "norm_factors",
    ),
    "average pool with an edge": (
        "(float[2,16,6,6] x) => (float[2,16,6,6] y) { y = AveragePool <kernel_shape=[3,3], pads=[1,1,1,1]> (x) }", {},
        {"x": normal(2, 16, 6, 6)}, "average_pool",
    ),
    "average pool with zeros": (
        "(float[2,16,6,6] x) => (float[2,16,4,3] y) { y = AveragePool "
        "<kernel_shape=[3,3], strides=[2,2], pads=[1,0,1,1], ceil_mode=1, count_include_pad=1> (x) }", {},
        {"x": normal(2, 16, 6, 6)}, "average_pool",
    ),
    "gate": (
        """(float[2,16,6,6] x) => (float[2,16,6,6] y) { a = Conv <pads=[1,1,1,1]> (x, w, b) p = GlobalAveragePool(a)
        c = Conv(p, v) d = Conv(x, v) g = Sigmoid(c) m = Mul(a, g) y = Add(m, d) }""",
        WIDE | {"v": normal(16, 16, 1, 1, seed=3) / 4}, {"x": normal(2, 16, 6, 6)}, "pointwise",
    ),
    "two layers": (
        """(float[2,16,6,6] x) => (float[2,24,6,6] y) { a = Conv(x, v, b) g = LeakyRelu <alpha=0.3> (a)
        c = Conv(g, u) y = HardSigmoid <alpha=0.3> (c) }""",
        {"v": normal(32, 16, 1, 1, seed=3) / 4, "b": normal(32, seed=2), "u": normal(24, 32, 1, 1, seed=4) / 5},
        {"x": normal(2, 16, 6, 6)}, "mlp",
    ),
    "two layers of tokens": (
        "(float[2,20,16] x, float[2,20,16] z) => (float[2,20,16] y) "
        "{ a = MatMul(x, v) g = Gelu(a) c = MatMul(g, u) y = Add(c, z) }",
        {"v": normal(16, 32, seed=3) / 4, "u": normal(32, 16, seed=4) / 5},
        {"x": normal(2, 20, 16), "z": normal(2, 20, 16, seed=9)}, "mlp",
    ),
    "squeeze and excite": (
        EXCITED.format(group=8, rest="y = Mul(x, g)"), SMALL, {"i": normal(2, 16, 6, 6)}, "squeeze_excite",
    ),
    "depthwise with its gate": (
        EXCITED.format(group=16, rest="y = Mul(x, g)"), SMALL, {"i": normal(2, 16, 6, 6)}, "conv_gate",
    ),
    "squeeze, excite and two layers": (
        EXCITED.format(group=8, rest="m = Mul(x, g) a = Conv(m, p) h = Gelu(a) c = Conv(h, q) y = Add(m, c)"),
        SMALL, {"i": normal(2, 16, 6, 6)}, "mlp",
    ),
    "gate and upsampled": (
        """(float[2,16,6,6] x) => (float[2,16,6,6] y) { z = MaxPool <kernel_shape=[2,2], strides=[2,2]> (x)
        c = Conv(x, v, b) w = GlobalAveragePool(c) g = Sigmoid(w) u = Resize <mode="nearest",
        coordinate_transformation_mode="asymmetric", nearest_mode="floor"> (z, , t)
        m = Mul(c, g) n = Add(c, m) y = Add(n, u) }""",
        {"v": normal(16, 16, 1, 1, seed=3) / 4, "b": normal(16, seed=2), "t": np.array([1, 1, 2, 2], np.float32)},
        {"x": normal(2, 16, 6, 6)}, "pointwise",
    ),
    "gated convolution and upsampled": (
        """(float[2,16,6,6] x) => (float[2,16,6,6] y) { z = MaxPool <kernel_shape=[2,2], strides=[2,2]> (x)
        h = Relu(x) c = Conv(h, k) w = GlobalAveragePool(c) s = Conv(w, v, b) r = Relu(s) e = Conv(r, u, d)
        g = HardSigmoid <alpha=0.25> (e) o = Resize <mode="nearest", coordinate_transformation_mode="asymmetric",
        nearest_mode="floor"> (z, , t) m = Mul(c, g) n = Add(c, m) y = Add(n, o) }""",
        SMALL | {"k": normal(16, 16, 1, 1, seed=3) / 4, "t": np.array([1, 1, 2, 2], np.float32)},
        {"x": normal(2, 16, 6, 6)}, "gated_layers",
    ),
    "a pool beside two convolutions": (
        """(float[2,16,6,7] x) => (float[2,32,6,7] y) { a = Conv <kernel_shape=[2,2], pads=[0,0,1,1]> (x, p, f)
        h = Relu(a) c = Conv <kernel_shape=[2,2], pads=[0,0,1,1]> (h, q) e = Relu(c)
        m = MaxPool <kernel_shape=[2,2], pads=[0,0,1,1]> (x) y = Concat <axis=1> (m, e) }""",
        {"p": normal(8, 16, 2, 2) / 6, "q": normal(16, 8, 2, 2) / 4, "f": normal(8)}, {"x": normal(2, 16, 6, 7)},
        "fork",
    ),
    "a layer and a depthwise convolution that strides": (
        """(float[2,16,6,6] x) => (float[2,32,3,3] y) { z = Relu(x) a = Conv(z, p, f) h = LeakyRelu <alpha=0.3> (a)
        c = Conv <group=32, strides=[2,2], pads=[1,1,1,1]> (h, o, f) y = Relu(c) }""",
        {"p": normal(32, 16, 1, 1) / 4, "o": normal(32, 1, 3, 3) / 3, "f": normal(32)}, {"x": normal(2, 16, 6, 6)},
        "expand_depthwise",
    ),
    "upsampled beside another": (
        """(float[2,16,6,6] x) => (float[2,32,6,6] y) { z = MaxPool <kernel_shape=[2,3], strides=[2,3]> (x)
        c = Conv(x, v) u = Resize <mode="nearest",
        coordinate_transformation_mode="asymmetric", nearest_mode="floor"> (z, , t) y = Concat <axis=1> (u, c) }""",
        {"v": normal(16, 16, 1, 1, seed=3) / 4, "t": np.array([1, 1, 2, 3], np.float32)},
        {"x": normal(2, 16, 6, 6)}, "concat",
    ),
    "picture": (
        "(float[2,3,6,6] x) => (float[2,16,6,6] y) { y = Conv <pads=[1,1,1,1]> (x, w) }",
        {"w": normal(16, 3, 3, 3, seed=1) / 5}, {"x": normal(2, 3, 6, 6)}, "pad",
    ),
    "shortcut": (
        """(float[2,16,7,6] x) => (float[2,32,4,3] y) { a = Conv <pads=[1,1,1,1], strides=[2,2]> (x, w, b)
        r = Relu(a) c = Conv(r, p) d = Conv <strides=[2,2]> (x, e, f) s = Add(c, d) y = Relu(s) }""",
        WIDE | {"p": SMALL["p"], "e": normal(32, 16, 1, 1, seed=10) / 4, "f": normal(32, seed=11)},
        {"x": normal(2, 16, 7, 6)},
        "conv_shortcut",
    ),
    "attention": (
        """(float[2,5,32] x) => (float[2,5,32] y) {
        q = Reshape(x, s) a = Transpose<perm=[0,2,1,3]>(q) b = Transpose<perm=[0,2,3,1]>(q)
        m = MatMul(a, b) t = Mul(m, c) p = Softmax<axis=-1>(t) o = MatMul(p, a) r = Transpose<perm=[0,2,1,3]>(o)
        y = Reshape(r, f) }""",
        {"s": np.array([2, 5, 2, 16]), "f": np.array([2, 5, 32]), "c": np.float32(0.25)},
        {"x": normal(2, 5, 32)},
        "attention",
    ),
    "softmax behind a layer across heads": (
        """(float[2,3,5,4] q, float[2,3,4,7] k) => (float[2,5,7,6] y)
        { m = MatMul(q, k) t = Transpose <perm=[0,2,3,1]> (m) a = MatMul(t, w) y = Softmax<axis=2>(a) }""",
        {"w": normal(3, 6)}, {"q": normal(2, 3, 5, 4), "k": normal(2, 3, 4, 7)}, "softmax",
    ),
    "products in the order of tokens": (
        """(float[2,3,5,4] q, float[2,3,4,7] k) => (float[2,5,6] y)
        { m = MatMul(q, k) t = Transpose <perm=[0,2,1,3]> (m) a = Reshape(t, s) y = MatMul(a, w) }""",
        {"s": np.array([2, 5, 21]), "w": normal(21, 6) / 4}, {"q": normal(2, 3, 5, 4), "k": normal(2, 3, 4, 7)},
        "matmul",
    ),
    "logarithms": ("(float[7,20] x) => (float[7,20] y) { y = LogSoftmax(x) }", {}, {"x": normal(7, 20)}, "log_softmax"),
    "attention of channels": (
        """(float[2,20,32] x) => (float[2,20,32] y) {
        q = Reshape(x, s) a = Transpose<perm=[0,2,3,1]>(q) b = Transpose<perm=[0,2,1,3]>(q)
        m = MatMul(a, b) t = Mul(m, c) p = Softmax<axis=-1>(t) o = MatMul(p, a) r = Transpose<perm=[0,3,1,2]>(o)
        y = Reshape(r, f) }""",
        {"s": np.array([2, 20, 2, 16]), "f": np.array([2, 20, 32]), "c": np.float32(0.25)},
        {"x": normal(2, 20, 32)},
        "channel_attention",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_step_of_ours_computes_what_the_model_does(name: str, device: str) -> None:
    text, weights, inputs, kind = MODELS[name]
    model = graph(text, weights, opset=20)
    executor = Executor(*lowered(model, inputs), device, "fp16", OURS)
    ours = [bound for bound in executor.program if bound.implementation in OURS]
    assert kind in {bound.kind for bound in ours}, [(bound.kind, bound.implementation) for bound in executor.program]
    found = executor.run({key: torch.from_numpy(each).to(device) for key, each in inputs.items()})["y"]
    assert error(found.cpu().numpy(), run(model, inputs)["y"]) < 2e-3


@pytest.mark.parametrize("name", ["two layers of tokens", "squeeze, excite and two layers"])
def test_two_layers_may_have_their_channels_in_pieces(name: str, device: str) -> None:
    text, weights, inputs, _ = MODELS[name]
    lowered_, found_weights = lowered(graph(text, weights, opset=20), inputs)
    (step,) = (step for step in lowered_.steps if step.kind == "mlp")
    choices = {step.name: Choice("triton_chunks", (16, 16, 4, 2))}
    executor = Executor(lowered_, found_weights, device, "fp16", choices=choices)
    found = executor.run({key: torch.from_numpy(each).to(device) for key, each in inputs.items()})["y"]
    assert error(found.cpu().numpy(), run(graph(text, weights, opset=20), inputs)["y"]) < 2e-3


def test_an_expansion_may_be_two_kernels(device: str) -> None:
    text, weights, inputs, kind = MODELS["a layer and a depthwise convolution that strides"]
    lowered_, found_weights = lowered(graph(text, weights, opset=20), inputs)
    (step,) = (step for step in lowered_.steps if step.kind == kind)
    choices = {step.name: Choice("triton_pair", (16, 16, 16, 4, 2, 1, 8, 4, 16, 2, 1))}
    executor = Executor(lowered_, found_weights, device, "fp16", choices=choices)
    found = executor.run({key: torch.from_numpy(each).to(device) for key, each in inputs.items()})["y"]
    assert error(found.cpu().numpy(), run(graph(text, weights, opset=20), inputs)["y"]) < 2e-3


def test_a_large_sum_of_blocks_is_cut(device: str) -> None:
    text = EXCITED.format(group=16, rest="y = Mul(x, g)").replace("[2,16,6,6]", "[2,16,64,80]")
    model, inputs = graph(text, SMALL, opset=20), {"i": normal(2, 16, 64, 80)}
    lowered_, weights = lowered(model, inputs)
    (step,) = (step for step in lowered_.steps if step.kind == "conv_gate")
    choices = {step.name: Choice("triton_depthwise", (2, 16, 1, 1))}
    executor = Executor(lowered_, weights, device, "fp16", choices=choices)
    (site,) = (site for site in executor.sites if site.step.kind == "conv_gate")
    kernels = [each.kernel.__name__ for each in launch(site, "triton_depthwise", (2, 16, 1, 1))]
    assert kernels == ["depthwise_kernel", "squeeze_excite_kernel"]
    assert executor.needs.counters == 2


@pytest.mark.parametrize("shortcut", [False, True])
@pytest.mark.parametrize("name", ["triton", "triton_row"])
def test_a_bottleneck_of_ours_computes_what_the_model_does(name: str, shortcut: bool, device: str) -> None:
    text = """(float[1,64,5,4] i) => (float[1,64,5,4] y) {
        g = Conv <pads=[1,1,1,1]> (i, v) x = Relu(g) {added}
        a = Conv <pads=[1,1,1,1]> (x, w, b) h = Relu(a) c = Conv(h, p, q) s = Add(c, d) z = Relu(s)
        n = Conv(z, e, b) y = HardSigmoid <alpha=0.3> (n) }"""
    added = "d = Conv(x, u, q)" if shortcut else "k = Conv <pads=[1,1,1,1]> (x, o) d = LeakyRelu(k)"
    weights = {
        "v": normal(64, 64, 3, 3, seed=1) / 24, "w": normal(64, 64, 3, 3, seed=2) / 24, "b": normal(64, seed=3),
        "p": normal(128, 64, 1, 1, seed=4) / 8, "q": normal(128, seed=5), "u": normal(128, 64, 1, 1, seed=6) / 8,
        "o": normal(128, 64, 3, 3, seed=7) / 24, "e": normal(64, 128, 1, 1, seed=8) / 11,
    }  # fmt: skip
    body = text.replace("{added}", added)
    used = {key: each for key, each in weights.items() if f" {key}," in body or f" {key})" in body}
    model, inputs = graph(body, used), {"i": normal(1, 64, 5, 4)}
    lowered_, found_weights = lowered(model, inputs)
    joined = join_blocks(lowered_, fewest_pixels=1)
    (step,) = (step for step in joined.steps if step.kind == "bottleneck_next")
    executor = Executor(joined, found_weights, device, "fp16", choices={step.name: Choice(name, ())})
    found = executor.run({key: torch.from_numpy(each).to(device) for key, each in inputs.items()})["y"]
    assert error(found.cpu().numpy(), run(model, inputs)["y"]) < 2e-3


PAIRS = ("two layers", "two layers of tokens", "squeeze, excite and two layers")


@pytest.mark.parametrize("split", [1, 2])
@pytest.mark.parametrize("name", PAIRS)
def test_two_layers_may_be_two_products(name: str, split: int, device: str) -> None:
    text, weights, inputs, _ = MODELS[name]
    lowered_, found_weights = lowered(graph(text, weights, opset=20), inputs)
    (step,) = (step for step in lowered_.steps if step.kind == "mlp")
    config = (16, 16, 16, 4, 2, 1, 8, 16, 16, 16, 4, 2, split, 8)
    executor = Executor(lowered_, found_weights, device, "fp16", choices={step.name: Choice("triton_pair", config)})
    assert (executor.needs.counters > 0) is (split > 1)
    found = executor.run({key: torch.from_numpy(each).to(device) for key, each in inputs.items()})["y"]
    assert error(found.cpu().numpy(), run(graph(text, weights, opset=20), inputs)["y"]) < 2e-3
    (site,) = (site for site in executor.sites if site.step.kind == "mlp")
    kernels = [each.kernel.__name__ for each in launch(site, "triton_pair", config)]
    gated = ["apply_gate_kernel"] if step.operand("gate") is not None else []
    assert kernels == [*gated, "implicit_gemm_kernel", "implicit_gemm_kernel"]


def test_a_split_sum_is_shared_in_the_executors_workspace(device: str) -> None:
    model = graph(MODELS["residual"][0], WIDE)
    lowered_, weights = lowered(model, X)
    name = next(step.name for step in lowered_.steps if step.kind == "conv")
    split = Choice("triton", (16, 16, 16, 4, 2, 3, 8))
    executor = Executor(lowered_, weights, device, "fp16", choices={name: split})
    assert executor.needs.counters > 0
    x = {"x": torch.from_numpy(X["x"]).to(device)}
    for _ in range(2):  # the counters are left as they were found
        assert error(executor.run(x)["y"].cpu().numpy(), run(model, X)["y"]) < 2e-3


def test_a_configuration_of_the_wrong_length_is_refused(device: str) -> None:
    lowered_, weights = lowered(graph(MODELS["relu"][0], WIDE), X)
    name = next(step.name for step in lowered_.steps if step.kind == "conv")
    with pytest.raises(InvalidArgument, match=r"can't have the configuration \(1, 2\)"):
        Executor(lowered_, weights, device, "fp16", choices={name: Choice("triton", (1, 2))})


def test_ours_do_not_fit_what_they_cannot_compute(device: str) -> None:
    add_triton()
    lowered_, weights = lowered(graph(MODELS["relu"][0], WIDE), X)
    for precision, there in (("fp32", False), ("fp16", True), ("bf16", True)):
        executor = Executor(lowered_, weights, device, precision)
        (site,) = (site for site in executor.sites if site.step.kind == "conv")
        assert ("triton" in fitting(site)) is there
        assert "triton_depthwise" not in fitting(site)


def test_a_launch_is_early_only_behind_another_of_ours(device: str) -> None:
    lowered_, weights = lowered(graph(MODELS["relu"][0], WIDE), X)
    executor = Executor(lowered_, weights, device, "fp16", OURS, early_launch=True)
    names = [bound.implementation.startswith("triton") for bound in executor.program]
    assert [site.early and site.behind for site in executor.sites] == [
        index > 0 and names[index - 1] for index in range(len(names))
    ]  # fmt: skip


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("early_launch", [False, True])
def test_captures_with_a_split_sum_replay_side_by_side(early_launch: bool) -> None:
    model = graph(
        "(float[1,16,6,6] x) => (float[1,16,6,6] y) "
        "{ a = Conv <pads=[1,1,1,1]> (x, w, b) r = Relu(a) y = Conv <pads=[1,1,1,1]> (r, w, b) }",
        WIDE,
    )
    lowered_, weights = lowered(model, X)
    split = Choice("triton", (16, 16, 16, 4, 2, 3, 8))
    choices = {step.name: split for step in lowered_.steps if step.kind == "conv"}
    executor = Executor(lowered_, weights, "cuda", "fp16", choices=choices, early_launch=early_launch)
    first, second = (site for site in executor.sites if site.step.kind == "conv")
    assert first.early == second.early == (second.early and second.behind) == early_launch
    captures = [(executor.capture(), sign) for sign in (1, -1)]
    for captured, sign in captures:
        captured.inputs["x"].copy_(torch.from_numpy(sign * X["x"]))
    torch.cuda.synchronize()
    for _ in range(100):
        for captured, _ in captures:
            captured.replay()
    torch.cuda.synchronize()
    for captured, sign in captures:
        assert error(captured.outputs["y"].cpu().numpy(), run(model, {"x": sign * X["x"]})["y"]) < 3e-3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_tuned_executor_captures_and_computes_the_model() -> None:
    model = graph(MODELS["gate"][0], MODELS["gate"][1])
    inputs = MODELS["gate"][2]
    lowered_, weights = lowered(model, inputs)
    with Compilers(2) as compilers:
        result = tune(Executor(lowered_, weights, "cuda", "fp16"), seconds=60.0, limit=2, compilers=compilers)
    ours = [choice for row in result.rows for choice in row.times if choice.implementation.startswith("triton")]
    assert {row.site.step.kind for row in result.rows if row.times.keys() & set(ours)} >= {"conv", "reduce"}
    captured = Executor(lowered_, weights, "cuda", "fp16", choices=result.choices).capture()
    captured.inputs["x"].copy_(torch.from_numpy(inputs["x"]))
    torch.cuda.synchronize()
    captured.replay()
    torch.cuda.synchronize()
    assert error(captured.outputs["y"].cpu().numpy(), run(model, inputs)["y"]) < 3e-3


PROGRAM = """
import os, sys
from pathlib import Path
import torch
from penstock.engine.cuda.kernels.implicit_gemm import gemm_launch
from penstock.engine.cuda.kernels.tiles import Tile
from penstock.engine.cuda.implementations import add_triton
from penstock.engine.cuda.precompile import Compilers

def t(*shape):
    return torch.empty(shape, dtype=torch.float16, device="meta")

def kept():
    return sorted(str(each) for each in Path(os.environ["TRITON_CACHE_DIR"]).rglob("*.cubin"))

if __name__ == "__main__":
    add_triton()  # as a tuner does: what our kernels tell Triton is part of its cache's keys
    launch = gemm_launch(t(16, 64), t(32, 64), out=t(16, 32), config=Tile(16, 32, 32, 4, 2))
    wrong = gemm_launch(t(16, 64), t(32, 64), out=t(16, 32), config=Tile(17, 32, 32, 4, 2))
    with Compilers(1) as compilers:
        assert compilers.submit(launch).result() == ""
        assert compilers.submit(wrong).result() != ""
    before = kept()
    assert len(before) == 1, before
    launch.build()
    assert kept() == before
    print("done")
"""


@pytest.mark.slow
def test_what_another_process_compiled_is_found_in_the_cache(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    root = Path(__file__).parents[4]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(root / "python")}
    done = subprocess.run(
        [sys.executable, str(program)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout.strip().endswith("done"), done.stderr[-2000:]
