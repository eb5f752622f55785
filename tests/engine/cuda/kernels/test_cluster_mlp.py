"""Two layers by a cluster: the source compiled for the CPU against float64, and for a GPU that is not here."""

import ctypes
import shutil
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from penstock.engine.cuda.kernels import nvrtc  # noqa: E402
from penstock.engine.cuda.kernels.cluster_mlp import ClusterCut, cluster_cuts, cluster_mlp_launch  # noqa: E402
from penstock.engine.cuda.kernels.cpp_launching import CppLaunch  # noqa: E402
from penstock.engine.cuda.kernels.epilogue import Epilogue  # noqa: E402
from tests.engine.cuda.kernels.test_lstm import compiled_for_the_cpu  # noqa: E402

pytestmark = pytest.mark.torch

HALF, BF16 = torch.float16, torch.bfloat16


@dataclass(frozen=True)
class Layers:
    images: int
    rows: int
    wide: int
    hidden: int
    out: int
    cut: ClusterCut
    dtype: torch.dtype = HALF
    inner: str = "gelu"
    outer: str = "none"
    gated: bool = False
    added: str = "none"
    """skip, residual, last, or none."""
    bias: bool = True

    def __str__(self) -> str:
        cut = f"{self.cut.cluster}x{self.cut.warps}"
        return f"{self.images}x{self.rows}x{self.wide}x{self.hidden}x{self.out} {cut} {self.dtype} {self.added}"


CASES = [
    Layers(1, 50, 32, 64, 32, ClusterCut(2, 2), added="skip", gated=True),
    Layers(3, 32, 96, 192, 96, ClusterCut(4, 6), added="skip", gated=True),
    Layers(1, 90, 40, 96, 64, ClusterCut(2, 2), inner="relu", outer="silu", added="last"),
    Layers(2, 21, 72, 96, 48, ClusterCut(2, 3), BF16, inner="silu", added="residual", gated=False),
    Layers(1, 16, 64, 64, 96, ClusterCut(4, 2), bias=False),
    Layers(2, 16, 64, 64, 64, ClusterCut(4, 2), BF16, gated=True, added="skip"),
    Layers(1, 20, 256, 64, 256, ClusterCut(2, 4), gated=True, added="skip"),
    Layers(1, 40, 232, 64, 32, ClusterCut(2, 2)),
    Layers(3, 48, 32, 64, 32, ClusterCut(2, 2), added="skip", gated=True),
    Layers(1, 150, 64, 64, 64, ClusterCut(2, 4), added="residual"),
]


@dataclass(frozen=True)
class Tensors:
    x: torch.Tensor
    first: torch.Tensor
    first_bias: torch.Tensor | None
    second: torch.Tensor
    second_bias: torch.Tensor | None
    gate: torch.Tensor | None
    residual: torch.Tensor | None
    out: torch.Tensor

    def launch(self, layers: Layers) -> CppLaunch:
        return cluster_mlp_launch(
            self.x, self.first, self.first_bias, self.second, self.second_bias, out=self.out, config=layers.cut,
            inner=Epilogue(layers.inner), gate=self.gate, residual=self.residual, skip=layers.added == "skip",
            epilogue=Epilogue(layers.outer, residual_last=layers.added == "last"),
        )  # fmt: skip


def tensors(layers: Layers, device: str = "cpu") -> Tensors:
    generator = torch.Generator().manual_seed(11)

    def normal(*shape: int, size: float = 1.0, dtype: torch.dtype = layers.dtype) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * size).to(dtype).to(device)

    rows = (layers.images, layers.rows)
    return Tensors(
        normal(*rows, layers.wide),
        normal(layers.hidden, layers.wide, size=layers.wide**-0.5),
        normal(layers.hidden, dtype=torch.float32) if layers.bias else None,
        normal(layers.out, layers.hidden, size=2 * layers.hidden**-0.5),
        normal(layers.out, dtype=torch.float32) if layers.bias else None,
        torch.rand(layers.images, layers.wide, generator=generator).to(layers.dtype).to(device)
        if layers.gated
        else None,
        normal(*rows, layers.out) if layers.added in ("residual", "last") else None,
        torch.full((*rows, layers.out), torch.nan, dtype=layers.dtype, device=device),
    )


ACTIVATIONS = {
    "none": lambda x: x,
    "relu": torch.relu,
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
}


def expected(given: Tensors, layers: Layers) -> torch.Tensor:
    x = given.x.double().cpu()
    if given.gate is not None:
        x = (x * given.gate.double().cpu()[:, None]).to(layers.dtype).double()
    y = x @ given.first.double().cpu().T
    y = y if given.first_bias is None else y + given.first_bias.double().cpu()
    y = ACTIVATIONS[layers.inner](y).to(layers.dtype).double() @ given.second.double().cpu().T
    y = y if given.second_bias is None else y + given.second_bias.double().cpu()
    added = x if layers.added == "skip" else 0 if given.residual is None else given.residual.double().cpu()
    if layers.added == "last":
        return ACTIVATIONS[layers.outer](y) + added
    return ACTIVATIONS[layers.outer](y + added)


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
@pytest.mark.parametrize("layers", CASES, ids=str)
def test_every_lane_of_the_source_does_its_part(layers: Layers, tmp_path: Path) -> None:
    given = tensors(layers)
    launch = given.launch(layers)
    library = compiled_for_the_cpu(launch, tmp_path)
    library.run((ctypes.c_void_p * len(launch.bound()))(*map(int, launch.bound())))
    right = expected(given, layers)
    off = (given.out.double() - right).norm() / right.norm()
    assert float(off) < (5e-3 if layers.dtype == BF16 else 6e-4)


SHAPES = [(480, 192, 384, 192), (480, 96, 192, 192), (960, 96, 192, 96), (240, 192, 384, 384)]


@pytest.mark.skipif(not nvrtc.available(), reason="there is no NVRTC")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_compiles_without_a_gpu_and_keeps_everything_in_registers(shape: tuple[int, int, int, int]) -> None:
    rows, wide, hidden, out = shape
    gated = wide == out
    cut = cluster_cuts(rows, wide, hidden, out, gated)[0]
    layers = Layers(1, rows, wide, hidden, out, cut, gated=gated, added="skip" if gated else "none")
    found = tensors(layers).launch(layers).compile()
    assert found.spilled_bytes == 0
    assert found.registers * cut.warps * 32 <= 65536


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cuts_share_the_rows_and_fit_a_gpu(shape: tuple[int, int, int, int]) -> None:
    cuts = cluster_cuts(*shape)
    assert len(set(cuts)) == len(cuts) > 0
    for cut in cuts:
        assert ceil(shape[0] / 16) * cut.cluster <= 132


def test_more_rows_than_fit_at_once_have_no_cut() -> None:
    assert cluster_cuts(2116, 192, 384, 192) == []
