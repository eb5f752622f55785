"""Convolutions as products on Hopper's own units, whose pixels the unit that copies finds by itself.

`warpgroup_conv_launch` is `warpgroup_gemm_launch` for windows of any size, stride and padding: `cpp/gemm.cu` with
another way to load x. `warpgroup_conv_tiles` says how such a convolution may be cut. Channels fill 16 bytes or more.
Needs compute capability 9.0 and no other.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil
from typing import Final

import torch

from .cpp_launching import CppLaunch
from .driver import AnyMap, PixelsMap, WindowMap
from .epilogue import Epilogue
from .rows import expect_shape, picture_strides
from .warpgroup_gemm import ALIGNED, LINE, SHARED, SHARED_KEPT, expect_operands, finishing, matrix_map

_GROUP: Final = 128  # threads that multiply together
_SIDE: Final = 8  # of a square of pixels
_SQUARE: Final = 64
_MOST_STAGES: Final = 8
_FEWEST_STAGES: Final = 3
_TILE_GROUP: Final = 8
# Sums of a thread, at most, for so many times four warps.
_SUMS: Final = {2: 192, 3: 96}
_COLUMNS: Final = (64, 104, 128, 192, 256)
_NARROW_COLUMNS: Final = (64, 128, 192, 256)  # that the units have for every type
# together, resident. Clusters have won nowhere: the second cache keeps up.
_WAYS: Final = ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1))
_IDLE: Final = 3  # one of so many has a tile, at least
_LARGEST_PAD: Final = 127
_LARGEST_WINDOW: Final = 128
_LARGEST_STRIDE: Final = 8
_LARGEST_BOX: Final = 256  # of a rectangle, with the pixels that it leaves out
_SQUARES: Final = 2  # of `together`
_SPARED: Final = 0.8  # of the pixels of squares that are some of the picture's, at least

# Clocks of a multiprocessor, for ranking, as measured: of a product of 64 rows and 32 bytes' depth, for each column and
# at least; and what it takes where four warps multiply alone.
_PRODUCT: Final = 0.54
_LEAST_PRODUCT: Final = 38
_ALONE: Final = 1.5
_PIXEL: Final = 4.1  # that the unit looks for
_L2_BYTES: Final = 64
_EPILOGUE: Final = 8.0
_DEVICE_BYTES: Final = 2450
_START: Final = 1500
_PER_TILE: Final = 400
_PER_STEP: Final = 20


@dataclass(frozen=True, slots=True)
class Window:
    """A convolution, but for where its numbers lie."""

    images: int
    out_high: int
    out_wide: int
    filters: int
    channels: int
    high: int
    """Of the window, in taps."""
    wide: int
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    itemsize: int = 2
    others: int = 0
    """Channels of a map of which a pixel is multiplied with weights of its own, and added."""

    @property
    def rows(self) -> int:
        """Of the product."""
        return self.images * self.out_high * self.out_wide

    @property
    def line(self) -> int:
        """Bytes of channels that are loaded at once."""
        return LINE if self.channels * self.itemsize > LINE // 2 or self.others else LINE // 2

    @property
    def depths(self) -> int:
        """Such pieces that the channels make."""
        return ceil(self.channels * self.itemsize / self.line)

    @property
    def other_depths(self) -> int:
        return ceil(self.others * self.itemsize / self.line)

    @property
    def strips(self) -> bool:
        """Whether windows of neighbours begin beside each other, and share rows with those below."""
        return self.stride[1] == self.dilation[0] == 1 and self.high > self.stride[0] and not self.others


@dataclass(frozen=True, slots=True)
class WindowTile:
    """How a convolution is shared out."""

    rows: int
    """Output pixels of four warps: 64 or 128."""
    columns: int
    pingpong: int
    """1: four warps finish their tile while the others multiply theirs; 0: they share one, rows below rows."""
    groups: int
    """Times four warps that multiply: 2, or, without `pingpong`, 3."""
    stages: int
    cluster: int
    """Blocks below each other that share the weights that they copy: 1 or 2."""
    together: int
    """1: a stage gets the taps of a column of the window; 2: loaded at once, for squares of eight by eight pixels."""
    resident: int
    """1: a block keeps all weights."""
    blocks: int
    """In the grid, at most."""

    @property
    def block_rows(self) -> int:
        return self.rows * (1 if self.pingpong else self.groups)

    @property
    def strip(self) -> bool:
        return self.together == _SQUARES

    @property
    def threads(self) -> int:
        return _GROUP * (1 + self.groups)

    def count(self, window: Window) -> int:
        """Tiles, of clusters."""
        beside = ceil(window.filters / self.columns)
        if self.strip:
            squares = window.images * ceil(window.out_high / _SIDE) * ceil(window.out_wide / _SIDE)
            return ceil(squares * _SQUARE / self.block_rows) * beside
        return ceil(window.rows / (self.block_rows * self.cluster)) * beside

    def clusters(self, window: Window) -> int:
        """In the grid."""
        return max(1, min(self.count(window), self.blocks // self.cluster))

    def phases(self, window: Window) -> int:
        """Stages of a column of the window."""
        return window.stride[0] if self.strip else 1

    def taps(self, window: Window) -> int:
        """Of a stage."""
        return ceil(window.high / self.phases(window)) if self.together else 1

    def steps(self, window: Window) -> int:
        high = self.phases(window) if self.together else window.high
        return window.depths * window.wide * high + window.other_depths

    def pixel_bytes(self, window: Window) -> int:
        """Of a stage."""
        taps, parts = self.taps(window), self.block_rows // _SQUARE
        rows = parts * (_SQUARE + (taps - 1) * _SIDE) if self.strip else self.block_rows * taps
        return rows * window.line

    def weight_bytes(self, window: Window) -> int:
        """Of a step."""
        return self.taps(window) * self.columns * window.line

    def stage_bytes(self, window: Window) -> int:
        return self.pixel_bytes(window) + (0 if self.resident else self.weight_bytes(window))

    def out_line(self, out_itemsize: int) -> int:
        """Bytes of a row of the result that are stored at once."""
        return min(LINE, self.columns * out_itemsize)

    def shared_bytes(self, window: Window, residual: bool, out_itemsize: int) -> int:
        line = self.out_line(out_itemsize)
        chunks = ceil(self.columns * out_itemsize / line)
        slots = self.groups * self.rows * line * (chunks if residual else min(chunks, 2))
        kept = self.steps(window) * self.weight_bytes(window) if self.resident else 0
        return self.stages * self.stage_bytes(window) + kept + slots + SHARED_KEPT

    def fits(self, window: Window, residual: bool, out_itemsize: int) -> bool:
        narrow = window.itemsize == 1 or out_itemsize == 1
        return (
            self.rows // _SQUARE * self.columns // 2 <= _SUMS[self.groups]
            and self.columns in (_NARROW_COLUMNS if narrow else _COLUMNS)
            and self.columns % (_SIDE * self.cluster) == 0
            and (not self.pingpong or self.groups == min(_SUMS))
            and (not self.together or (window.high > 1 and self.cluster == 1 and not window.others))
            and (not self.strip or (window.strips and self._fits_rectangle(window)))
            and (not self.resident or (window.filters <= self.columns and self.cluster == 1))
            and self.shared_bytes(window, residual, out_itemsize) <= SHARED
        )

    def _fits_rectangle(self, window: Window) -> bool:
        """Whether the unit that copies takes a strip's pixels at once."""
        step = window.stride[0]
        return step <= _LARGEST_STRIDE and (_SIDE + self.taps(window) - 2) * step + 1 <= _LARGEST_BOX

    def clocks(self, window: Window, residual: bool, out_itemsize: int) -> float:
        """Roughly, for telling cuts apart."""
        taps, area = self.taps(window), self.block_rows * self.columns
        weights = 0 if self.resident else self.weight_bytes(window)
        each = max(_LEAST_PRODUCT, _PRODUCT * ceil(self.columns / _SQUARE) * _SQUARE)
        # Products that add to the same sums wait for each other.
        each *= _ALONE if self.pingpong and self.rows == _SQUARE else 1
        multiply = taps * (window.line // 32) * (self.block_rows // _SQUARE) * each
        load = (self.pixel_bytes(window) + weights / self.cluster) / _L2_BYTES
        seek = 0 if self.strip else self.block_rows * taps * _PIXEL
        step = max(multiply, load, seek) + _PER_STEP
        loop = self.steps(window) * step
        finish = area / _EPILOGUE * (1.5 if residual else 1.0)
        waves = ceil(self.count(window) / self.clusters(window))
        pixels = window.rows * window.stride[0] * window.stride[1]
        moved = pixels * window.channels * window.itemsize
        moved += window.rows * window.filters * out_itemsize * (2 if residual else 1)
        if self.pingpong:
            busy = _START + waves * max(loop + _PER_TILE / 4, (finish + loop) / 2) + finish
        else:
            busy = _START + waves * (loop + finish / 2 + _PER_TILE)
        return max(busy, moved / _DEVICE_BYTES) + busy / 16


def warpgroup_conv_tiles(
    window: Window, multiprocessors: int, residual: bool, out_itemsize: int = 2, limit: int = 6
) -> list[WindowTile]:
    """Those worth timing, most promising first; none where most multiprocessors would have nothing to do."""
    found = _sensible(window, multiprocessors, residual, out_itemsize)
    busy = [tile for tile in found if tile.count(window) * tile.cluster >= multiprocessors / _IDLE]
    return sorted(busy, key=lambda tile: (tile.clocks(window, residual, out_itemsize), -tile.resident))[:limit]


def _sensible(window: Window, multiprocessors: int, residual: bool, out_itemsize: int) -> Iterator[WindowTile]:
    for columns in _COLUMNS:
        if columns > _SQUARE and columns >= window.filters + _SQUARE:
            continue
        for rows, pingpong, groups in ((64, 1, 2), (64, 0, 2), (64, 0, 3), (128, 1, 2), (128, 0, 2)):
            for together, resident in _WAYS:
                bare = WindowTile(rows, columns, pingpong, groups, 0, 1, together, resident, multiprocessors)
                room = SHARED - bare.shared_bytes(window, residual, out_itemsize)
                stages = min(_MOST_STAGES, room // bare.stage_bytes(window))
                if stages < (2 if together and resident else _FEWEST_STAGES) or bare.block_rows >= 2 * window.rows:
                    continue
                tile = replace(bare, stages=stages)
                used = window.rows / (tile.count(window) * tile.block_rows / ceil(window.filters / columns))
                kept = tile.strip and not resident and replace(tile, resident=1, stages=2)
                if kept and kept.fits(window, residual, out_itemsize):
                    continue
                if (not tile.strip or used >= _SPARED) and tile.fits(window, residual, out_itemsize):
                    yield tile


def warpgroup_conv_launch(
    x: torch.Tensor,
    w: torch.Tensor,
    *,
    out: torch.Tensor,
    config: WindowTile,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    source: torch.Tensor | None = None,
    shortcut: torch.Tensor | None = None,
    source_stride: tuple[int, int] = (1, 1),
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    epilogue: Epilogue | None = None,
    pdl: bool = False,
) -> CppLaunch:
    """x [N, H, W, C], w [filters, high, wide, C] without gaps, out and residual [N, P, Q, filters]; else as products.

    padding  above and on the left; below and on the right it is what out's size makes of it
    source   [N, H', W', others], of which a pixel for each of out is multiplied with shortcut [filters, others], too,
             and added
    """
    filters, high, wide, channels = w.shape
    images, out_high, out_wide, _ = out.shape
    epilogue = epilogue or Epilogue()
    expect_shape(x, "x", images, *x.shape[1:3], channels)
    expect_shape(out, "out", images, out_high, out_wide, filters)
    expect_operands(x, w, out, bias, residual, scale)
    if not w.is_contiguous():
        raise ValueError(f"w: expected contiguous filters, got strides {w.stride()}")
    others = 0 if shortcut is None else shortcut.shape[1]
    window = Window(images, out_high, out_wide, filters, channels, high, wide, stride, dilation, x.itemsize, others)
    if (source is None) != (shortcut is None):
        raise ValueError("source, shortcut: expected both or neither")
    if not config.fits(window, residual is not None, out.itemsize):
        raise ValueError(f"{config}: expected one that fits a multiprocessor")
    clusters = config.clusters(window)
    constants = {
        "SIZE_M": window.rows,
        "SIZE_N": filters,
        "SIZE_K": high * wide * channels,
        "ROWS": config.rows,
        "COLUMNS": config.columns,
        "PINGPONG": config.pingpong,
        "GROUPS": config.groups,
        "STAGES": config.stages,
        "CLUSTER": config.cluster,
        "TEAMS": clusters,
        "TILE_GROUP": _TILE_GROUP,
        "RESIDENT": config.resident,
        "WINDOW": 1,
        "TOGETHER": int(config.together > 0),
        "STRIP": int(config.strip),
        "DEPTH_BYTES": window.line,
        "CHANNELS": channels,
        "WINDOW_HIGH": high,
        "WINDOW_WIDE": wide,
        "STRIDE_HIGH": stride[0],
        "STRIDE_WIDE": stride[1],
        "PAD_TOP": padding[0],
        "PAD_LEFT": padding[1],
        "DILATION_HIGH": dilation[0],
        "DILATION_WIDE": dilation[1],
        "OUT_HIGH": out_high,
        "OUT_WIDE": out_wide,
        "OTHERS": others,
        "SOURCE_STRIDE_HIGH": source_stride[0],
        "SOURCE_STRIDE_WIDE": source_stride[1],
        **finishing(x, out, bias, residual, scale, epilogue),
    }
    filter_rows = config.columns // config.cluster
    maps = [_seen(x, window, config, padding), matrix_map(w.view(filters, -1), "w", filter_rows, window.line)]
    if source is not None and shortcut is not None:
        expect_shape(source, "source", images, *source.shape[1:3], others)
        expect_shape(shortcut, "shortcut", filters, others)
        expect_operands(source, shortcut, out, bias, residual, scale)
        if source.dtype != x.dtype:
            raise ValueError(f"source: expected {x.dtype} like x, got {source.dtype}")
        pixels = replace(window, channels=others, high=1, wide=1, stride=source_stride, dilation=(1, 1))
        maps += [
            _windows(source, "source", pixels, config, (0, 0)),
            matrix_map(shortcut, "shortcut", filter_rows, window.line),
        ]
    maps.append(_finished(out, "out", config))
    if residual is not None:
        maps.append(_finished(residual, "residual", config))
    return CppLaunch(
        "gemm.cu",
        "warpgroup_gemm",
        (clusters * config.cluster, 1, 1),
        config.threads,
        (x, w, source, shortcut, out, residual, scale, bias),
        constants,
        config.shared_bytes(window, residual is not None, out.itemsize),
        config.cluster,
        pdl,
        tuple(maps),
    )


def _seen(x: torch.Tensor, window: Window, config: WindowTile, padding: tuple[int, int]) -> AnyMap:
    """x as it is loaded."""
    if config.strip:
        return PixelsMap(
            *_picture(x, "x"), window.line // x.itemsize, _SIDE, _SIDE + config.taps(window) - 1, window.stride[0]
        )
    return _windows(x, "x", window, config, padding)


def _windows(x: torch.Tensor, name: str, window: Window, config: WindowTile, padding: tuple[int, int]) -> WindowMap:
    taps, sizes, outs = (window.high, window.wide), x.shape[1:3], (window.out_high, window.out_wide)
    spans = [(count - 1) * apart + 1 for count, apart in zip(taps, window.dilation, strict=True)]
    reached = [(size - 1) * step for size, step in zip(outs, window.stride, strict=True)]
    # What is asked for below and on the right: the last window's first pixel is the last there is.
    below = [end + span - size - pad for end, span, size, pad in zip(reached, spans, sizes, padding, strict=True)]
    for what, least, numbers, most in (
        ("padding", 0, padding, _LARGEST_PAD),
        ("a window", 1, spans, _LARGEST_WINDOW),
        ("strides", 1, window.stride, _LARGEST_STRIDE),
        ("rows and columns left over", 1 - _LARGEST_WINDOW, below, _LARGEST_PAD),
    ):
        if min(numbers) < least or max(numbers) > most:
            raise ValueError(f"{what} of {name}: expected {least} to {most}, got {tuple(numbers)}")
    # An edge that no window reaches is no part of the picture.
    seen = [size + min(0, end) for size, end in zip(sizes, below, strict=True)]
    if min(seen) < 1:
        raise ValueError(f"{name}: expected a window that sees more than padding")
    return WindowMap(
        *_picture(x[:, : seen[0], : seen[1]], name), window.line // x.itemsize, config.block_rows, spans[0], spans[1],
        padding[0], padding[1], max(0, below[0]), max(0, below[1]), window.stride[0], window.stride[1],
    )  # fmt: skip


def _finished(out: torch.Tensor, name: str, config: WindowTile) -> AnyMap:
    line = config.out_line(out.itemsize)
    if config.strip:
        return PixelsMap(*_picture(out, name), line // out.itemsize, _SIDE, _SIDE)
    return matrix_map(out, name, config.rows, line)


def _picture(tensor: torch.Tensor, name: str) -> tuple[int, int, int, int, int, int, int, int]:
    """What a `driver.Picture` is made of."""
    images, high, wide, channels = tensor.shape
    pixel, row, image = (step * tensor.itemsize for step in picture_strides(tensor, name))
    if pixel % ALIGNED or row % ALIGNED or image % ALIGNED:
        raise ValueError(f"{name}: expected pixels a multiple of 16 bytes apart, got strides {tensor.stride()}")
    return tensor.itemsize, images, high, wide, channels, pixel, row, image
