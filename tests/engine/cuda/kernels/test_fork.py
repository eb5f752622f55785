"""A pool beside two convolutions in one kernel, against torch in float64."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from penstock.engine.cuda.kernels.epilogue import Epilogue  # noqa: E402
from penstock.engine.cuda.kernels.fork import ForkTile, fork_launch, fork_tiles  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(("channels", "between", "made"), [(24, 12, 24), (16, 16, 32), (48, 24, 8)])
@pytest.mark.parametrize("biased", [True, False])
def test_it_is_a_pool_and_two_convolutions(channels: int, between: int, made: int, biased: bool, device: str) -> None:
    functional = torch.nn.functional
    x = torch.randn(2, 5, 7, channels, device=device).half()
    first = (torch.randn(between, 2, 2, channels, device=device) / 8).half()
    second = (torch.randn(made, 2, 2, between, device=device) / 6).half()
    biases = (torch.randn(between, device=device), torch.randn(made, device=device)) if biased else (None, None)
    out = torch.full((2, 5, 7, channels + made), float("nan"), device=device, dtype=torch.float16)
    fork_launch(
        x, first, biases[0], second, biases[1], out=out, config=ForkTile(16, 4), inner=Epilogue("relu"),
        outer=Epilogue("gelu"),
    ).run()  # fmt: skip
    planes = x.double().permute(0, 3, 1, 2)
    largest = functional.max_pool2d(functional.pad(planes, (0, 1, 0, 1), value=float("-inf")), 2, 1)
    assert torch.equal(out[..., :channels], largest.permute(0, 2, 3, 1).half())
    y = planes
    for weight, bias, activate in ((first, biases[0], functional.relu), (second, biases[1], functional.gelu)):
        wide = None if bias is None else bias.double()
        y = activate(functional.conv2d(functional.pad(y, (0, 1, 0, 1)), weight.double().permute(0, 3, 1, 2), wide))
    assert (out[..., channels:].double() - y.permute(0, 2, 3, 1)).abs().max() < 4e-3


def test_nan_stays_in_the_windows_that_see_it(device: str) -> None:
    x = torch.zeros(1, 4, 4, 16, device=device).half()
    x[0, 2, 2, 3] = float("nan")
    first, second = (torch.ones(16, 2, 2, 16, device=device).half() for _ in range(2))
    out = torch.zeros(1, 4, 4, 32, device=device, dtype=torch.float16)
    config, plain = ForkTile(16, 4), Epilogue()
    fork_launch(x, first, None, second, None, out=out, config=config, inner=plain, outer=plain).run()
    pooled, convolved = out[0, ..., 3].isnan(), out[0, ..., 16].isnan()
    assert pooled.nonzero().tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]
    assert convolved.nonzero().tolist() == [[row, column] for row in range(3) for column in range(3)]


def test_few_pixels_get_small_blocks_first() -> None:
    assert fork_tiles(100)[0].block_m < fork_tiles(1 << 20)[0].block_m
