"""A 1 x 1 convolution of INT8 and the depthwise one behind it by diagonal matrices, in CUDA C++ (`diagonal.cu`).

Most of what is multiplied is zeros, but nothing between the layers is written or shared: sums of the first are operands
of the second where they are. Timed beside `expand_walk`, which wins on smaller maps. Weights and factors are those of
`depthwise_walk`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil, isfinite
from typing import Final

import torch

from .cpp_launching import CppLaunch
from .depthwise_walk import Layer, bounds
from .epilogue import Epilogue
from .expand_walk import WIDEST, ExpandWalkTile, expand_walk_launch
from .short_product import pair_of
from .tiles import H200_MULTIPROCESSORS

CHANNELS: Final = 16
"""Of a warp."""

_COLUMNS: Final = 2
_STRIPS: Final = 8  # of a warp
_WARP: Final = 32
_WARPS: Final = (4, 3, 2, 5, 7, 1)  # of a block, the likeliest first: they share the channels
_ROWS: Final = (4, 7, 14, 28)
_AHEAD: Final = (1, 2)
_SCHEDULERS: Final = 4
_MULTIPROCESSOR_REGISTERS: Final = 65536
_SLACK: Final = 8  # registers that the compiler finds a way without
_REGISTERS: Final = 212  # of a thread, beyond which it spills
_AMID: Final = 1536  # among the numbers between which FP16 has steps of one
# Clocks, roughly: of a product, of what else is done for a pixel, of a store with what is done to four sums, of what
# comes before the first row, and of a load from the second cache.
_PRODUCT: Final = 13
_PIXEL: Final = 16
_STORE: Final = 24
_START: Final = 2500
_LATENCY: Final = 700


@dataclass(frozen=True, slots=True)
class DiagonalTile:
    rows: int
    """Below each other that a warp makes."""
    ahead: int
    """Rows that are loaded before they are wanted."""
    warps: int
    """Of a block; groups of sixteen channels are a multiple of them."""

    def registers(self, layer: Layer, narrow: int) -> int:
        """Of a thread, roughly."""
        pieces, reach, kept = ceil(narrow / 16), self._reach(layer), ceil(layer.taps[0] / layer.stride[0])
        taps = layer.taps[0] * layer.taps[1]
        return 8 * kept + 2 * taps + 2 * reach + self.ahead * reach * pieces + 2 * pieces + 64

    def resident(self, layer: Layer, narrow: int) -> int:
        """Blocks of a multiprocessor, each of which gets as many registers as if it were whole fours of warps."""
        registers = 8 * ceil((self.registers(layer, narrow) - _SLACK) / 8)
        return max(1, _MULTIPROCESSOR_REGISTERS // (registers * 4 * _WARP * ceil(self.warps / 4)))

    def units(self, layer: Layer) -> int:
        """Warps."""
        images, high, wide, channels = layer.out_shape
        strips = ceil(images * ceil(wide / _COLUMNS) / _STRIPS)
        return channels // CHANNELS * ceil(high / self.rows) * strips

    def clocks(self, layer: Layer, narrow: int, multiprocessors: int) -> float:
        """Roughly, for telling cuts apart."""
        rows, (high, wide), reach = min(self.rows, layer.out_shape[1]), layer.taps, self._reach(layer)
        read = (rows - 1) * layer.stride[0] + high
        expanding = read * ceil(reach / 2) * 2 * ceil(narrow / 32)
        products = (expanding + rows * high * ceil(wide / 2) * 2) * _PRODUCT
        others = read * reach * _PIXEL + rows * _STORE + 6 * high * wide + 100
        warps = ceil(self.units(layer) / (_SCHEDULERS * multiprocessors))
        at_once = min(warps, self.resident(layer, narrow) * self.warps / _SCHEDULERS)
        waited = _START + read * max(0.0, _LATENCY / self.ahead - at_once * products / read)
        return warps * max(products, others) + waited

    def _reach(self, layer: Layer) -> int:
        return (_COLUMNS - 1) * layer.stride[1] + layer.taps[1]


def expand_diagonal_tiles(
    layer: Layer, narrow: int, multiprocessors: int = H200_MULTIPROCESSORS, limit: int = 3
) -> list[DiagonalTile]:
    """The cuts worth timing, most promising first; none where channels are no groups of sixteen, or not INT8."""
    if (
        layer.itemsize != 1
        or layer.out_shape[3] % CHANNELS
        or narrow > WIDEST
        or narrow % 8
        or layer.taps[1] < _COLUMNS
    ):
        return []
    return sorted(_sensible(layer, narrow), key=lambda tile: tile.clocks(layer, narrow, multiprocessors))[:limit]


def _sensible(layer: Layer, narrow: int) -> Iterator[DiagonalTile]:
    high, groups = layer.out_shape[1], layer.out_shape[3] // CHANNELS
    warps = next(each for each in _WARPS if groups % each == 0)
    for rows in sorted({min(each, high) for each in _ROWS}):
        for ahead in _AHEAD:
            tile = DiagonalTile(rows, ahead, warps)
            if tile.registers(layer, narrow) <= _REGISTERS:
                yield tile


def expand_diagonal_launch(
    x: torch.Tensor,
    first: torch.Tensor,
    w: torch.Tensor,
    *,
    out: torch.Tensor,
    config: DiagonalTile,
    first_scale: torch.Tensor,
    factors: torch.Tensor,
    first_bias: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    inner: Epilogue,
    outer: Epilogue,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    pdl: bool = False,
) -> CppLaunch:
    """As `expand_walk_launch` of INT8."""
    if x.dtype != torch.int8:
        raise ValueError(f"x: expected INT8, got {x.dtype}")
    walk = expand_walk_launch(
        x, first, w, out=out, config=ExpandWalkTile(_COLUMNS, config.rows, CHANNELS * config.warps, 1, 1),
        first_bias=first_bias, first_scale=first_scale, bias=bias, factors=factors, inner=inner, outer=outer,
        stride=stride, padding=padding, pdl=pdl,
    )  # fmt: skip
    n, high, wide, channels = out.shape
    layer = Layer((n, high, wide, channels), (w.shape[0], w.shape[1]), stride, x.itemsize)
    blocks = config.units(layer) // config.warps
    constants = {
        **{name: each for name, each in walk.constants.items() if name not in ("CHUNK", "BAND", "PARTS")},
        "AHEAD": config.ahead,
        "THREADS": _WARP * config.warps,
        "BLOCKS": blocks,
        "WARPS": config.warps,
        "RESIDENT": config.resident(layer, x.shape[3]),
        **_bounds_in_halves(inner, "INNER"),
        **_bounds_in_halves(outer, "OUT"),
    }
    return replace(
        walk, source="diagonal.cu", symbol="expand_diagonal", grid=(blocks, 1, 1), threads=_WARP * config.warps,
        constants=constants, shared_bytes=0,
    )  # fmt: skip


def _bounds_in_halves(epilogue: Epilogue, name: str) -> dict[str, int]:
    """Of INT8, as halves are where their steps are ones."""
    low, high = (each / epilogue.out_scale for each in bounds(epilogue))
    least, most = max(-128, round(low) if isfinite(low) else -128), min(127, round(high) if isfinite(high) else 127)
    return {
        f"{name}_LOW_PAIR": pair_of(_AMID + least, torch.float16),
        f"{name}_HIGH_PAIR": pair_of(_AMID + most, torch.float16),
    }
