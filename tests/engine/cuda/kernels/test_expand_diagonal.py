"""Two layers by diagonal matrices, with nothing between: the source on the CPU against float64, and for a GPU."""

import ctypes
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from penstock.engine.cuda.kernels import nvrtc  # noqa: E402
from penstock.engine.cuda.kernels.cpp_launching import CppLaunch  # noqa: E402
from penstock.engine.cuda.kernels.depthwise_walk import Layer, steady  # noqa: E402
from penstock.engine.cuda.kernels.epilogue import Epilogue  # noqa: E402
from penstock.engine.cuda.kernels.expand_diagonal import (  # noqa: E402
    DiagonalTile,
    expand_diagonal_launch,
    expand_diagonal_tiles,
)

from .test_depthwise_walk import compiled_for_the_cpu  # noqa: E402
from .test_expand_walk import AROUND, BELOW, HALF, INT8, Case, Tensors, expect_right, tensors  # noqa: E402
from .test_expand_walk import CASES as WALKS  # noqa: E402

pytestmark = pytest.mark.torch

TILE = WALKS[0].tile
CASES = [
    *(case for case in WALKS if case.dtype == INT8),
    Case((3, 7, 7, 8), 16, (5, 5), replace(TILE, rows=7), (1, 1), AROUND, INT8),
    Case((1, 8, 18, 24), 32, (3, 3), replace(TILE, rows=4), (2, 2), BELOW, INT8, Epilogue("relu", out_scale=0.03)),
]


def launched(given: Tensors, case: Case) -> CppLaunch:
    weights, factors = steady(given.w)
    assert given.scale is not None
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


LAYERS = [
    (Layer((64, 56, 56, 96), (3, 3), (2, 2), 1), 16),
    (Layer((64, 56, 56, 144), (3, 3), (1, 1), 1), 24),
    (Layer((64, 28, 28, 144), (5, 5), (2, 2), 1), 24),
]


@pytest.mark.skipif(not nvrtc.available(), reason="there is no NVRTC")
@pytest.mark.parametrize(("layer", "narrow"), LAYERS, ids=str)
def test_it_compiles_without_a_gpu_and_a_cut_keeps_everything_in_registers(layer: Layer, narrow: int) -> None:
    images, high, wide, channels = layer.out_shape
    row = torch.empty(channels, device="meta")
    spilled: list[int] = []
    for tile in expand_diagonal_tiles(layer, narrow):
        launch = expand_diagonal_launch(
            torch.empty((images, high * layer.stride[0], wide * layer.stride[1], narrow), dtype=INT8, device="meta"),
            torch.empty((channels, narrow), dtype=INT8, device="meta"),
            torch.empty((*layer.taps, channels), dtype=HALF, device="meta"),
            out=torch.empty(layer.out_shape, dtype=INT8, device="meta"),
            config=tile,
            first_bias=row,
            first_scale=row,
            bias=row,
            factors=row,
            inner=Epilogue("relu6", out_scale=0.045),
            outer=Epilogue("relu6", out_scale=0.05),
            stride=layer.stride,
            padding=(1, 1),
        )
        spilled.append(launch.compile().spilled_bytes)
    assert 0 in spilled


def test_other_types_and_channels_that_are_no_groups_of_sixteen_have_no_cut() -> None:
    layer = LAYERS[0][0]
    assert expand_diagonal_tiles(layer, 16)
    assert not expand_diagonal_tiles(replace(layer, itemsize=2), 16)
    assert not expand_diagonal_tiles(replace(layer, out_shape=(64, 56, 56, 88)), 16)


def test_sixteen_bits_are_refused() -> None:
    case = replace(CASES[0], dtype=HALF)
    given = tensors(case)
    row = torch.ones(case.wide)
    with pytest.raises(ValueError, match="expected INT8"):
        expand_diagonal_launch(
            given.x, given.first, given.w, out=given.out, config=DiagonalTile(4, 1, 1), first_scale=row, factors=row,
            inner=case.inner, outer=case.outer,
        )  # fmt: skip
