"""Two products one behind the other on Hopper's own units, of which both results are written (`cpp/warpgroup_pair.cu`).

`warpgroup_pair_launch` computes the end of a residual block, of single pixels, and the layer behind it, which then
does not read what the block wrote. All weights lie in shared memory: narrow layers over large maps. Sixteen bits. Needs
compute capability 9.0 and no other.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Final

import torch

from .cpp_launching import CppLaunch
from .epilogue import Epilogue, folds
from .rows import expect_shape
from .warpgroup_gemm import SHARED, SHARED_KEPT, expect_operands, matrix_map

_ROWS: Final = 64  # of a tile
_PART: Final = 64 * 128  # bytes of 64 rows of 64 columns
_GROUP: Final = 128  # threads that multiply together
_GROUPS: Final = (3, 2)
_MOST_SLOTS: Final = 6
_FEWEST_SLOTS: Final = 2
_OUT: Final = (64, 128)


@dataclass(frozen=True, slots=True)
class Pair:
    """Rows, and columns of what is read, of the other map that is, of what is between, and of the last result."""

    rows: int
    depth: int
    others: int
    wide: int
    out: int

    @property
    def weight_bytes(self) -> int:
        return self.wide // 64 * ((self.depth + self.others) // 64 + self.out // 64) * _PART


@dataclass(frozen=True, slots=True)
class PairTile:
    groups: int
    """Times four warps, each with 64 rows."""
    slots: int
    """Of each, for 64 columns."""
    blocks: int
    """In the grid, at most."""

    def shared_bytes(self, pair: Pair) -> int:
        team = (2 * ((pair.depth + pair.others) // 64) + self.slots) * _PART
        return pair.weight_bytes + self.groups * team + SHARED_KEPT

    def fits(self, pair: Pair) -> bool:
        whole = pair.out in _OUT and not any(each % 64 for each in (pair.depth, pair.others, pair.wide))
        return whole and self.slots >= _FEWEST_SLOTS and self.shared_bytes(pair) <= SHARED


def pair_tiles(pair: Pair, multiprocessors: int) -> list[PairTile]:
    """Those worth timing, most promising first."""
    return list(_sensible(pair, multiprocessors))


def _sensible(pair: Pair, multiprocessors: int) -> Iterator[PairTile]:
    for groups in _GROUPS:
        bare = PairTile(groups, 0, multiprocessors).shared_bytes(pair)
        slots = min(_MOST_SLOTS, (SHARED - bare) // (groups * _PART))
        tile = PairTile(groups, slots, multiprocessors)
        if tile.fits(pair) and pair.rows >= _ROWS * multiprocessors:
            yield tile


def warpgroup_pair_launch(
    x: torch.Tensor,
    w: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor,
    out_bias: torch.Tensor,
    *,
    wide: torch.Tensor,
    out: torch.Tensor,
    config: PairTile,
    residual: torch.Tensor | None = None,
    source: torch.Tensor | None = None,
    shortcut: torch.Tensor | None = None,
    epilogue: Epilogue | None = None,
    outer: Epilogue | None = None,
    pdl: bool = False,
) -> CppLaunch:
    """x [..., K], w [W, K], v [N, W]; wide and residual [..., W], out [..., N], all dense; biases FP32.

    source  [..., S], which is multiplied with shortcut [W, S] and added, instead of a residual
    """
    (columns, depth), (last, _) = w.shape, v.shape
    pixels = out.shape[:-1]
    rows = out.numel() // last
    epilogue, outer = epilogue or Epilogue(), outer or Epilogue()
    others = 0 if shortcut is None else shortcut.shape[1]
    pair = Pair(rows, depth, others, columns, last)
    if (source is None) != (shortcut is None) or (residual is None) == (source is None):
        raise ValueError("residual, source, shortcut: expected the first or both others")
    expect_shape(x, "x", *pixels, depth)
    expect_shape(v, "v", last, columns)
    expect_shape(wide, "wide", *pixels, columns)
    expect_operands(x, w, wide, bias, residual, None)
    expect_operands(wide, v, out, out_bias, None, None)
    if x.itemsize != 2 or not folds(epilogue.activation) or not folds(outer.activation) or epilogue.residual_last:
        raise ValueError(f"expected sixteen bits, and none or relu behind what is added; got {x.dtype}, {epilogue}")
    if not config.fits(pair):
        raise ValueError(f"{config}: expected one that fits a multiprocessor, {pair}")
    tensors = [x, w, v, wide, out]
    maps = [matrix_map(each, "x", _ROWS) for each in (x, w)]
    maps += [matrix_map(v, "v", last), matrix_map(wide, "wide", _ROWS), matrix_map(out, "out", _ROWS)]
    if source is not None and shortcut is not None:
        expect_shape(source, "source", *pixels, others)
        expect_operands(source, shortcut, wide, None, None, None)
        tensors += [source, shortcut]
        maps += [matrix_map(source, "source", _ROWS), matrix_map(shortcut, "shortcut", _ROWS)]
    if residual is not None:
        tensors.append(residual)
        maps.append(matrix_map(residual, "residual", _ROWS))
    blocks = min(config.blocks, ceil(rows / _ROWS))
    constants = {
        "SIZE_M": rows,
        "DEPTH": depth,
        "OTHERS": others,
        "WIDE": columns,
        "OUT": last,
        "GROUPS": config.groups,
        "SLOTS": config.slots,
        "BLOCKS": blocks,
        "HAS_RESIDUAL": int(residual is not None),
        "RELU": int(epilogue.activation == "relu"),
        "OUT_RELU": int(outer.activation == "relu"),
    }
    if x.dtype == torch.bfloat16:
        constants["BFLOAT16"] = 1
    return CppLaunch(
        "warpgroup_pair.cu",
        "warpgroup_pair",
        (blocks, 1, 1),
        config.groups * _GROUP,
        (*tensors, bias, out_bias),
        constants,
        config.shared_bytes(pair),
        pdl=pdl,
        maps=tuple(maps),
    )
