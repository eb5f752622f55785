"""Attention over short sequences, straight from the packed projection: softmax(QK^T · scale + mask) V.

Queries, keys and values are views [B, T, H, D] of whatever holds them, typically slices of [B, T, 3, H, D]: nothing is
split or transposed in memory. Sums and the softmax are FP32. Of cosine attention the scores are divided by the lengths
of both rows, which rounds nothing on the way. A row whose keys are all masked with -inf is NaN, as in
the frameworks.
"""

# What Triton compiles has Triton's types, which are not Python's.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .activations import stored_as
from .launching import Launch
from .rows import INDEX_LIMIT, expect_shape, power_of_two

LARGEST_GRID = 65535
"""Heads, and batches."""


@dataclass(frozen=True, slots=True)
class AttentionTile:
    block_q: int
    """Queries of one block; at least 16."""
    block_t: int
    """Keys of one step of its loop; at least 16."""
    num_warps: int
    num_stages: int = 2


def attention_tiles(batch: int, heads: int, queries: int, keys: int) -> list[AttentionTile]:
    """The cuts worth timing, most promising first. Few heads: more, smaller blocks; keys whole where they fit."""
    small = batch * heads * triton.cdiv(queries, 64) < 132
    whole = power_of_two(keys, 16)
    blocks_t = (min(whole, 128), min(whole, 64), min(whole, 32)) if whole <= 128 else (64, 128)
    found = [
        AttentionTile(block_q, block_t, num_warps, num_stages)
        for block_q in ((32, 16, 64) if small else (64, 128, 32))
        for block_t in dict.fromkeys(blocks_t)
        for num_warps in ((4,) if block_q <= 64 else (8, 4))
        for num_stages in ((2,) if block_t >= keys else (3, 2))
        if block_q < 2 * power_of_two(queries, 16)
    ]
    return found[:12]


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    out: torch.Tensor,
    config: AttentionTile,
    scale: float,
    mask: torch.Tensor | None = None,
    mask_of: tuple[float, float] | None = None,
    scales: torch.Tensor | None = None,
    unit: float | None = None,
    pdl: bool = False,
) -> None:
    """q [B, T, H, D], k [B, S, H, D], v [B, S, H, E], out [B, T, H, E]: any strides but the last, which is 1.

    mask    added to the scores after scaling; [P, H or 1, T or 1, S], where P divides B: that of b is the one of b
            modulo P. With `mask_of` (a, b) it may be of whole numbers, and what is added is (a - mask) · b.
    scales  [H], floats: what each head's scores are multiplied with besides
    unit    rows of q and k are divided by their lengths, or by this where they are shorter
    """
    attention_launch(
        q, k, v, out=out, config=config, scale=scale, mask=mask, mask_of=mask_of, scales=scales, unit=unit, pdl=pdl
    ).run()


def attention_launch(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    out: torch.Tensor,
    config: AttentionTile,
    scale: float,
    mask: torch.Tensor | None = None,
    mask_of: tuple[float, float] | None = None,
    scales: torch.Tensor | None = None,
    unit: float | None = None,
    out_scale: float = 1.0,
    pdl: bool = False,
) -> Launch:
    batch, queries, heads, size = q.shape
    keys, width = k.shape[1], v.shape[3]
    expect_shape(k, "k", batch, keys, heads, size)
    expect_shape(v, "v", batch, keys, heads, width)
    expect_shape(out, "out", batch, queries, heads, width)
    constants: dict[str, int | bool] = {}
    for name, tensor in (("q", q), ("k", k), ("v", v), ("out", out)):
        if tensor.stride(3) != 1 or tensor.stride(0) * batch >= INDEX_LIMIT:
            raise ValueError(f"{name}: expected a contiguous last dimension, below 2**31 elements")
        for dimension, letter in ((0, "B"), (1, "T"), (2, "H")):
            constants[f"{name.upper()}_{letter}"] = tensor.stride(dimension)
    period = mask.shape[0] if mask is not None and mask.dim() == 4 and mask.shape[0] > 1 else batch
    if period != batch and batch % period:
        raise ValueError(f"mask: {period} of them do not repeat to {batch}")
    seen = mask if mask is None else mask.expand(period, heads, queries, keys)
    if seen is not None and _reach(seen) >= INDEX_LIMIT:
        raise ValueError("mask: expected less than 2**31 elements")
    if scales is not None and (scales.shape != (heads,) or not scales.is_floating_point()):
        raise ValueError(f"scales: expected floats of shape {[heads]}, got {scales.dtype} of {list(scales.shape)}")
    constants["SCALES_H"] = 0 if scales is None else scales.stride(0)
    for dimension, letter in ((0, "B"), (1, "H"), (2, "T"), (3, "S")):
        constants[f"MASK_{letter}"] = 0 if seen is None else seen.stride(dimension)
    return Launch(
        attention_kernel,
        (triton.cdiv(queries, config.block_q), heads, batch),
        (q, k, v, mask, scales, out, scale, *(mask_of or (None, None)), unit, 1.0 / out_scale),
        {
            "QUERIES": queries,
            "KEYS": keys,
            "SIZE": size,
            "WIDTH": width,
            **constants,
            "PERIOD": 0 if period == batch else period,
            "BLOCK_Q": config.block_q,
            "LAST_Q": _room(queries % config.block_q, config.block_q),
            "LAST_T": _room(keys % config.block_t, config.block_t),
            "BLOCK_T": config.block_t,
            "BLOCK_D": power_of_two(size, 16),
            "BLOCK_E": power_of_two(width, 16),
            "PDL": pdl,
        },
        config.num_warps,
        config.num_stages,
        pdl,
    )


