"""Convolutions whose blocks keep their filters and walk over pixels: against torch in FP64."""

from dataclasses import dataclass

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from torch.nn import functional  # noqa: E402

from penstock.engine.cuda.kernels.epilogue import Epilogue  # noqa: E402
from penstock.engine.cuda.kernels.resident import ResidentTile, resident_conv_launch, resident_tiles  # noqa: E402
from penstock.engine.cuda.kernels.tiles import Product  # noqa: E402

pytestmark = pytest.mark.torch

TILE = ResidentTile(16, 16, 4, 2, 1)


@dataclass(frozen=True)
class Conv:
    shape: tuple[int, int, int, int] = (2, 7, 6, 16)
    filters: int = 24
    taps: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    residual: bool = False
    last: bool = False
    bias: bool = True
    processors: int = 2


CONVS = {
    "a pixel": Conv(),
    "a pixel and what is added": Conv(residual=True),
    "added after the activation": Conv(residual=True, last=True, bias=False),
    "a window at the border": Conv((1, 7, 6, 8), taps=(3, 3), padding=(1, 1)),
    "a window that stays inside": Conv((2, 9, 7, 8), taps=(3, 3)),
    "strides and dilation": Conv((1, 9, 8, 4), taps=(2, 3), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
    "channels that are no power of two": Conv((1, 5, 9, 24), filters=40),
    "one block for everything": Conv(processors=1),
}


@pytest.mark.parametrize("name", CONVS)
def test_pixels_are_convolved(name: str, device: str) -> None:
    conv = CONVS[name]
    channels = conv.shape[3]
    x = torch.randn(conv.shape).half().to(device)
    w = (torch.randn(conv.filters, *conv.taps, channels) / 8).half().to(device)
    bias = torch.randn(conv.filters).to(device) if conv.bias else None
    expected = functional.conv2d(
        x.double().permute(0, 3, 1, 2), w.double().permute(0, 3, 1, 2), None if bias is None else bias.double(),
        conv.stride, conv.padding, conv.dilation,
    ).permute(0, 2, 3, 1)  # fmt: skip
    residual = torch.randn(expected.shape).half().to(device) if conv.residual else None
    if residual is not None and not conv.last:
        expected = expected + residual
    expected = expected.relu()
    if residual is not None and conv.last:
        expected = expected + residual
    out = torch.full(expected.shape, float("nan"), dtype=torch.float16, device=device)
    launch = resident_conv_launch(
        x, w, out=out, config=TILE, bias=bias, residual=residual, epilogue=Epilogue("relu", residual_last=conv.last),
        stride=conv.stride, padding=conv.padding, dilation=conv.dilation, multiprocessors=conv.processors,
    )  # fmt: skip
    launch.run()
    assert launch.grid[0] <= conv.processors
    assert float((out.double() - expected).norm() / expected.norm()) < 1e-3


def test_only_what_a_block_can_walk_over_and_keep_is_worth_timing() -> None:
    assert resident_tiles(Product(64 * 112 * 112, 64, 32, 7), residual=False)
    assert not resident_tiles(Product(49, 2048, 128), residual=False), "no second tile to walk to"
    assert not resident_tiles(Product(1 << 20, 64, 512), residual=False), "a filter that is too long"


def test_a_long_filter_is_refused() -> None:
    x, w = torch.empty(1, 4, 4, 512), torch.empty(16, 1, 1, 512)
    with pytest.raises(ValueError, match="at most 256"):
        resident_conv_launch(x, w, out=torch.empty(1, 4, 4, 16), config=TILE)
