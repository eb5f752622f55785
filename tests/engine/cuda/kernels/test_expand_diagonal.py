"""Two layers by diagonal matrices, with nothing between: the source on the CPU against float64, and for no GPU here."""

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
    expand_diagonal_launch,
    expand_diagonal_tiles,
)
from penstock.engine.cuda.kernels.depthwise_walk import Layer, steady  # noqa: E402
from penstock.engine.cuda.kernels.epilogue import Epilogue  # noqa: E402

from .test_depthwise_walk import compiled_for_the_cpu  # noqa: E402
from .test_expand_walk import AROUND, BELOW, BF16, HALF, INT8, Case, Tensors, expect_right, tensors  # noqa: E402
from .test_expand_walk import CASES as WALKS  # noqa: E402

pytestmark = pytest.mark.torch

TILE = WALKS[0].tile
CASES = [
    *WALKS,
    Case((3, 7, 7, 8), 16, (5, 5), replace(TILE, rows=7), (1, 1), AROUND, INT8),
    Case((1, 8, 18, 24), 32, (3, 3), replace(TILE, rows=4), (2, 2), BELOW, INT8, Epilogue("relu", out_scale=0.03)),
]


def launched(given: Tensors, case: Case) -> CppLaunch:
    weights, factors = steady(given.w) if case.dtype == INT8 else (given.w, None)
    return expand_diagonal_launch(
        given.x, given.first, weights, out=given.out, config=DiagonalTile(case.tile.rows, 1 + case.stride[0] % 2, 1),
        first_bias=given.first_bias, first_scale=given.scale, bias=given.bias, factors=factors, inner=case.inner,
        outer=case.outer, stride=case.stride, padding=case.padding[:2],
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


@pytest.mark.skipif(not nvrtc.available(), reason="there is no NVRTC")
@pytest.mark.parametrize("dtype", [INT8, HALF, BF16], ids=str)
@pytest.mark.parametrize(
    ("layer", "narrow"),
    [
        (Layer((64, 56, 56, 96), (3, 3), (2, 2), 1), 16),
        (Layer((64, 56, 56, 144), (3, 3), (1, 1), 1), 24),
        (Layer((64, 28, 28, 144), (5, 5), (2, 2), 1), 24),
    ],
    ids=str,
)
def test_it_compiles_without_a_gpu_and_a_cut_keeps_everything_in_registers(
    layer: Layer, narrow: int, dtype: torch.dtype
) -> None:
    layer = replace(layer, itemsize=dtype.itemsize)
    images, high, wide, channels = layer.out_shape
    row = torch.empty(channels, device="meta")
    eight = dtype == INT8
    spilled: list[int] = []
    for tile in expand_diagonal_tiles(layer, narrow):
        launch = expand_diagonal_launch(
            torch.empty((images, high * layer.stride[0], wide * layer.stride[1], narrow), dtype=dtype, device="meta"),
            torch.empty((channels, narrow), dtype=dtype, device="meta"),
            torch.empty((*layer.taps, channels), dtype=HALF if eight else dtype, device="meta"),
            out=torch.empty(layer.out_shape, dtype=dtype, device="meta"),
            config=tile,
            first_bias=row,
            first_scale=row if eight else None,
            bias=row,
            factors=row if eight else None,
            inner=Epilogue("relu6", out_scale=0.045),
            outer=Epilogue("relu6", out_scale=0.05),
            stride=layer.stride,
            padding=(1, 1),
        )
        spilled.append(launch.compile().spilled_bytes)
    assert 0 in spilled
