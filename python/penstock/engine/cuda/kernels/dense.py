"""Matrix products of long rows, both operands brought by the GPU's own unit for copies, and what is around them.

    out = activation(norm(x) w^T + bias + norm(residual)),   or activation(..) + residual with `residual_last`

`x` and `residual` may be sums that a layer norm was to see (`Normed`): of x the norm's weight and bias are in w and
bias already, and what is left, subtracting the mean and dividing by the deviation of a row, is done to the sums; so no
normalised row is ever stored. Mean and squares of a row are written in parts by whoever makes it (`out_moments`).
"""

from dataclasses import dataclass
from typing import Final

import torch
import triton

from .activations import expect_activation
from .dense_kernel import dense_kernel
from .epilogue import Epilogue, Scratch
from .launching import Launch, Tiled
from .rows import INDEX_LIMIT, expect_shape, pitch, power_of_two
from .tiles import Product, Tile, clocks


@dataclass(frozen=True, slots=True)
class Normed:
    """What is known of the rows of a matrix that was to be normalised."""

    moments: torch.Tensor
    """FP32 [rows, parts, 2]: the mean of each part of a row, and its squared distances from that, summed."""
    epsilon: float


@dataclass(frozen=True, slots=True)
class Affine:
    """What a layer norm does besides: FP32 [N] each."""

    scale: torch.Tensor
    shift: torch.Tensor


