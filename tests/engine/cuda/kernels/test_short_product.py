"""Products of a short depth: the source compiled for the CPU against float64, and for a GPU that is not here."""

import ctypes
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from penstock.engine.cuda.kernels import nvrtc  # noqa: E402
from penstock.engine.cuda.kernels.cpp_launching import CppLaunch  # noqa: E402
from penstock.engine.cuda.kernels.epilogue import Epilogue, fold  # noqa: E402
from penstock.engine.cuda.kernels.short_product import (  # noqa: E402
    ShortTile,
    short_conv_launch,
    short_product_launch,
    short_tiles,
)
from penstock.engine.cuda.kernels.tiles import Product  # noqa: E402
from tests.engine.cuda.kernels.test_depthwise_walk import compiled_for_the_cpu  # noqa: E402

pytestmark = pytest.mark.torch

HALF, BF16, INT8 = torch.float16, torch.bfloat16, torch.int8
BOUNDED = Epilogue("relu6", out_scale=0.06)


@dataclass(frozen=True)
class Case:
    m: int
    n: int
    k: int
    tile: ShortTile
    dtype: torch.dtype = HALF
    out: torch.dtype = HALF
    epilogue: Epilogue = BOUNDED
    bias: bool = True
    apart: int = 0
    """Numbers between rows of x, residual and out."""
    residual: bool = False

    def __str__(self) -> str:
        return f"{self.m}x{self.n}x{self.k} {self.tile} {self.dtype} {self.out} {self.epilogue.activation}"


CASES = [
    Case(37, 144, 24, ShortTile(1, 4, 2, 4)),
    Case(70, 64, 16, ShortTile(2, 8, 1, 2), epilogue=Epilogue("hard_swish"), bias=False),
    Case(50, 96, 32, ShortTile(2, 4, 2, 2), BF16, BF16, apart=8),
    Case(33, 40, 112, ShortTile(1, 4, 1, 2), epilogue=Epilogue("silu"), apart=16),
    Case(33, 40, 40, ShortTile(1, 4, 1, 2), out=INT8),
    Case(48, 96, 16, ShortTile(1, 4, 2, 2), INT8, INT8),
    Case(50, 144, 24, ShortTile(2, 8, 1, 3), INT8, INT8, Epilogue("relu6", out_scale=0.03)),
    Case(20, 64, 112, ShortTile(1, 8, 1, 1), INT8, INT8, Epilogue("relu", out_scale=0.06, folded=True), apart=8),
    Case(20, 64, 240, ShortTile(1, 8, 1, 1), INT8, INT8, Epilogue("silu", out_scale=0.06)),
    Case(50, 24, 144, ShortTile(1, 4, 1, 2), epilogue=Epilogue("relu"), apart=8, residual=True),
    Case(50, 24, 144, ShortTile(1, 4, 1, 2), BF16, BF16, Epilogue("silu"), residual=True),
    Case(
        50,
        24,
        144,
        ShortTile(1, 4, 1, 2),
        INT8,
        INT8,
        Epilogue(residual_scale=0.04, out_scale=0.05, folded=True),
        residual=True,
    ),
    Case(
        50,
        24,
        96,
        ShortTile(1, 4, 1, 2),
        INT8,
        INT8,
        Epilogue("relu6", residual_scale=0.04, out_scale=0.05),
        residual=True,
    ),
    Case(
        50,
        24,
        96,
        ShortTile(1, 4, 1, 2),
        INT8,
        INT8,
        Epilogue("silu", residual_scale=0.04, out_scale=0.05),
        residual=True,
    ),
    Case(20, 32, 192, ShortTile(1, 4, 1, 1), INT8, HALF, Epilogue("clip", -0.5, 0.75)),
]


@dataclass(frozen=True)
class Tensors:
    x: torch.Tensor
    w: torch.Tensor
    bias: torch.Tensor | None
    scale: torch.Tensor | None
    residual: torch.Tensor | None
    out: torch.Tensor

    def launch(self, case: Case) -> CppLaunch:
        scale, bias = self.scale, self.bias
        if case.epilogue.folded:
            assert scale is not None
            scale, bias = fold(scale, bias, case.epilogue.out_scale, case.k * 128 * 128)
        return short_product_launch(
            self.x,
            self.w,
            out=self.out,
            config=case.tile,
            bias=bias,
            residual=self.residual,
            scale=scale,
            epilogue=case.epilogue,
        )


