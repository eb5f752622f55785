"""Matrix products on Hopper's own units: warps that copy, warps that multiply, and blocks that stay.

`warpgroup_gemm_launch` multiplies x [M, K] by the transpose of w [N, K], adds bias and residual and applies an
activation, as `implicit_gemm` does; `warpgroup_tiles` says how such a product may be cut. CUDA C++ (`cpp/gemm.cu`).
FP16, BF16 and e4m3 are summed in FP32, INT8 in INT32; rows are multiples of 16 bytes. Needs compute capability 9.0 and
no other.
"""

import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil
from typing import Final, TypeAlias

import torch

from .activations import ACTIVATIONS, expect_activation
from .cpp_launching import CppLaunch
from .driver import TensorMap
from .epilogue import Epilogue
from .rows import expect_aligned, expect_shape, pitch
from .tiles import Product

LINE: Final = 128  # bytes of a row of a tile in shared memory
ALIGNED: Final = 16
_THREADS: Final = 384
SHARED: Final = 227 * 1024
SHARED_KEPT: Final = 1024 + 256  # to begin at a multiple of 1024; barriers
_MOST_STAGES: Final = 8
_FEWEST_STAGES: Final = 3
_ROWS: Final = (64, 128)
_COLUMNS: Final = (64, 128, 192, 256)
_SUMS: Final = 192  # of a thread, at most
_TILE_GROUP: Final = 8

# Clocks of a multiprocessor, for ranking.
_MACS: Final = 1900
_L2_BYTES: Final = 56
_EPILOGUE: Final = 8.0  # numbers of a tile finished in one, about
_DEVICE_BYTES: Final = 2450
_START: Final = 1500
_PER_TILE: Final = 400
_WAIT: Final = 1500  # till a residual is there
_CLUSTER: Final = 500  # of a tile that waits for another block's
_SMALL: Final = 500  # of a tile of 64 rows
_FEW_STEPS: Final = 8  # a tile that is longer in the making does not wait for its residual


