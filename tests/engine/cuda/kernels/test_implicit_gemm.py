"""Convolutions and matrix products against torch in float64, at sizes that fit no block."""

from dataclasses import dataclass

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from penstock.engine.cuda.kernels.activations import ACTIVATIONS  # noqa: E402
from penstock.engine.cuda.kernels.epilogue import Epilogue, Scratch  # noqa: E402
from penstock.engine.cuda.kernels.implicit_gemm import (  # noqa: E402
    conv2d_nhwc,
    conv2d_product,
    gemm,
    gemm_product,
)
from penstock.engine.cuda.kernels.tiles import Product, Tile  # noqa: E402

pytestmark = pytest.mark.torch

# One rounding of a result of size about 4, and of operands that were exact: half a step of 2**-8 (FP16), 2**-5 (BF16).
TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 1e-5}


def scratch_for(tile: Tile, product: Product, device: str) -> Scratch:
    """Sums start as NaN: one that is read before it was written shows."""
    return Scratch(
        torch.full((max(1, tile.partial_sums(product)),), float("nan"), device=device),
        torch.zeros(max(1, tile.counters(product)), dtype=torch.int32, device=device),
    )


def activated(x: "torch.Tensor", name: str, alpha: float = 0.0, beta: float = 0.0) -> "torch.Tensor":
    functional = torch.nn.functional
    table = {
        "none": lambda: x,
        "relu": lambda: functional.relu(x),
        "relu6": lambda: functional.relu6(x),
        "leaky_relu": lambda: functional.leaky_relu(x, alpha),
        "silu": lambda: functional.silu(x),
        "sigmoid": lambda: torch.sigmoid(x),
        "hard_sigmoid": lambda: (alpha * x + beta).clamp(0, 1),
        "hard_swish": lambda: functional.hardswish(x),
        "gelu": lambda: functional.gelu(x),
        "gelu_tanh": lambda: functional.gelu(x, approximate="tanh"),
        "tanh": lambda: torch.tanh(x),
        "clip": lambda: x.clamp(alpha, beta),
        "quick_gelu": lambda: x * torch.sigmoid(1.702 * x),
        "star_relu": lambda: alpha * functional.relu(x) ** 2 + beta,
    }
    return table[name]()


@dataclass(frozen=True)
class Conv:
    tile: Tile
    shape: tuple[int, int, int, int] = (1, 7, 9, 24)
    filters: int = 20
    taps: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    dtype: "torch.dtype" = torch.float16
    groups: int = 1


SMALL = Tile(16, 16, 16, 4, 2)
CONVS = {
    "channels that are no multiple of the block": Conv(Tile(32, 16, 32, 4, 2)),
    "channels that fill the blocks": Conv(SMALL, shape=(2, 5, 5, 32)),
    "more rows in the block than in the picture": Conv(Tile(64, 16, 16, 4, 2), shape=(1, 3, 3, 16), filters=16),
    "three channels, a wide stem": Conv(Tile(16, 16, 32, 4, 2), (1, 13, 11, 3), 17, (7, 7), (2, 2), (3, 3)),
    "stride in one direction": Conv(SMALL, stride=(2, 1)),
    "dilation": Conv(SMALL, shape=(1, 9, 9, 16), padding=(2, 2), dilation=(2, 2)),
    "no padding": Conv(SMALL, padding=(0, 0)),
    "pointwise": Conv(SMALL, taps=(1, 1), padding=(0, 0)),
    "pointwise, padded": Conv(SMALL, taps=(1, 1)),
    "pointwise, stride 2": Conv(SMALL, taps=(1, 1), padding=(0, 0), stride=(2, 2)),
    "reduction split in two": Conv(Tile(16, 16, 16, 4, 2, 2)),
    "reduction split unevenly": Conv(Tile(16, 16, 32, 4, 2, 3), shape=(1, 5, 5, 32)),
    "pointwise, split": Conv(Tile(16, 16, 16, 4, 2, 2), shape=(1, 5, 7, 40), taps=(1, 1), padding=(0, 0)),
    "bfloat16": Conv(SMALL, dtype=torch.bfloat16),
    "float32": Conv(SMALL, dtype=torch.float32),
    "a row of pixels": Conv(SMALL, shape=(1, 1, 40, 24), taps=(1, 7), padding=(0, 3)),
    "one pixel": Conv(SMALL, shape=(3, 1, 1, 24), taps=(1, 1), padding=(0, 0)),
    "groups": Conv(SMALL, shape=(2, 5, 6, 64), filters=32, groups=2),
    "groups of no multiple of the block": Conv(Tile(32, 16, 32, 4, 2), shape=(1, 5, 6, 60), filters=60, groups=5),
    "groups, pointwise": Conv(SMALL, shape=(1, 5, 6, 48), filters=96, taps=(1, 1), padding=(0, 0), groups=3),
    "groups of one channel": Conv(SMALL, shape=(1, 9, 9, 4), filters=8, stride=(2, 2), groups=4),
    "groups, split": Conv(Tile(16, 16, 16, 4, 2, 3), shape=(1, 5, 5, 32), filters=32, groups=2),
}


