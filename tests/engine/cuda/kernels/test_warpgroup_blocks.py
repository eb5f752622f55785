"""Residual blocks in a row of warpgroup kernels, whose source is compiled for the CPU, against ONNX Runtime."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from penstock.engine.blocks import join_blocks  # noqa: E402
from penstock.engine.cuda import triton_steps, warpgroup_blocks  # noqa: E402
from penstock.engine.cuda.choices import Choice  # noqa: E402
from penstock.engine.cuda.executor import Executor  # noqa: E402
from penstock.engine.cuda.kernels.cpp_launching import CppLaunch  # noqa: E402
from penstock.engine.cuda.sites import Site  # noqa: E402
from tests.engine.cuda.reference import error, lowered  # noqa: E402
from tests.graph.small import graph, normal, run  # noqa: E402

from .emulating import run_on_the_cpu  # noqa: E402

pytestmark = pytest.mark.torch

BODY = """(float[1,64,{high},10] i) => (float[1,{out},{below},{wide}] y) {{
    g = Conv <pads=[1,1,1,1]> (i, v) x = Relu(g) {added}
    a = Conv <pads=[1,1,1,1], strides=[{stride},{stride}]> (x, w, b) h = Relu(a) c = Conv(h, p, q) s = Add(c, d)
    {behind} }}"""
ADDED = {
    "a residual": "k = Conv <pads=[1,1,1,1]> (x, o) d = LeakyRelu(k)",
    "a shortcut": "d = Conv(x, u, q)",
    "a shortcut of every other pixel": "d = Conv <strides=[2,2]> (x, u, q)",
}
BEHIND = {
    "bottleneck": "y = Relu(s)",
    "bottleneck_next": "z = Relu(s) n = Conv(z, e, b) y = HardSigmoid <alpha=0.3> (n)",
}
WEIGHTS = {
    "v": normal(64, 64, 3, 3, seed=1) / 24, "w": normal(64, 64, 3, 3, seed=2) / 24, "b": normal(64, seed=3),
    "p": normal(128, 64, 1, 1, seed=4) / 8, "q": normal(128, seed=5), "u": normal(128, 64, 1, 1, seed=6) / 8,
    "o": normal(128, 64, 3, 3, seed=7) / 24, "e": normal(64, 128, 1, 1, seed=8) / 11,
}  # fmt: skip


WAYS = [
    pytest.param(name, added, kind, id=f"{name}, {kind} of {added}")
    for name in ("cuda_row", "cuda_pair")
    for added in ADDED
    for kind in BEHIND
    if name == "cuda_row" or (kind == "bottleneck_next" and "other" not in added)
]


@pytest.fixture
def _as_if_there_were_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked is whether the step suits the kernels, and what they compute: one multiprocessor is enough."""
    monkeypatch.setattr(warpgroup_blocks, "runs_warpgroups", lambda site: True)
    monkeypatch.setattr(warpgroup_blocks, "multiprocessors_of", lambda device: 1)


def block(
    added: str, kind: str, device: str = "cpu", name: str = "cuda_row"
) -> tuple[Executor, Site, dict[str, "torch.Tensor"], "torch.Tensor"]:
    """An executor, the block's site, what the model reads and what it should answer."""
    stride = 2 if "other" in added else 1
    high = 7 * stride * stride
    body = BODY.format(
        high=high, wide=10 // stride, below=high // stride, stride=stride, added=ADDED[added], behind=BEHIND[kind],
        out=64 if kind == "bottleneck_next" else 128,
    )  # fmt: skip
    if name == "cuda_pair":
        body = body.replace("HardSigmoid <alpha=0.3>", "Relu")
    used = {key: each for key, each in WEIGHTS.items() if f" {key}," in body or f" {key})" in body}
    model, inputs = graph(body, used), {"i": normal(1, 64, high, 10)}
    found, weights = lowered(model, inputs)
    executor = Executor(join_blocks(found, fewest_pixels=1), weights, device, "fp16")
    (site,) = (each for each in executor.sites if each.step.kind == kind)
    return executor, site, {"i": torch.from_numpy(inputs["i"])}, torch.from_numpy(run(model, inputs)["y"])


@pytest.mark.usefixtures("_as_if_there_were_a_gpu")
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
@pytest.mark.parametrize(("name", "added", "kind"), WAYS)
def test_a_row_computes_what_the_block_does(name: str, added: str, kind: str, tmp_path: Path) -> None:
    executor, site, inputs, right = block(added, kind, name=name)
    way = triton_steps.WAYS[kind, name]
    assert way.types(site)
    assert way.suits(site)
    config = way.configs(site)[0]
    number = executor.sites.index(site)

    def run_in_a_row(operands: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        outputs = [torch.empty(site.out_shape(at), dtype=site.out_dtype(at)) for at in range(len(site.step.outputs))]
        ready = triton_steps._ready(way, site, config)
        for at, launch in enumerate(way.launches(ready, operands, outputs, None)):
            assert isinstance(launch, CppLaunch)
            (tmp_path / str(at)).mkdir()
            run_on_the_cpu(launch, tmp_path / str(at))
        return tuple(outputs)

    program = list(executor.program)
    program[number] = replace(program[number], run=run_in_a_row)
    executor.program = tuple(program)
    assert error(executor.run(inputs)["y"].numpy(), right.numpy()) < 3e-3


@pytest.mark.usefixtures("_as_if_there_were_a_gpu")
@pytest.mark.parametrize("kind", BEHIND)
@pytest.mark.parametrize("added", ADDED)
def test_cuts_differ_in_one_layer_from_the_first(added: str, kind: str) -> None:
    _, site, _, _ = block(added, kind)
    first, *others = warpgroup_blocks._configs(site)
    assert len({first, *others}) == len(others) + 1 > 3
    for other in others:
        parts = zip(warpgroup_blocks._split(site, first), warpgroup_blocks._split(site, other), strict=True)
        assert sum(one != another for one, another in parts) == 1
        assert triton_steps.launch(site, "cuda_row", other)


def test_blocks_of_other_types_are_left_to_others() -> None:
    executor, _, _, _ = block("a residual", "bottleneck")
    wide = Executor(executor.graph, executor.weights, "cpu", "fp32")
    (site,) = (each for each in wide.sites if each.step.kind == "bottleneck")
    assert not triton_steps.WAYS["bottleneck", "cuda_row"].types(site)


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="needs a Hopper GPU"
)
@pytest.mark.parametrize(("name", "added", "kind"), WAYS)
def test_every_row_that_would_be_timed_is_right_on_a_gpu(
    name: str, added: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warpgroup_blocks, "multiprocessors_of", lambda device: 1)
    executor, site, inputs, right = block(added, kind, "cuda", name)
    there = {key: each.to("cuda") for key, each in inputs.items()}
    configs = triton_steps.WAYS[kind, name].configs(site)
    assert configs
    for config in configs:
        choices = {site.step.name: Choice(name, config)}
        row = Executor(executor.graph, executor.weights, "cuda", "fp16", choices=choices, early_launch=True)
        assert error(row.run(there)["y"].cpu().numpy(), right.numpy()) < 3e-3
