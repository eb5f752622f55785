"""The largest of a product's rows in CUDA C++: the source compiled for the CPU against float64, and for a GPU."""

import ctypes
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from penstock.engine.cuda.kernels import nvrtc  # noqa: E402
from penstock.engine.cuda.kernels.cpp_launching import CppLaunch  # noqa: E402
from penstock.engine.cuda.kernels.gemm_top_1 import WalkCut, walk_cuts, walk_top_1_launches  # noqa: E402
from tests.engine.cuda.kernels.test_lstm import compiled_for_the_cpu  # noqa: E402

pytestmark = pytest.mark.torch


@dataclass(frozen=True)
class Case:
    rows: int
    columns: int
    deep: int
    cut: WalkCut
    dtype: torch.dtype = torch.float16
    bias: bool = True

    def __str__(self) -> str:
        cut = f"{self.cut.tiles}x{self.cut.high}x{self.cut.wide}x{self.cut.splits}"
        return f"{self.rows}x{self.columns}x{self.deep} {cut} {self.dtype}"


CASES = [
    Case(40, 300, 120, WalkCut(3, 1, 2, 2)),
    Case(50, 130, 64, WalkCut(2, 2, 1, 2), torch.bfloat16),
    Case(5, 70, 24, WalkCut(1, 1, 2, 4), bias=False),
]


def launched(case: Case, x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None) -> tuple[CppLaunch, torch.Tensor]:
    parts = torch.full((3, case.rows, case.cut.splits * case.cut.wide), torch.nan, device=x.device)
    index = torch.zeros(case.rows, dtype=torch.int64, device=x.device)
    score = torch.zeros(case.rows, device=x.device)
    walk, _ = walk_top_1_launches(x, w, bias, index=index, score=score, parts=parts, config=case.cut)
    return walk, parts


def walked(
    case: Case, x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None, folder: Path
) -> tuple[torch.Tensor, torch.Tensor]:
    """As the second kernel puts the parts together."""
    walk, parts = launched(case, x, w, bias)
    compiled_for_the_cpu(walk, folder).run((ctypes.c_void_p * len(walk.bound()))(*map(int, walk.bound())))
    largest, places, totals = parts.double()
    top = largest.max(1, keepdim=True).values
    place = torch.where(largest == top, places, torch.inf).min(1).values
    return place, 1 / (totals * (largest - top).exp()).sum(1)


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_lane_of_the_source_does_its_part(case: Case, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(case.rows, case.deep + 8, generator=generator).to(case.dtype)[:, : case.deep]
    w = (torch.randn(case.columns, case.deep, generator=generator) / 4).to(case.dtype)
    bias = torch.randn(case.columns, generator=generator) if case.bias else None
    index, score = walked(case, x, w, bias, tmp_path)
    y = x.double() @ w.double().T
    right = torch.softmax(y if bias is None else y + bias.double(), 1).max(1)
    assert torch.equal(index, right.indices.double())
    assert (score - right.values).abs().max() < 1e-5


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
def test_lanes_that_see_no_column_make_no_nan(tmp_path: Path) -> None:
    case = Case(5, 65, 24, WalkCut(1, 1, 2, 2), bias=False)
    x, w = torch.ones(5, 24).half(), torch.ones(65, 24).half()
    index, score = walked(case, x, w, None, tmp_path)
    assert index.tolist() == [0.0] * 5
    assert float((score - 1 / 65).abs().max()) < 1e-5


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
def test_of_equals_it_finds_the_first_and_nan_is_seen(tmp_path: Path) -> None:
    case = CASES[2]
    x, w = torch.ones(5, 24).half(), torch.zeros(70, 24).half()
    w[[20, 41, 60]] = 1
    index, score = walked(case, x, w, None, tmp_path)
    assert index.tolist() == [20.0] * 5
    assert float((score - 1 / 3).abs().max()) < 1e-4
    w[33, 3] = float("nan")
    (tmp_path / "nan").mkdir()
    _, score = walked(case, x, w, None, tmp_path / "nan")
    assert bool(score.isnan().all())


@pytest.mark.skipif(not nvrtc.available(), reason="there is no NVRTC")
@pytest.mark.parametrize("rows", [40, 320, 1280])
def test_it_compiles_without_a_gpu_and_keeps_everything_in_registers(rows: int) -> None:
    for cut in walk_cuts(rows, 18710)[:3]:
        case = Case(rows, 18710, 120, cut)
        x, w = torch.zeros(rows, 120).half(), torch.zeros(18710, 120).half()
        found = launched(case, x, w, torch.zeros(18710))[0].compile()
        assert found.spilled_bytes == 0
        assert found.registers * cut.high * cut.wide * 32 <= 65536


@pytest.mark.parametrize("rows", [1, 40, 320, 1280])
def test_cuts_are_different(rows: int) -> None:
    cuts = walk_cuts(rows, 18710)
    assert len(set(cuts)) == len(cuts) > 1
