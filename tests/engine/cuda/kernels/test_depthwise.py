"""Depthwise convolution against torch in float64, and the sums it leaves for a squeeze-and-excite."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from penstock.engine.cuda.kernels.depthwise import (  # noqa: E402
    DepthwiseTile,
    depthwise_conv2d_nhwc,
    depthwise_tiles,
)
from penstock.engine.cuda.kernels.epilogue import Epilogue  # noqa: E402

pytestmark = pytest.mark.torch

# (shape, taps, stride, padding, dilation, tile)
CASES = {
    "3x3": ((2, 7, 9, 24), (3, 3), (1, 1), (1, 1), (1, 1), DepthwiseTile(4, 32, 4, 1)),
    "5x5": ((1, 6, 7, 24), (5, 5), (1, 1), (2, 2), (1, 1), DepthwiseTile(4, 16, 2, 1)),
    "7x7": ((1, 8, 8, 16), (7, 7), (1, 1), (3, 3), (1, 1), DepthwiseTile(8, 16, 4, 1)),
    "stride down": ((1, 7, 9, 24), (3, 3), (2, 1), (1, 1), (1, 1), DepthwiseTile(4, 16, 4, 1)),
    "stride both ways": ((1, 9, 11, 24), (5, 5), (2, 2), (2, 2), (1, 1), DepthwiseTile(4, 16, 4, 1)),
    "dilation": ((1, 9, 9, 24), (3, 3), (1, 1), (2, 2), (2, 2), DepthwiseTile(4, 16, 4, 1)),
    "dilation and stride": ((1, 9, 9, 24), (3, 3), (2, 2), (2, 2), (2, 2), DepthwiseTile(4, 16, 2, 1)),
    "a row": ((1, 1, 13, 24), (1, 7), (1, 1), (0, 3), (1, 1), DepthwiseTile(2, 16, 4, 1)),
    "9x9": ((1, 7, 6, 24), (9, 9), (1, 1), (4, 4), (1, 1), DepthwiseTile(8, 16, 4, 1)),
    "13x11 and stride": ((2, 9, 11, 16), (13, 11), (2, 2), (6, 5), (1, 1), DepthwiseTile(4, 16, 2, 1)),
    "8x8 and dilation": ((1, 17, 15, 16), (8, 8), (1, 1), (7, 7), (2, 2), DepthwiseTile(8, 16, 2, 1)),
    "31x31": ((1, 5, 6, 16), (31, 31), (1, 1), (15, 15), (1, 1), DepthwiseTile(8, 16, 1, 1)),
    "51x5": ((1, 6, 5, 16), (51, 5), (1, 1), (25, 2), (1, 1), DepthwiseTile(8, 16, 4, 1)),
    "one column each": ((1, 5, 5, 24), (3, 3), (1, 1), (1, 1), (1, 1), DepthwiseTile(8, 8, 1, 1)),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_that_of_torch(name: str, device: str) -> None:
    shape, taps, stride, padding, dilation, tile = CASES[name]
    channels = shape[3]
    x = torch.randn(shape, device=device).half()
    w = (torch.randn(*taps, channels, device=device) / max(3.0, (taps[0] * taps[1]) ** 0.5)).half()
    bias = torch.randn(channels, device=device)
    right = torch.nn.functional.conv2d(
        x.double().permute(0, 3, 1, 2), w.double().permute(2, 0, 1)[:, None], bias.double(), stride, padding, dilation,
        groups=channels,
    ).permute(0, 2, 3, 1)  # fmt: skip
    residual = torch.randn(right.shape, device=device).half()
    right = torch.nn.functional.hardswish(right + residual.double())
    out = torch.full(right.shape, float("nan"), device=device, dtype=torch.float16)
    sums = torch.full((shape[0], tile.blocks(*right.shape[1:3]), channels), float("nan"), device=device)
    depthwise_conv2d_nhwc(
        x, w, out=out, config=tile, bias=bias, residual=residual, sums=sums, epilogue=Epilogue("hard_swish"),
        stride=stride, padding=padding, dilation=dilation,
    )  # fmt: skip
    assert (out.double() - right).abs().max() < 4e-3
    assert (sums.double().sum(1) - right.sum((1, 2))).abs().max() < 1e-4


def test_nan_stays_where_its_taps_are(device: str) -> None:
    x = torch.zeros(1, 5, 6, 16, device=device)
    x[0, 2, 2, 3] = float("nan")
    out = torch.full_like(x, 77.0)
    w = torch.ones(3, 3, 16, device=device)
    tile = DepthwiseTile(2, 16, 2, 1)
    depthwise_conv2d_nhwc(x, w, out=out, config=tile, epilogue=Epilogue("relu6"), padding=(1, 1))
    spoiled = torch.zeros(5, 6, 16, dtype=torch.bool, device=device)
    spoiled[1:4, 1:4, 3] = True
    assert torch.equal(out[0].isnan(), spoiled)
    assert not out[0][~spoiled].any()


def test_every_cut_that_is_offered_gives_the_same_answer(device: str) -> None:
    x = torch.randn(1, 6, 10, 24, device=device).half()
    w = torch.randn(3, 3, 24, device=device).half()
    offered = depthwise_tiles((1, 6, 10, 24), 3, 1)
    assert 1 < len(offered) <= 12
    answers = []
    for tile in offered[:: 1 if device == "cuda" else 4]:
        out = torch.full_like(x, float("nan"))
        depthwise_conv2d_nhwc(x, w, out=out, config=tile, padding=(1, 1))
        answers.append(out)
    assert all(torch.allclose(each, answers[0], atol=4e-3) for each in answers)


@pytest.mark.parametrize("out_shape", [(8, 12, 80, 96), (8, 6, 80, 192), (1, 46, 46, 192), (1, 23, 23, 384)])
def test_runs_of_two_come_first_where_an_h200_is_not_filled(out_shape: tuple[int, int, int, int]) -> None:
    assert depthwise_tiles(out_shape, 3, 1)[0].columns == 2
