"""Attention of channels to channels against torch in float64."""

from dataclasses import dataclass

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch

from penstock.engine.cuda.executor import Executor
from penstock.engine.cuda.implementations import add_triton, fitting
from penstock.engine.cuda.kernels.channel_attention import (
    ChannelTile,
    channel_attention,
    channel_attention_launch,
    channel_tiles,
)
from penstock.engine.lowered import Input, LoweredGraph, Operand, Output, Step, Value, View, Weight
from tests.engine.cuda.reference import error

pytestmark = pytest.mark.torch

EPSILON = 1e-12


@dataclass(frozen=True)
class Tokens:
    batch: int
    tokens: int
    heads: int
    size: int
    tile: ChannelTile


TOKENS = {
    "49 tokens": Tokens(2, 49, 3, 32, ChannelTile(64, 1, 4)),
    "49 tokens in steps": Tokens(1, 49, 2, 48, ChannelTile(16, 1, 4)),
    "49 tokens by two": Tokens(2, 49, 1, 12, ChannelTile(16, 2, 4)),
    "40 tokens by more than there are": Tokens(1, 40, 1, 16, ChannelTile(16, 9, 4)),
    "100 channels": Tokens(1, 20, 1, 100, ChannelTile(32, 1, 8)),
    "one channel": Tokens(1, 20, 2, 1, ChannelTile(32, 1, 4)),
}


def right(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, scales: torch.Tensor | None, unit: float | None
) -> torch.Tensor:
    """[B, T, H, D] from the same."""
    q, k, v = (each.double().permute(0, 2, 3, 1) for each in (q, k, v))
    if unit is not None:
        q, k = (torch.nn.functional.normalize(each, dim=-1, eps=unit) for each in (q, k))
    scores = q @ k.transpose(-1, -2) * scale
    if scales is not None:
        scores = scores * scales.double()[:, None, None]
    return (scores.softmax(-1) @ v).permute(0, 3, 1, 2)


def drawn(of: Tokens, device: str, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    """What a projection made, channels with lengths from 1e-2 to 1e2."""
    packed = torch.randn(of.batch, of.tokens, 3, of.heads, of.size, device=device)
    packed[:, :, :2] *= 10.0 ** torch.randint(-2, 3, (of.batch, 1, 2, of.heads, of.size), device=device)
    return packed.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", TOKENS)
def test_cosines_with_a_factor_for_each_head(name: str, dtype: torch.dtype, device: str) -> None:
    if dtype == torch.bfloat16 and device == "cpu":
        pytest.skip("Triton's interpreter multiplies the bits of bfloat16")
    of = TOKENS[name]
    packed = drawn(of, device, dtype)
    packed[0, :, :2, 0, 0] = 0  # a channel without a length, whose scores are 0
    q, k, v = packed.unbind(2)
    scales = torch.linspace(3.0, 40.0, of.heads, device=device)
    out = torch.full(q.shape, float("nan"), device=device, dtype=dtype)
    channel_attention(q, k, v, out=out, config=of.tile, scale=0.5, scales=scales, unit=EPSILON)
    expected = right(q, k, v, 0.5, scales, EPSILON)
    assert error(out.double().cpu().numpy(), expected.cpu().numpy()) < (1e-3 if dtype == torch.float16 else 8e-3)


def test_channels_as_they_are_of_two_widths(device: str) -> None:
    q, k, v = (torch.randn(2, 30, 3, size, device=device).half() for size in (8, 24, 24))
    out = torch.full(q.shape, float("nan"), device=device, dtype=torch.float16)
    channel_attention(q, k, v, out=out, config=ChannelTile(16, 2, 4), scale=0.2)
    assert error(out.double().cpu().numpy(), right(q, k, v, 0.2, None, None).cpu().numpy()) < 1e-3


def test_lengths_of_channels_that_sixteen_bits_can_not_square(device: str) -> None:
    """Squares of 2e-6 are below FP16's smallest number, those of 3e4 above its largest."""
    q, k, v = torch.randn(2, 16, 3, 1, 32, device=device).unbind(2)
    q, k, v = (q.clamp(-3, 3) * 1e4).half(), (k * 2e-6).half(), v.half()
    out = torch.full(q.shape, float("nan"), device=device, dtype=torch.float16)
    channel_attention(q, k, v, out=out, config=ChannelTile(16, 1, 4), scale=8.0, unit=EPSILON)
    assert (out.double() - right(q, k, v, 8.0, None, EPSILON)).abs().max() < 4e-3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"k": torch.zeros(6, 5, 3, 16)}, "k: expected shape"),
        ({"v": torch.zeros(6, 4, 2, 16)}, "v: expected shape"),
        ({"out": torch.zeros(6, 5, 2, 8)}, "out: expected shape"),
        ({"q": torch.zeros(6, 5, 16, 2).transpose(2, 3)}, "q: expected a contiguous last dimension"),
        ({"q": torch.zeros(6, 5, 2, 200)}, "expected at most 128 channels"),
        ({"scales": torch.zeros(3)}, "scales: expected floats of shape"),
        ({"scales": torch.zeros(2, dtype=torch.int32)}, "scales: expected floats"),
    ],
    ids=["heads", "tokens", "result", "turned", "wide", "factors", "integers"],
)
def test_what_does_not_fit_is_not_launched(changed: dict[str, torch.Tensor], message: str) -> None:
    tensors = {name: torch.zeros(6, 5, 2, 16) for name in ("q", "k", "v")} | changed
    out = tensors.pop("out", torch.zeros(tensors["q"].shape))
    with pytest.raises(ValueError, match=message):
        channel_attention_launch(
            tensors["q"], tensors["k"], tensors["v"], out=out, config=ChannelTile(16, 1, 4), scale=1.0,
            scales=tensors.get("scales"),
        )  # fmt: skip


