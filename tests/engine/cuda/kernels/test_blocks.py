"""A residual block's layers in one kernel, and two layers that are added: what the layers compute apart."""

from dataclasses import dataclass

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from torch.nn import functional  # noqa: E402

from penstock.engine.cuda.kernels.bottleneck import BottleneckTile, Widths, bottleneck_launch, bottleneck_tiles  # noqa: E402
from penstock.engine.cuda.kernels.epilogue import Epilogue, Scratch  # noqa: E402
from penstock.engine.cuda.kernels.tiles import Tile  # noqa: E402
from penstock.engine.cuda.kernels.window_conv import window_conv_launch, window_product  # noqa: E402

pytestmark = pytest.mark.torch

RELU = Epilogue("relu")
TILE = BottleneckTile(32, 32, 16, 4, 2, 1)
PLAIN = Tile(32, 32, 16, 4, 2)


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
    """Pixels of the source from one that is read to the next."""
    window: int = 3
    size: tuple[int, int, int] = (2, 5, 6)
    tile: BottleneckTile = TILE


def made(device: str, *shape: int, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(shape) * scale).half().to(device)


def convolved(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, stride: int = 1, pad: int = 0) -> torch.Tensor:
    """In FP64; maps and weights with channels last."""
    bias = None if b is None else b.double()
    y = functional.conv2d(x.double().permute(0, 3, 1, 2), w.double().permute(0, 3, 1, 2), bias, stride, pad)
    return y.permute(0, 2, 3, 1)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


BLOCKS = [
    Block(16, 16, 64),
    Block(32, 16, 32, residual=True),
    Block(16, 32, 64, out=16, residual=True),
    Block(16, 16, 32, out=32, source=16),
    Block(16, 16, 32, out=16, source=32, spread=2, size=(1, 7, 6)),
    Block(16, 16, 64, source=16, stride=2, spread=2, size=(3, 7, 5)),
    Block(32, 16, 32, residual=True, window=1, out=16),
]


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_in_one_kernel_is_its_layers(block: Block, device: str) -> None:
    batch, high, across = block.size
    pad, window = block.window // 2, block.window
    x = made(device, batch, high, across, block.channels)
    first = made(device, block.middle, window, window, block.channels, scale=0.1)
    second, third = made(device, block.wide, block.middle, scale=0.2), made(device, block.out, block.wide, scale=0.2)
    biases = [made(device, size).float() for size in (block.middle, block.wide, block.wide, block.out)]
    middle = convolved(x, first, biases[0], block.stride, pad).relu()
    wide = convolved(middle.half(), second[:, None, None], biases[1])
    _, out_high, out_across, _ = wide.shape
    residual = source = shortcut = None
    if block.residual:
        residual = made(device, *wide.shape)
        wide = wide + residual
    if block.source:
        far = ((out_high - 1) * block.spread + 1, (out_across - 1) * block.spread + 1)
        source, shortcut = made(device, batch, *far, block.source), made(device, block.wide, block.source, scale=0.2)
        wide = wide + convolved(source, shortcut[:, None, None], biases[2], block.spread)
    wide = wide.relu()
    found = torch.full(wide.shape, float("nan"), dtype=torch.float16, device=device)
    out = torch.full((*wide.shape[:3], block.out), float("nan"), dtype=torch.float16, device=device)
    bottleneck_launch(
        x, first, biases[0], second, biases[1], wide=found, config=block.tile, inner=RELU, epilogue=RELU,
        residual=residual, source=source, shortcut=shortcut, shortcut_bias=biases[2] if block.source else None,
        source_stride=(block.spread,) * 2, third=third if block.out else None,
        third_bias=biases[3] if block.out else None, out=out if block.out else None, outer=Epilogue("silu"),
        stride=(block.stride,) * 2, padding=(pad, pad),
    ).run()  # fmt: skip
    assert error(found, wide) < 2e-3
    if block.out:
        last = functional.silu(convolved(wide.half(), third[:, None, None], biases[3]))
        assert error(out, last) < 2e-3


@dataclass(frozen=True)
class Sum:
    channels: int = 16
    source: int = 16
    filters: int = 32
    window: int = 3
    stride: int = 1
    spread: int = 1
    tile: Tile = PLAIN
    activation: str = "relu"


SUMS = [
    Sum(),
    Sum(source=48, filters=24),
    Sum(window=1, channels=32, source=64, spread=2, activation="none"),
    Sum(stride=2, spread=2, tile=Tile(16, 16, 16, 4, 2, 3)),
    Sum(channels=32, source=64, tile=Tile(32, 32, 32, 4, 2, 2)),
]


@pytest.mark.parametrize("case", SUMS, ids=str)
def test_two_layers_are_added_in_one_product(case: Sum, device: str) -> None:
    x = made(device, 2, 5, 7, case.channels)
    w = made(device, case.filters, case.window, case.window, case.channels, scale=0.1)
    biases = [made(device, case.filters).float() for _ in range(2)]
    expected = convolved(x, w, biases[0], case.stride, case.window // 2)
    _, high, across, _ = expected.shape
    source = made(device, 2, (high - 1) * case.spread + 1, (across - 1) * case.spread + 1, case.source)
    shortcut = made(device, case.filters, case.source, scale=0.2)
    expected = expected + convolved(source, shortcut[:, None, None], biases[1], case.spread)
    if case.activation == "relu":
        expected = expected.relu()
    out = torch.full(expected.shape, float("nan"), dtype=torch.float16, device=device)
    product = window_product(2 * high * across, case.filters, case.channels, case.window**2, case.source)
    scratch = Scratch(
        torch.empty(max(1, case.tile.partial_sums(product)), device=device),
        torch.zeros(max(1, case.tile.counters(product)), dtype=torch.int32, device=device),
    )
    window_conv_launch(
        x, w, source, shortcut, out=out, config=case.tile, bias=biases[0], shortcut_bias=biases[1],
        epilogue=Epilogue(case.activation), stride=(case.stride,) * 2, padding=(case.window // 2,) * 2,
        source_stride=(case.spread,) * 2, scratch=scratch,
    ).run()  # fmt: skip
    assert error(out, expected) < 2e-3
    assert not scratch.counters.any()


def test_a_block_refuses_what_it_cannot_hold() -> None:
    x, first = torch.empty(1, 4, 4, 16), torch.empty(24, 3, 3, 16)
    with pytest.raises(ValueError, match="middle: expected a power of two"):
        bottleneck_launch(
            x, first, None, torch.empty(32, 24), None, wide=torch.empty(1, 4, 4, 32), inner=RELU, epilogue=RELU,
            config=BottleneckTile(32, 32, 16, 4, 2, 1), padding=(1, 1),
        )  # fmt: skip


@pytest.mark.parametrize("widths", [Widths(64, 64, 256, 64, 0, 9), Widths(128, 128, 512, 128, 256, 9)], ids=str)
def test_cuts_of_a_block_fit_the_chip(widths: Widths) -> None:
    found = bottleneck_tiles(64 * 56 * 56, widths)
    assert len(found) >= 3
    assert len(set(found)) == len(found)
