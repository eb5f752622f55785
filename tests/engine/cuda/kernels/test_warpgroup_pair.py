"""Two products in one kernel: the source compiled for the CPU against float64, and for a GPU that is not here."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from penstock.engine.cuda.kernels import nvrtc  # noqa: E402
from penstock.engine.cuda.kernels.cpp_launching import CppLaunch  # noqa: E402
from penstock.engine.cuda.kernels.epilogue import Epilogue  # noqa: E402
from penstock.engine.cuda.kernels.warpgroup_pair import (  # noqa: E402
    Pair,
    PairTile,
    pair_tiles,
    warpgroup_pair_launch,
)

from .emulating import run_on_the_cpu  # noqa: E402

pytestmark = pytest.mark.torch

FP16, BF16 = torch.float16, torch.bfloat16
RELU, NONE = Epilogue("relu"), Epilogue()


@dataclass(frozen=True)
class Case:
    pair: Pair
    tile: PairTile
    dtype: torch.dtype = FP16
    epilogue: Epilogue = RELU
    outer: Epilogue = RELU

    def __str__(self) -> str:
        one, tile = self.pair, self.tile
        return f"{one.rows}x{one.depth}+{one.others}x{one.wide}x{one.out} {tile.groups}x{tile.slots} {self.dtype}"


CASES = [
    Case(Pair(200, 64, 0, 128, 64), PairTile(2, 2, 1)),
    Case(Pair(333, 64, 0, 192, 128), PairTile(3, 3, 1), BF16, outer=NONE),
    Case(Pair(300, 64, 64, 128, 64), PairTile(2, 2, 1), epilogue=NONE),
    Case(Pair(1000, 128, 0, 128, 64), PairTile(2, 3, 2)),
    Case(Pair(30, 64, 128, 64, 128), PairTile(2, 4, 1)),
]


@dataclass(frozen=True)
class Tensors:
    x: torch.Tensor
    w: torch.Tensor
    v: torch.Tensor
    bias: torch.Tensor
    out_bias: torch.Tensor
    residual: torch.Tensor | None
    source: torch.Tensor | None
    shortcut: torch.Tensor | None
    wide: torch.Tensor
    out: torch.Tensor

    def launch(self, case: Case) -> CppLaunch:
        return warpgroup_pair_launch(
            self.x, self.w, self.v, self.bias, self.out_bias, wide=self.wide, out=self.out, config=case.tile,
            residual=self.residual, source=self.source, shortcut=self.shortcut, epilogue=case.epilogue,
            outer=case.outer,
        )  # fmt: skip

    def expected(self, case: Case) -> tuple[torch.Tensor, torch.Tensor]:
        def wide_of(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.double().cpu()

        y = wide_of(self.x) @ wide_of(self.w).T + wide_of(self.bias)
        if self.residual is not None:
            y = y + wide_of(self.residual)
        if self.source is not None and self.shortcut is not None:
            y = y + wide_of(self.source) @ wide_of(self.shortcut).T
        y = y.clamp(min=0) if case.epilogue == RELU else y
        z = y.to(case.dtype).double() @ wide_of(self.v).T + wide_of(self.out_bias)
        return y, z.clamp(min=0) if case.outer == RELU else z


def tensors(case: Case, device: str = "cpu") -> Tensors:
    generator, pair = torch.Generator().manual_seed(4), case.pair

    def normal(*shape: int, size: float = 1.0) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * size).to(device, case.dtype)

    def row(columns: int) -> torch.Tensor:
        return torch.randn(columns, generator=generator).to(device)

    def nothing(columns: int) -> torch.Tensor:
        return torch.full((pair.rows, columns), torch.nan, dtype=case.dtype, device=device)

    return Tensors(
        normal(pair.rows, pair.depth),
        normal(pair.wide, pair.depth, size=pair.depth**-0.5),
        normal(pair.out, pair.wide, size=pair.wide**-0.5),
        row(pair.wide),
        row(pair.out),
        None if pair.others else normal(pair.rows, pair.wide),
        normal(pair.rows, pair.others) if pair.others else None,
        normal(pair.wide, pair.others, size=pair.others**-0.5) if pair.others else None,
        nothing(pair.wide),
        nothing(pair.out),
    )


def assert_right(given: Tensors, case: Case) -> None:
    for found, right in zip((given.wide, given.out), given.expected(case), strict=True):
        off = float((found.double().cpu() - right).norm() / right.norm())
        assert off < (4e-3 if case.dtype == BF16 else 5e-4)


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_both_products_are_right(case: Case, tmp_path: Path) -> None:
    given = tensors(case)
    run_on_the_cpu(given.launch(case), tmp_path)
    assert_right(given, case)


LAYERS = [Pair(200704, 64, 0, 256, 64), Pair(200704, 64, 0, 256, 128), Pair(200704, 64, 64, 256, 64)]


@pytest.mark.skipif(not nvrtc.available(), reason="there is no NVRTC")
@pytest.mark.parametrize("pair", LAYERS, ids=str)
def test_it_compiles_without_a_gpu_and_keeps_sums_in_registers(pair: Pair) -> None:
    tiles = pair_tiles(pair, 132)
    assert tiles
    for tile in tiles:
        case = Case(Pair(128, pair.depth, pair.others, pair.wide, pair.out), tile)
        found = tensors(case).launch(case).compile()
        assert found.spilled_bytes == 0
        assert found.registers * tile.groups * 128 <= 65536


REFUSED = {
    "weights that do not fit": Case(Pair(300, 128, 0, 512, 128), PairTile(2, 2, 1)),
    "columns that are no pieces": Case(Pair(300, 64, 0, 96, 64), PairTile(2, 2, 1)),
    "a wide end": Case(Pair(300, 64, 0, 128, 192), PairTile(2, 2, 1)),
    "one slot": Case(Pair(300, 64, 0, 128, 64), PairTile(2, 1, 1)),
    "another activation": Case(Pair(300, 64, 0, 128, 64), PairTile(2, 2, 1), outer=Epilogue("silu")),
}


@pytest.mark.parametrize("why", REFUSED)
def test_other_products_are_refused(why: str) -> None:
    case = REFUSED[why]
    with pytest.raises(ValueError, match="expected"):
        tensors(case).launch(case)


def test_layers_over_small_maps_are_left_to_others() -> None:
    assert not pair_tiles(Pair(1000, 64, 0, 256, 64), 132)
    assert not pair_tiles(Pair(50176, 128, 0, 512, 128), 132)


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="needs a Hopper GPU"
)
@pytest.mark.parametrize(
    "case",
    [
        *CASES,
        *(Case(Pair(20011, p.depth, p.others, p.wide, p.out), tile) for p in LAYERS for tile in pair_tiles(p, 132)),
    ],
    ids=str,
)
def test_a_gpu_comes_to_the_same(case: Case) -> None:
    given, found = tensors(case, "cuda"), []
    for _ in range(2):
        given.launch(case).run()
        found.append((given.wide.clone(), given.out.clone()))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert_right(given, case)
