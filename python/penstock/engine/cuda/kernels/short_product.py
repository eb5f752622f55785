"""Matrix products of a short depth into many columns, in CUDA C++ (`short.cu`): what expands the channels of a block.

Stems that read a padded picture are such, too: `short_conv_launch`.

They are bound by what they write, and other kernels by what they do to each number between the sum and the store. Warps
keep their columns of W in registers and share nothing.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Final

import torch

from .cpp_launching import CppLaunch
from .depthwise_walk import ACTIVATIONS, BEYOND_BOUNDS, bits, bounds, high_matters
from .epilogue import Epilogue
from .rows import expect_aligned, expect_contiguous, expect_shape, picture_strides, pitch
from .tiles import H200_MULTIPROCESSORS, Product

_PIECE: Final = 8  # numbers that a lane reads or writes at once
_DEPTH: Final = 32
_WARP: Final = 32
_WARPS: Final = 4
_DEEPEST: Final = 160
_DEEPEST_OF_BYTES: Final = 248  # sums of more are no floats
_REGISTERS: Final = 215  # of a thread, beyond which the compiler spills
_MULTIPROCESSOR_REGISTERS: Final = 65536
_MOST_WARPS: Final = 32  # of a multiprocessor: more hide nothing


@dataclass(frozen=True, slots=True)
class ShortTile:
    height: int
    """Times sixteen rows that a warp multiplies at a time."""
    tiles: int
    """Times eight columns of a warp; a multiple of four."""
    blocks: int
    """In the grid, which stay."""
    warps: int = _WARPS

    def registers(self, product: Product) -> int:
        """Of a thread, roughly."""
        words = product.itemsize * 2  # of a piece
        steps = ceil(product.k / _DEPTH)
        kept = steps * words * (self.tiles + 4 * self.height)
        return kept + (2 if product.itemsize == 1 else 1) * 2 * self.tiles + 4 * self.tiles + 28


def short_tiles(product: Product, multiprocessors: int = H200_MULTIPROCESSORS) -> list[ShortTile]:
    """The cuts worth timing, most promising first; none for products that are not such."""
    found = []
    if (
        product.n % _PIECE
        or product.k % _PIECE
        or product.k > (_DEEPEST_OF_BYTES if product.itemsize == 1 else _DEEPEST)
    ):
        return []
    for tiles, height in ((4, 2), (4, 1), (8, 2)) if product.itemsize == 1 else ((4, 1), (4, 2), (8, 2)):
        registers = ShortTile(height, tiles, 1).registers(product)
        if registers > _REGISTERS or product.n % (2 * tiles):
            continue
        resident = _MULTIPROCESSOR_REGISTERS // (registers * _WARP * _WARPS) * _WARPS
        blocks = multiprocessors * min(resident, _MOST_WARPS) // _WARPS
        units = ceil(product.n / (8 * tiles)) * ceil(product.m / (16 * height))
        blocks = max(ceil(product.n / (8 * tiles) / _WARPS), min(blocks, ceil(units / _WARPS)))
        found.append(ShortTile(height, tiles, blocks))
    return found


def short_product_launch(
    x: torch.Tensor,
    w: torch.Tensor,
    *,
    out: torch.Tensor,
    config: ShortTile,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    epilogue: Epilogue | None = None,
    pdl: bool = False,
) -> CppLaunch:
    """x [..., K], w [N, K], out and residual [..., N], rows one step apart; bias and scale [N], FP32, scale for INT8.

    residual is of out's type.
    """
    k = w.shape[1]
    expect_shape(x, "x", *out.shape[:-1], k)
    return _launch(x, w, out, config, bias, residual, scale, epilogue, {"X_PITCH": pitch(x, "x")}, pdl)


def short_conv_launch(
    x: torch.Tensor,
    w: torch.Tensor,
    *,
    out: torch.Tensor,
    config: ShortTile,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    epilogue: Epilogue | None = None,
    stride: tuple[int, int] = (1, 1),
    pdl: bool = False,
) -> CppLaunch:
    """x [N, H, W, C], whose pixels may overlap, w [K, R, S, C], out [N, P, Q, K]: windows that lie within x."""
    images, height, width, channels = x.shape
    n, high, wide, _ = w.shape
    expect_shape(w, "w", n, high, wide, channels)
    expect_shape(out, "out", images, (height - high) // stride[0] + 1, (width - wide) // stride[1] + 1, out.shape[3])
    across, row, image = picture_strides(x, "x")
    windows = {
        "X_PITCH": stride[1] * across,
        "WINDOWS": 1,
        "OUT_HEIGHT": out.shape[1],
        "OUT_WIDTH": out.shape[2],
        "IMAGE_PITCH": image,
        "ROW_PITCH": stride[0] * row,
        "TAP_DEPTH": channels,
        "TAPS_WIDE": wide,
        "TAP_ROW_PITCH": row,
        "TAP_PITCH": across,
    }
    return _launch(x, w.view(n, -1), out, config, bias, residual, scale, epilogue, windows, pdl)


def _launch(
    x: torch.Tensor,
    w: torch.Tensor,
    out: torch.Tensor,
    config: ShortTile,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    scale: torch.Tensor | None,
    epilogue: Epilogue | None,
    rows: Mapping[str, int],
    pdl: bool,
) -> CppLaunch:
    """`rows`: where they begin and how they go on."""
    (n, k), m = w.shape, out.numel() // out.shape[-1]
    epilogue, eight = epilogue or Epilogue(), x.dtype == torch.int8
    expect_shape(out, "out", *out.shape[:-1], n)
    expect_contiguous(w, "w", "contiguous weights [N, K]")
    sixteen = (torch.float16, torch.bfloat16)
    if w.dtype != x.dtype or x.dtype not in (torch.int8, *sixteen):
        raise ValueError(f"w: expected x's type, INT8 or sixteen bits, got {w.dtype} for {x.dtype}")
    if out.dtype not in ((torch.int8, *sixteen) if eight else (torch.int8, x.dtype)):
        raise ValueError(f"out: expected {x.dtype} like x or INT8, got {out.dtype}")
    if eight != (scale is not None):
        raise ValueError("scale: expected it for INT8, and for nothing else")
    for name, row in (("bias", bias), ("scale", scale)):
        if row is not None:
            expect_shape(row, name, n)
            if row.dtype != torch.float32 or not row.is_contiguous():
                raise ValueError(f"{name}: expected a row in FP32, got {row.dtype}")
    steps = {"WINDOWS": 0, "TAP_DEPTH": k, "TAPS_WIDE": 1, "TAP_ROW_PITCH": 0, "TAP_PITCH": 0, **rows}
    steps["OUT_PITCH"] = pitch(out, "out")
    steps["RESIDUAL_PITCH"] = 0
    if residual is not None:
        expect_shape(residual, "residual", *out.shape)
        if residual.dtype != out.dtype:
            raise ValueError(f"residual: expected {out.dtype} like out, got {residual.dtype}")
        if epilogue.residual_last and epilogue.activation != "none":
            raise ValueError("residual: expected one before the activation")
        steps["RESIDUAL_PITCH"] = pitch(residual, "residual")
    worth = epilogue.residual_scale
    if epilogue.activation not in BEYOND_BOUNDS:
        worth /= epilogue.out_scale
    pieces = [each for name, each in steps.items() if name.endswith(("PITCH", "DEPTH"))]
    for name, each in (("x", x), ("w", w), ("out", out), ("residual", out if residual is None else residual)):
        expect_aligned(each, name, _PIECE * each.itemsize)
    if n % (2 * config.tiles) or k % _PIECE or any(each % _PIECE for each in pieces):
        raise ValueError(f"expected pieces of {_PIECE} numbers, got {n} columns of {k}, and steps of {pieces}")
    if epilogue.activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {epilogue.activation!r}")
    low, high = bounds(epilogue)
    wide = torch.bfloat16 if torch.bfloat16 in (x.dtype, out.dtype) else torch.float16
    constants = {
        "SIZE_M": m,
        "SIZE_N": n,
        "SIZE_K": k,
        **steps,
        "EIGHT_IN": int(eight),
        "EIGHT_OUT": int(out.dtype == torch.int8),
        "HEIGHT": config.height,
        "TILES": config.tiles,
        "WARPS": config.warps,
        "BLOCKS": config.blocks,
        "RESIDUAL_WORTH_BITS": bits(worth),
        "HAS_BIAS": int(bias is not None),
        "FOLDED": int(epilogue.folded),
        "ACTIVATION": BEYOND_BOUNDS.get(epilogue.activation, 0),
        "LOW_BITS": bits(low),
        "HIGH_BITS": bits(high),
        "HIGH_MATTERS": high_matters(epilogue),
        "LOW_PAIR": pair_of(low, wide),
        "HIGH_PAIR": pair_of(high, wide),
        "OUT_INVERSE_BITS": bits(1.0 / epilogue.out_scale),
    }
    if wide == torch.bfloat16:
        constants["BFLOAT16"] = 1
    return CppLaunch(
        "short.cu",
        "short_product",
        (config.blocks, 1, 1),
        _WARP * config.warps,
        (x, w, scale, bias, residual, out),
        constants,
        pdl=pdl,
    )


def pair_of(number: float, dtype: torch.dtype) -> int:
    """Twice in a word, in sixteen bits."""
    (whole,) = struct.unpack("<I", struct.pack("<f", number))
    if dtype == torch.bfloat16:
        half = (whole + 0x7FFF + (whole >> 16 & 1)) >> 16
    else:
        (half,) = struct.unpack("<H", struct.pack("<e", max(-65504.0, min(number, 65504.0))))
    return int(half) * 0x10001
