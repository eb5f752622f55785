"""Our kernels for rows of tokens: attention and layer norms."""

from dataclasses import astuple
from typing import Final

import torch

from penstock.engine.cuda.kernels.attention import LARGEST_GRID, AttentionTile, attention_launch, attention_tiles
from penstock.engine.cuda.kernels.channel_attention import (
    MOST_CHANNELS,
    ChannelTile,
    channel_attention_launch,
    channel_tiles,
)
from penstock.engine.cuda.kernels.epilogue import Scratch
from penstock.engine.cuda.kernels.launching import Launch
from penstock.engine.cuda.kernels.reductions import NormTile, layer_norm_launch, norm_tiles
from penstock.engine.cuda.sites import Site, narrow
from penstock.engine.cuda.ways import Config, Ready, Tensors, Way, count, dtype_of, eight_or_narrow

_WIDEST_NORM: Final = 16384  # a row is kept in registers
_WIDEST_HEAD: Final = 256


def _attention(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launch:
    del scratch
    q, k, v = (operands[_at(ready.site, role)].transpose(1, 2) for role in ("q", "k", "v"))
    site = ready.site
    mask, whole = site.index("mask"), "mask_factor" in site.step.attributes
    masked = (site.number("mask_from"), site.number("mask_factor")) if whole else None
    scales = site.index("scales")
    return attention_launch(
        q,
        k,
        v,
        out=outputs[0],
        config=AttentionTile(*ready.config),
        scale=ready.site.number("scale"),
        mask=None if mask is None else operands[mask],
        mask_of=masked,
        scales=None if scales is None else operands[scales],
        unit=site.number("unit") if "unit" in site.step.attributes else None,
        out_scale=ready.out_scale,
        pdl=site.early,
    )


def _attention_tiles(site: Site) -> list[Config]:
    batch, heads, queries, _ = site.shape("q")
    return [astuple(tile) for tile in attention_tiles(batch, heads, queries, site.shape("k")[2])]


def _suits_attention(site: Site) -> bool:
    mask = site.step.operand("mask")
    floats = mask is None or dtype_of(site, site.step.inputs.index(mask)).is_floating_point
    floats = floats or "mask_factor" in site.step.attributes
    return floats and _of_rows(site, _WIDEST_HEAD)


def _of_rows(site: Site, widest: int) -> bool:
    """Whether q, k and v are of one narrow type, their last axes side by side and no wider than that."""
    q, k, v = (site.shape(role) for role in ("q", "k", "v"))
    one = {dtype_of(site, _at(site, role)) for role in ("q", "k", "v")}
    views = [site.step.inputs[_at(site, role)].view for role in ("q", "k", "v")]
    rows = all(view is None or view.strides[-1] == 1 or view.shape[-1] == 1 for view in views)
    whole = len(one) == 1 and narrow(one.pop()) and rows
    return whole and max(q[:2]) <= LARGEST_GRID and max(q[3], k[3], v[3]) <= widest


def _channel_attention(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launch:
    del scratch
    site, scales = ready.site, ready.site.index("scales")
    q, k, v = (operands[_at(site, role)].transpose(1, 2) for role in ("q", "k", "v"))
    return channel_attention_launch(
        q,
        k,
        v,
        out=outputs[0],
        config=ChannelTile(*ready.config),
        scale=site.number("scale"),
        scales=None if scales is None else operands[scales],
        unit=site.number("unit") if "unit" in site.step.attributes else None,
        pdl=site.early,
    )


def _channel_tiles(site: Site) -> list[Config]:
    return [astuple(tile) for tile in channel_tiles(*site.shape("q"))]


def _suits_channels(site: Site) -> bool:
    return _of_rows(site, MOST_CHANNELS)


def _layer_norm(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launch:
    del scratch
    site = ready.site
    indices = site.index("indices")
    return layer_norm_launch(
        operands[0],
        ready.weight,
        ready.bias,
        out=outputs[0],
        epsilon=site.number("epsilon"),
        residual=ready.residual(operands),
        indices=None if indices is None else operands[indices],
        total=outputs[1] if len(outputs) > 1 else None,
        out_scale=ready.out_scale,
        config=NormTile(*ready.config) if ready.config else None,
        pdl=site.early,
    )


def _norm_tiles(site: Site) -> list[Config]:
    shape = site.out_shape()
    return [astuple(tile) for tile in norm_tiles(count(shape[:-1]), shape[-1])]


def _suits_layer_norm(site: Site) -> bool:
    return site.integer("axes") == 1 and site.step.operand("weight") is not None and site.shape("x")[-1] <= _WIDEST_NORM


def _wide(weight: torch.Tensor) -> torch.Tensor:
    return weight.float().contiguous()


def _at(site: Site, role: str) -> int:
    index = site.index(role)
    assert index is not None, role
    return index


TOKENS: Final[dict[tuple[str, str], Way]] = {
    ("attention", "triton"): Way(
        _attention, _attention_tiles, suits=_suits_attention, types=eight_or_narrow, scales=True
    ),
    ("channel_attention", "triton"): Way(_channel_attention, _channel_tiles, suits=_suits_channels),
    ("layer_norm", "triton"): Way(
        _layer_norm,
        _norm_tiles,
        forms={"weight": _wide},
        suits=_suits_layer_norm,
        types=eight_or_narrow,
        scales=True,
    ),
}
"""Kind and name -> kernel."""
