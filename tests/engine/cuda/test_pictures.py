"""A picture, its stem and the pool as one step: computed as the model does, and which kernels of ours there are."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from penstock.engine.cuda import triton_steps  # noqa: E402
from penstock.engine.cuda.executor import Executor  # noqa: E402
from penstock.engine.cuda.sites import Site  # noqa: E402
from tests.engine.cuda.reference import error, execute, lowered  # noqa: E402
from tests.graph.small import graph, normal, run  # noqa: E402

pytestmark = pytest.mark.torch

TEXT = """(float[2,3,24,32] x) => (float[2,64,6,8] y) {
    a = Conv <pads=[3,3,3,3], strides=[2,2]> (x, w, b) r = Relu(a)
    y = MaxPool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]> (r) }"""
WEIGHTS = {"w": normal(64, 3, 7, 7, seed=1) / 12, "b": normal(64, seed=2)}
INPUTS = {"x": normal(2, 3, 24, 32, seed=3)}


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-6), ("fp16", 2e-3), ("bf16", 2e-2)])
def test_it_computes_what_the_model_does(precision: str, tolerance: float) -> None:
    model = graph(TEXT, WEIGHTS, opset=20)
    found, weights = lowered(model, INPUTS)
    assert found.steps[0].kind == "picture_pool"
    assert error(execute(found, weights, INPUTS, precision)["y"], run(model, INPUTS)["y"]) < tolerance


def site(precision: str = "fp16") -> Site:
    executor = Executor(*lowered(graph(TEXT, WEIGHTS, opset=20), INPUTS), "cpu", precision)
    (found,) = (each for each in executor.sites if each.step.kind == "picture_pool")
    return found


KERNELS = {
    "cuda_picture": ["warpgroup_stem"],
    "cuda_units": ["planes_kernel", "warpgroup_stem"],
    "cuda_stem": ["planes_kernel", "stem_pool"],
    "triton_row": ["planes_kernel", "implicit_gemm_kernel", "max_pool_kernel"],
    "triton_resident_row": ["planes_kernel", "resident_conv_kernel", "max_pool_kernel"],
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_of_ours_lay_the_picture_out_before_or_on_the_way(name: str) -> None:
    way, here = triton_steps.WAYS["picture_pool", name], site()
    assert way.types(here)
    for config in way.configs(here):
        assert [each.symbol for each in triton_steps.launch(here, name, config)] == KERNELS[name]
        assert all(each.pdl for each in triton_steps.launch(replace(here, early=True), name, config))


def test_pictures_in_fp32_are_computed_by_others() -> None:
    assert not any(way.types(site("fp32")) for (kind, _), way in triton_steps.WAYS.items() if kind == "picture_pool")
