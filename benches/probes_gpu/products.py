"""Matrix products by warpgroups in eight bits and in 16 against cuBLAS, alone: whether they are right, then times.

    timeout 40 python benches/probes_gpu/products.py --seconds 30

Each kind of kernel is tried in a process of its own first, so that one that hangs costs a few seconds and its times.
A row has cuBLAS in FP16 without what follows the product, cuBLAS in e4m3 (`torch._scaled_mm`, fast sums and not), the
error of each against FP64 of the same numbers, and our cuts in microseconds, the best again with early launch.
"""

import argparse
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "python")]

import torch  # noqa: E402
from torch.nn import functional  # noqa: E402

from penstock.engine.cuda.kernels.cpp_launching import CppLaunch  # noqa: E402
from penstock.engine.cuda.kernels.epilogue import Epilogue, fold, folds  # noqa: E402
from penstock.engine.cuda.kernels.tiles import Product  # noqa: E402
from penstock.engine.cuda.kernels.tuning import microseconds  # noqa: E402
from penstock.engine.cuda.kernels.warpgroup_gemm import (  # noqa: E402
    WarpgroupTile,
    warpgroup_gemm_launch,
    warpgroup_tiles,
)

FP16, INT8, E4M3 = torch.float16, torch.int8, torch.float8_e4m3fn
SHARE = 200  # rows that FP64 multiplies


@dataclass(frozen=True)
class Shape:
    m: int
    n: int
    k: int
    dtype: torch.dtype = E4M3
    out: torch.dtype = FP16
    activation: str = "none"
    residual: bool = False

    def __str__(self) -> str:
        types = "/".join(str(each).removeprefix("torch.") for each in dict.fromkeys((self.dtype, self.out)))
        return f"{self.m}x{self.n}x{self.k} {types} {self.activation}{' +res' if self.residual else ''}"


def transformer(m: int, width: int, dtype: torch.dtype) -> list[Shape]:
    """The products of a layer."""
    return [
        Shape(m, 4 * width, width, dtype, dtype, "gelu"),
        Shape(m, width, 4 * width, dtype, FP16, residual=True),
        Shape(m, 3 * width, width, dtype, FP16),
        Shape(m, width, width, dtype, FP16, residual=True),
    ]


SHAPES = [
    *transformer(3200, 768, E4M3),
    *transformer(3200, 768, FP16),
    *transformer(16448, 1024, E4M3),
    Shape(12544, 256, 1024, INT8, INT8, "relu"),
    Shape(12544, 1024, 256, INT8, INT8, "relu", residual=True),
    Shape(50176, 512, 128, INT8, INT8, "relu", residual=True),
    Shape(50176, 128, 512, INT8, INT8, "relu"),
    Shape(3136, 2048, 512, INT8, INT8, "relu", residual=True),
]
# Odd numbers of rows, depths that end within a piece, columns that end within a tile.
RIGHT = {
    "alone": [Shape(1111, 264, 400, FP16, FP16, "gelu"), Shape(3199, 768, 3072, residual=True)],
    "eight": [Shape(777, 512, 208, E4M3, E4M3, "gelu"), Shape(1001, 320, 272, INT8, INT8, "relu", residual=True)],
    "cluster": [Shape(3199, 768, 3072, residual=True), Shape(1111, 264, 400, FP16, FP16, "gelu")],
    "cluster8": [Shape(4001, 512, 208, E4M3, E4M3, "gelu"), Shape(4001, 320, 272, INT8, INT8, "relu", residual=True)],
}


class Operands:
    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        generator = torch.Generator("cuda").manual_seed(int(time.time()))

        def normal(rows: int, columns: int, dtype: torch.dtype, size: float = 1.0) -> torch.Tensor:
            wide = torch.randn(rows, columns, device="cuda", generator=generator) * size
            return (wide * 30).round().clamp(-128, 127).to(dtype) if dtype == INT8 else wide.to(dtype)

        m, n, k = shape.m, shape.n, shape.k
        eight = shape.dtype.itemsize == 1
        self.x = normal(m, k, shape.dtype)
        self.w = normal(n, k, shape.dtype, 1.0 if eight else k**-0.5)
        self.bias = torch.randn(n, device="cuda", generator=generator)
        worth = k**-0.5 / (900 if shape.dtype == INT8 else 1)
        rows = torch.rand(n, device="cuda", generator=generator) + 0.5
        self.scale = rows * worth if eight else None
        self.residual = normal(m, n, shape.out) if shape.residual else None
        self.out = torch.empty(m, n, dtype=shape.out, device="cuda")
        self.epilogue = Epilogue(shape.activation, residual_scale=0.04, out_scale=0.05)
        self.folded = self.scale, self.bias
        if self.scale is not None and shape.out.itemsize == 1 and folds(shape.activation):  # as the executor does
            self.epilogue = replace(self.epilogue, folded=True)
            largest = 128 * 128 * k if shape.dtype == INT8 else 0
            self.folded = fold(self.scale, self.bias, self.epilogue.out_scale, largest)

    def launch(self, tile: WarpgroupTile, *, pdl: bool = False) -> CppLaunch:
        return warpgroup_gemm_launch(
            self.x, self.w, out=self.out, config=tile, bias=self.folded[1], scale=self.folded[0],
            residual=self.residual, epilogue=self.epilogue, pdl=pdl,
        )  # fmt: skip

    def right(self, rows: slice) -> torch.Tensor:
        """In the result's steps, not rounded."""
        y = self.x[rows].double() @ self.w.double().T
        y = (y if self.scale is None else y * self.scale.double()) + self.bias.double()
        narrow = self.shape.out.itemsize == 1
        if self.residual is not None:
            y = y + self.residual[rows].double() * (self.epilogue.residual_scale if narrow else 1.0)
        y = (
            functional.gelu(y)
            if self.shape.activation == "gelu"
            else y.relu()
            if self.shape.activation == "relu"
            else y
        )
        limit = 127 if self.shape.out == INT8 else 448
        return (y / self.epilogue.out_scale).clamp(-limit - 1, limit) if narrow else y

    def error(self) -> float:
        found = [
            difference(self.out[rows], self.right(rows))
            for rows in (slice(0, SHARE), slice(max(0, self.shape.m - SHARE), None))
        ]
        return max(found)


