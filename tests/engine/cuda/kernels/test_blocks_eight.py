"""A residual block in INT8 in one kernel: the integers that its layers make apart, rounded in between."""

from dataclasses import dataclass

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from penstock.engine.cuda.kernels.bottleneck import BottleneckTile, Steps, bottleneck_launch  # noqa: E402
from penstock.engine.cuda.kernels.epilogue import Epilogue, fold  # noqa: E402
from tests.engine.cuda.kernels.test_blocks import convolved  # noqa: E402

pytestmark = pytest.mark.torch

RELU = Epilogue("relu")
TILE = BottleneckTile(32, 32, 32, 4, 2, 1)


@dataclass(frozen=True)
class Block:
    channels: int
    middle: int
    wide: int
    out: int = 0
    source: int = 0
    residual: bool = False
    stride: int = 1
    spread: int = 1
    window: int = 3
    size: tuple[int, int, int] = (2, 5, 6)
    tile: BottleneckTile = TILE


BLOCKS = [
    Block(32, 32, 64),
    Block(32, 32, 64, residual=True),
    Block(64, 32, 64, out=32, residual=True, window=1),
    Block(32, 64, 64, out=64, source=32),
    Block(32, 32, 64, out=32, source=64, spread=2, size=(1, 7, 6)),
    Block(32, 32, 64, source=32, stride=2, spread=2, size=(3, 7, 5)),
]


@dataclass(frozen=True)
class Layer:
    """A weight, what its sums are worth, and its bias."""

    weight: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor

    @staticmethod
    def random(device: str, *shape: int) -> "Layer":
        weight = torch.randint(-127, 128, shape, dtype=torch.int8)
        depth = weight[0].numel()
        scale = (0.5 + torch.rand(shape[0])) / (6000.0 * depth**0.5)
        return Layer(*(each.to(device) for each in (weight, scale, torch.randn(shape[0]) / 4)))

    def sums(self, x: torch.Tensor, stride: int = 1, pad: int = 0) -> torch.Tensor:
        weight = self.weight if self.weight.dim() == 4 else self.weight[:, None, None]
        return convolved(x, weight, None, stride, pad) * self.scale.double() + self.bias.double()

    def folded(self, step: float) -> tuple[torch.Tensor, torch.Tensor]:
        return fold(self.scale, self.bias, step, self.weight[0].numel() * 128 * 128)


def rounded(y: torch.Tensor, step: float) -> torch.Tensor:
    """Behind ReLU."""
    return (y.clamp(min=0) / step).round().clamp(-128, 127).to(torch.int8)


def off(found: torch.Tensor, right: torch.Tensor) -> tuple[int, float]:
    """The largest difference, and how many there are."""
    apart = (found.int() - right.int()).abs()
    return int(apart.max()), float((apart > 0).double().mean())


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_in_one_kernel_makes_its_layers_integers(block: Block, device: str) -> None:
    batch, high, across = block.size
    pad, window = block.window // 2, block.window
    x = torch.randint(-128, 128, (batch, high, across, block.channels), dtype=torch.int8, device=device)
    first = Layer.random(device, block.middle, window, window, block.channels)
    second, shortcut = Layer.random(device, block.wide, block.middle), None
    steps = (0.02, 0.03, 0.025, 0.013)  # of middle, wide, out and the residual
    middle = rounded(first.sums(x, block.stride, pad), steps[0])
    wide = second.sums(middle)
    _, out_high, out_across, _ = wide.shape
    residual = source = None
    if block.residual:
        residual = torch.randint(-128, 128, wide.shape, dtype=torch.int8, device=device)
        wide = wide + residual.double() * steps[3]
    if block.source:
        far = ((out_high - 1) * block.spread + 1, (out_across - 1) * block.spread + 1)
        source = torch.randint(-128, 128, (batch, *far, block.source), dtype=torch.int8, device=device)
        shortcut = Layer.random(device, block.wide, block.source)
        wide = wide + shortcut.sums(source, block.spread)
    right = rounded(wide, steps[1])
    third = Layer.random(device, block.out, block.wide) if block.out else None
    found = torch.full(wide.shape, -77, dtype=torch.int8, device=device)
    out = torch.full((*wide.shape[:3], block.out), -77, dtype=torch.int8, device=device) if third else None
    folded = [
        (None, None) if layer is None else layer.folded(step)
        for layer, step in ((first, steps[0]), (second, steps[1]), (third, steps[2]), (shortcut, steps[1]))
    ]
    assert folded[0][0] is not None
    assert folded[1][0] is not None
    bottleneck_launch(
        x, first.weight, folded[0][1], second.weight, folded[1][1], wide=found, config=block.tile, inner=RELU,
        epilogue=RELU, outer=RELU, residual=residual, source=source,
        shortcut=None if shortcut is None else shortcut.weight, shortcut_bias=folded[3][1],
        source_stride=(block.spread,) * 2, third=None if third is None else third.weight, third_bias=folded[2][1],
        out=out, stride=(block.stride,) * 2, padding=(pad, pad),
        steps=Steps(folded[0][0], folded[1][0], folded[2][0], folded[3][0], steps[3] / steps[1]),
    ).run()  # fmt: skip
    assert right.unique().numel() > 40
    largest, share = off(found, right)
    assert largest <= 3  # a middle that FP32 rounds the other way moves what is behind it
    assert share < 2e-2
    if third is not None and out is not None:
        largest, share = off(out, rounded(third.sums(right), steps[2]))
        assert largest <= 3
        assert share < 5e-2
