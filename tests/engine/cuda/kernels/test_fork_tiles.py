"""The fork by tiles: the source compiled for the CPU against float64, and for a GPU that is not here."""

import ctypes
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from penstock.engine.cuda.kernels import nvrtc  # noqa: E402
from penstock.engine.cuda.kernels.cpp_launching import CppLaunch  # noqa: E402
from penstock.engine.cuda.kernels.epilogue import Epilogue  # noqa: E402
from penstock.engine.cuda.kernels.fork_tiles import ForkCut, fork_cuts, fork_tiles_launch, packed  # noqa: E402
from tests.engine.cuda.kernels.test_lstm import compiled_for_the_cpu  # noqa: E402

pytestmark = pytest.mark.torch

HALF, BF16 = torch.float16, torch.bfloat16


@dataclass(frozen=True)
class Fork:
    images: int
    high: int
    wide: int
    channels: int
    between: int
    made: int
    cut: ForkCut
    dtype: torch.dtype = HALF
    bias: bool = True
    outer: str = "relu"
    apart: int = 0

    def __str__(self) -> str:
        sizes = f"{self.images}x{self.high}x{self.wide} {self.channels}-{self.between}-{self.made}"
        return f"{sizes} {self.cut.high}x{self.cut.wide}x{self.cut.warps} {self.dtype}"


FORKS = [
    Fork(2, 5, 7, 24, 12, 24, ForkCut(4, 4, 2)),
    Fork(1, 9, 11, 48, 24, 48, ForkCut(8, 8, 2), bias=False),
    Fork(2, 4, 6, 16, 16, 32, ForkCut(4, 16, 3), BF16, outer="none", apart=8),
]


@dataclass(frozen=True)
class Tensors:
    x: torch.Tensor
    first: torch.Tensor
    first_bias: torch.Tensor | None
    second: torch.Tensor
    second_bias: torch.Tensor | None
    out: torch.Tensor

    def launch(self, fork: Fork) -> CppLaunch:
        return fork_tiles_launch(
            self.x, packed(self.first), self.first_bias, packed(self.second), self.second_bias, between=fork.between,
            out=self.out, config=fork.cut, inner=Epilogue("relu"), outer=Epilogue(fork.outer),
        )  # fmt: skip


def tensors(fork: Fork, device: str = "cpu") -> Tensors:
    generator = torch.Generator().manual_seed(7)

    def normal(*shape: int, size: float = 1.0, dtype: torch.dtype = fork.dtype) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * size).to(dtype).to(device)

    pixels = (fork.images, fork.high, fork.wide)
    return Tensors(
        normal(*pixels, fork.channels + fork.apart)[..., : fork.channels],
        normal(fork.between, 2, 2, fork.channels, size=fork.channels**-0.5),
        normal(fork.between, dtype=torch.float32) if fork.bias else None,
        normal(fork.made, 2, 2, fork.between, size=fork.between**-0.5),
        normal(fork.made, dtype=torch.float32) if fork.bias else None,
        torch.full((*pixels, fork.channels + fork.made), torch.nan, dtype=fork.dtype, device=device),
    )


def expected(given: Tensors, fork: Fork) -> tuple[torch.Tensor, torch.Tensor]:
    functional = torch.nn.functional
    planes = given.x.double().cpu().permute(0, 3, 1, 2)
    largest = functional.max_pool2d(functional.pad(planes, (0, 1, 0, 1), value=float("-inf")), 2, 1)
    y = planes
    for weight, bias, activation in (
        (given.first, given.first_bias, "relu"), (given.second, given.second_bias, fork.outer)
    ):  # fmt: skip
        wide = None if bias is None else bias.double().cpu()
        y = functional.conv2d(functional.pad(y, (0, 1, 0, 1)), weight.double().cpu().permute(0, 3, 1, 2), wide)
        y = (y.relu() if activation == "relu" else y).to(fork.dtype).double()
    return largest.permute(0, 2, 3, 1), y.permute(0, 2, 3, 1)


def run(given: Tensors, fork: Fork, folder: Path) -> None:
    launch = given.launch(fork)
    compiled_for_the_cpu(launch, folder).run((ctypes.c_void_p * len(launch.bound()))(*map(int, launch.bound())))


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
@pytest.mark.parametrize("fork", FORKS, ids=str)
def test_every_lane_of_the_source_does_its_part(fork: Fork, tmp_path: Path) -> None:
    given = tensors(fork)
    run(given, fork, tmp_path)
    largest, made = expected(given, fork)
    assert torch.equal(given.out[..., : fork.channels].double(), largest)
    off = (given.out[..., fork.channels :].double() - made).norm() / made.norm()
    assert float(off) < (6e-3 if fork.dtype == BF16 else 7e-4)


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
def test_what_is_not_a_number_stays_where_it_is_seen(tmp_path: Path) -> None:
    fork = FORKS[0]
    given = tensors(fork)
    given.x[1, 2, 3, 5] = float("nan")
    run(given, fork, tmp_path)
    pooled, convolved = given.out[..., 5].isnan(), given.out[..., fork.channels].isnan()
    assert pooled.nonzero().tolist() == [[1, 1, 2], [1, 1, 3], [1, 2, 2], [1, 2, 3]]
    assert convolved.nonzero().tolist() == [[1, row, column] for row in range(3) for column in range(1, 4)]


@pytest.mark.skipif(not nvrtc.available(), reason="there is no NVRTC")
@pytest.mark.parametrize("sizes", [(1, 368, 368, 24, 12, 24), (32, 24, 160, 48, 24, 48)])
def test_it_compiles_without_a_gpu_and_leaves_room_for_other_blocks(sizes: tuple[int, ...]) -> None:
    fork = Fork(*sizes, cut=fork_cuts(*sizes)[0])
    found = tensors(fork).launch(fork).compile()
    assert found.spilled_bytes == 0
    assert found.registers <= 168


def test_cuts_are_different_and_fit_the_memory_of_a_multiprocessor() -> None:
    cuts = fork_cuts(1, 368, 368, 24, 12, 24)
    assert len(set(cuts)) == len(cuts) > 2
    assert fork_cuts(1, 368, 368, 20, 12, 24) == []
