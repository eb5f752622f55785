"""A stem and its pool by warpgroups: the source compiled for the CPU against exact sums, and for a GPU not here."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional  # noqa: E402

from penstock.engine.cuda.kernels import nvrtc  # noqa: E402
from penstock.engine.cuda.kernels.cpp_launching import CppLaunch  # noqa: E402
from penstock.engine.cuda.kernels.epilogue import Epilogue  # noqa: E402
from penstock.engine.cuda.kernels.warpgroup_stem import (  # noqa: E402
    StemRows,
    picture_stem_launch,
    stem_rows,
    warpgroup_stem_launch,
)
from tests.engine.cuda.kernels import test_stem_pool as narrow_stems  # noqa: E402
from tests.engine.cuda.kernels.test_stem_pool import Stem, StemCut  # noqa: E402

from .emulating import run_on_the_cpu  # noqa: E402

pytestmark = pytest.mark.torch

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
ON_THE_CPU = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
STEMS = [
    Stem(2, 5, 11, 64, StemCut(2, 2)),
    Stem(1, 4, 40, 64, StemCut(4, 2), taps=6, activation="none"),
    Stem(1, 3, 50, 64, StemCut(1, 2), BF16, BF16, taps=3),
]


def launch_of(given: narrow_stems.Tensors, stem: Stem) -> CppLaunch:
    return warpgroup_stem_launch(
        given.x, given.weight, given.bias, out=given.out, config=StemRows(stem.cut.rows),
        epilogue=Epilogue(stem.activation),
    )  # fmt: skip


@ON_THE_CPU
@pytest.mark.parametrize("stem", STEMS, ids=str)
def test_rows_that_overlap_are_multiplied_as_windows(stem: Stem, tmp_path: Path) -> None:
    given = narrow_stems.tensors(stem)
    run_on_the_cpu(launch_of(given, stem), tmp_path)
    right = narrow_stems.expected(given, stem)
    assert float((given.out.double() - right).norm() / right.norm()) < (4e-3 if stem.out == BF16 else 5e-4)


@dataclass(frozen=True)
class Picture:
    images: int
    planes: int
    high: int
    wide: int
    dtype: torch.dtype
    out: torch.dtype
    rows: int
    taps: int = 7
    corner: tuple[int, int] = (3, 3)

    def __str__(self) -> str:
        return f"{self.images}x{self.planes}x{self.high}x{self.wide} {self.dtype}-{self.out} {self.rows} {self.corner}"


PICTURES = [
    Picture(2, 3, 24, 40, FP32, FP16, 4),
    Picture(1, 3, 20, 48, FP16, FP16, 2),
    Picture(1, 1, 12, 32, FP32, BF16, 3, taps=5, corner=(2, 2)),
    Picture(1, 4, 16, 24, BF16, BF16, 1, corner=(0, 1)),
    Picture(2, 2, 8, 16, FP32, FP16, 2, taps=3, corner=(1, 0)),
]


@dataclass(frozen=True)
class Given:
    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    out: torch.Tensor

    def launch(self, case: Picture) -> CppLaunch:
        return picture_stem_launch(
            self.x, self.weight, self.bias, out=self.out, config=StemRows(case.rows), corner=case.corner,
            epilogue=Epilogue("relu"),
        )  # fmt: skip

    def laid_out(self, case: Picture) -> torch.Tensor:
        """Rows of pixels of four numbers, [N, rows, pixels, 4]."""
        rows, pixels = 4 * (case.high // 4) + case.taps - 2, 4 * (case.wide // 4) + 6
        (top, left), narrow = case.corner, self.x.to(self.weight.dtype).double().cpu()
        around = (left, pixels - left - case.wide, top, rows - top - case.high, 0, 4 - case.planes)
        return functional.pad(narrow, around).permute(0, 2, 3, 1)

    def expected(self, case: Picture) -> torch.Tensor:
        picture = self.laid_out(case)
        filters = self.weight.double().cpu().view(64, case.taps, 8, 4).permute(0, 3, 1, 2)
        y = functional.conv2d(picture.permute(0, 3, 1, 2), filters, self.bias.double().cpu(), stride=2)
        return functional.max_pool2d(y, 3, 2, 1).permute(0, 2, 3, 1).clamp(min=0)


def given_of(case: Picture, device: str = "cpu") -> Given:
    generator = torch.Generator().manual_seed(3)
    high, wide = case.high // 4, case.wide // 4
    return Given(
        torch.randn(case.images, case.planes, case.high, case.wide, generator=generator).to(device, case.dtype),
        torch.randn(64, case.taps, 1, 32, generator=generator).to(device, case.out),
        20 * torch.randn(64, generator=generator).to(device),
        torch.zeros(case.images, high, wide, 64, dtype=case.out, device=device),
    )


@ON_THE_CPU
@pytest.mark.parametrize("case", PICTURES, ids=str)
def test_a_picture_is_laid_out_on_the_way(case: Picture, tmp_path: Path) -> None:
    given = given_of(case)
    run_on_the_cpu(given.launch(case), tmp_path)
    right = given.expected(case)
    assert float((given.out.double() - right).norm() / right.norm()) < (4e-3 if case.out == BF16 else 5e-4)


@ON_THE_CPU
def test_what_is_not_a_number_is_none_behind_the_pool(tmp_path: Path) -> None:
    case = PICTURES[0]
    given = given_of(case)
    given.x[0, 1, 9, 13] = float("nan")
    run_on_the_cpu(given.launch(case), tmp_path)
    right = given.expected(case)
    assert right.isnan().any()
    assert torch.equal(given.out.isnan(), right.isnan())


REFUSED = {
    "rows of odd sizes": Picture(1, 3, 24, 42, FP16, FP16, 2),
    "five planes": Picture(1, 5, 24, 40, FP32, FP16, 2),
    "another type": Picture(1, 3, 24, 40, BF16, FP16, 2),
    "no room for it": Picture(1, 3, 24, 40, FP32, FP16, 2, corner=(6, 3)),
    "too wide": Picture(1, 3, 24, 320, FP32, FP16, 2),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_pictures_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        given_of(REFUSED[name]).launch(REFUSED[name])


@pytest.mark.skipif(not nvrtc.available(), reason="there is no NVRTC")
@pytest.mark.parametrize("pads", [False, True])
@pytest.mark.parametrize("wide", [24, 56, 64])
def test_it_compiles_without_a_gpu_and_keeps_everything_in_registers(pads: bool, wide: int) -> None:
    if pads:
        case = Picture(1, 3, 224, 4 * wide, FP32, FP16, 14)
        found = given_of(case).launch(case).compile()
    else:
        stem = Stem(1, 56, wide, 64, StemCut(14, 2))
        found = launch_of(narrow_stems.tensors(stem), stem).compile()
    assert found.spilled_bytes == 0 or wide == 64
    assert found.registers <= 255


def test_the_first_cut_leaves_no_multiprocessor_without_work() -> None:
    for images, high in ((64, 56), (1, 56), (3, 2)):
        cuts = stem_rows(images, high)
        assert len(set(cuts)) == len(cuts) > 0
        assert images * -(-high // cuts[0].rows) >= min(images * high, 132) * 0.8


ON_A_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="needs a Hopper GPU"
    ),
]
LARGE = Picture(3, 3, 224, 224, FP32, FP16, 14)


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=ON_A_GPU) for case in (*PICTURES, LARGE, Picture(5, 3, 88, 256, FP16, FP16, 3))],
    ids=str,
)  # fmt: skip
def test_a_gpu_lays_pictures_out_as_the_cpu_does(case: Picture) -> None:
    given = given_of(case, "cuda")
    launch, found = given.launch(case), []
    for _ in range(2):
        given.out.fill_(7)
        launch.run()
        found.append(given.out.clone())
    assert torch.equal(*found)
    right = given.expected(case)
    assert float((given.out.double().cpu() - right).norm() / right.norm()) < (4e-3 if case.out == BF16 else 5e-4)


@pytest.mark.parametrize(
    "stem", [pytest.param(stem, marks=ON_A_GPU) for stem in (*STEMS, Stem(3, 56, 56, 64, StemCut(10, 2)))], ids=str
)
def test_a_gpu_multiplies_rows_that_overlap(stem: Stem) -> None:
    given = narrow_stems.tensors(stem, "cuda")
    launch_of(given, stem).run()
    right = narrow_stems.expected(given, stem)
    assert float((given.out.double().cpu() - right).norm() / right.norm()) < (4e-3 if stem.out == BF16 else 5e-4)
