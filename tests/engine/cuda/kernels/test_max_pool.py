"""The pooling kernel against torch, for windows, strides, padding, channel slices and NaN."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from penstock.engine.cuda.kernels.max_pool import max_pool2d_nhwc, max_pool2d_nhwc_launch  # noqa: E402

pytestmark = pytest.mark.torch

CASES = [
    # batch, height, width, channels, window, stride, padding, dilation
    (2, 9, 11, 5, (3, 3), (2, 2), (1, 1), (1, 1)),
    (1, 8, 8, 40, (2, 2), (2, 2), (0, 0), (1, 1)),
    (1, 6, 7, 16, (5, 5), (1, 1), (2, 2), (1, 1)),
    (1, 8, 10, 8, (2, 1), (2, 1), (0, 0), (1, 1)),
    (1, 9, 9, 3, (3, 3), (1, 1), (1, 1), (2, 2)),
    (1, 9, 10, 8, (13, 13), (1, 1), (6, 6), (1, 1)),
    (2, 20, 16, 8, (9, 7), (3, 2), (4, 3), (1, 1)),
    (1, 17, 15, 8, (6, 7), (1, 2), (3, 3), (2, 2)),
]


def expected(x: "torch.Tensor", window, stride, padding, dilation) -> "torch.Tensor":  # type: ignore[no-untyped-def]
    found = torch.nn.functional.max_pool2d(x.permute(0, 3, 1, 2).float(), window, stride, padding, dilation)
    return found.permute(0, 2, 3, 1).contiguous()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["fp16", "fp32"])
def test_it_is_the_largest_of_each_window(case, dtype, device: str) -> None:  # type: ignore[no-untyped-def]
    batch, height, width, channels, *how = case
    x = torch.randn(batch, height, width, channels).to(dtype)
    wanted = expected(x, *how)
    out = torch.full(wanted.shape, 7.0, dtype=dtype, device=device)
    window, stride, padding, dilation = how
    max_pool2d_nhwc(x.to(device), window=window, stride=stride, padding=padding, dilation=dilation, out=out)
    assert torch.equal(out.float().cpu(), wanted)


def test_it_reads_and_writes_slices_of_channels(device: str) -> None:
    wide, into = torch.randn(1, 6, 6, 24).to(device), torch.zeros(1, 3, 3, 40).to(device)
    x, out = wide[..., 8:16], into[..., 32:40]
    max_pool2d_nhwc(x, window=(2, 2), stride=(2, 2), padding=(0, 0), out=out)
    assert torch.equal(out.cpu(), expected(x.cpu(), (2, 2), (2, 2), (0, 0), (1, 1)))
    assert not into[..., :32].any()


def test_nan_and_infinity_come_through(device: str) -> None:
    x = torch.zeros(1, 4, 4, 2)
    x[0, 0, 0, 0], x[0, 3, 3, 1] = float("nan"), float("-inf")
    out = torch.zeros(1, 2, 2, 2).to(device)
    max_pool2d_nhwc(x.to(device), window=(2, 2), stride=(2, 2), padding=(0, 0), out=out)
    assert torch.isnan(out[0, 0, 0, 0]).item()
    assert out.isnan().sum().item() == 1
    assert out[0, 1, 1, 1].item() == 0


# batch, height, width, channels, window, stride, padding, ceil mode, whether padding counts
MEANS = [
    (2, 9, 11, 5, (3, 3), (1, 1), (1, 1), False, False),
    (2, 9, 11, 5, (3, 3), (1, 1), (1, 1), False, True),
    (1, 8, 10, 40, (3, 3), (2, 2), (1, 1), True, False),
    (1, 8, 10, 40, (3, 2), (2, 3), (1, 1), True, True),
    (1, 7, 7, 16, (2, 2), (2, 2), (0, 0), True, False),
    (1, 8, 6, 16, (2, 3), (2, 3), (0, 0), False, False),
    (2, 14, 13, 8, (12, 11), (2, 1), (5, 4), False, False),
    (1, 14, 13, 8, (6, 7), (3, 2), (2, 3), True, True),
]


@pytest.mark.parametrize("case", MEANS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=["fp16", "bf16", "fp32"])
def test_it_is_the_mean_of_what_counts(case, dtype, device: str) -> None:  # type: ignore[no-untyped-def]
    batch, height, width, channels, window, stride, (top, left), ceil, whole = case
    x = (3 + torch.randn(batch, height, width, channels)).to(dtype)
    wanted = torch.nn.functional.avg_pool2d(
        x.double().permute(0, 3, 1, 2), window, stride, (top, left), ceil_mode=ceil, count_include_pad=whole
    ).permute(0, 2, 3, 1)
    out = torch.full(wanted.shape, 7.0, dtype=dtype, device=device)
    max_pool2d_nhwc_launch(
        x.to(device), window=window, stride=stride, padding=(top, left), out=out,
        mean=(top, left, top, left) if whole else (0, 0, 0, 0),
    ).run()  # fmt: skip
    assert (out.double().cpu() - wanted).abs().max() <= max(
        torch.finfo(dtype).eps, 5e-7 if window[0] * window[1] <= 49 else 2e-6
    ) * wanted.abs().max()