def _reach(tensor: torch.Tensor) -> int:
    """The last element, from the first."""
    return sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _room(left: int, block: int) -> int:
    """Of the last block, which may be smaller than the others: 257 rows are four blocks of 64 and one of 16."""
    return min(block, power_of_two(left, 16)) if left else block


@triton.jit
def _inverse_lengths(rows, least):
    wide = rows.to(tl.float32)
    return 1.0 / tl.maximum(tl.sqrt(tl.sum(wide * wide, axis=1)), least)


@triton.jit
def _keys(
    query,
    k,
    v,
    mask,
    rows,
    start,
    highest,
    weight,
    total,
    scale,
    mask_from,
    mask_factor,
    unit,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    K_T: tl.constexpr,
    V_T: tl.constexpr,
    MASK_T: tl.constexpr,
    MASK_S: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
    WHOLE: tl.constexpr,
    FIRST: tl.constexpr,
):
    """The state of a softmax with one block of keys more. WHOLE: all of them exist; FIRST: there were none before.

    scale  of all scores, or [BLOCK_Q]
    """
    LOG2_E: tl.constexpr = 1.4426950408889634
    columns = start + tl.arange(0, BLOCK_T)
    d = tl.arange(0, BLOCK_D)
    e = tl.arange(0, BLOCK_E)
    exists = columns < KEYS
    if WHOLE and BLOCK_D == SIZE:
        key = tl.load(k + columns[:, None] * K_T + d[None, :])
    else:
        key = tl.load(k + columns[:, None] * K_T + d[None, :], mask=exists[:, None] & (d < SIZE)[None, :], other=0.0)
    if WHOLE and BLOCK_E == WIDTH:
        value = tl.load(v + columns[:, None] * V_T + e[None, :])
    else:
        value = tl.load(v + columns[:, None] * V_T + e[None, :], mask=exists[:, None] & (e < WIDTH)[None, :], other=0.0)
    if mask is not None:
        # A mask of keys alone is one row, read once and not for every query.
        if MASK_T == 0:
            added = tl.load(mask + columns * MASK_S, mask=exists, other=0.0)[None, :]
        else:
            added = tl.load(
                mask + rows[:, None] * MASK_T + columns[None, :] * MASK_S,
                mask=(rows < QUERIES)[:, None] & exists[None, :],
                other=0.0,
            )
        # The lowest of FP32 is a usual mask; times LOG2_E it would be infinite, and a row of nothing else NaN.
        added = added.to(tl.float32)
        if mask_factor is not None:
            added = (mask_from - added) * mask_factor
        added = tl.where(added > float("-inf"), tl.maximum(added, -2.0e38), added) * LOG2_E
    scores = tl.dot(query, key.T, input_precision="ieee")
    if unit is not None:
        scores = scores * (scale * LOG2_E)[:, None] * _inverse_lengths(key, unit)[None, :]
    else:
        scores = scores * (scale * LOG2_E)
    if mask is not None:
        scores += added
    if not WHOLE:
        scores = tl.where(exists[None, :], scores, float("-inf"))
    raised = tl.max(scores, axis=1)
    if not FIRST:
        raised = tl.maximum(highest, raised)
    # A block of keys that are all masked has no maximum to subtract: its terms are 0, not NaN.
    safe = raised
    if mask is not None:
        safe = tl.where(raised == float("-inf"), 0.0, raised)
    terms = tl.exp2(scores - safe[:, None])
    if FIRST:
        weight = tl.sum(terms, axis=1)
        total = tl.dot(terms.to(value.dtype), value, input_precision="ieee")
    else:
        shrink = tl.exp2(highest - safe)
        weight = weight * shrink + tl.sum(terms, axis=1)
        total = tl.dot(terms.to(value.dtype), value, total * shrink[:, None], input_precision="ieee")
    return raised, weight, total