def tensors(case: Case, device: str = "cpu") -> Tensors:
    generator = torch.Generator().manual_seed(5)
    eight = case.dtype == INT8

    def normal(rows: int, columns: int, size: float, dtype: torch.dtype = case.dtype) -> torch.Tensor:
        wide = torch.randn(rows, columns, generator=generator) * size
        return ((wide * 40).round().clamp(-128, 127) if dtype == INT8 else wide).to(dtype).to(device)

    return Tensors(
        normal(case.m, case.k + case.apart, 1.0)[:, : case.k],
        normal(case.n, case.k, 1.0 if eight else case.k**-0.5),
        torch.randn(case.n, generator=generator).to(device) if case.bias else None,
        ((torch.rand(case.n, generator=generator) + 0.5) * case.k**-0.5 / 1600).to(device) if eight else None,
        normal(case.m, case.n + case.apart, 1.0, case.out)[:, : case.n] if case.residual else None,
        torch.full((case.m, case.n + case.apart), 77.0).to(case.out).to(device)[:, : case.n],
    )


def expected(given: Tensors, case: Case) -> torch.Tensor:
    """Before it is rounded; of INT8 in its steps."""
    y = given.x.double().cpu() @ given.w.double().cpu().T
    y = y if given.scale is None else y * given.scale.double().cpu()
    y = y if given.bias is None else y + given.bias.double().cpu()
    epilogue = case.epilogue
    if given.residual is not None:
        y = y + given.residual.double().cpu() * (epilogue.residual_scale if case.out == INT8 else 1.0)
    y = {
        "none": lambda: y,
        "relu": y.relu,
        "relu6": lambda: y.clamp(0, 6),
        "clip": lambda: y.clamp(epilogue.alpha, epilogue.beta),
        "hard_swish": lambda: torch.nn.functional.hardswish(y),
        "silu": lambda: torch.nn.functional.silu(y),
    }[epilogue.activation]()
    return (y / epilogue.out_scale).clamp(-128, 127) if case.out == INT8 else y


def expect_right(given: Tensors, case: Case) -> None:
    right, found = expected(given, case), given.out.double().cpu()
    if case.out == INT8:
        assert (found - right).abs().max() < 0.51
    else:
        assert (found - right).norm() / right.norm() < {HALF: 5e-4, BF16: 4e-3}[case.out]
    if case.apart:
        between = torch.as_strided(given.out, (case.m, case.apart), given.out.stride(), case.n)
        assert bool((between == 77).all())


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_lane_of_the_source_does_its_part(case: Case, tmp_path: Path) -> None:
    given = tensors(case)
    launch = given.launch(case)
    library = compiled_for_the_cpu(launch, tmp_path)
    library.run((ctypes.c_void_p * len(launch.bound()))(*map(int, launch.bound())))
    expect_right(given, case)


@dataclass(frozen=True)
class Window:
    shape: tuple[int, int, int, int]
    """Of a padded picture."""
    taps: tuple[int, int]
    stride: tuple[int, int]
    overlapping: int = 1
    """Pixels that are seen as one with more channels."""
    dtype: torch.dtype = HALF
    channels: int = 32
    tile: ShortTile = ShortTile(1, 4, 1, 2)  # noqa: RUF009  (it is frozen)


WINDOWS = [
    Window((2, 9, 12, 8), (3, 1), (2, 1), 2),
    Window((1, 7, 6, 8), (3, 3), (1, 2)),
    Window((2, 9, 12, 8), (3, 1), (2, 1), 2, INT8),
]


