"""Attention of windows: rows of length one, a factor for each head, masks that repeat, against torch in float64."""

from dataclasses import dataclass

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch

from penstock.engine.cuda.executor import Executor
from penstock.engine.cuda.implementations import add_triton, fitting
from penstock.engine.cuda.kernels.attention import AttentionTile, attention, attention_launch
from penstock.engine.lowered import Input, LoweredGraph, Operand, Output, Step, Value, View, Weight
from tests.engine.cuda.reference import error

pytestmark = pytest.mark.torch

EPSILON = 1e-12


@dataclass(frozen=True)
class Windows:
    batch: int
    tokens: int
    heads: int
    size: int
    period: int
    """Of the mask; 0: there is none."""
    tile: AttentionTile


WINDOWS = {
    "64 tokens": Windows(4, 64, 3, 32, 2, AttentionTile(64, 64, 4)),
    "64 tokens in steps": Windows(2, 64, 1, 32, 1, AttentionTile(32, 16, 4)),
    "49 tokens": Windows(6, 49, 2, 32, 3, AttentionTile(64, 64, 4)),
    "49 tokens in steps": Windows(2, 49, 2, 24, 2, AttentionTile(16, 32, 4)),
    "no mask": Windows(2, 20, 2, 15, 0, AttentionTile(16, 32, 4)),
}


