"""Captured graphs of a residual network: the same bits each time, side by side, and no output that nobody wrote."""

import random
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")

import torch

from penstock.engine.cuda.executor import Captured, Executor
from penstock.engine.cuda.lanes import Lanes, beside
from penstock.engine.lowered import LoweredGraph
from penstock.graph.lowering import Weights
from tests.engine.cuda.reference import Array, error, lowered
from tests.gpu.conftest import DEVICE
from tests.graph.residual_network import resnet34
from tests.graph.small import normal, run

pytestmark = [pytest.mark.gpu, pytest.mark.torch]

# FP16 through 36 layers.
TOLERANCE = 5e-3
FUSED = ("cudnn_fused", "cublas_residual", "torch_narrow")
OURS = ("triton", "triton_depthwise", "triton_gate", "cudnn_fused")


@pytest.fixture(scope="module")
def network() -> ir.Model:
    return resnet34()


@pytest.fixture(scope="module")
def small(network: ir.Model) -> tuple[LoweredGraph, Weights]:
    return lowered(network, {"x": picture(0)})


def picture(seed: int) -> Array:
    return normal(2, 3, 64, 64, seed=seed)


def give(captured: Captured, array: Array) -> None:
    captured.inputs["x"].copy_(torch.from_numpy(array))
    torch.cuda.synchronize()


def answer(captured: Captured) -> torch.Tensor:
    """Of one replay into poisoned memory."""
    with torch.cuda.stream(captured.stream):
        captured.outputs["y"].fill_(torch.nan)
        captured.replay()
        found = captured.outputs["y"].clone()
    captured.stream.synchronize()
    return found


@pytest.mark.parametrize("preferred", [(), FUSED, OURS], ids=["torch", "fused", "ours"])
def test_replays_are_right_and_bitwise_equal(
    network: ir.Model, small: tuple[LoweredGraph, Weights], preferred: Sequence[str]
) -> None:
    if preferred is OURS:
        pytest.importorskip("triton")
    captured = Executor(*small, DEVICE, "fp16", preferred).capture()
    give(captured, picture(1))
    first = answer(captured)
    assert error(first.cpu().numpy(), run(network, {"x": picture(1)})["y"]) < TOLERANCE
    for _ in range(50):
        assert torch.equal(answer(captured), first)
    give(captured, picture(2))
    assert not torch.equal(answer(captured), first)
    give(captured, picture(1))
    assert torch.equal(answer(captured), first)


@pytest.mark.parametrize("early_launch", [False, True])
def test_two_captures_on_two_streams_are_right_while_both_run(
    network: ir.Model, small: tuple[LoweredGraph, Weights], early_launch: bool
) -> None:
    preferred = OURS if early_launch else FUSED
    if early_launch:
        pytest.importorskip("triton")
    executor = Executor(*small, DEVICE, "fp16", preferred, early_launch=early_launch)
    first, second = executor.capture(), executor.capture()
    assert first.stream != second.stream
    give(first, picture(3))
    give(second, picture(4))
    alone = answer(first), answer(second)
    for _ in range(100):
        first.replay()
        second.replay()
    torch.cuda.synchronize()
    for captured, before, seed in ((first, alone[0], 3), (second, alone[1], 4)):
        assert torch.equal(captured.outputs["y"], before)
        right = run(network, {"x": picture(seed)})["y"]
        assert error(captured.outputs["y"].cpu().numpy(), right) < TOLERANCE


@pytest.mark.parametrize("early_launch", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_two_lanes_answer_what_one_does(small: tuple[LoweredGraph, Weights], early_launch: bool, seed: int) -> None:
    preferred = OURS if early_launch else FUSED
    if early_launch:
        pytest.importorskip("triton")
    numbers = range(len(small[0].steps))
    lanes = beside(small[0], frozenset(random.Random(seed).sample(numbers, len(numbers) // 2)))
    answers = []
    for each in (Lanes(), lanes):
        executor = Executor(*small, DEVICE, "fp16", preferred, early_launch=early_launch, lanes=each)
        captured = executor.capture()
        give(captured, picture(6))
        answers += [answer(captured) for _ in range(20)]
    assert all(torch.equal(each, answers[0]) for each in answers)


def test_what_torch_compile_made_of_the_module_can_be_captured(
    network: ir.Model, small: tuple[LoweredGraph, Weights]
) -> None:
    executor = Executor(*small, DEVICE, "fp16")
    with torch.no_grad(), executor.arithmetic():
        compiled = torch.compile(executor.module(), dynamic=False)
        compiled(*executor.blank_inputs().values())
    captured = executor.capture(lambda tensors: compiled(*tensors))
    give(captured, picture(5))
    right = run(network, {"x": picture(5)})["y"]
    assert np.isfinite(right).all()
    assert error(answer(captured).cpu().numpy(), right) < TOLERANCE