def windows(case: Window, device: str) -> tuple[CppLaunch, torch.Tensor, torch.Tensor]:
    """The launch, where it writes, and what is right."""
    generator = torch.Generator().manual_seed(5)
    images, height, width, channels = case.shape
    eight = case.dtype == INT8
    picture = torch.randn(case.shape, generator=generator)
    picture = ((picture * 40).round().clamp(-128, 127) if eight else picture).to(case.dtype).to(device)
    depth, seen = channels * case.overlapping, width - case.overlapping + 1
    x = picture.as_strided((images, height, seen, depth), (height * width * channels, width * channels, channels, 1))
    w = torch.randn(case.channels, *case.taps, depth, generator=generator) / 6
    w = ((w * 100).round().clamp(-128, 127) if eight else w).to(case.dtype).to(device)
    bias = torch.randn(case.channels, generator=generator).to(device)
    scale = torch.full((case.channels,), 1e-4, device=device) if eight else None
    right = torch.nn.functional.conv2d(
        x.double().cpu().permute(0, 3, 1, 2), w.double().cpu().permute(0, 3, 1, 2), stride=case.stride
    ).permute(0, 2, 3, 1) * (1e-4 if eight else 1.0)
    right = (right + bias.double().cpu()).clamp(0, 6)
    out = torch.full(right.shape, torch.nan, dtype=HALF, device=device)
    epilogue = Epilogue("relu6")
    launch = short_conv_launch(
        x, w, out=out, config=case.tile, bias=bias, scale=scale, epilogue=epilogue, stride=case.stride
    )
    return launch, out, right


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
@pytest.mark.parametrize("case", WINDOWS, ids=str)
def test_windows_are_rows_whose_parts_lie_apart(case: Window, tmp_path: Path) -> None:
    launch, out, right = windows(case, "cpu")
    library = compiled_for_the_cpu(launch, tmp_path)
    library.run((ctypes.c_void_p * len(launch.bound()))(*map(int, launch.bound())))
    assert (out.double() - right).norm() / right.norm() < 5e-4


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (9, 0), reason="needs a GPU since Hopper"
)
@pytest.mark.parametrize("case", WINDOWS, ids=str)
def test_a_gpu_comes_to_the_same_of_windows(case: Window) -> None:
    launch, out, right = windows(case, "cuda")
    launch.run()
    assert (out.double().cpu() - right).norm() / right.norm() < 5e-4


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
    Product(64 * size * size, n, k, itemsize=itemsize)
    for size, n, k in ((112, 96, 16), (56, 144, 24), (56, 24, 144), (28, 240, 40), (14, 672, 112))
    for itemsize in (1, 2)
]


@pytest.mark.skipif(not nvrtc.available(), reason="there is no NVRTC")
@pytest.mark.parametrize("product", FOR_A_GPU, ids=str)
def test_it_compiles_without_a_gpu_and_keeps_everything_in_registers(product: Product) -> None:
    dtype = INT8 if product.itemsize == 1 else HALF
    row = torch.empty(product.n, device="meta")
    found = short_tiles(product)
    assert found
    for tile in found:
        launch = short_product_launch(
            torch.empty((product.m, product.k), dtype=dtype, device="meta"),
            torch.empty((product.n, product.k), dtype=dtype, device="meta"),
            out=torch.empty((product.m, product.n), dtype=dtype, device="meta"),
            config=tile, bias=row, scale=row if dtype == INT8 else None, epilogue=BOUNDED,
        )  # fmt: skip
        assert launch.compile().spilled_bytes == 0


@pytest.mark.parametrize(
    "product", [Product(3200, 3072, 768), Product(100, 20, 16), Product(100, 64, 12)], ids=["deep", "columns", "depth"]
)
def test_what_is_no_such_product_has_no_cut(product: Product) -> None:
    assert not short_tiles(product)


def test_what_it_does_not_take_is_refused() -> None:
    case = CASES[0]
    given = tensors(case)
    for change, message in (
        ({"x": given.x.float()}, "w: expected x's type"),
        ({"out": given.out.float()}, "out: expected torch.float16"),
        ({"scale": given.bias}, "scale: expected it for INT8"),
        ({"x": torch.cat((given.x, given.x), 1)[:, 4:28]}, "x: expected an address"),
        ({"epilogue": Epilogue("gelu")}, "activation: expected one of"),
    ):
        operands = {"x": given.x, "w": given.w, "out": given.out, "bias": given.bias, **change}
        with pytest.raises(ValueError, match=message):
            short_product_launch(config=case.tile, **operands)
