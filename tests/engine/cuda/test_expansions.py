"""Two layers of integers as one step: which are joined, and that the answers are those of both apart."""

import ctypes
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from penstock.engine import eight_bits  # noqa: E402
from penstock.engine.cuda.executor import Executor  # noqa: E402
from penstock.engine.cuda.kernels.cpp_launching import CppLaunch  # noqa: E402
from penstock.engine.lowered import LoweredGraph  # noqa: E402
from penstock.graph import optimize  # noqa: E402
from penstock.graph.lowering import lower  # noqa: E402
from tests.engine.cuda.kernels.test_depthwise_walk import compiled_for_the_cpu  # noqa: E402
from tests.engine.cuda.narrowing import Network  # noqa: E402
from tests.graph.small import graph as made  # noqa: E402
from tests.graph.small import normal  # noqa: E402

pytestmark = pytest.mark.torch

STRIDED = Network(
    "strided",
    """(float[2,32,9,8] x) => (float[2,24,5,4] y) {
    z = Conv(x, zero) a = Conv(z, one, shift) b = Clip(a, low, high)
    c = Conv <group=96, pads=[1,1,1,1], strides=[2,2]> (b, two, bias) d = Clip(c, low, high) y = Conv(d, three) }""",
    (2, 32, 9, 8),
    {
        "zero": (24, 32, 1, 1), "one": (96, 24, 1, 1), "two": (96, 1, 3, 3), "bias": (96,), "shift": (96,),
        "three": (24, 96, 1, 1), "low": (), "high": (),
    },
    frozenset(),
    (),
)  # fmt: skip


def unstrided(text: str) -> Network:
    return replace(STRIDED, text=text.replace(", strides=[2,2]", "").replace("[2,24,5,4]", "[2,24,9,8]"))


def as_they_are(graph: LoweredGraph) -> LoweredGraph:
    return graph


def test_layers_of_integers_are_one_step_and_answer_as_two_do(monkeypatch: pytest.MonkeyPatch) -> None:
    joined, weights, _ = STRIDED.narrowed()
    (step,) = (each for each in joined.steps if each.kind == "expand_depthwise")
    assert [each.role for each in step.inputs] == ["x", "first", "first_bias", "scale", "weight", "bias"]
    monkeypatch.setattr(eight_bits, "join_expansions_of_integers", as_they_are)
    apart, others, _ = STRIDED.narrowed()
    assert len(apart.steps) == len(joined.steps) + 1
    x = STRIDED.inputs()
    for precision in ("fp16", "fp32"):
        (found,) = Executor(joined, weights, "cpu", precision).run(x).values()
        (right,) = Executor(apart, others, "cpu", precision).run(x).values()
        assert float((found - right).norm()) <= 2e-3 * float(right.norm())


@pytest.mark.parametrize(
    "network",
    [
        unstrided(STRIDED.text),
        replace(STRIDED, text=STRIDED.text.replace("Clip(c, low, high)", "Relu(c)")),
        replace(STRIDED, weights=STRIDED.weights | {"zero": (72, 32, 1, 1), "one": (96, 72, 1, 1)}),
    ],
    ids=["without strides", "another activation", "not narrow"],
)
def test_others_stay_apart(network: Network) -> None:
    assert all(step.kind != "expand_depthwise" for step in network.narrowed()[0].steps)


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
@pytest.mark.parametrize("name", ["cuda_walk", "cuda_pair"])
@pytest.mark.parametrize("eight", [True, False], ids=["int8", "fp16"])
def test_both_ways_come_to_what_the_reference_does(name: str, eight: bool, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    from penstock.engine.cuda.depthwise_steps import WALKS
    from penstock.engine.cuda.triton_steps import _ready

    graph, weights = STRIDED.narrowed()[:2] if eight else joined_floats()
    executor = Executor(graph, weights, "cpu", "fp16")
    (number,) = (at for at, site in enumerate(executor.sites) if site.step.kind == "expand_depthwise")
    site, seen = executor.sites[number], list[tuple[torch.Tensor, ...]]()
    executor.run(STRIDED.inputs(), lambda at, operands: seen.append(tuple(operands)) if at == number else None)
    (right,) = executor.program[number].run(seen[0])
    way, out = WALKS["expand_depthwise", name], torch.empty_like(right)
    assert way.types(site)
    # Addresses on a GPU are multiples of many more bytes.
    operands = [each.clone() if each.data_ptr() % 16 else each for each in seen[0]]
    for at, launch in enumerate(way.launches(_ready(way, site, way.configs(site)[0]), operands, [out], None)):
        assert isinstance(launch, CppLaunch)
        (tmp_path / str(at)).mkdir()
        library = compiled_for_the_cpu(launch, tmp_path / str(at))
        library.run((ctypes.c_void_p * len(launch.bound()))(*map(int, launch.bound())))
    if eight:
        assert (out.int() - right.int()).abs().max() <= 1
        assert float((out != right).float().mean()) < 0.05
    else:
        assert float((out.float() - right.float()).norm()) <= 1e-3 * float(right.float().norm())


def joined_floats() -> tuple[LoweredGraph, dict[str, torch.Tensor]]:
    drawn = {
        name: normal(*shape, seed=number) / max(1, int(np.prod(shape[1:]))) ** 0.5
        for number, (name, shape) in enumerate(STRIDED.weights.items())
        if shape
    }
    model = made(STRIDED.text, {**drawn, "low": np.array(0, np.float32), "high": np.array(6, np.float32)}, 20)
    graph, weights = lower(optimize(model, shapes={"x": STRIDED.shape}).model)
    return graph, {name: torch.from_numpy(np.array(each)) for name, each in weights.items()}
