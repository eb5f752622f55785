"""A stem and its pool: the source compiled for the CPU against exact sums, and for a GPU that is not here."""

import ctypes
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from penstock.engine.cuda.kernels import nvrtc  # noqa: E402
from penstock.engine.cuda.kernels.cpp_launching import CppLaunch  # noqa: E402
from penstock.engine.cuda.kernels.epilogue import Epilogue  # noqa: E402
from penstock.engine.cuda.kernels.stem_pool import StemCut, stem_cuts, stem_pool_launch  # noqa: E402
from tests.engine.cuda.kernels.test_lstm import compiled_for_the_cpu  # noqa: E402

pytestmark = pytest.mark.torch


@dataclass(frozen=True)
class Stem:
    images: int
    high: int
    wide: int
    filters: int
    cut: StemCut
    dtype: torch.dtype = torch.float16
    out: torch.dtype = torch.float16
    taps: int = 7
    activation: str = "relu"

    def __str__(self) -> str:
        return (
            f"{self.images}x{self.high}x{self.wide}x{self.filters} {self.taps} {self.cut.rows} {self.dtype}-{self.out}"
        )


BF16, INT8 = torch.bfloat16, torch.int8
STEMS = [
    Stem(2, 5, 11, 16, StemCut(2, 3)),
    Stem(1, 7, 8, 32, StemCut(7, 3), taps=6, activation="none"),
    Stem(1, 3, 9, 16, StemCut(1, 2), BF16, BF16, taps=3),
    Stem(2, 5, 11, 16, StemCut(2, 3), INT8, INT8),
    Stem(1, 6, 8, 32, StemCut(6, 3), INT8, torch.float16, taps=5, activation="none"),
]


@dataclass(frozen=True)
class Tensors:
    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    scale: torch.Tensor | None
    out: torch.Tensor

    def launch(self, stem: Stem) -> CppLaunch:
        epilogue = Epilogue(stem.activation, folded=stem.out == INT8)
        return stem_pool_launch(
            self.x, self.weight, self.bias, out=self.out, config=stem.cut, scale=self.scale, epilogue=epilogue
        )


def tensors(stem: Stem, device: str = "cpu") -> Tensors:
    generator = torch.Generator().manual_seed(3)
    rows, wide = 4 * stem.high + stem.taps - 2, 2 * stem.wide
    row = 8 * (wide + 3)

    def numbers(*shape: int) -> torch.Tensor:
        if stem.dtype == INT8:
            return torch.randint(-128, 128, shape, generator=generator).to(INT8).to(device)
        return torch.randn(shape, generator=generator).to(stem.dtype).to(device)

    picture = numbers(stem.images, rows, row)
    x = torch.as_strided(picture, (stem.images, rows, wide, 32), (rows * row, row, 8, 1))
    return Tensors(
        x,
        numbers(stem.filters, stem.taps, 1, 32),
        (20 * torch.randn(stem.filters, generator=generator)).to(device),
        (torch.rand(stem.filters, generator=generator) / 4000 + 1e-5).to(device) if stem.dtype == INT8 else None,
        torch.zeros(stem.images, stem.high, stem.wide, stem.filters, dtype=stem.out, device=device),
    )


def expected(given: Tensors, stem: Stem) -> torch.Tensor:
    """In float64, which holds sums of integers."""
    x, weight = given.x.double().cpu().permute(0, 3, 1, 2), given.weight.double().cpu().permute(0, 3, 1, 2)
    y = torch.nn.functional.conv2d(x, weight, stride=(2, 1))
    if given.scale is not None:
        y = y * given.scale.double().cpu()[:, None, None]
    y = y + given.bias.double().cpu()[:, None, None]
    y = torch.nn.functional.max_pool2d(y, 3, 2, 1).permute(0, 2, 3, 1)
    y = y.clamp(min=0) if stem.activation == "relu" else y
    return y.round().clamp(-128, 127) if stem.out == INT8 else y


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
@pytest.mark.parametrize("stem", STEMS, ids=str)
def test_every_lane_of_the_source_does_its_part(stem: Stem, tmp_path: Path) -> None:
    given = tensors(stem)
    launch = given.launch(stem)
    library = compiled_for_the_cpu(launch, tmp_path)
    library.run((ctypes.c_void_p * len(launch.bound()))(*map(int, launch.bound())))
    right = expected(given, stem)
    off = (given.out.double() - right).abs()
    if stem.out == INT8:
        assert off.max() <= 1  # where FP32 rounds to the other side
        assert (off > 0).double().mean() < 1e-2
        assert right.unique().numel() > 50
    else:
        assert float(off.norm() / right.norm()) < (4e-3 if stem.out == BF16 else 5e-4)


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
def test_what_is_not_a_number_is_none_behind_the_pool(tmp_path: Path) -> None:
    stem = next(each for each in STEMS if each.out == torch.float16 and each.activation == "relu")
    given = tensors(stem)
    given.x[0, given.x.shape[1] // 2, given.x.shape[2] // 2] = float("nan")
    launch = given.launch(stem)
    compiled_for_the_cpu(launch, tmp_path).run((ctypes.c_void_p * len(launch.bound()))(*map(int, launch.bound())))
    right = expected(given, stem)
    assert right.isnan().any()
    assert torch.equal(given.out.isnan(), right.isnan())


@pytest.mark.skipif(not nvrtc.available(), reason="there is no NVRTC")
@pytest.mark.parametrize("types", [(torch.float16, torch.float16), (INT8, INT8), (BF16, BF16)])
@pytest.mark.parametrize("resident", [2, 3])
def test_it_compiles_without_a_gpu_and_keeps_everything_in_registers(
    types: tuple[torch.dtype, torch.dtype], resident: int
) -> None:
    stem = Stem(1, 56, 56, 64, StemCut(14, resident), *types)
    found = tensors(stem).launch(stem).compile()
    assert found.spilled_bytes <= (0 if resident == 2 else 220)  # read once for each step, of thousands of products
    assert found.registers * 128 * resident <= 65536


@pytest.mark.parametrize(("images", "high"), [(64, 56), (1, 56), (3, 1)])
def test_cuts_leave_no_multiprocessor_without_work(images: int, high: int) -> None:
    cuts = stem_cuts(images, high)
    assert len(set(cuts)) == len(cuts) > 0
    blocks = images * -(-high // cuts[0].rows)
    assert blocks >= min(images * high, 132) * 0.8
