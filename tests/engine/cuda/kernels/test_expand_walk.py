"""Two layers by walking threads: the source compiled for the CPU against float64, and for a GPU that is not here."""

import ctypes
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from penstock.engine.cuda.kernels import nvrtc  # noqa: E402
from penstock.engine.cuda.kernels.cpp_launching import CppLaunch  # noqa: E402
from penstock.engine.cuda.kernels.depthwise_walk import Layer, steady  # noqa: E402
from penstock.engine.cuda.kernels.epilogue import Epilogue  # noqa: E402
from penstock.engine.cuda.kernels.expand_walk import (  # noqa: E402
    ExpandWalkTile,
    expand_walk_launch,
    expand_walk_tiles,
)
from tests.engine.cuda.kernels.test_depthwise_walk import compiled_for_the_cpu  # noqa: E402

pytestmark = pytest.mark.torch

HALF, BF16, INT8 = torch.float16, torch.bfloat16, torch.int8
INNER, OUTER = Epilogue("relu6", out_scale=0.045), Epilogue("relu6", out_scale=0.05)


@dataclass(frozen=True)
class Case:
    shape: tuple[int, int, int, int]
    wide: int
    taps: tuple[int, int]
    tile: ExpandWalkTile
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (1, 1, 1, 1)
    """Above, to the left, below, to the right."""
    dtype: torch.dtype = HALF
    inner: Epilogue = INNER
    outer: Epilogue = OUTER
    bias: bool = True

    def __str__(self) -> str:
        return f"{self.shape} {self.wide} {self.taps} {self.stride} {self.tile} {self.dtype}"

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        images, high, across, _ = self.shape
        top, left, bottom, right = self.padding
        p = (high + top + bottom - self.taps[0]) // self.stride[0] + 1
        return images, p, (across + left + right - self.taps[1]) // self.stride[1] + 1, self.wide


BELOW, AROUND = (0, 0, 1, 1), (2, 2, 2, 2)
CASES = [
    Case((1, 6, 7, 8), 48, (3, 3), ExpandWalkTile(4, 6, 48, 2, 1)),
    Case((1, 9, 20, 24), 32, (3, 3), ExpandWalkTile(4, 3, 16, 2, 1), outer=Epilogue("hard_swish")),
    Case((1, 10, 12, 40), 32, (5, 5), ExpandWalkTile(4, 3, 32, 1, 2), (2, 2), AROUND, inner=Epilogue("relu")),
    Case((2, 8, 18, 16), 32, (3, 3), ExpandWalkTile(4, 4, 32, 2, 2), (2, 2), BELOW, BF16, bias=False),
    Case((1, 6, 7, 8), 48, (3, 3), ExpandWalkTile(4, 6, 48, 2, 1), dtype=INT8),
    Case((1, 9, 20, 24), 64, (3, 3), ExpandWalkTile(7, 3, 32, 1, 2), dtype=INT8, bias=False),
    Case(
        (1, 10, 12, 40),
        96,
        (5, 5),
        ExpandWalkTile(4, 3, 96, 2, 3),
        (2, 2),
        AROUND,
        INT8,
        outer=Epilogue("silu", out_scale=0.06),
    ),
    Case((1, 8, 18, 16), 32, (3, 3), ExpandWalkTile(4, 4, 32, 2, 2), (2, 2), BELOW, INT8, Epilogue(out_scale=0.06)),
]


@dataclass(frozen=True)
class Tensors:
    x: torch.Tensor
    first: torch.Tensor
    scale: torch.Tensor | None
    first_bias: torch.Tensor | None
    w: torch.Tensor
    bias: torch.Tensor | None
    out: torch.Tensor

    def launch(self, case: Case) -> CppLaunch:
        weights, factors = steady(self.w) if case.dtype == INT8 else (self.w, None)
        return expand_walk_launch(
            self.x, self.first, weights, out=self.out, config=case.tile, first_bias=self.first_bias,
            first_scale=self.scale, bias=self.bias, factors=factors, inner=case.inner, outer=case.outer,
            stride=case.stride, padding=case.padding[:2],
        )  # fmt: skip


