"""The executor: precisions, what it refuses, its implementations, and the same function in other forms."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from penstock.engine.cuda.executor import Executor
from penstock.engine.cuda.implementations import IMPLEMENTATIONS, Implementation, register, writing
from penstock.engine.cuda.sites import Run, RunInto, Site
from penstock.engine.lowered import KINDS, LoweredGraph, from_json, to_json
from penstock.errors import AlreadyExists, InvalidArgument, Unsupported
from penstock.graph.lowering import Weights
from tests.engine.cuda.reference import error, execute, lowered
from tests.graph.small import graph, normal, run

pytestmark = pytest.mark.torch

NETWORK = """(float[N,3,16,16] x) => (float[N,5] y) {
    c = Conv <pads=[1,1,1,1]> (x, w1, b1) r = Relu(c) d = Conv(r, w2) a = Add(d, r) s = Sigmoid(a) m = Mul(a, s)
    p = GlobalAveragePool(m) f = Flatten(p) y = Gemm <transB=1> (f, w3, b3) }"""
WEIGHTS = {
    "w1": normal(8, 3, 3, 3, seed=1) / 4,
    "b1": normal(8, seed=2),
    "w2": normal(8, 8, 1, 1, seed=3) / 2,
    "w3": normal(5, 8, seed=4),
    "b3": normal(5, seed=5),
}
MODEL = graph(NETWORK, WEIGHTS)
X = {"x": normal(2, 3, 16, 16)}


@pytest.fixture(scope="module")
def small() -> tuple[LoweredGraph, Weights]:
    return lowered(MODEL, X)


# 24 bits are good for 6e-8 of each sum, 11 for 5e-4, 8 for 4e-3; a few layers add up.
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("fp16", 3e-3), ("bf16", 2e-2)])
def test_a_precision_is_as_exact_as_its_type(
    small: tuple[LoweredGraph, Weights], precision: str, tolerance: float
) -> None:
    found = execute(*small, X, precision)["y"]
    assert found.dtype == np.float32
    off = error(found, run(MODEL, X)["y"])
    assert off < tolerance
    assert precision == "fp32" or off > 1e-5  # it did compute in fewer bits


def test_a_graph_read_back_computes_the_same(small: tuple[LoweredGraph, Weights]) -> None:
    graph_, weights = small
    assert np.array_equal(execute(from_json(to_json(graph_)), weights, X)["y"], execute(graph_, weights, X)["y"])


def test_a_mask_that_16_bits_cannot_hold_masks_and_makes_no_nan() -> None:
    model = graph(
        """(float[2,3,4] q, float[2,3] m) => (float[2,3,4] y) {
        o = Sub(one, m) b = Mul(o, big) u = Unsqueeze(b, at)
        k = Transpose<perm=[0,2,1]>(q) s = MatMul(q, k) t = Add(s, u) p = Softmax<axis=-1>(t) y = MatMul(p, q) }""",
        {"one": np.float32(1), "big": np.float32(-3.4e38), "at": np.array([1])},
    )
    inputs = {"q": normal(2, 3, 4), "m": np.array([[1, 1, 0], [1, 1, 1]], np.float32)}
    lowered_, weights = lowered(model, inputs)
    expected = run(model, inputs)["y"]
    for precision, tolerance in (("fp32", 1e-6), ("fp16", 3e-3), ("bf16", 2e-2)):
        assert error(execute(lowered_, weights, inputs, precision)["y"], expected) < tolerance


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "'x' is missing"),
        ({"x": torch.zeros(2, 3, 16, 8)}, r"\[2, 3, 16, 16\], got"),
        ({"x": torch.zeros(2, 3, 16, 16, dtype=torch.float16)}, "FP32"),
        ({"x": torch.zeros(2, 16, 16, 3).permute(0, 3, 1, 2)}, "contiguous"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    small: tuple[LoweredGraph, Weights], inputs: Mapping[str, torch.Tensor], message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        Executor(*small).run(inputs)


def test_weights_that_do_not_fit_are_refused(small: tuple[LoweredGraph, Weights]) -> None:
    graph_, weights = small
    with pytest.raises(InvalidArgument, match="got nothing"):
        Executor(graph_, {})
    with pytest.raises(InvalidArgument, match="no precision"):
        Executor(graph_, weights, "cpu", "fp13")


def test_a_step_is_executed_by_the_implementation_it_names(small: tuple[LoweredGraph, Weights]) -> None:
    graph_, weights = small
    calls: list[str] = []

    def counting(site: Site) -> Run:
        calls.append(site.step.name)
        return IMPLEMENTATIONS["conv"]["cudnn"].bind(site)

    register("conv", "counting", Implementation(counting))
    try:
        with pytest.raises(AlreadyExists):
            register("conv", "counting", Implementation(counting))
        steps = tuple(
            dataclasses.replace(step, implementation="counting" if step.kind == "conv" else "") for step in graph_.steps
        )
        named = dataclasses.replace(graph_, steps=steps)
        assert np.array_equal(execute(named, weights, X)["y"], execute(graph_, weights, X)["y"])
        assert len(calls) == 2
    finally:
        del IMPLEMENTATIONS["conv"]["counting"]
    with pytest.raises(Unsupported, match="wants 'counting', here there are cudnn"):
        Executor(named, weights)


def test_an_implementation_that_does_not_fit_the_device_is_not_taken(small: tuple[LoweredGraph, Weights]) -> None:
    executor = Executor(*small, preferred=("cudnn_fused", "torch_narrow"))
    assert {bound.implementation for bound in executor.program if bound.kind == "conv"} == {"cudnn"}
    if torch.cuda.is_available():
        pytest.skip("the same steps on a GPU are another test's")


def test_a_kernel_that_writes_where_it_is_told_can_be_added() -> None:
    model = graph("(float[2,3] x) => (float[2,3] y) { a = Exp(x) y = Mul(a, x) }")
    lowered_, weights = lowered(model, {"x": normal(2, 3)})

    def bind(site: Site) -> RunInto:
        def run(operands: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> None:
            torch.mul(operands[0].exp(), operands[0], out=outputs[0])

        assert [line.name for line in site.step.program] == ["exp", "mul"]
        return run

    register("pointwise", "writes", Implementation(writing(bind)))
    try:
        executor = Executor(lowered_, weights, preferred=("writes",))
        assert [bound.implementation for bound in executor.program] == ["writes"]
        found = executor.run({"x": torch.from_numpy(normal(2, 3))})["y"].numpy()
        assert error(found, run(model, {"x": normal(2, 3)})["y"]) < 1e-6
    finally:
        del IMPLEMENTATIONS["pointwise"]["writes"]


@pytest.mark.parametrize("name", ["cublas_residual"])
def test_every_way_of_a_product_gives_the_same(name: str) -> None:
    text = "(float[2,4,6] x) => (float[2,4,6] y) { a = MatMul(x, w) b = Add(a, c) y = Add(b, x) }"
    model = graph(text, {"w": normal(6, 6), "c": normal(6, seed=1)})
    inputs = {"x": normal(2, 4, 6)}
    graph_, weights = lowered(model, inputs)
    executor = Executor(graph_, weights, preferred=(name,))
    assert [bound.implementation for bound in executor.program] == [name]
    assert error(executor.run({"x": torch.from_numpy(inputs["x"])})["y"].numpy(), run(model, inputs)["y"]) < 1e-6


def test_every_kind_of_step_has_an_implementation() -> None:
    assert IMPLEMENTATIONS.keys() == KINDS.keys()


def test_nothing_is_kept_longer_than_it_is_read(small: tuple[LoweredGraph, Weights]) -> None:
    executor = Executor(*small)
    outputs = {slot for bound in executor.program for slot in bound.writes}
    freed = [slot for bound in executor.program for slot in bound.frees]
    assert len(freed) == len(set(freed))
    assert len(outputs - set(freed)) == 1  # the answer


def test_the_module_is_the_same_function(small: tuple[LoweredGraph, Weights]) -> None:
    executor = Executor(*small)
    x = torch.from_numpy(X["x"])
    (found,) = executor.module()(x)
    assert torch.equal(found, executor.run({"x": x})["y"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("preferred", [(), ("cudnn_fused", "cublas_residual", "torch_narrow")])
def test_captured_graphs_replay_side_by_side(small: tuple[LoweredGraph, Weights], preferred: tuple[str, ...]) -> None:
    executor = Executor(*small, "cuda", "fp16", preferred)
    expected = run(MODEL, X)["y"]
    first, second = executor.capture(), executor.capture()
    first.inputs["x"].copy_(torch.from_numpy(X["x"]))
    second.inputs["x"].copy_(-torch.from_numpy(X["x"]))
    torch.cuda.synchronize()
    for _ in range(3):
        first.replay()
        second.replay()
    torch.cuda.synchronize()
    assert error(first.outputs["y"].cpu().numpy(), expected) < 3e-3
    other = run(MODEL, {"x": -X["x"]})["y"]
    assert error(second.outputs["y"].cpu().numpy(), other) < 3e-3