@pytest.mark.parametrize("name", CONVS)
def test_a_convolution_is_that_of_torch(name: str, device: str) -> None:
    case = CONVS[name]
    if case.dtype == torch.bfloat16 and device == "cpu":
        pytest.skip("Triton's interpreter multiplies the bits of BF16 as integers")
    channels = case.shape[3]
    x = torch.randn(case.shape, device=device).to(case.dtype)
    deep = channels // case.groups
    w = (torch.randn(case.filters, *case.taps, deep, device=device) / (deep * 9) ** 0.5).to(case.dtype)
    bias = torch.randn(case.filters, device=device)
    right = torch.nn.functional.conv2d(
        x.double().permute(0, 3, 1, 2), w.double().permute(0, 3, 1, 2), bias.double(), case.stride, case.padding,
        case.dilation, case.groups,
    ).permute(0, 2, 3, 1)  # fmt: skip
    residual = torch.randn(right.shape, device=device).to(case.dtype)
    right = torch.nn.functional.silu(right + residual.double())
    out = torch.full(right.shape, float("nan"), dtype=case.dtype, device=device)
    scratch = scratch_for(case.tile, conv2d_product(x, w, out, case.groups), device)

    for _ in range(2):  # the second time on the scratch that the first left
        out.fill_(float("nan"))
        conv2d_nhwc(
            x, w, out=out, config=case.tile, bias=bias, residual=residual, epilogue=Epilogue("silu"),
            stride=case.stride, padding=case.padding, dilation=case.dilation, groups=case.groups, scratch=scratch,
        )  # fmt: skip
        assert (out.double() - right).abs().max() < TOLERANCE[case.dtype]
        assert not scratch.counters.any()