@dataclass(frozen=True, slots=True)
class WarpgroupTile:
    """How a product is shared out."""

    rows: int
    """Of four warps: 64 or 128."""
    columns: int
    pingpong: int
    """1: four warps finish their tile while the others multiply theirs; 0: they share one of twice the rows."""
    stages: int
    cluster: int
    """Blocks below each other that share the weights that they copy: 1 or 2."""
    blocks: int
    """In the grid, at most."""
    ahead: int = 0
    """1: a residual is copied while the tile before is finished, to memory of its own."""

    @property
    def block_rows(self) -> int:
        return self.rows * (1 if self.pingpong else 2)

    def count(self, product: Product) -> int:
        """Tiles, of clusters."""
        return ceil(product.m / (self.block_rows * self.cluster)) * ceil(product.n / self.columns)

    def clusters(self, product: Product) -> int:
        """In the grid."""
        return max(1, min(self.count(product), self.blocks // self.cluster))

    def shared_bytes(self, residual: bool, out_itemsize: int) -> int:
        chunks = ceil(self.columns * out_itemsize / LINE)
        slots = 2 * self.rows * LINE * (chunks * (1 + self.ahead) if residual else min(chunks, 2))
        return self.stages * (self.block_rows + self.columns) * LINE + slots + SHARED_KEPT

    def fits(self, residual: bool, out_itemsize: int) -> bool:
        sums = self.rows // 64 * self.columns // 2
        whole_lines = self.columns * out_itemsize % LINE == 0
        return whole_lines and sums <= _SUMS and self.shared_bytes(residual, out_itemsize) <= SHARED

    def clocks(self, product: Product, residual: bool, out_itemsize: int) -> float:
        """Roughly, for telling cuts apart."""
        steps = ceil(product.k * product.itemsize / LINE)
        area = self.block_rows * self.columns
        multiply = area * LINE / 2 / _MACS
        load = (self.block_rows + self.columns / self.cluster) * LINE / _L2_BYTES
        finish = area / _EPILOGUE * (1.5 if residual else 1.0)
        loop = steps * max(multiply, load)
        waves = ceil(self.count(product) / self.clusters(product))
        moved = product.m * product.k * product.itemsize + product.m * product.n * out_itemsize * (2 if residual else 1)
        if residual and not self.ahead:
            loop += _WAIT / 2 if self.pingpong else max(0, _WAIT - loop)
        loop += _CLUSTER * (self.cluster > 1) + _SMALL * (self.block_rows < _ROWS[-1])
        if self.pingpong:
            busy = _START + waves * max(loop + _PER_TILE / 4, (finish + loop) / 2) + finish
        else:
            busy = _START + waves * (loop + finish / 2 + _PER_TILE)
        return max(busy, moved / _DEVICE_BYTES) + busy / 16


def warpgroup_tiles(
    product: Product, multiprocessors: int, residual: bool, out_itemsize: int = 2, limit: int = 8
) -> list[WarpgroupTile]:
    """Those worth timing, most promising first."""
    sensible = _sensible(product, multiprocessors, residual, out_itemsize)
    return sorted(sensible, key=lambda tile: tile.clocks(product, residual, out_itemsize))[:limit]


def _sensible(product: Product, multiprocessors: int, residual: bool, out_itemsize: int) -> Iterator[WarpgroupTile]:
    ahead = (0, 1) if residual and product.k * product.itemsize <= _FEW_STEPS * LINE else (0,)
    for rows, columns, pingpong, cluster, soon in itertools.product(_ROWS, _COLUMNS, (1, 0), (1, 2), ahead):
        tile = WarpgroupTile(rows, columns, pingpong, 0, cluster, multiprocessors, soon)
        room = SHARED - tile.shared_bytes(residual, out_itemsize)
        stages = min(_MOST_STAGES, room // ((tile.block_rows + columns) * LINE))
        narrowest = max(64, LINE // out_itemsize)
        wasteful = (columns > narrowest and columns >= product.n + 64) or tile.block_rows >= 2 * product.m
        if stages < _FEWEST_STAGES - soon or not tile.fits(residual, out_itemsize) or wasteful:
            continue
        count = tile.count(product)
        if (cluster == 1 or count >= multiprocessors // 4) and (not soon or count > tile.clusters(product)):
            yield replace(tile, stages=stages)


def warpgroup_gemm_launch(
    x: torch.Tensor,
    w: torch.Tensor,
    *,
    out: torch.Tensor,
    config: WarpgroupTile,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    epilogue: Epilogue | None = None,
    pdl: bool = False,
) -> CppLaunch:
    """x [..., K], w [N, K], out and residual [..., N], rows one step apart; bias and scale [N], FP32.

    w is of x's type, residual of out's.
    """
    (n, k), m = w.shape, out.numel() // out.shape[-1]
    product, epilogue = Product(m, n, k, itemsize=x.itemsize), epilogue or Epilogue()
    expect_shape(x, "x", *out.shape[:-1], k)
    expect_shape(out, "out", *x.shape[:-1], n)
    expect_operands(x, w, out, bias, residual, scale)
    for name, each in (("x", x), ("w", w), ("out", out), ("residual", out if residual is None else residual)):
        if pitch(each, name) * each.itemsize % ALIGNED:
            raise ValueError(f"{name}: expected rows of multiples of 16 bytes, got {list(each.shape)}, {each.stride()}")
    if not config.fits(residual is not None, out.itemsize):
        raise ValueError(f"{config}: expected one that fits a multiprocessor")
    clusters = config.clusters(product)
    constants = {
        "SIZE_M": m,
        "SIZE_N": n,
        "SIZE_K": k,
        "ROWS": config.rows,
        "COLUMNS": config.columns,
        "PINGPONG": config.pingpong,
        "STAGES": config.stages,
        "CLUSTER": config.cluster,
        "TEAMS": clusters,
        "TILE_GROUP": _TILE_GROUP,
        "AHEAD": config.ahead,
        **finishing(x, out, bias, residual, scale, epilogue),
    }
    maps = [
        matrix_map(x, "x", config.block_rows),
        matrix_map(w, "w", config.columns // config.cluster),
        matrix_map(out, "out", config.rows),
    ]
    if residual is not None:
        maps.append(matrix_map(residual, "residual", config.rows))
    return CppLaunch(
        "gemm.cu",
        "warpgroup_gemm",
        (clusters * config.cluster, 1, 1),
        _THREADS,
        (x, w, out, residual, scale, bias),
        constants,
        config.shared_bytes(residual is not None, out.itemsize),
        config.cluster,
        pdl,
        tuple(maps),
    )


# As `gemm.cu` counts them.
_KINDS: Final = {torch.float16: 0, torch.bfloat16: 0, torch.int8: 1, torch.float8_e4m3fn: 2}
_SIXTEEN_BITS: Final = 2
_NUMBERS: Final = {name: number for number, name in enumerate(ACTIVATIONS)}

_Tensor: TypeAlias = torch.Tensor | None


def expect_operands(
    x: torch.Tensor, w: torch.Tensor, out: torch.Tensor, bias: _Tensor, residual: _Tensor, scale: _Tensor
) -> None:
    """That types are what `gemm.cu` takes, and addresses and rows of channels what the unit that copies takes."""
    operands = {"x": (x, x), "w": (w, x), "out": (out, out)}
    if residual is not None:
        expect_shape(residual, "residual", *out.shape)
        operands["residual"] = (residual, out)
    for name, (each, like) in operands.items():
        if each.dtype != like.dtype or each.dtype not in _KINDS:
            raise ValueError(f"{name}: expected sixteen or eight bits, and one type of operands, got {each.dtype}")
        if each.shape[-1] * each.itemsize % ALIGNED:
            raise ValueError(f"{name}: expected rows of multiples of 16 bytes, got {list(each.shape)}")
        expect_aligned(each, name, ALIGNED)
    if len({each.dtype for each in (x, out) if each.itemsize == _SIXTEEN_BITS}) > 1:
        raise ValueError(f"out: expected {x.dtype} like x or eight bits, got {out.dtype}")
    for name, row in (("bias", bias), ("scale", scale)):
        if row is not None:
            expect_shape(row, name, out.shape[-1])
            if row.dtype != torch.float32 or not row.is_contiguous():
                raise ValueError(f"{name}: expected a row in FP32, got {row.dtype}")


def finishing(
    x: torch.Tensor, out: torch.Tensor, bias: _Tensor, residual: _Tensor, scale: _Tensor, epilogue: Epilogue
) -> dict[str, int]:
    """The macros of `gemm.cu` that say what its numbers are and what happens to a sum."""
    expect_activation(epilogue.activation)
    constants = {
        "KIND": _KINDS[x.dtype],
        "OUT_KIND": _KINDS[out.dtype],
        "HAS_SCALES": int(scale is not None),
        "PREFOLDED": int(epilogue.folded),
        "HAS_BIAS": int(bias is not None),
        "HAS_RESIDUAL": int(residual is not None),
        "RESIDUAL_LAST": int(epilogue.residual_last),
        "ACTIVATION": _NUMBERS[epilogue.activation],
        "ALPHA_BITS": _bits(epilogue.alpha),
        "BETA_BITS": _bits(epilogue.beta),
        "RESIDUAL_SCALE_BITS": _bits(epilogue.residual_scale),
        "OUT_INVERSE_BITS": _bits(1.0 / epilogue.out_scale),
    }
    if torch.bfloat16 in (x.dtype, out.dtype):
        constants["BFLOAT16"] = 1
    return constants


def matrix_map(matrix: torch.Tensor, name: str, rows: int, line: int = LINE) -> TensorMap:
    """Its rows in tiles of so many and of 64 or 128 bytes."""
    columns, itemsize = matrix.shape[-1], matrix.itemsize
    return TensorMap(
        itemsize,
        matrix.numel() // columns,
        columns,
        pitch(matrix, name) * itemsize,
        rows,
        line // itemsize,
        3 if line == LINE else 2,
    )


def _bits(number: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", number))[0])
