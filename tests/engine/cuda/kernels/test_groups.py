"""Convolutions in groups by products of groups that are joined: each number of them, against ONNX Runtime in FP32."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch

from penstock.engine.cuda.choices import Choice
from penstock.engine.cuda.executor import Executor
from penstock.engine.cuda.group_steps import joined, togethers
from penstock.engine.cuda.implementations import add_triton, fitting
from penstock.engine.cuda.sites import Site
from penstock.engine.lowered import LoweredGraph
from penstock.errors import InvalidArgument, Unsupported
from penstock.graph.lowering import Weights
from tests.engine.cuda.reference import Arrays, error, lowered
from tests.graph.small import graph, normal, run

pytestmark = pytest.mark.torch

NAME = "triton_groups"
LAYER = """(float[2,{channels},7,6] x) => (float[2,{filters},{high},{wide}] y) {{
    a = Conv <pads=[1,{left},1,1], strides=[{stride},{stride}], group={groups}> (x, w, b) {rest} }}"""

# name: channels, filters, groups, stride, columns added to the left, what follows
LAYERS = {
    "ResNeXt": (32, 32, 8, 1, 1, "y = Relu(a)"),
    "RegNet, strided": (48, 48, 3, 2, 1, "y = HardSwish(a)"),
    "more filters than channels": (16, 32, 16, 2, 1, "y = Relu(a)"),
    "fewer": (64, 16, 8, 1, 1, "y = Relu(a)"),
    "a residual": (32, 32, 4, 1, 1, "r = Add(a, x) y = Relu(r)"),
    "an edge on one side": (32, 32, 2, 1, 0, "y = Relu(a)"),
    "five groups, which nothing divides": (20, 20, 5, 1, 1, "s = Sigmoid(a) y = Mul(a, s)"),
}


def layer(name: str) -> tuple[LoweredGraph, Weights, Arrays, Arrays]:
    """Steps, their weights, inputs, and what is right."""
    channels, filters, groups, stride, left, rest = LAYERS[name]
    high, wide = (7 - 1) // stride + 1, (6 + left - 2) // stride + 1
    text = LAYER.format(
        channels=channels, filters=filters, groups=groups, stride=stride, left=left, rest=rest, high=high, wide=wide
    )
    deep = channels // groups
    weights = {"w": normal(filters, deep, 3, 3, seed=1) / (9 * deep) ** 0.5, "b": normal(filters, seed=2)}
    model, inputs = graph(text, weights), {"x": normal(2, channels, 7, 6)}
    return *lowered(model, inputs), inputs, run(model, inputs)


def convolution(executor: Executor) -> Site:
    (site,) = (site for site in executor.sites if site.step.kind == "conv")
    return site


@pytest.mark.parametrize("name", LAYERS)
def test_groups_are_multiplied_together(name: str, device: str) -> None:
    add_triton()
    steps, weights, inputs, right = layer(name)
    _, filters, groups, *_ = LAYERS[name]
    site = convolution(Executor(steps, weights, device, "fp16"))
    configs = {config[0]: tuple(config) for config in fitting(site)[NAME].configs(site)}
    assert set(configs) == set(togethers(groups, filters, LAYERS[name][0]))
    for config in configs.values():
        executor = Executor(steps, weights, device, "fp16", choices={site.step.name: Choice(NAME, config)})
        assert convolution(executor).step.implementation == NAME
        found = executor.run({key: torch.from_numpy(each).to(device) for key, each in inputs.items()})["y"]
        assert error(found.cpu().numpy(), right["y"]) < 2e-3, config


def test_filters_of_one_group_are_zero_for_the_others() -> None:
    weight = torch.randn(12, 3, 2, 4)
    assert joined(weight, 6, 1) is weight
    found = joined(weight, 6, 3)
    assert found.shape == (12, 3, 2, 12)
    x = torch.randn(1, 24, 5, 5)
    taps, together = weight.permute(0, 3, 1, 2), found.permute(0, 3, 1, 2)
    apart = torch.nn.functional.conv2d(x, taps, groups=6)
    assert torch.allclose(torch.nn.functional.conv2d(x, together, groups=2), apart, atol=1e-5)
    assert (found == 0).sum() == found.numel() * 2 // 3


@pytest.mark.parametrize(
    ("groups", "filters", "channels", "expected"),
    [
        (32, 128, 128, (4, 8, 16, 32)),  # ResNeXt-50, first stage
        (6, 384, 384, (1, 2)),  # NFNet-L0
        (48, 96, 48, (16, 48)),  # FastViT, between stages
        (7, 112, 112, (1, 7)),  # RegNet: of seven groups there is nothing between
        (3, 6, 6, (3,)),  # a model of toys: all there are
        (2, 2048, 2048, (1,)),  # wider than any cut
    ],
)
def test_a_unit_has_few_widths(groups: int, filters: int, channels: int, expected: tuple[int, ...]) -> None:
    assert togethers(groups, filters, channels) == expected


def test_layers_of_one_group_or_one_channel_have_other_kernels(device: str) -> None:
    add_triton()
    for groups in (1, 32):
        text = LAYER.format(
            channels=32, filters=32, groups=groups, stride=1, left=1, rest="y = Relu(a)", high=7, wide=6
        )
        weights = {"w": normal(32, 32 // groups, 3, 3), "b": normal(32)}
        site = convolution(Executor(*lowered(graph(text, weights), {"x": normal(2, 32, 7, 6)}), device, "fp16"))
        assert NAME not in fitting(site)
        assert any(name.startswith("triton") for name in fitting(site))


@pytest.mark.parametrize("config", [(3, 16, 16, 16, 4, 2, 1, 8), (0, 16, 16, 16, 4, 2, 1, 8), (2,)])
def test_a_cut_that_does_not_divide_the_groups_is_refused(config: tuple[int, ...], device: str) -> None:
    steps, weights, *_ = layer("ResNeXt")
    name = next(step.name for step in steps.steps if step.kind == "conv")
    with pytest.raises((InvalidArgument, Unsupported), match=r"can't have the configuration|wants 'triton_groups'"):
        Executor(steps, weights, device, "fp16", choices={name: Choice(NAME, config)})
