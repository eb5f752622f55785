"""Gated pointwise convolutions, repeated and side by side, against torch in float64."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from penstock.engine.cuda.kernels.gated_layers import (  # noqa: E402
    Group,
    LayersTile,
    gated_layers_launch,
    layers_tiles,
)

pytestmark = pytest.mark.torch


def large(x: "torch.Tensor", times: tuple[int, int]) -> "torch.Tensor":
    return x.repeat_interleave(times[0], 1).repeat_interleave(times[1], 2)


@pytest.mark.parametrize("made", [24, 40])
@pytest.mark.parametrize("plus", [True, False])
@pytest.mark.parametrize(
    ("times", "channels", "height"),
    [(((1, 1),), (48,), 4), (((2, 3), (1, 1)), (16, 64), 4), (((4, 6), (2, 2), (1, 3), (1, 1)), (16, 32, 48, 96), 4)],
)
def test_it_is_a_layer_a_gate_and_a_concatenation(
    times: tuple[tuple[int, int], ...], channels: tuple[int, ...], height: int, plus: bool, made: int, device: str
) -> None:
    groups, right = [], []
    for number, (size, repeat) in enumerate(zip(channels, times, strict=True)):
        x = torch.randn(2, height // repeat[0], 12 // repeat[1], size, device=device).half()
        weight = (torch.randn(made, size, device=device) / size**0.5).half()
        bias = torch.randn(made, device=device) if number % 2 == 0 else None
        gate = torch.rand(2, made, device=device).half()
        groups.append(Group(x, weight, bias, gate, repeat))
        y = x.double() @ weight.double().T + (0 if bias is None else bias.double())
        right.append(large(y * (gate.double()[:, None, None] + plus), repeat))
    small = torch.randn(2, height // 2, 12 // 3, made, device=device).half() if len(groups) == 1 else None
    expected = torch.cat(right, 3) + (0 if small is None else large(small.double(), (2, 3)))
    for tile in (LayersTile(16, 4), LayersTile(32, 4)):  # 48 pixels of an image: blocks within one, and across
        out = torch.full((2, height, 12, made * len(groups)), float("nan"), device=device, dtype=torch.float16)
        gated_layers_launch(
            groups, out=out, config=tile, plus=plus, residual=small, residual_times=(1, 1) if small is None else (2, 3)
        ).run()
        assert (out.double() - expected).abs().max() < 1.2e-2


def test_a_residual_is_for_one_group(device: str) -> None:
    def group() -> Group:
        x, weight = torch.zeros(1, 2, 2, 16, device=device).half(), torch.zeros(16, 16, device=device).half()
        return Group(x, weight, None, torch.zeros(1, 16, device=device).half(), (1, 1))

    out = torch.zeros(1, 2, 2, 32, device=device, dtype=torch.float16)
    with pytest.raises(ValueError, match="one group"):
        gated_layers_launch(
            [group(), group()], out=out, config=LayersTile(16, 4), plus=True, residual=out[..., :16].contiguous()
        )


def test_few_pixels_get_small_blocks_first() -> None:
    assert layers_tiles(100, 24)[0].block_m < layers_tiles(1 << 20, 24)[0].block_m
