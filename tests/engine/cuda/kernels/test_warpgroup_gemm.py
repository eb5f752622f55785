"""Products by warpgroups: the source compiled for the CPU against float64, and for a GPU that is not here."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from penstock.engine.cuda.kernels import nvrtc  # noqa: E402
from penstock.engine.cuda.kernels.cpp_launching import CppLaunch  # noqa: E402
from penstock.engine.cuda.kernels.epilogue import Epilogue  # noqa: E402
from penstock.engine.cuda.kernels.tiles import Product  # noqa: E402
from penstock.engine.cuda.kernels.warpgroup_gemm import (  # noqa: E402
    WarpgroupTile,
    warpgroup_gemm_launch,
    warpgroup_tiles,
)

from .emulating import run_on_the_cpu  # noqa: E402

pytestmark = pytest.mark.torch

BF16, INT8, E4M3 = torch.bfloat16, torch.int8, torch.float8_e4m3fn
NOTHING = Epilogue()


@dataclass(frozen=True)
class Case:
    m: int
    n: int
    k: int
    tile: WarpgroupTile
    epilogue: Epilogue = NOTHING
    residual: bool = False
    bias: bool = True
    dtype: torch.dtype = torch.float16
    apart: int = 0
    """Numbers between rows of x, residual and out."""
    out: torch.dtype | None = None
    """Of the result and the residual, if not as x."""

    def __str__(self) -> str:
        one = self.tile
        how = f"{one.rows}x{one.columns}x{one.pingpong}x{one.stages}x{one.cluster}x{one.blocks}x{one.ahead}"
        return f"{self.m}x{self.n}x{self.k} {how} {self.epilogue.activation} {self.residual} {self.dtype} {self.out}"


STEPS = Epilogue("relu", residual_scale=0.04, out_scale=0.05)
CASES = [
    Case(64, 64, 64, WarpgroupTile(64, 64, 1, 3, 1, 1), bias=False),
    Case(333, 64, 200, WarpgroupTile(64, 64, 1, 3, 1, 2), Epilogue("gelu")),
    Case(300, 136, 72, WarpgroupTile(64, 128, 0, 4, 1, 2), Epilogue("relu"), residual=True, apart=8),
    Case(500, 192, 136, WarpgroupTile(128, 64, 1, 3, 2, 4), Epilogue("silu"), residual=True, dtype=BF16),
    Case(300, 456, 64, WarpgroupTile(64, 192, 0, 3, 2, 2), Epilogue("hard_swish", residual_last=True), residual=True),
    Case(260, 520, 328, WarpgroupTile(64, 256, 0, 3, 1, 1), Epilogue("leaky_relu", 0.1), apart=16),
    Case(700, 128, 192, WarpgroupTile(128, 128, 1, 3, 1, 2), Epilogue("clip", -0.5, 0.75), dtype=BF16),
    Case(390, 256, 128, WarpgroupTile(64, 256, 1, 3, 2, 2), Epilogue("quick_gelu"), bias=False),
    Case(300, 136, 72, WarpgroupTile(64, 128, 0, 4, 1, 2), Epilogue("star_relu", -0.8, 0.3)),
    Case(200, 192, 72, WarpgroupTile(128, 192, 1, 3, 1, 1), Epilogue("relu"), residual=True),
    Case(333, 128, 80, WarpgroupTile(64, 128, 1, 3, 1, 2), STEPS, residual=True, dtype=INT8, out=INT8),
    Case(290, 272, 336, WarpgroupTile(64, 256, 0, 3, 2, 2), dtype=INT8, out=torch.float16, residual=True),
    Case(200, 128, 144, WarpgroupTile(128, 128, 1, 3, 1, 1), replace(STEPS, activation="silu"), dtype=E4M3, out=E4M3),
    Case(200, 144, 64, WarpgroupTile(64, 128, 0, 3, 1, 1), STEPS, out=INT8),
    Case(200, 192, 128, WarpgroupTile(64, 64, 1, 3, 1, 1), dtype=E4M3, out=BF16, bias=False),
    Case(333, 256, 144, WarpgroupTile(64, 128, 1, 3, 2, 2), replace(STEPS, activation="gelu"), dtype=INT8, out=INT8),
    Case(257, 256, 272, WarpgroupTile(64, 256, 1, 3, 2, 2), replace(STEPS, activation="gelu"), dtype=E4M3, out=E4M3),
    Case(321, 192, 400, WarpgroupTile(64, 192, 0, 3, 2, 2), residual=True, dtype=E4M3, out=torch.float16),
    Case(600, 256, 80, WarpgroupTile(64, 128, 1, 3, 1, 2, 1), STEPS, residual=True, dtype=INT8, out=INT8),
    Case(700, 192, 136, WarpgroupTile(64, 64, 0, 3, 1, 2, 1), Epilogue("relu"), residual=True),
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
        return warpgroup_gemm_launch(
            self.x, self.w, out=self.out, config=case.tile, bias=self.bias, residual=self.residual,
            scale=self.scale, epilogue=case.epilogue,
        )  # fmt: skip


def tensors(case: Case, device: str = "cpu") -> Tensors:
    generator = torch.Generator().manual_seed(5)

    out = case.out or case.dtype

    def normal(rows: int, columns: int, dtype: torch.dtype, size: float = 1.0) -> torch.Tensor:
        wide = torch.randn(rows, columns + case.apart, generator=generator) * size
        narrow = (wide * 30).round().clamp(-128, 127) if dtype == INT8 else wide
        return narrow.to(dtype).to(device)[:, :columns]

    eight = case.dtype.itemsize == 1
    nothing = torch.full((case.m, case.n + case.apart), 77.0 if out.itemsize == 1 else torch.nan)
    return Tensors(
        normal(case.m, case.k, case.dtype),
        normal(case.n, case.k, case.dtype, 1.0 if eight else case.k**-0.5).contiguous(),
        torch.randn(case.n, generator=generator).to(device) if case.bias else None,
        (torch.rand(case.n, generator=generator) + 0.5).to(device) * _worth(case) if eight else None,
        normal(case.m, case.n, out) if case.residual else None,
        nothing.to(out).to(device)[:, : case.n],
    )


def _worth(case: Case) -> float:
    return case.k**-0.5 / (900 if case.dtype == INT8 else 1)


def activated(y: torch.Tensor, epilogue: Epilogue) -> torch.Tensor:
    functions = torch.nn.functional
    return {
        "none": lambda: y,
        "relu": y.relu,
        "gelu": lambda: functions.gelu(y),
        "silu": lambda: functions.silu(y),
        "hard_swish": lambda: functions.hardswish(y),
        "leaky_relu": lambda: functions.leaky_relu(y, epilogue.alpha),
        "clip": lambda: y.clamp(epilogue.alpha, epilogue.beta),
        "quick_gelu": lambda: y * (1.702 * y).sigmoid(),
        "star_relu": lambda: epilogue.alpha * y.relu() ** 2 + epilogue.beta,
    }[epilogue.activation]()


def expected(given: Tensors, case: Case) -> torch.Tensor:
    """What is stored, before it is rounded, in its steps."""
    epilogue, eight = case.epilogue, given.out.itemsize == 1
    y = given.x.double().cpu() @ given.w.double().cpu().T
    if given.scale is not None:
        y = y * given.scale.double().cpu()
    if given.bias is not None:
        y = y + given.bias.double().cpu()
    added = torch.zeros(()).double()
    if given.residual is not None:
        added = given.residual.double().cpu() * (epilogue.residual_scale if eight else 1.0)
    y = activated(y, epilogue) + added if epilogue.residual_last else activated(y + added, epilogue)
    if not eight:
        return y
    limit = 127 if given.out.dtype == INT8 else 448
    return (y / epilogue.out_scale).clamp(-limit - (given.out.dtype == INT8), limit)


def difference(found: torch.Tensor, right: torch.Tensor) -> float:
    return float((found.double().cpu() - right).norm() / right.norm())


def allowed(case: Case) -> float:
    """Half a step of INT8 is much of a small number."""
    return {torch.float16: 5e-4, BF16: 4e-3, INT8: 2e-2, E4M3: 4e-2}[case.out or case.dtype]


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_thread_of_the_source_does_its_part(case: Case, tmp_path: Path) -> None:
    given = tensors(case)
    launch = given.launch(case)
    run_on_the_cpu(launch, tmp_path)
    assert difference(given.out, expected(given, case)) < allowed(case)
    if case.apart:
        between = torch.as_strided(given.out, (case.m, case.apart), given.out.stride(), case.n)
        assert bool(between.isnan().all())
    if given.out.dtype == INT8:
        assert float((given.out.double().cpu() - expected(given, case)).abs().max()) < 0.51


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="needs a Hopper GPU"
)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_gpu_comes_to_the_same(case: Case) -> None:
    given = tensors(case, "cuda")
    launch = given.launch(case)
    found = []
    for _ in range(2):
        launch.run()
        found.append(given.out.clone())
    assert torch.equal(*(each.view(torch.uint8) for each in found))
    assert difference(given.out, expected(given, case)) < allowed(case)


FOR_A_GPU = [
    (Product(m, n, k), residual, tile)
    for m, n, k, residual in ((3200, 3072, 768, False), (200704, 256, 64, True), (200704, 64, 256, False))
    for tile in warpgroup_tiles(Product(m, n, k), 132, residual)[:4]
]


@pytest.mark.skipif(not nvrtc.available(), reason="there is no NVRTC")
@pytest.mark.parametrize(("product", "residual", "tile"), FOR_A_GPU, ids=str)
def test_it_compiles_without_a_gpu_and_keeps_sums_in_registers(
    product: Product, residual: bool, tile: WarpgroupTile
) -> None:
    def empty(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    out = empty(product.m, product.n)
    launch = warpgroup_gemm_launch(
        empty(product.m, product.k), empty(product.n, product.k), out=out, config=tile,
        bias=empty(product.n, dtype=torch.float32), residual=out if residual else None, epilogue=Epilogue("gelu"),
    )  # fmt: skip
    found = launch.compile()
    assert found.cubin.startswith(b"\x7fELF")
    assert found.spilled_bytes == 0
    sealed = launch.seal()
    assert sealed.parameters == "m" * len(launch.maps) + "p"
    assert sealed.maps == launch.maps
    assert sealed.shared_bytes <= 227 * 1024


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda given: {"x": given.x.float()}, "x: expected sixteen or eight bits"),
        (lambda given: {"out": given.out.float()}, "out: expected sixteen or eight bits"),
        (lambda given: {"out": given.out.bfloat16()}, "out: expected torch.float16"),
        (lambda given: {"x": given.x[:, :60], "w": given.w[:, :60]}, "multiples of 16 bytes"),
        (lambda given: {"bias": given.bias.half()}, "FP32"),
    ],
    ids=["wide", "a wide result", "another sixteen bits", "rows of 120 bytes", "a narrow bias"],
)
def test_what_the_copying_unit_does_not_take_is_refused(change: object, message: str) -> None:
    case = Case(128, 64, 64, WarpgroupTile(64, 64, 1, 3, 1, 1))
    given = tensors(case)
    assert callable(change)
    operands = {"x": given.x, "w": given.w, "out": given.out, "bias": given.bias} | change(given)
    with pytest.raises(ValueError, match=message):
        warpgroup_gemm_launch(**operands, config=case.tile)


@pytest.mark.parametrize(("itemsize", "out_itemsize"), [(2, 2), (1, 1), (1, 2)])
@pytest.mark.parametrize("residual", [False, True])
def test_all_cuts_fit_a_multiprocessor(itemsize: int, out_itemsize: int, residual: bool) -> None:
    for m, n, k in ((3200, 768, 3072), (64, 64, 64), (200704, 256, 64), (50, 1000, 2048)):
        product = Product(m, n, k, itemsize=itemsize)
        tiles = warpgroup_tiles(product, 132, residual, out_itemsize, limit=100)
        assert tiles
        for tile in tiles:
            assert tile.fits(residual, out_itemsize)
            assert tile.clusters(product) * tile.cluster <= 132
