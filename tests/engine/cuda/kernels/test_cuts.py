"""Pictures cut into patches from their planes, against ONNX Runtime and against themselves."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch

from penstock.engine.cuda.choices import Choice
from penstock.engine.cuda.executor import Executor
from penstock.engine.cuda.kernels.cuts import are_side_by_side, cut_patches_launch
from tests.engine.cuda.reference import assert_agrees, error, lowered
from tests.graph.small import graph, normal, run

pytestmark = pytest.mark.torch

WEIGHTS = {
    "w": normal(8, 3, 6, 5, seed=1) / 9,
    "small": normal(8, 3, 2, 2, seed=4),
    "b": normal(8, seed=2),
    "flat": normal(8, 7, seed=3),
}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("size", [(12, 15), (14, 19), (6, 5)], ids=str)
def test_a_first_layer_of_patches_is_one_copy_and_one_product(size: tuple[int, int], batch: int, device: str) -> None:
    rows, columns = size[0] // 6, size[1] // 5
    model = graph(
        f"(float[{batch},3,{size[0]},{size[1]}] x) => (float[{batch},8,{rows},{columns}] y) "
        "{ c = Conv <strides=[6,5]> (x, w, b) y = Relu(c) }",
        WEIGHTS,
    )
    inputs = {"x": normal(batch, 3, *size, seed=3)}
    found = assert_agrees(model, model, inputs, 2e-6)
    assert [step.kind for step in found.steps][:2] == ["copy", "gemm"]
    steps, weights = lowered(model, inputs)
    executor = Executor(steps, weights, device, "fp16", choices={steps.steps[0].name: Choice("triton_patches")})
    answer = executor.run({"x": torch.from_numpy(inputs["x"]).to(device)})["y"]
    assert error(answer.float().cpu().numpy(), run(model, inputs)["y"]) < 2e-3


@pytest.mark.parametrize(
    "layer",
    [
        "c = Conv <strides=[6,5], pads=[0,0,6,0]> (x, w, b)",
        "c = Conv <strides=[5,5]> (x, w, b)",
        "c = Conv <strides=[2,2]> (x, small, b)",
    ],
)
def test_others_stay_convolutions(layer: str) -> None:
    model = graph(f"(float[1,3,12,15] x) => (float[1,8,a,b] y) {{ {layer} y = Relu(c) }}", WEIGHTS)
    found = assert_agrees(model, model, {"x": normal(1, 3, 12, 15, seed=3)}, 2e-6)
    assert "conv" in [step.kind for step in found.steps]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_patches_are_cut(dtype: torch.dtype, device: str) -> None:
    x = torch.randn(2, 3, 30, 40, device=device).to(dtype)
    seen = x[:, :, :28].view(2, 3, 28, 5, 8).unflatten(2, (4, 7)).permute(0, 2, 4, 1, 3, 5)
    assert are_side_by_side(tuple(seen.shape), seen.stride())
    out = torch.full((2, 4, 5, 3 * 7 * 8), float("nan"), device=device, dtype=torch.float16)
    cut_patches_launch(seen, out=out).run()
    assert torch.equal(out, seen.reshape(2, 4, 5, -1).half())


@pytest.mark.parametrize("wrong", ["apart", "too small"])
def test_what_can_not_be_cut_is_refused(wrong: str, device: str) -> None:
    x = torch.randn(1, 2, 2, 3, 4, 4, device=device)
    if wrong == "too small":
        x = torch.randn(1, 3, 8, 8, device=device).view(1, 3, 2, 4, 2, 4).permute(0, 2, 4, 1, 3, 5)
    with pytest.raises(ValueError, match="x: expected" if wrong == "apart" else "out: expected"):
        cut_patches_launch(x, out=torch.empty(1, 2, 2, 47, device=device))
