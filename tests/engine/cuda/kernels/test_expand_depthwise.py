"""A layer and the depthwise convolution behind it in one kernel, against torch in float64."""

from dataclasses import dataclass

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from penstock.engine.cuda.kernels.epilogue import Epilogue  # noqa: E402
from penstock.engine.cuda.kernels.expand_depthwise import (  # noqa: E402
    ExpandTile,
    expand_depthwise_launch,
    expand_tiles,
)

pytestmark = pytest.mark.torch


SMALL = ExpandTile(16, 16, 4)


@dataclass(frozen=True)
class Case:
    shape: tuple[int, int, int, int] = (2, 8, 10, 24)
    expanded: int = 40
    taps: int = 3
    pads: tuple[int, int, int, int] = (0, 0, 1, 1)
    stride: tuple[int, int] = (2, 2)
    biased: bool = True
    tile: ExpandTile = SMALL


CASES = {
    "padded at the far sides": Case(),
    "padded all around": Case(pads=(1, 1, 1, 1), tile=ExpandTile(32, 32, 4)),
    "five taps": Case((1, 9, 7, 16), 16, 5, (2, 2, 2, 2)),
    "no padding, no biases": Case((1, 7, 7, 32), 48, 3, (0, 0, 0, 0), biased=False),
    "strides that differ": Case(stride=(1, 2), pads=(1, 0, 1, 1)),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_both_convolutions(name: str, device: str) -> None:
    case, functional = CASES[name], torch.nn.functional
    channels = case.shape[3]
    top, left, bottom, right = case.pads
    x = torch.randn(case.shape, device=device).half()
    first = (torch.randn(case.expanded, channels, device=device) / channels**0.5).half()
    filters = (torch.randn(case.taps, case.taps, case.expanded, device=device) / case.taps).half()
    biases = [torch.randn(case.expanded, device=device) if case.biased else None for _ in range(2)]
    wide = x.double() @ first.double().T + (0 if biases[0] is None else biases[0].double())
    wide = functional.pad(functional.relu6(wide).permute(0, 3, 1, 2), (left, right, top, bottom))
    weight = filters.double().permute(2, 0, 1)[:, None]
    bias = None if biases[1] is None else biases[1].double()
    expected = functional.conv2d(wide, weight, bias, case.stride, groups=case.expanded).relu().permute(0, 2, 3, 1)
    out = torch.full(expected.shape, float("nan"), device=device, dtype=torch.float16)
    expand_depthwise_launch(
        x, first, biases[0], filters, biases[1], out=out, config=case.tile, inner=Epilogue("relu6"),
        outer=Epilogue("relu"), stride=case.stride, padding=(top, left),
    ).run()  # fmt: skip
    assert (out.double() - expected).abs().max() < 1e-2


@pytest.mark.parametrize(("channels", "taps"), [(32, 9), (24, 25), (40, 9), (64, 25)])
def test_the_cuts_offered_fit_a_multiprocessor(channels: int, taps: int) -> None:
    assert expand_tiles(1 << 20, channels, taps)
    assert expand_tiles(49, channels, taps)[0].block_m <= 32