def difference(found: torch.Tensor, right: torch.Tensor) -> float:
    return float((found.double() - right).norm() / right.norm())


def allowed(shape: Shape) -> float:
    """Rounding the result, and of e4m3 that sums have some 14 bits."""
    return {FP16: 4e-3 if shape.dtype == E4M3 else 8e-4, INT8: 2e-2, E4M3: 3.5e-2}[shape.out]


def product(shape: Shape) -> Product:
    return Product(shape.m, shape.n, shape.k, itemsize=shape.dtype.itemsize)


def cuts(shape: Shape, limit: int) -> list[WarpgroupTile]:
    return warpgroup_tiles(product(shape), 132, shape.residual, shape.out.itemsize, limit)


def check(group: str) -> None:
    worst, count = 0.0, 0
    for shape in RIGHT[group]:
        given = Operands(shape)
        alike = [each for each in cuts(shape, 100) if (each.cluster == 2) == group.startswith("cluster")]
        picked = [next((each for each in alike if each.pingpong == how), None) for how in (0, 1)]
        for tile in (each for each in picked if each is not None):
            for _ in range(20):
                given.out.fill_(77.0)
                given.launch(tile).run()
            error = given.error()
            worst, count = max(worst, error / allowed(shape)), count + 1
            if not error < allowed(shape):
                raise SystemExit(f"WRONG {shape} {tile}: {error:.1e}")
    assert count > 0
    print(f"{count} right, at most {worst:.2f} of what is allowed")


def rivals(given: Operands) -> str:
    shape = given.shape
    x, w = given.x.half(), given.w.half()
    spent = microseconds(lambda: functional.linear(x, w), calls=10, replays=3)
    said = f"cuBLAS FP16 {spent:.1f}"
    if shape.dtype != E4M3:
        return said
    one, right = torch.ones((), device="cuda"), given.x[:SHARE].double() @ given.w.double().T
    for fast in (True, False):

        def multiply(fast: bool = fast) -> torch.Tensor:
            return torch._scaled_mm(given.x, given.w.T, one, one, out_dtype=FP16, use_fast_accum=fast)

        spent = microseconds(multiply, calls=10, replays=3)
        said += f", e4m3{'' if fast else ' exact sums'} {spent:.1f} ({difference(multiply()[:SHARE], right):.1e})"
    return said


def measure(limit: int, until: float, clusters: tuple[int, ...], only: str) -> None:
    rows: list[tuple[Operands, dict[WarpgroupTile, CppLaunch]]] = []
    for shape in (each for each in SHAPES if only in str(each)):
        given = Operands(shape)
        tiles = [each for each in cuts(shape, 100) if each.cluster in clusters][:limit]
        rows.append((given, {tile: given.launch(tile) for tile in tiles}))
    with ThreadPoolExecutor(16) as pool:
        launches = [launch for _, each in rows for launch in each.values()]
        list(pool.map(CppLaunch.build, launches))
    print(f"{len(launches)} built", flush=True)
    for given, each in rows:
        if time.monotonic() > until:
            print(f"{given.shape}: no time was left")
            continue
        try:
            said = rivals(given)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"[:120]
        found = []
        for tile, launch in each.items():
            given.out.fill_(77.0)
            launch.run()
            error, spent = given.error(), microseconds(launch.run, calls=10, replays=3)
            name = f"{tile.rows}x{tile.columns}{'cp'[tile.pingpong]}s{tile.stages}c{tile.cluster}{'a' * tile.ahead}"
            found.append((spent, name if error < allowed(given.shape) else f"{name} WRONG {error:.1e}", tile, error))
        found.sort(key=lambda one: one[0])
        early = microseconds(given.launch(found[0][2], pdl=True).run, calls=10, replays=3)
        listed = "  ".join(f"{spent:.1f} {name}" for spent, name, *_ in found)
        print(f"{given.shape}: {said} | early {early:.1f}, off {found[0][3]:.1e}: {listed}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="after which no shape is begun")
    parser.add_argument("--cuts", type=int, default=6, help="of each shape")
    parser.add_argument("--only", default="", metavar="TEXT", help="shapes whose line has it, such as int8")
    parser.add_argument("--check", default="", choices=["", *RIGHT], help="what the processes do that this one starts")
    options = parser.parse_args()
    until = time.monotonic() + options.seconds
    if options.check:
        check(options.check)
        return
    tried = {
        group: subprocess.Popen(
            [sys.executable, __file__, "--check", group], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for group in RIGHT
    }
    good = set()
    for group, process in tried.items():
        try:
            said, _ = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            said = "hangs"
        lines = said.strip().splitlines() or ["nothing said"]
        print(f"{group}: {lines[-1][:300]}", flush=True)
        if process.returncode == 0:
            good.add(group)
    clusters = tuple(
        number for number, groups in ((1, {"alone", "eight"}), (2, {"cluster", "cluster8"})) if groups <= good
    )
    if clusters:
        measure(options.cuts, until, clusters, options.only)


if __name__ == "__main__":
    main()
