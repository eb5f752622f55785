"""Our kernels on values with a scale, against the exact reference: whole graphs, and each kernel's roundings."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch

from penstock.engine.cuda.choices import Choice
from penstock.engine.cuda.eight_bits import quantized
from penstock.engine.cuda.executor import Executor
from penstock.engine.cuda.implementations import EXACT, add_triton, fitting
from penstock.engine.cuda.kernels.activations import ACTIVATIONS
from penstock.engine.cuda.kernels.attention import AttentionTile, attention_launch
from penstock.engine.cuda.kernels.epilogue import Epilogue
from penstock.engine.cuda.kernels.implicit_gemm import gemm
from penstock.engine.cuda.kernels.max_pool import max_pool2d_nhwc
from penstock.engine.cuda.kernels.quantize import quantize_launch
from penstock.engine.cuda.kernels.reductions import global_average_pool, layer_norm
from penstock.engine.cuda.kernels.tiles import Tile
from tests.engine.cuda.narrowing import NETWORKS, Network

pytestmark = pytest.mark.torch

EIGHT = (torch.int8, torch.float8_e4m3fn)


def expect_rounding(dtype: torch.dtype, device: str) -> None:
    if dtype == torch.float8_e4m3fn and device == "cpu":
        pytest.skip("Triton's interpreter drops the carry when it rounds to e4m3")


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Share of numbers that differ, by a step at most."""
    left, right = found.float().cpu(), expected.float().cpu()
    step = 1.0 if found.dtype == torch.int8 else 0.13 * right.abs().clamp(min=2.0**-6)
    assert bool(((left - right).abs() <= step).all())
    return float((left != right).float().mean())


@pytest.mark.parametrize("network", [each for each in NETWORKS if each.datatype == "INT8"], ids=lambda each: each.name)
def test_a_network_in_eight_bits_is_the_same_by_our_kernels(network: Network, device: str) -> None:
    add_triton()
    graph, weights, _ = network.narrowed(device)
    exact = Executor(graph, weights, device, "fp16")
    choices = {
        site.step.name: Choice(name)
        for site in exact.sites
        if (name := next((each for each in fitting(site) if each.startswith("triton")), ""))
    }
    ours = Executor(graph, weights, device, "fp16", choices=choices)
    left = {(bound.kind, bound.implementation) for bound in ours.program} & {(kind, EXACT) for kind in network.kernels}
    assert not left
    x = network.inputs(device)
    for name, right in exact.run(x).items():
        found = ours.run(x)[name]
        assert float((found - right).norm()) <= 0.01 * float(right.norm())


@pytest.mark.parametrize("dtype", EIGHT, ids=str)
def test_a_copy_is_rounded_to_the_nearest_and_saturates(dtype: torch.dtype, device: str) -> None:
    expect_rounding(dtype, device)
    x = torch.randn(3, 700, device=device).half() * 3
    x[0, :4] = torch.tensor([1000.0, -1000.0, 0.5, 1.5], device=device)
    out = torch.empty(x.shape, dtype=dtype, device=device)
    quantize_launch(x, out=out, scale=1.0 if dtype == torch.int8 else 0.25).run()
    assert off(out, quantized(x, dtype, 1.0 if dtype == torch.int8 else 0.25)) == 0


@pytest.mark.parametrize("taps", [3, 7])
def test_the_largest_of_a_window_of_integers_is_one_of_them(taps: int, device: str) -> None:
    x = torch.randint(-128, 128, (2, 7, 6, 24), dtype=torch.int8, device=device)
    out = torch.empty((2, 4, 3, 24), dtype=torch.int8, device=device)
    around = taps // 2
    max_pool2d_nhwc(x, window=(taps, taps), stride=(2, 2), padding=(around, around), out=out)
    expected = torch.nn.functional.max_pool2d(x.float().permute(0, 3, 1, 2), taps, 2, around).permute(0, 2, 3, 1)
    assert torch.equal(out.float(), expected)


@pytest.mark.parametrize("out_type", [torch.float16, torch.int8], ids=str)
def test_a_mean_of_integers_is_worth_their_scale(out_type: torch.dtype, device: str) -> None:
    x = torch.randint(-128, 128, (2, 5, 5, 20), dtype=torch.int8, device=device)
    out = torch.empty((2, 20), dtype=out_type, device=device)
    global_average_pool(x, out=out, scale=0.25, out_scale=0.125)
    mean = x.float().mean((1, 2)) * 0.25
    if out_type == torch.int8:
        assert off(out, quantized(mean, torch.int8, 0.125)) < 0.05
    else:
        assert torch.allclose(out.float(), mean, atol=2e-3)


@pytest.mark.parametrize("dtype", EIGHT, ids=str)
def test_a_norm_writes_eight_bits(dtype: torch.dtype, device: str) -> None:
    expect_rounding(dtype, device)
    x, weight = torch.randn(9, 48, device=device).half(), torch.rand(48, device=device) + 0.5
    out = torch.empty((9, 48), dtype=dtype, device=device)
    layer_norm(x, weight, None, out=out, epsilon=1e-5, out_scale=0.03)
    expected = torch.nn.functional.layer_norm(x.float(), (48,), weight, None, 1e-5)
    assert off(out, quantized(expected, dtype, 0.03)) < 0.02


def test_attention_writes_eight_bits(device: str) -> None:
    q, k, v = (torch.randn(1, 17, 2, 16, device=device).half() for _ in range(3))
    out = torch.empty((1, 17, 2, 16), dtype=torch.int8, device=device)
    attention_launch(q, k, v, out=out, config=AttentionTile(16, 32, 4), scale=0.25, out_scale=0.02).run()
    wide = (each.float().transpose(1, 2) for each in (q, k, v))
    expected = torch.nn.functional.scaled_dot_product_attention(*wide, scale=0.25).transpose(1, 2)
    assert off(out, quantized(expected, torch.int8, 0.02)) < 0.05


@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # numpy, behind the interpreter
@pytest.mark.parametrize("activation", [each for each in ACTIVATIONS if each not in ("clip", "hard_sigmoid")])
def test_sums_of_integers_are_scaled_activated_and_rounded(activation: str, device: str) -> None:
    x, w = (torch.randint(-128, 128, (size, 64), dtype=torch.int8, device=device) for size in (33, 24))
    added = torch.randint(-128, 128, (33, 24), dtype=torch.int8, device=device)
    scale, bias = torch.rand(24, device=device) * 1e-4, torch.randn(24, device=device)
    out = torch.empty((33, 24), dtype=torch.int8, device=device)
    epilogue = Epilogue(activation, 0.1, 0.0, residual_scale=0.02, out_scale=0.03)
    gemm(x, w, out=out, config=Tile(32, 32, 32, 4, 2), bias=bias, residual=added, scale=scale, epilogue=epilogue)
    from penstock.engine.cuda.expressions import activate

    sums = (x.double() @ w.double().t()).float() * scale + bias + added.float() * 0.02
    assert off(out, quantized(activate(sums, activation, 0.1, 0.0), torch.int8, 0.03)) < 0.02