def test_cuts_fill_the_device_and_leave_nothing_out() -> None:
    for batch, heads, tokens, size in (
        (32, 4, 196, 48),
        (1, 4, 196, 48),
        (1, 3, 3136, 32),
        (32, 8, 64, 38),
        (1, 1, 1, 1),
    ):
        found = channel_tiles(batch, heads, tokens, size)
        assert found
        assert len(found) <= 16
        for tile in found:
            assert tile.parts * tile.block_t < tokens + tile.block_t  # each has something to write
    first = channel_tiles(1, 3, 3136, 32)[0]
    assert first.parts == 49  # all the steps there are: three heads alone fill nothing


def step(of: Tokens) -> LoweredGraph:
    """One step over a packed projection."""
    batch, tokens, heads, size = of.batch, of.tokens, of.heads, of.size
    strides = (3 * tokens * heads * size, size, 3 * heads * size, 1)
    views = [View((batch, heads, tokens, size), strides, part * heads * size) for part in range(3)]
    out = (batch, tokens, heads, size)
    operands = (
        *(Operand("x", role, view) for role, view in zip("qkv", views, strict=True)),
        Operand("scales", "scales"),
    )
    x = Value((batch, tokens, 3, heads, size), "FP32")
    return LoweredGraph(
        (Input("x", x.shape, "FP32"),),
        (Output("y", "y", out),),
        {"x": x, "y": Value(out, "FP32")},
        {"scales": Weight((heads,), "FP32")},
        (Step("s", "channel_attention", operands, ("y",), {"scale": 1.0, "unit": EPSILON}),),
    )


@pytest.mark.parametrize(("implementation", "precision"), [("sdpa", "fp32"), ("sdpa", "fp16"), ("triton", "fp16")])
def test_every_implementation_computes_the_step(implementation: str, precision: str, device: str) -> None:
    of = TOKENS["49 tokens"]
    packed = drawn(of, device, torch.float32)
    scales = torch.linspace(3.0, 40.0, of.heads)
    executor = Executor(step(of), {"scales": scales.numpy()}, device, precision, (implementation,))
    assert [bound.implementation for bound in executor.program if bound.kind == "channel_attention"] == [implementation]
    assert executor.weights["scales"].dtype == torch.float32
    found = executor.run({"x": packed})["y"]
    expected = right(*packed.unbind(2), 1.0, scales.to(device), EPSILON)
    tolerance = 1e-6 if precision == "fp32" else 6e-3  # of scores up to 40, from channels in sixteen bits
    assert error(found.cpu().numpy(), expected.cpu().numpy()) < tolerance


def test_what_no_launch_takes_is_not_offered(device: str) -> None:
    add_triton()
    for batch, size, offered in ((8, 16, True), (65536, 16, False), (8, 136, False)):
        of = Tokens(batch, 4, 1, size, ChannelTile(16, 1, 4))
        executor = Executor(step(of), {"scales": torch.ones(1)}, device, "fp16")
        assert ("triton" in fitting(executor.sites[-1])) == offered
