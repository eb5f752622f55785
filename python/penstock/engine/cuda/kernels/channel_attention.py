"""Attention of channels to channels (XCiT, EdgeNeXt, DaViT): softmax(Q^T K · scale) V^T over what few tokens there are.

Queries, keys and values are views [B, T, H, D] of whatever holds them, typically slices of [B, T, 3, H, D]. The scores
of a head are its D x D, sums over all its tokens, and stay in registers with their softmax, in FP32; a second walk
along the tokens writes. Every block of tokens has the scores to itself: they are made again in each, which costs a read
from the second cache and no synchronisation. Of cross-covariance attention (El-Nouby et al. 2021, section 3.2) the
scores are divided by the lengths of both channels along the tokens.
"""

# What Triton compiles has Triton's types, which are not Python's.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .launching import Launch
from .rows import INDEX_LIMIT, expect_shape, power_of_two

MOST_CHANNELS = 128
"""Of a head: its scores are in registers."""

_FULL = 264
"""Blocks that fill the multiprocessors of an H200 twice."""


@dataclass(frozen=True, slots=True)
class ChannelTile:
    block_t: int
    """Tokens of one step of a loop; at least 16."""
    parts: int
    """Blocks that a head's tokens are written by."""
    num_warps: int
    num_stages: int = 2