def dense_launch(
    x: torch.Tensor,
    w: torch.Tensor,
    *,
    out: torch.Tensor,
    config: Tile,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    epilogue: Epilogue | None = None,
    x_norm: Normed | None = None,
    column_sums: torch.Tensor | None = None,
    residual_norm: Normed | None = None,
    residual_affine: Affine | None = None,
    out_moments: torch.Tensor | None = None,
    scratch: Scratch | None = None,
    pdl: bool = False,
) -> Launch:
    """x [M, K], w [N, K], out and residual [M, N]; all rows contiguous, 16 bits; bias FP32.

    column_sums  of w over K, FP32 [N]; needed with x_norm.
    """
    epilogue = epilogue or Epilogue()
    expect_activation(epilogue.activation)
    (m, k), n = x.shape, w.shape[0]
    product = Product(m, n, k)
    expect_shape(w, "w", n, k)
    expect_shape(out, "out", m, n)
    if residual is not None:
        expect_shape(residual, "residual", m, n)
    if x.dtype != w.dtype or x.element_size() != 2:
        raise ValueError(f"x, w: expected one 16-bit type, got {x.dtype} and {w.dtype}")
    for name, each in (("bias", bias), ("column_sums", column_sums)):
        if each is not None and (each.dtype != torch.float32 or tuple(each.shape) != (n,)):
            raise ValueError(f"{name}: expected FP32 [{n}], got {each.dtype} {tuple(each.shape)}")
    if (x_norm is None) != (column_sums is None) or (residual_norm is None) != (residual_affine is None):
        raise ValueError("a normed x has column sums, a normed residual has scale and shift")
    if m * max(n, k) >= INDEX_LIMIT:
        raise ValueError(f"expected less than 2**31 elements, got {m} rows of {max(n, k)}")
    if config.block_m < 64:
        raise ValueError(f"config: expected blocks of 64 rows and more, got {config.block_m}")
    split = config.split_k > 1
    if split and (
        scratch is None
        or scratch.partial_sums.numel() < config.partial_sums(product)
        or scratch.counters.numel() < config.counters(product)
    ):
        raise ValueError(f"scratch: expected room for {config}")
    out_part = 1
    if out_moments is not None:
        out_part = n // out_moments.shape[1]
        expect_shape(out_moments, "out_moments", m, n // out_part, 2)
        if config.block_n % out_part or n % out_part:
            raise ValueError(f"out_moments: expected parts that {config.block_n} columns hold, got {out_part}")
    x_parts = _parts(x_norm, m, k)
    residual_parts = _parts(residual_norm, m, n)
    tiles = triton.cdiv(m, config.block_m) * triton.cdiv(n, config.block_n)
    return Launch(
        dense_kernel,
        (tiles, config.split_k, 1),
        (
            Tiled(x, (config.block_m, config.block_k)),
            Tiled(w, (config.block_n, config.block_k)),
            bias,
            residual,
            None if x_norm is None else x_norm.moments,
            column_sums,
            None if residual_norm is None else residual_norm.moments,
            None if residual_affine is None else residual_affine.scale,
            None if residual_affine is None else residual_affine.shift,
            out,
            out_moments,
            scratch.partial_sums if split and scratch else None,
            scratch.counters if split and scratch else None,
            0.0 if x_norm is None else x_norm.epsilon,
            0.0 if residual_norm is None else residual_norm.epsilon,
        ),
        {
            "M": m,
            "N": n,
            "K": k,
            "RESIDUAL_PITCH": 0 if residual is None else pitch(residual, "residual"),
            "OUT_PITCH": pitch(out, "out"),
            "X_PARTS": x_parts,
            "X_PARTS_ROOM": power_of_two(x_parts),
            "RESIDUAL_PARTS": residual_parts,
            "RESIDUAL_PARTS_ROOM": power_of_two(residual_parts),
            "OUT_PART": out_part,
            "ACTIVATION": epilogue.activation,
            "ALPHA": epilogue.alpha,
            "BETA": epilogue.beta,
            "RESIDUAL_LAST": epilogue.residual_last,
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
            "BLOCK_K": config.block_k,
            "SPLIT_K": config.split_k,
            "CUTS": _cuts(config, out_part, _SUMS if residual_norm is None else _SUMS // 2),
            "GROUP_M": config.group_m,
            "PDL": pdl,
        },
        config.num_warps,
        config.num_stages,
        pdl,
    )


_SUMS: Final = 32  # with a normed residual half of it: two blocks of 128 x 128 fit a multiprocessor
_MOST_CUTS: Final = 2
_BLOCKS: Final = tuple((m, n) for m in (64, 128, 256) for n in (32, 64, 128, 256) if m * n <= 128 * 256)
_SPLITS: Final = (1, 2, 3, 4, 6, 8)
_SHARED: Final = 226 * 1024
_FEW_ROWS: Final = 256
_SPLITS_EACH: Final = 3


def dense_tiles(product: Product, multiprocessors: int, part: int = 1, limit: int = 12) -> list[Tile]:
    """The cuts worth timing, most promising first, no more than two of one shape; columns in whole parts.

    Of few rows there are few tiles, and how often the sums are split decides: more of a shape then.
    """
    found: list[Tile] = []
    for m, n in _BLOCKS:
        if (m > 64 and m >= 2 * product.m) or (n > 32 and n >= 2 * product.n) or n % part:
            continue
        warps = (8,) if m * n > 128 * 128 else (8, 4) if m * n == 128 * 128 else (4,)
        for k in (64, 128):
            steps = triton.cdiv(product.k, k)
            for each in ((w, stages, split) for w in warps for stages in (3, 4, 6) for split in _SPLITS):
                tile = Tile(m, n, k, each[0], each[1], each[2])
                blocks, idle = tile.count(product), (each[2] - 1) * triton.cdiv(steps, each[2]) >= steps
                crowded = steps < 2 * each[2] or blocks * each[2] > 2 * multiprocessors or idle
                if each[2] > 1 and crowded:
                    continue
                deep = each[1] > max(3, triton.cdiv(steps, each[2]))
                if not deep and tile.shared_bytes(product.itemsize) <= _SHARED:
                    found.append(tile)
    # Of each shape the likeliest, and the likeliest of which two blocks share a multiprocessor: the one computes while
    # the other begins or ends, which for short rows is most of its time.
    kept: dict[Tile, None] = {}
    ranked = sorted(found, key=lambda each: clocks(product, each, multiprocessors))
    for shape in dict.fromkeys((each.block_m, each.block_n) for each in ranked):
        alike = [each for each in ranked if (each.block_m, each.block_n) == shape]
        shared = [each for each in alike if each.shared_bytes(product.itemsize) <= _SHARED // 2]
        kept |= dict.fromkeys([*shared[:1], *alike[:1]])
        if product.m <= _FEW_ROWS:
            likeliest = {each.split_k: each for each in reversed(alike)}
            kept |= dict.fromkeys(sorted(likeliest.values(), key=alike.index)[:_SPLITS_EACH])
    return list(kept)[:limit]


def _cuts(tile: Tile, part: int, sums: int) -> int:
    """How often a tile is halved behind the loop: to so many sums of a thread, or to whole parts."""
    cuts, wide = 0, tile.block_n
    while cuts < _MOST_CUTS and tile.block_m * wide > sums * 32 * tile.num_warps and wide // 2 % part == 0:
        cuts, wide = cuts + 1, wide // 2
    return cuts


def _parts(norm: Normed | None, rows: int, size: int) -> int:
    if norm is None:
        return 1
    parts = int(norm.moments.shape[1])
    expect_shape(norm.moments, "moments", rows, parts, 2)
    if size % parts or norm.moments.dtype != torch.float32 or not norm.moments.is_contiguous():
        raise ValueError(f"moments: expected FP32, contiguous, in parts of {size}, got {tuple(norm.moments.shape)}")
    return parts