@triton.jit
def _queries(
    q,
    k,
    v,
    mask,
    out,
    scale,
    mask_from,
    mask_factor,
    unit,
    out_inverse_scale,
    first,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    Q_T: tl.constexpr,
    K_T: tl.constexpr,
    V_T: tl.constexpr,
    OUT_T: tl.constexpr,
    MASK_T: tl.constexpr,
    MASK_S: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_T: tl.constexpr,
    LAST_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """One block of queries of one head."""
    BLOCKS: tl.constexpr = KEYS // BLOCK_T
    LEFT: tl.constexpr = KEYS - BLOCKS * BLOCK_T
    rows = first + tl.arange(0, BLOCK_Q)
    d = tl.arange(0, BLOCK_D)
    e = tl.arange(0, BLOCK_E)
    there = (rows < QUERIES)[:, None]
    query = tl.load(q + rows[:, None] * Q_T + d[None, :], mask=there & (d < SIZE)[None, :], other=0.0)
    if unit is not None:
        scale = scale * _inverse_lengths(query, unit)
    highest = tl.full((BLOCK_Q,), float("-inf"), dtype=tl.float32)
    weight = tl.zeros((BLOCK_Q,), dtype=tl.float32)
    total = tl.zeros((BLOCK_Q, BLOCK_E), dtype=tl.float32)
    if BLOCKS == 1:
        highest, weight, total = _keys(
            query, k, v, mask, rows, 0, highest, weight, total, scale, mask_from, mask_factor, unit, QUERIES, KEYS,
            SIZE, WIDTH, K_T, V_T, MASK_T, MASK_S, BLOCK_T, BLOCK_D, BLOCK_E, True, True,
        )  # fmt: skip
    else:
        for start in range(0, BLOCKS * BLOCK_T, BLOCK_T):
            highest, weight, total = _keys(
                query, k, v, mask, rows, start, highest, weight, total, scale, mask_from, mask_factor, unit, QUERIES,
                KEYS, SIZE, WIDTH, K_T, V_T, MASK_T, MASK_S, BLOCK_T, BLOCK_D, BLOCK_E, True, False,
            )  # fmt: skip
    if LEFT > 0:
        highest, weight, total = _keys(
            query, k, v, mask, rows, BLOCKS * BLOCK_T, highest, weight, total, scale, mask_from, mask_factor, unit,
            QUERIES, KEYS, SIZE, WIDTH, K_T, V_T, MASK_T, MASK_S, LAST_T, BLOCK_D, BLOCK_E, LEFT == LAST_T, BLOCKS == 0,
        )  # fmt: skip
    result = stored_as(total / weight[:, None], out_inverse_scale, out.dtype.element_ty)
    tl.store(out + rows[:, None] * OUT_T + e[None, :], result, mask=there & (e < WIDTH)[None, :])


@triton.jit
def attention_kernel(
    q,
    k,
    v,
    mask,
    scales,
    out,
    scale,
    mask_from,
    mask_factor,
    unit,
    out_inverse_scale,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    Q_B: tl.constexpr,
    Q_T: tl.constexpr,
    Q_H: tl.constexpr,
    K_B: tl.constexpr,
    K_T: tl.constexpr,
    K_H: tl.constexpr,
    V_B: tl.constexpr,
    V_T: tl.constexpr,
    V_H: tl.constexpr,
    OUT_B: tl.constexpr,
    OUT_T: tl.constexpr,
    OUT_H: tl.constexpr,
    MASK_B: tl.constexpr,
    MASK_H: tl.constexpr,
    MASK_T: tl.constexpr,
    MASK_S: tl.constexpr,
    SCALES_H: tl.constexpr,
    PERIOD: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    LAST_Q: tl.constexpr,
    LAST_T: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (blocks of queries, heads, batch)."""
    first = tl.program_id(0) * BLOCK_Q
    head = tl.program_id(1)
    batch = tl.program_id(2)
    q += batch * Q_B + head * Q_H
    k += batch * K_B + head * K_H
    v += batch * V_B + head * V_H
    out += batch * OUT_B + head * OUT_H
    if mask is not None:
        own = batch
        if PERIOD > 0:
            own = batch % PERIOD
        mask += own * MASK_B + head * MASK_H
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    if scales is not None:
        scale *= tl.load(scales + head * SCALES_H).to(tl.float32)
    if LAST_Q == BLOCK_Q:  # noqa: SIM114  (known when this is compiled, and then there is nothing else)
        _queries(
            q, k, v, mask, out, scale, mask_from, mask_factor, unit, out_inverse_scale, first, QUERIES, KEYS,
            SIZE, WIDTH, Q_T, K_T, V_T, OUT_T, MASK_T, MASK_S, BLOCK_Q, BLOCK_T, LAST_T, BLOCK_D,
            BLOCK_E,
        )  # fmt: skip
    elif first + BLOCK_Q <= QUERIES:
        _queries(
            q, k, v, mask, out, scale, mask_from, mask_factor, unit, out_inverse_scale, first, QUERIES, KEYS,
            SIZE, WIDTH, Q_T, K_T, V_T, OUT_T, MASK_T, MASK_S, BLOCK_Q, BLOCK_T, LAST_T, BLOCK_D,
            BLOCK_E,
        )  # fmt: skip
    else:
        _queries(
            q, k, v, mask, out, scale, mask_from, mask_factor, unit, out_inverse_scale, first, QUERIES, KEYS,
            SIZE, WIDTH, Q_T, K_T, V_T, OUT_T, MASK_T, MASK_S, LAST_Q, BLOCK_T, LAST_T, BLOCK_D,
            BLOCK_E,
        )  # fmt: skip
