"""Depthwise convolution by the units that multiply matrices, in CUDA C++ (`diagonal.cu`): a tap is a diagonal matrix.

Most of what they multiply is zeros, and yet they are done sooner than the units that also convert, load and store.
Weights and factors are those of `depthwise_walk`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil, isfinite
from typing import Final

import torch

from .cpp_launching import CppLaunch
from .depthwise_walk import Layer, WalkTile, bounds, depthwise_walk_launch
from .epilogue import Epilogue
from .expand_walk import ExpandWalkTile, expand_walk_launch
from .rows import pitch
from .short_product import pair_of
from .tiles import H200_MULTIPROCESSORS

CHANNELS: Final = 16
"""Of a warp."""

WIDEST: Final = 128
"""Channels of the map before."""

_COLUMNS: Final = 2
_AMID: Final = 1536  # among the numbers between which FP16 has steps of one
_STRIPS: Final = 8  # of a warp
_WARP: Final = 32
_WARPS: Final = (4, 3, 2, 5, 7, 1)  # of a block, the likeliest first: they share the channels
_ROWS: Final = (4, 7, 14, 28)
_AHEAD: Final = (1, 2)
_SCHEDULERS: Final = 4
_MULTIPROCESSOR_REGISTERS: Final = 65536
_SLACK: Final = 8  # registers that the compiler finds a way without
_REGISTERS: Final = 232  # of a thread, beyond which the compiler spills
_REGISTERS_OF_TWO: Final = 212  # the same, with a layer before
# Clocks, roughly: of a product, of a pixel's load and conversion, of a store with what is done to four sums, of what
# comes before the first row, and of a load from the second cache.
_PRODUCT: Final = 6.6
_LOAD: Final = 10
_STORE: Final = 36
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

    def registers(self, layer: Layer, narrow: int = 0) -> int:
        """Of a thread, roughly. `narrow`: channels of the map before, if another layer makes what this one reads."""
        pieces = ceil(narrow * layer.itemsize / 16) if narrow else layer.itemsize
        reach = (_COLUMNS - 1) * layer.stride[1] + layer.taps[1]
        kept = ceil(layer.taps[0] / layer.stride[0])
        taps = layer.taps[0] * layer.taps[1]
        first = 2 * pieces + 18 if narrow else 0
        return 8 * kept + 2 * taps + 2 * reach + self.ahead * reach * pieces + first + 46

    def resident(self, layer: Layer, narrow: int = 0) -> int:
        """Blocks of a multiprocessor, each of which gets as many registers as if it were whole fours of warps."""
        registers = 8 * ceil((self.registers(layer, narrow) - _SLACK) / 8)
        return max(1, _MULTIPROCESSOR_REGISTERS // (registers * 4 * _WARP * ceil(self.warps / 4)))

    def units(self, layer: Layer) -> int:
        """Warps with something to do."""
        images, high, wide, channels = layer.out_shape
        strips = ceil(images * ceil(wide / _COLUMNS) / _STRIPS)
        return channels // CHANNELS * ceil(high / self.rows) * strips

    def blocks(self, layer: Layer) -> int:
        return self.units(layer) // self.warps

    def clocks(self, layer: Layer, multiprocessors: int) -> float:
        """Roughly, for telling cuts apart."""
        rows, (high, wide) = min(self.rows, layer.out_shape[1]), layer.taps
        read = (rows - 1) * layer.stride[0] + high
        products = rows * high * wide * _PRODUCT  # two groups, half a product for each tap
        others = read * ((layer.stride[1] + wide) * _LOAD + 20) + rows * _STORE + 6 * high * wide + 100
        warps = ceil(self.units(layer) / (_SCHEDULERS * multiprocessors))
        at_once = min(warps, self.resident(layer) * self.warps / _SCHEDULERS)
        waited = _START + read * max(0.0, _LATENCY / self.ahead - at_once * products / rows)
        return warps * max(products, others) + waited


def diagonal_tiles(layer: Layer, multiprocessors: int = H200_MULTIPROCESSORS, limit: int = 4) -> list[DiagonalTile]:
    """The cuts worth timing, most promising first; none where channels are not groups of sixteen."""
    return sorted(_sensible(layer), key=lambda tile: tile.clocks(layer, multiprocessors))[:limit]


def _sensible(layer: Layer) -> Iterator[DiagonalTile]:
    high, channels = layer.out_shape[1], layer.out_shape[3]
    if channels % CHANNELS or layer.taps[1] < 2:
        return
    warps = next(each for each in _WARPS if channels // CHANNELS % each == 0)
    for rows in sorted({min(each, high) for each in _ROWS}):
        for ahead in _AHEAD:
            tile = DiagonalTile(rows, ahead, warps)
            if tile.registers(layer) <= _REGISTERS:
                yield tile


def depthwise_diagonal_launch(
    x: torch.Tensor,
    w: torch.Tensor,
    *,
    out: torch.Tensor,
    config: DiagonalTile,
    factors: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    epilogue: Epilogue | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    scale: float = 1.0,
    pdl: bool = False,
) -> CppLaunch:
    """As `depthwise_walk_launch`, for channels in groups of sixteen. A number that is not finite spoils its group."""
    channels, taps = x.shape[3], (w.shape[0], w.shape[1])
    pitches = pitch(x, "x"), pitch(out, "out")
    if channels % (CHANNELS * config.warps) or any(each % 4 for each in pitches):
        raise ValueError(f"x: expected groups of {CHANNELS} channels, got {channels} with pitches {pitches}")
    walk = depthwise_walk_launch(
        x, w, out=out, config=WalkTile(_COLUMNS, config.rows, config.ahead, _WARP * config.warps), factors=factors,
        bias=bias, epilogue=epilogue, stride=stride, padding=padding, scale=scale, pdl=pdl,
    )  # fmt: skip
    n, high, wide, _ = out.shape
    layer = Layer((n, high, wide, channels), taps, stride, x.dtype.itemsize)
    blocks = config.blocks(layer)
    constants = {
        **walk.constants,
        "BLOCKS": blocks,
        "WARPS": config.warps,
        "RESIDENT": config.resident(layer),
        "NARROW": 0,
        **_bounds_in_halves(epilogue or Epilogue(), "OUT"),
    }
    return replace(walk, source="diagonal.cu", symbol="depthwise_diagonal", grid=(blocks, 1, 1), constants=constants)


def expand_diagonal_launch(
    x: torch.Tensor,
    first: torch.Tensor,
    w: torch.Tensor,
    *,
    out: torch.Tensor,
    config: DiagonalTile,
    first_bias: torch.Tensor | None = None,
    first_scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    factors: torch.Tensor | None = None,
    inner: Epilogue,
    outer: Epilogue,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    pdl: bool = False,
) -> CppLaunch:
    """As `expand_walk_launch`: the 1 x 1 convolution before is computed where its result is wanted, and not written."""
    walk = expand_walk_launch(
        x, first, w, out=out, config=ExpandWalkTile(_COLUMNS, config.rows, CHANNELS * config.warps, 1, 1),
        first_bias=first_bias, first_scale=first_scale, bias=bias, factors=factors, inner=inner, outer=outer,
        stride=stride, padding=padding, widest=WIDEST, pdl=pdl,
    )  # fmt: skip
    layer = Layer(tuple(out.shape), (w.shape[0], w.shape[1]), stride, x.dtype.itemsize)
    blocks = config.blocks(layer)
    constants = {
        **{name: each for name, each in walk.constants.items() if name not in ("CHUNK", "BAND", "PARTS")},
        "AHEAD": config.ahead,
        "THREADS": _WARP * config.warps,
        "BLOCKS": blocks,
        "WARPS": config.warps,
        "RESIDENT": config.resident(layer, x.shape[3]),
    }
    constants |= _bounds_in_halves(outer, "OUT")
    if x.dtype == torch.int8:
        constants |= _bounds_in_halves(inner, "INNER")
    return replace(
        walk, source="diagonal.cu", symbol="depthwise_diagonal", grid=(blocks, 1, 1), threads=_WARP * config.warps,
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


def expand_diagonal_tiles(
    layer: Layer, narrow: int, multiprocessors: int = H200_MULTIPROCESSORS, limit: int = 4
) -> list[DiagonalTile]:
    """The cuts worth timing, most promising first; none where the map is not narrow."""
    if narrow > WIDEST or narrow % 8:
        return []
    fitting = [tile for tile in _sensible(layer) if tile.registers(layer, narrow) <= _REGISTERS_OF_TWO]
    return sorted(fitting, key=lambda tile: tile.clocks(layer, multiprocessors))[:limit]
