"""Depthwise convolution by diagonal matrices: its source on the CPU against float64, and for a GPU not here."""

import ctypes
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from penstock.engine.cuda.kernels import nvrtc  # noqa: E402
from penstock.engine.cuda.kernels.cpp_launching import CppLaunch  # noqa: E402
from penstock.engine.cuda.kernels.depthwise_diagonal import (  # noqa: E402
    DiagonalTile,
    depthwise_diagonal_launch,
    diagonal_tiles,
)
from penstock.engine.cuda.kernels.depthwise_walk import Layer, WalkTile, steady  # noqa: E402
from penstock.engine.cuda.kernels.epilogue import Epilogue  # noqa: E402

from .test_depthwise_walk import (  # noqa: E402
    AROUND,
    BELOW,
    BF16,
    HALF,
    INT8,
    X_SCALE,
    Case,
    Tensors,
    compiled_for_the_cpu,
    expect_right,
    tensors,
)

pytestmark = pytest.mark.torch

TILE = WalkTile(2, 3, 1, 32)  # rows and what is ahead are the diagonal's, too
CASES = [
    Case((2, 5, 9, 16), (3, 3), TILE, dtype=INT8, out=INT8),
    Case((3, 7, 7, 32), (5, 5), replace(TILE, rows=7, ahead=2), padding=AROUND, dtype=INT8, out=INT8, apart=16),
    Case((1, 9, 8, 16), (3, 3), replace(TILE, rows=2), (2, 2), BELOW, dtype=INT8, epilogue=Epilogue("hard_swish")),
    Case((1, 14, 14, 16), (5, 5), replace(TILE, rows=7), (2, 2), AROUND, dtype=INT8, out=INT8),
    Case((1, 5, 33, 16), (3, 3), TILE, dtype=INT8, out=INT8, epilogue=Epilogue(out_scale=0.03), bias=False),
    Case((1, 6, 7, 16), (5, 5), replace(TILE, rows=6, ahead=2), padding=AROUND, epilogue=Epilogue("silu")),
    Case((1, 9, 11, 16), (5, 5), TILE, (2, 2), AROUND, dtype=BF16, out=BF16, bias=False),
    Case((1, 5, 4, 16), (2, 4), TILE, padding=(0, 1, 1, 2)),
]


def launched(given: Tensors, case: Case) -> CppLaunch:
    weights, factors = steady(given.w) if case.dtype == INT8 else (given.w, None)
    return depthwise_diagonal_launch(
        given.x, weights, out=given.out, config=DiagonalTile(case.tile.rows, case.tile.ahead, 1), factors=factors,
        bias=given.bias, epilogue=case.epilogue, stride=case.stride, padding=case.padding[:2], scale=X_SCALE,
    )  # fmt: skip


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_lane_of_the_source_does_its_part(case: Case, tmp_path: Path) -> None:
    given = tensors(case)
    launch = launched(given, case)
    library = compiled_for_the_cpu(launch, tmp_path)
    library.run((ctypes.c_void_p * len(launch.bound()))(*map(int, launch.bound())))
    expect_right(given, case)


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (9, 0), reason="needs a GPU since Hopper"
)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_gpu_comes_to_the_same(case: Case) -> None:
    given = tensors(case, "cuda")
    launch = launched(given, case)
    found = []
    for pdl in (False, True):
        replace(launch, pdl=pdl).run()
        found.append(given.out.clone())
    assert torch.equal(*found)
    expect_right(given, case)


LAYERS = [
    (Layer((64, 14, 14, 672), (5, 5), (1, 1), 1), 14),
    (Layer((64, 112, 112, 32), (3, 3), (1, 1), 1), 112),
    (Layer((64, 28, 28, 144), (5, 5), (2, 2), 1), 56),
    (Layer((64, 14, 14, 672), (5, 5), (1, 1), 2), 14),
]


@pytest.mark.skipif(not nvrtc.available(), reason="there is no NVRTC")
@pytest.mark.parametrize(("layer", "size"), LAYERS, ids=str)
def test_it_compiles_without_a_gpu_and_a_cut_keeps_everything_in_registers(layer: Layer, size: int) -> None:
    dtype, channels = HALF if layer.itemsize == 2 else INT8, layer.out_shape[3]
    row = torch.empty(channels, device="meta")
    spilled: list[int] = []
    for tile in diagonal_tiles(layer):
        launch = depthwise_diagonal_launch(
            torch.empty((64, size, size, channels), dtype=dtype, device="meta"),
            torch.empty((*layer.taps, channels), dtype=HALF, device="meta"),
            out=torch.empty(layer.out_shape, dtype=dtype, device="meta"),
            config=tile,
            factors=row if dtype == INT8 else None,
            bias=row,
            epilogue=Epilogue("relu6", out_scale=0.03 if dtype == INT8 else 1.0),
            stride=layer.stride,
            padding=(1, 1),
        )
        spilled.append(launch.compile().spilled_bytes)
    assert 0 in spilled


def test_channels_that_are_no_groups_of_sixteen_have_no_cut_and_are_refused() -> None:
    assert not diagonal_tiles(Layer((1, 14, 14, 24), (3, 3), (1, 1), 1))
    case = Case((1, 5, 9, 8), (3, 3), TILE)
    with pytest.raises(ValueError, match="groups of 16"):
        launched(tensors(case), case)