def test_more_padding_below_and_to_the_right_follows_from_the_shape_of_the_result(device: str) -> None:
    x = torch.randn(1, 5, 6, 16, device=device).half()
    w = torch.randn(16, 2, 2, 16, device=device).half() / 8
    padded = torch.nn.functional.pad(x.double().permute(0, 3, 1, 2), (0, 1, 0, 1))
    right = torch.nn.functional.conv2d(padded, w.double().permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    out = torch.full((1, 5, 6, 16), float("nan"), device=device, dtype=torch.float16)
    conv2d_nhwc(x, w, out=out, config=SMALL)
    assert (out.double() - right).abs().max() < 4e-3


def test_tensors_may_be_channels_of_wider_ones(device: str) -> None:
    wide = torch.randn(1, 4, 5, 64, device=device).half()
    x, residual = wide[..., 8:24], wide[..., 32:48]
    w = torch.randn(16, 3, 3, 16, device=device).half() / 12
    right = torch.nn.functional.conv2d(x.double().permute(0, 3, 1, 2), w.double().permute(0, 3, 1, 2), None, 1, 1)
    right = right.permute(0, 2, 3, 1) + residual.double()
    target = torch.zeros(1, 4, 5, 40, device=device, dtype=torch.float16)
    conv2d_nhwc(x, w, out=target[..., 16:32], config=SMALL, residual=residual, padding=(1, 1))
    assert (target[..., 16:32].double() - right).abs().max() < 8e-3
    assert not target[..., :16].any()
    assert not target[..., 32:].any()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_that_of_torch_and_lets_nan_through(name: str, device: str) -> None:
    x = torch.linspace(-9, 9, 64, device=device).view(4, 16)
    x[1, 3] = float("nan")
    identity = torch.eye(16, device=device)
    # A product with the identity, but NaN times 0 is NaN: its whole row is.
    out = torch.full_like(x, 77.0)
    gemm(x, identity, out=out, config=SMALL, epilogue=Epilogue(name, alpha=0.2, beta=0.5))
    right = activated(x.double(), name, 0.2, 0.5)
    right[1] = float("nan")
    near = 5e-5 if name == "gelu" else 2e-6  # a polynomial stands for erf
    torch.testing.assert_close(out.double(), right, atol=near, rtol=2e-6, equal_nan=True)


def test_a_residual_may_come_after_the_activation(device: str) -> None:
    x, w = torch.randn(5, 16, device=device), torch.randn(9, 16, device=device)
    residual = torch.randn(5, 9, device=device)
    out = torch.full_like(residual, float("nan"))
    gemm(x, w, out=out, config=SMALL, residual=residual, epilogue=Epilogue("relu", residual_last=True))
    right = torch.relu(x.double() @ w.double().T) + residual.double()
    torch.testing.assert_close(out.double(), right, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("split", [1, 3])
@pytest.mark.parametrize("stored", ["n by k", "k by n"])
def test_a_product_takes_weights_stored_either_way(stored: str, split: int, device: str) -> None:
    x = torch.randn(19, 72, device=device).half()
    w = (torch.randn(37, 72, device=device) / 8).half()
    weights = w if stored == "n by k" else w.T.contiguous().T
    bias = torch.randn(37, device=device).half()
    out = torch.full((19, 37), float("nan"), device=device, dtype=torch.float16)
    tile = Tile(16, 16, 16, 4, 2, split)
    gemm(x, weights, out=out, config=tile, bias=bias, scratch=scratch_for(tile, gemm_product(x, out), device))
    assert (out.double() - (x.double() @ w.double().T + bias.double())).abs().max() < 4e-3


@pytest.mark.parametrize("split", [1, 2])
def test_a_batch_of_products(split: int, device: str) -> None:
    x = torch.randn(3, 19, 40, device=device).half()
    w = (torch.randn(3, 23, 40, device=device) / 6).half()
    residual = torch.randn(3, 19, 23, device=device).half()
    out = torch.full((3, 19, 23), float("nan"), device=device, dtype=torch.float16)
    tile = Tile(16, 16, 16, 4, 2, split)
    scratch = scratch_for(tile, gemm_product(x, out), device)
    gemm(x, w, out=out, config=tile, residual=residual, scratch=scratch)
    right = torch.einsum("bmk,bnk->bmn", x.double(), w.double()) + residual.double()
    assert (out.double() - right).abs().max() < 4e-3


@pytest.mark.parametrize("split", [1, 2])
def test_int8_sums_exactly_and_rounds_ties_to_even(split: int, device: str) -> None:
    x = torch.randint(-128, 128, (2, 5, 7, 40), device=device, dtype=torch.int8)
    w = torch.randint(-128, 128, (24, 3, 3, 40), device=device, dtype=torch.int8)
    residual = torch.randint(-128, 128, (2, 5, 7, 24), device=device, dtype=torch.int8)
    # Powers of two, so that every step is exact in FP32 and ties do occur.
    scale = torch.full((24,), 2.0**-11, device=device)
    bias = torch.randint(-16, 16, (24,), device=device).float() / 4
    out = torch.full((2, 5, 7, 24), 77, device=device, dtype=torch.int8)
    tile = Tile(16, 16, 32, 4, 2, split)
    conv2d_nhwc(
        x, w, out=out, config=tile, bias=bias, residual=residual, scale=scale, padding=(1, 1),
        epilogue=Epilogue("relu", residual_scale=0.25, out_scale=0.5),
        scratch=scratch_for(tile, conv2d_product(x, w, out), device),
    )  # fmt: skip
    summed = torch.nn.functional.conv2d(x.double().permute(0, 3, 1, 2), w.double().permute(0, 3, 1, 2), None, 1, 1)
    real = summed.permute(0, 2, 3, 1) * 2.0**-11 + bias.double() + residual.double() / 4
    right = (torch.relu(real) * 2).round().clamp(-128, 127)
    assert torch.equal(out.double(), right)
    assert (right == 127).any(), "the case should saturate somewhere"


def test_int8_operands_may_give_a_half_precision_result(device: str) -> None:
    x = torch.randint(-128, 128, (19, 64), device=device, dtype=torch.int8)
    w = torch.randint(-128, 128, (17, 64), device=device, dtype=torch.int8)
    scale = torch.rand(17, device=device) / 65536
    out = torch.full((19, 17), float("nan"), device=device, dtype=torch.float16)
    gemm(x, w, out=out, config=Tile(16, 16, 32, 4, 2), scale=scale)
    assert (out.double() - x.double() @ w.double().T * scale.double()).abs().max() < 4e-3


class TestRefusals:
    def test_scratch_that_is_missing_or_too_small(self, device: str) -> None:
        x, w = torch.randn(16, 64, device=device), torch.randn(16, 64, device=device)
        out, tile = torch.empty(16, 16, device=device), Tile(16, 16, 16, 4, 2, 2)
        with pytest.raises(ValueError, match="expected 512 floats and 1 counters"):
            gemm(x, w, out=out, config=tile)

    @pytest.mark.parametrize("wrong", ["out", "residual", "bias", "w", "dtype", "activation", "rows"])
    def test_what_does_not_fit(self, wrong: str, device: str) -> None:
        x, w = torch.randn(16, 64, device=device), torch.randn(24, 64, device=device)
        out, bias, residual = torch.empty(16, 24, device=device), torch.randn(24, device=device), None
        match wrong:
            case "out":
                out = out[:8]
            case "residual":
                residual = torch.randn(16, 25, device=device)
            case "bias":
                bias = bias[:5]
            case "w":
                w = w[:, :32]
            case "dtype":
                w = w.half()
            case "rows":
                x = torch.randn(64, 16, device=device).T
        name = "swish" if wrong == "activation" else "none"
        with pytest.raises(ValueError, match="expected"):
            gemm(x, w, out=out, config=SMALL, bias=bias, residual=residual, epilogue=Epilogue(name))