def channel_tiles(batch: int, heads: int, tokens: int, size: int) -> list[ChannelTile]:
    """The cuts worth timing, most promising first."""
    found: dict[ChannelTile, None] = {}
    whole = power_of_two(tokens, 16)
    for block_t in dict.fromkeys(min(each, whole) for each in (64, 128, 32)):
        steps = triton.cdiv(tokens, block_t)
        wanted = min(steps, max(1, _FULL // (batch * heads)))
        for parts in dict.fromkeys((wanted, min(steps, 2 * wanted), max(1, wanted // 2), 1)):
            for num_warps in (8, 4) if size > 64 else (4, 8):
                found[ChannelTile(block_t, parts, num_warps, 3 if steps > 2 else 2)] = None
    return list(found)[:16]


def channel_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    out: torch.Tensor,
    config: ChannelTile,
    scale: float,
    scales: torch.Tensor | None = None,
    unit: float | None = None,
    pdl: bool = False,
) -> None:
    """q [B, T, H, D], k and v [B, T, H, E], out [B, T, H, D]: any strides but the last, which is 1.

    scales  [H], floats: what each head's scores are multiplied with besides
    unit    channels of q and k are divided by their lengths, or by this where they are shorter
    """
    channel_attention_launch(q, k, v, out=out, config=config, scale=scale, scales=scales, unit=unit, pdl=pdl).run()


def channel_attention_launch(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    out: torch.Tensor,
    config: ChannelTile,
    scale: float,
    scales: torch.Tensor | None = None,
    unit: float | None = None,
    pdl: bool = False,
) -> Launch:
    batch, tokens, heads, size = q.shape
    keys = k.shape[3]
    expect_shape(k, "k", batch, tokens, heads, keys)
    expect_shape(v, "v", batch, tokens, heads, keys)
    expect_shape(out, "out", batch, tokens, heads, size)
    if max(size, keys) > MOST_CHANNELS:
        raise ValueError(f"expected at most {MOST_CHANNELS} channels a head, got {size} and {keys}")
    strides: dict[str, int | bool] = {}
    for name, tensor in (("q", q), ("k", k), ("v", v), ("out", out)):
        if (tensor.stride(3) != 1 and tensor.shape[3] > 1) or tensor.stride(0) * batch >= INDEX_LIMIT:
            raise ValueError(f"{name}: expected a contiguous last dimension, below 2**31 elements")
        for dimension, letter in ((0, "B"), (1, "T"), (2, "H")):
            strides[f"{name.upper()}_{letter}"] = tensor.stride(dimension)
    if scales is not None and (scales.shape != (heads,) or not scales.is_floating_point()):
        raise ValueError(f"scales: expected floats of shape {[heads]}, got {scales.dtype} of {list(scales.shape)}")
    share = triton.cdiv(triton.cdiv(tokens, config.block_t), config.parts) * config.block_t
    return Launch(
        channel_attention_kernel,
        (triton.cdiv(tokens, share), heads, batch),
        (q, k, v, scales, out, scale, unit),
        {
            "TOKENS": tokens,
            "SIZE": size,
            "KEYS": keys,
            **strides,
            "SCALES_H": 0 if scales is None else scales.stride(0),
            "SHARE": share,
            "BLOCK_T": config.block_t,
            "BLOCK_D": power_of_two(size, 16),
            "BLOCK_E": power_of_two(keys, 16),
            "PDL": pdl,
        },
        config.num_warps,
        config.num_stages,
        pdl,
    )


@triton.jit
def _rows(
    x,
    start,
    X_T: tl.constexpr,
    TOKENS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """[BLOCK_T, BLOCK], zero where there is no token or no channel."""
    rows = start + tl.arange(0, BLOCK_T)
    columns = tl.arange(0, BLOCK)
    return tl.load(
        x + rows[:, None] * X_T + columns[None, :], mask=(rows < TOKENS)[:, None] & (columns < SIZE)[None, :], other=0.0
    )


@triton.jit
def _squares(rows):
    wide = rows.to(tl.float32)
    return tl.sum(wide * wide, axis=0)


@triton.jit
def channel_attention_kernel(
    q,
    k,
    v,
    scales,
    out,
    scale,
    unit,
    TOKENS: tl.constexpr,
    SIZE: tl.constexpr,
    KEYS: tl.constexpr,
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
    SCALES_H: tl.constexpr,
    SHARE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (shares of tokens, heads, batch)."""
    LOG2_E: tl.constexpr = 1.4426950408889634
    first = tl.program_id(0) * SHARE
    head = tl.program_id(1)
    batch = tl.program_id(2)
    q += batch * Q_B + head * Q_H
    k += batch * K_B + head * K_H
    v += batch * V_B + head * V_H
    out += batch * OUT_B + head * OUT_H
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    if scales is not None:
        scale *= tl.load(scales + head * SCALES_H).to(tl.float32)
    scores = tl.zeros((BLOCK_D, BLOCK_E), dtype=tl.float32)
    of_q = tl.zeros((BLOCK_D,), dtype=tl.float32)
    of_k = tl.zeros((BLOCK_E,), dtype=tl.float32)
    for start in range(0, TOKENS, BLOCK_T):
        queries = _rows(q, start, Q_T, TOKENS, SIZE, BLOCK_T, BLOCK_D)
        keys = _rows(k, start, K_T, TOKENS, KEYS, BLOCK_T, BLOCK_E)
        scores = tl.dot(queries.T, keys, scores, input_precision="ieee")
        if unit is not None:
            of_q += _squares(queries)
            of_k += _squares(keys)
    scores *= scale * LOG2_E
    if unit is not None:
        scores *= (1.0 / tl.maximum(tl.sqrt(of_q), unit))[:, None] * (1.0 / tl.maximum(tl.sqrt(of_k), unit))[None, :]
    if BLOCK_E != KEYS:
        scores = tl.where((tl.arange(0, BLOCK_E) < KEYS)[None, :], scores, float("-inf"))
    terms = tl.exp2(scores - tl.max(scores, axis=1)[:, None])
    terms = (terms / tl.sum(terms, axis=1)[:, None]).to(v.dtype.element_ty).T
    channels = tl.arange(0, BLOCK_D)
    for start in range(first, min(first + SHARE, TOKENS), BLOCK_T):
        values = _rows(v, start, V_T, TOKENS, KEYS, BLOCK_T, BLOCK_E)
        rows = start + tl.arange(0, BLOCK_T)
        result = tl.dot(values, terms, input_precision="ieee").to(out.dtype.element_ty)
        there = (rows < TOKENS)[:, None] & (channels < SIZE)[None, :]
        tl.store(out + rows[:, None] * OUT_T + channels[None, :], result, mask=there)