def tensors(case: Case, device: str = "cpu") -> Tensors:
    generator = torch.Generator().manual_seed(5)
    eight = case.dtype == INT8

    def normal(shape: tuple[int, ...], size: float) -> torch.Tensor:
        wide = torch.randn(shape, generator=generator)
        return ((wide * 40).round().clamp(-128, 127) if eight else wide * size).to(case.dtype).to(device)

    narrow = case.shape[3]
    weight = torch.randn(*case.taps, case.wide, generator=generator) / 3
    row = torch.rand(case.wide, generator=generator) + 0.5
    return Tensors(
        normal(case.shape, 1.0),
        normal((case.wide, narrow), 2 * narrow**-0.5),
        (row * narrow**-0.5 / 800).to(device) if eight else None,
        torch.randn(case.wide, generator=generator).to(device) if case.bias else None,
        weight.to(HALF if eight else case.dtype).to(device),
        torch.randn(case.wide, generator=generator).to(device) if case.bias else None,
        torch.full(case.out_shape, 77.0).to(case.dtype).to(device),
    )


def activated(y: torch.Tensor, epilogue: Epilogue) -> torch.Tensor:
    functions = torch.nn.functional
    return {
        "none": lambda: y,
        "relu": y.relu,
        "relu6": lambda: y.clamp(0, 6),
        "hard_swish": lambda: functions.hardswish(y),
        "silu": lambda: functions.silu(y),
    }[epilogue.activation]()


def expected(given: Tensors, case: Case) -> torch.Tensor:
    """What is between, rounded; the result before it is, of INT8 in its steps."""
    eight, (top, left, bottom, right) = case.dtype == INT8, case.padding
    y = given.x.double().cpu() @ given.first.double().cpu().T
    y = y if given.scale is None else y * given.scale.double().cpu()
    y = activated(y if given.first_bias is None else y + given.first_bias.double().cpu(), case.inner)
    step = case.inner.out_scale
    y = (y / step).round().clamp(-128, 127) * step if eight else y.to(case.dtype).double()
    y = torch.nn.functional.pad(y.permute(0, 3, 1, 2), (left, right, top, bottom))
    w = given.w.double().cpu().permute(2, 0, 1)[:, None]
    y = torch.nn.functional.conv2d(y, w, None, case.stride, groups=case.wide).permute(0, 2, 3, 1)
    y = activated(y if given.bias is None else y + given.bias.double().cpu(), case.outer)
    return (y / case.outer.out_scale).clamp(-128, 127) if eight else y


def expect_right(given: Tensors, case: Case) -> None:
    right, found = expected(given, case), given.out.double().cpu()
    # Of what is between, a number close to half a step may be rounded either way.
    limit = {HALF: 1e-3, BF16: 6e-3, INT8: 2e-2}[case.dtype]
    assert (found - right).norm() / right.norm() < limit
    if case.dtype == INT8:
        assert (found - right).abs().max() < 2


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_thread_of_the_source_does_its_part(case: Case, tmp_path: Path) -> None:
    given = tensors(case)
    launch = given.launch(case)
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
    launch = given.launch(case)
    found = []
    for pdl in (False, True):
        replace(launch, pdl=pdl).run()
        found.append(given.out.clone())
    assert torch.equal(*found)
    expect_right(given, case)


FOR_A_GPU = [
    (Layer((64, size, size, wide), (taps, taps), (stride, stride), itemsize), narrow)
    for size, narrow, wide, taps, stride in ((56, 32, 96, 3, 2), (56, 24, 144, 3, 1), (28, 24, 144, 5, 2))
    for itemsize in (1, 2)
]


@pytest.mark.skipif(not nvrtc.available(), reason="there is no NVRTC")
@pytest.mark.parametrize(("layer", "narrow"), FOR_A_GPU, ids=str)
def test_it_compiles_without_a_gpu_and_keeps_everything_in_registers(layer: Layer, narrow: int) -> None:
    dtype, (images, high, across, wide) = HALF if layer.itemsize == 2 else INT8, layer.out_shape
    row = torch.empty(wide, device="meta")
    eight = row if dtype == INT8 else None
    found = expand_walk_tiles(layer, narrow)
    assert found
    for tile in found:
        launch = expand_walk_launch(
            torch.empty((images, high * layer.stride[0], across * layer.stride[1], narrow), dtype=dtype, device="meta"),
            torch.empty((wide, narrow), dtype=dtype, device="meta"),
            torch.empty((*layer.taps, wide), dtype=HALF, device="meta"),
            out=torch.empty(layer.out_shape, dtype=dtype, device="meta"),
            config=tile, first_bias=row, first_scale=eight, bias=row, factors=eight, inner=INNER, outer=OUTER,
            stride=layer.stride, padding=(1, 1),
        )  # fmt: skip
        assert launch.compile().spilled_bytes == 0