def right(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    scales: torch.Tensor | None,
    unit: float | None,
) -> torch.Tensor:
    """[B, T, H, D] from the same."""
    q, k, v = (each.double().transpose(1, 2) for each in (q, k, v))
    if unit is not None:
        q, k = (torch.nn.functional.normalize(each, dim=-1, eps=unit) for each in (q, k))
    scores = q @ k.transpose(-1, -2)
    if scales is not None:
        scores = scores * scales.double()[:, None, None]
    if mask is not None:
        scores = scores + mask.double().repeat(len(q) // len(mask), 1, 1, 1)
    return (scores.softmax(-1) @ v).transpose(1, 2)


def drawn(windows: Windows, device: str, dtype: torch.dtype = torch.float16) -> tuple[torch.Tensor, torch.Tensor]:
    """What a projection made, with lengths from 1e-3 to 1e3, and a mask that hides a third."""
    packed = torch.randn(windows.batch, windows.tokens, 3, windows.heads, windows.size, device=device)
    packed[:, :, :2] *= 10.0 ** torch.randint(-2, 3, (*packed.shape[:1], packed.shape[1], 2, 1, 1), device=device)
    mask = torch.randn(max(windows.period, 1), windows.heads, windows.tokens, windows.tokens, device=device)
    mask -= 100.0 * (torch.rand(mask.shape, device=device) < 0.3)
    return packed.to(dtype), mask.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", WINDOWS)
def test_cosines_with_a_factor_for_each_head(name: str, dtype: torch.dtype, device: str) -> None:
    if dtype == torch.bfloat16 and device == "cpu":
        pytest.skip("Triton's interpreter multiplies the bits of bfloat16")
    windows = WINDOWS[name]
    packed, made = drawn(windows, device, dtype)
    packed[0, 1, :2] = 0  # a row without a length, whose scores are 0
    q, k, v = packed.unbind(2)
    mask = made if windows.period else None
    scales = torch.linspace(3.0, 40.0, windows.heads, device=device)
    out = torch.full(q.shape, float("nan"), device=device, dtype=dtype)
    attention(q, k, v, out=out, config=windows.tile, scale=1.0, mask=mask, scales=scales, unit=EPSILON)
    expected = right(q, k, v, mask, scales, EPSILON)
    assert error(out.double().cpu().numpy(), expected.cpu().numpy()) < (1e-3 if dtype == torch.float16 else 8e-3)


@pytest.mark.parametrize("heads", [1, 2])
def test_a_mask_repeats_along_the_batch(heads: int, device: str) -> None:
    """One of all heads, too, whose scores are scaled as ever."""
    windows = Windows(6, 40, 2, 16, 3, AttentionTile(32, 64, 4))
    packed, mask = drawn(windows, device)
    packed[:, :, :2] = torch.randn(packed[:, :, :2].shape, device=device)
    q, k, v = packed.unbind(2)
    out = torch.full(q.shape, float("nan"), device=device, dtype=torch.float16)
    attention(q, k, v, out=out, config=windows.tile, scale=0.25, mask=mask[:, :heads])
    expected = right(q, k, v, mask[:, :heads], torch.full((2,), 0.25, device=device), None)
    assert (out.double() - expected).abs().max() < 4e-3


def test_lengths_of_rows_that_sixteen_bits_can_not_square(device: str) -> None:
    """Squares of 2e-6 are below FP16's smallest number, those of 3e4 above its largest."""
    q, k, v = torch.randn(2, 16, 3, 1, 32, device=device).unbind(2)
    q, k, v = (q.clamp(-3, 3) * 1e4).half(), (k * 2e-6).half(), v.half()
    out = torch.full(q.shape, float("nan"), device=device, dtype=torch.float16)
    attention(q, k, v, out=out, config=AttentionTile(16, 16, 4), scale=8.0, unit=EPSILON)
    expected = right(q, k, v, None, torch.full((1,), 8.0, device=device), EPSILON)
    assert (out.double() - expected).abs().max() < 4e-3


@pytest.mark.parametrize(
    ("mask", "scales", "message"),
    [
        (torch.zeros(4, 1, 5, 5), None, "4 of them do not repeat to 6"),
        (torch.empty_strided((6, 2, 5, 5), (2**29, 0, 0, 0), device="meta"), None, "2\\*\\*31"),
        (None, torch.zeros(3), "scales: expected floats of shape"),
        (None, torch.zeros(2, dtype=torch.int32), "scales: expected floats"),
    ],
    ids=["period", "far", "heads", "integers"],
)
def test_what_does_not_fit_is_not_launched(
    mask: torch.Tensor | None, scales: torch.Tensor | None, message: str
) -> None:
    q, k, v = torch.zeros(6, 5, 3, 2, 16, dtype=torch.float16).unbind(2)
    with pytest.raises(ValueError, match=message):
        attention_launch(
            q, k, v, out=torch.zeros(6, 5, 2, 16), config=AttentionTile(16, 16, 4), scale=1.0, mask=mask, scales=scales
        )


def step(windows: Windows, **types: str) -> LoweredGraph:
    """One step over a packed projection."""
    batch, tokens, heads, size = windows.batch, windows.tokens, windows.heads, windows.size
    strides = (3 * tokens * heads * size, size, 3 * heads * size, 1)
    views = [View((batch, heads, tokens, size), strides, part * heads * size) for part in range(3)]
    mask, out = (windows.period, heads, tokens, tokens), (batch, tokens, heads, size)
    operands = (
        *(Operand(types.get(role, "x"), role, view) for role, view in zip("qkv", views, strict=True)),
        Operand("mask", "mask"),
        Operand("scales", "scales"),
    )
    x = Value((batch, tokens, 3, heads, size), "FP32")
    return LoweredGraph(
        (Input("x", x.shape, "FP32"),),
        (Output("y", "y", out),),
        {"x": x, "y": Value(out, "FP32")},
        {"mask": Weight(mask, "FP32"), "scales": Weight((heads,), "FP32")},
        (Step("s", "attention", operands, ("y",), {"scale": 1.0, "unit": EPSILON}),),
    )


@pytest.mark.parametrize(("implementation", "precision"), [("sdpa", "fp32"), ("sdpa", "fp16"), ("triton", "fp16")])
def test_every_implementation_computes_the_step(implementation: str, precision: str, device: str) -> None:
    windows = WINDOWS["49 tokens"]
    packed, mask = drawn(windows, device, torch.float32)
    scales = torch.linspace(3.0, 40.0, windows.heads)
    weights = {"mask": mask.cpu().numpy(), "scales": scales.numpy()}
    executor = Executor(step(windows), weights, device, precision, (implementation,))
    assert [bound.implementation for bound in executor.program if bound.kind == "attention"] == [implementation]
    assert executor.weights["scales"].dtype == torch.float32
    found = executor.run({"x": packed})["y"]
    expected = right(*packed.unbind(2), mask, scales.to(device), EPSILON)
    tolerance = 1e-6 if precision == "fp32" else 6e-3  # of scores up to 40, from masks and rows in sixteen bits
    assert error(found.cpu().numpy(), expected.cpu().numpy()) < tolerance


def test_a_grid_that_no_launch_takes_is_not_offered(device: str) -> None:
    add_triton()
    for batch, offered in ((8, True), (65536, False)):
        windows = Windows(batch, 4, 1, 16, 4, AttentionTile(16, 16, 4))
        executor = Executor(step(windows), {"mask": torch.zeros(4, 1, 4, 4), "scales": torch.ones(1)}, device, "fp16")
        assert ("triton" in fitting(executor.sites[-1])) == offered
