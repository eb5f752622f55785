"""A 1 x 1 convolution and the depthwise one behind it in one kernel of CUDA C++ (`expand.cu`), with or without strides.

Of the wide map between them a block has a row at a time, in shared memory; threads walk down it as in
`depthwise_walk.py`. FP16, BF16 or INT8 throughout; the wide map is rounded as if it were written.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Final

import torch

from .cpp_launching import CppLaunch
from .depthwise_walk import ACTIVATIONS, BEYOND_BOUNDS, Layer, WalkTile, bits, bounds, high_matters
from .epilogue import Epilogue
from .rows import expect_aligned, expect_contiguous, expect_shape, pitch
from .short_product import pair_of
from .tiles import H200_MULTIPROCESSORS

BOUNDED: Final = tuple(each for each in ACTIVATIONS if each not in BEYOND_BOUNDS)
"""Activations of the first layer."""

WIDEST: Final = 64
"""Channels of the narrow map."""

_PIECE: Final = 8
_DEPTH: Final = 32
_WARP: Final = 32
_MOST_THREADS: Final = 320
_SHARED: Final = 48 * 1024
_REGISTERS: Final = 176
_MULTIPROCESSOR_REGISTERS: Final = 65536
_CHUNKS: Final = (48, 96, 144, 80, 32, 64, 112)
_COLUMNS: Final = (4, 7, 8)
_STRIPS: Final = (2, 4, 8, 1)
_ROWS: Final = (7, 14, 28)
_ISSUE: Final = 2.8
_START: Final = 2500


@dataclass(frozen=True, slots=True)
class ExpandWalkTile:
    columns: int
    """Results beside each other that a thread makes."""
    rows: int
    chunk: int
    """Channels of the wide map that a block has."""
    strips: int
    """Times `columns`: results beside each other that a block makes."""
    parts: int
    """In how many a warp's work on sixteen pixels is cut."""

    def threads(self, vector: int) -> int:
        return ceil(self.chunk // vector * self.strips / _WARP) * _WARP

    def high(self, layer: Layer) -> int:
        """Times sixteen pixels that a block expands of a row."""
        return ceil(((self.columns * self.strips - 1) * layer.stride[1] + layer.taps[1]) / 16)

    def shared_bytes(self, layer: Layer, narrow: int) -> int:
        words, written = self.chunk // layer.vector, 16 // layer.vector
        apart = words if words % (2 * written) == written else words + written
        filters = self.chunk // 8 * ceil(narrow / _DEPTH) * _WARP * _PIECE * layer.itemsize
        return ceil(2 * self.high(layer) * 16 * apart * 4 / 16) * 16 + filters + 8 * self.chunk

    def blocks(self, layer: Layer) -> int:
        images, high, wide, channels = layer.out_shape
        return images * ceil(high / self.rows) * ceil(wide / (self.columns * self.strips)) * (channels // self.chunk)

    def registers(self, layer: Layer, narrow: int) -> int:
        walking = WalkTile(self.columns, self.rows, 0).registers(layer)
        return walking + self.units(layer) * ceil(narrow / _DEPTH) * 4 * layer.itemsize + 16

    def units(self, layer: Layer) -> int:
        """Of a warp."""
        return ceil(self.high(layer) * self.parts * _WARP / self.threads(layer.vector))

    def clocks(self, layer: Layer, narrow: int, multiprocessors: int) -> float:
        """Roughly, for telling cuts apart."""
        rows = min((self.rows - 1) * layer.stride[0] + layer.taps[0], layer.out_shape[1] * layer.stride[0])
        reach = (self.columns - 1) * layer.stride[1] + layer.taps[1]
        pairs = self.chunk // 16 // self.parts
        expand = self.units(layer) * (24 + pairs * (ceil(narrow / _DEPTH) * 8 + (40 if layer.itemsize == 1 else 32)))
        walk = reach * 6 + 2 * self.columns * layer.taps[0] * layer.taps[1] / layer.stride[0]
        each_row = expand + walk + self.columns * 16 / layer.stride[0] + 30
        warps = self.threads(layer.vector) // _WARP
        mine = ceil(self.blocks(layer) / multiprocessors)
        room = _MULTIPROCESSOR_REGISTERS // (self.registers(layer, narrow) * warps * _WARP)
        at_once = max(1, min(mine, room))
        alone = _START + rows * max(each_row * warps * at_once / _ISSUE, each_row + 500)
        return ceil(mine / at_once) * alone


def expand_walk_tiles(
    layer: Layer, narrow: int, multiprocessors: int = H200_MULTIPROCESSORS, limit: int = 5
) -> list[ExpandWalkTile]:
    """The cuts worth timing, most promising first."""
    if narrow > WIDEST or narrow % _PIECE:
        return []
    return sorted(_sensible(layer, narrow), key=lambda tile: tile.clocks(layer, narrow, multiprocessors))[:limit]


def _sensible(layer: Layer, narrow: int) -> Iterator[ExpandWalkTile]:
    _, high, wide, channels = layer.out_shape
    for chunk in _CHUNKS:
        for columns in _COLUMNS:
            for strips in _STRIPS:
                for rows in _ROWS:
                    for parts in (1, 2, 3):
                        tile = ExpandWalkTile(columns, min(rows, high), chunk, strips, parts)
                        whole = channels % chunk == 0 and chunk // 16 % parts == 0 and chunk % 16 == 0
                        inside = (strips - 1) * columns < wide and rows < 2 * high
                        if (
                            whole
                            and inside
                            and tile.threads(layer.vector) <= _MOST_THREADS
                            and tile.shared_bytes(layer, narrow) <= _SHARED
                            and tile.registers(layer, narrow) <= _REGISTERS
                        ):
                            yield tile


def expand_walk_launch(
    x: torch.Tensor,
    first: torch.Tensor,
    w: torch.Tensor,
    *,
    out: torch.Tensor,
    config: ExpandWalkTile,
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
    """x [N, H, W, C], first [E, C], w [R, S, E], out [N, P, Q, E], all of one type; padding is of the wide map.

    INT8     first_scale [E] is what sums of the first layer are worth, `inner.out_scale` a step of the wide map;
             w and factors are of `depthwise_walk.steady`. Without, neither is given.
    """
    images, height, width, narrow = x.shape
    out_high, out_wide, channels = out.shape[1:]
    eight = x.dtype == torch.int8
    layer = Layer((images, out_high, out_wide, channels), (w.shape[0], w.shape[1]), stride, x.itemsize)
    expect_shape(first, "first", channels, narrow)
    expect_shape(w, "w", w.shape[0], w.shape[1], channels)
    expect_shape(out, "out", images, out_high, out_wide, channels)
    for name, each in (("first", first), ("w", w)):
        expect_contiguous(each, name, "contiguous weights")
    types = (torch.int8, torch.int8, torch.float16) if eight else (x.dtype, x.dtype, x.dtype)
    if (first.dtype, out.dtype, w.dtype) != types or x.dtype not in (torch.int8, torch.float16, torch.bfloat16):
        raise ValueError(
            f"expected one type throughout, sixteen bits or INT8, got {x.dtype}, {first.dtype}, {out.dtype}"
        )
    if eight != (factors is not None) or eight != (first_scale is not None):
        raise ValueError("factors, first_scale: expected them for INT8, and for nothing else")
    for name, row in (("first_bias", first_bias), ("first_scale", first_scale), ("bias", bias), ("factors", factors)):
        if row is not None:
            expect_shape(row, name, channels)
            if row.dtype != torch.float32 or not row.is_contiguous():
                raise ValueError(f"{name}: expected a row in FP32, got {row.dtype}")
    if inner.activation not in BOUNDED or outer.activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected other ones than {inner.activation}, {outer.activation}")
    if narrow > WIDEST or narrow % _PIECE or channels % config.chunk or pitch(x, "x") % _PIECE:
        raise ValueError(f"expected pieces of {_PIECE} channels and chunks of {config.chunk}, got {narrow}, {channels}")
    for name, each in (("x", x), ("first", first), ("out", out)):
        expect_aligned(each, name)
    constants = _constants(layer, config, (height, width), padding, outer)
    low, high = bounds(inner)
    constants |= {
        "X_PITCH": pitch(x, "x"),
        "OUT_PITCH": pitch(out, "out"),
        "EIGHT_OUT": int(eight),
        "NARROW": narrow,
        "HAS_BIAS": int(bias is not None),
        "HAS_INNER_BIAS": int(first_bias is not None),
        "X_SCALE_BITS": bits(inner.out_scale),
        "INNER_INVERSE_BITS": bits(1.0 / inner.out_scale),
        "INNER_LOW_BITS": bits(low),
        "INNER_HIGH_BITS": bits(high),
        "INNER_HIGH_MATTERS": high_matters(inner),
        "INNER_LOW_PAIR": pair_of(low, x.dtype),
        "INNER_HIGH_PAIR": pair_of(high, x.dtype),
    }
    if x.dtype == torch.bfloat16:
        constants["BFLOAT16"] = 1
    return CppLaunch(
        "expand.cu",
        "expand_walk",
        (constants["BLOCKS"], 1, 1),
        constants["THREADS"],
        (x, first, first_scale, first_bias, w, factors, bias, out),
        constants,
        config.shared_bytes(layer, narrow),
        pdl=pdl,
    )


def _constants(
    layer: Layer, config: ExpandWalkTile, size: tuple[int, int], padding: tuple[int, int], outer: Epilogue
) -> dict[str, int]:
    """Of the second layer, and of the cut."""
    low, high = bounds(outer)
    images, out_high, out_wide, channels = layer.out_shape
    found: Mapping[str, int] = {
        "IMAGES": images,
        "HEIGHT": size[0],
        "WIDTH": size[1],
        "CHANNELS": channels,
        "OUT_HEIGHT": out_high,
        "OUT_WIDTH": out_wide,
        "TAPS_HIGH": layer.taps[0],
        "TAPS_WIDE": layer.taps[1],
        "STRIDE_HIGH": layer.stride[0],
        "STRIDE_WIDE": layer.stride[1],
        "PAD_TOP": padding[0],
        "PAD_LEFT": padding[1],
        "EIGHT_IN": int(layer.itemsize == 1),
        "COLUMNS": config.columns,
        "ROWS": config.rows,
        "CHUNK": config.chunk,
        "BAND": config.columns * config.strips,
        "PARTS": config.parts,
        "THREADS": config.threads(layer.vector),
        "BLOCKS": config.blocks(layer),
        "ACTIVATION": BEYOND_BOUNDS.get(outer.activation, 0),
        "LOW_BITS": bits(low),
        "HIGH_BITS": bits(high),
        "HIGH_MATTERS": high_matters(outer),
        "OUT_INVERSE_BITS": bits(1.0 / outer.out_scale),
    }
    return dict(found)
