"""Depthwise convolutions by threads that walk (`kernels/depthwise_walk.py`): alone, before a gate, behind a product.

Compiled by NVRTC when tuned. Needs compute capability 9.0; elsewhere Triton's kernels stay.
"""

from collections.abc import Mapping
from dataclasses import astuple, fields, replace
from functools import partial
from typing import Final

import torch

from penstock.engine.cuda.kernels.depthwise_walk import (
    ACTIVATIONS,
    Layer,
    WalkTile,
    depthwise_walk_launch,
    steady,
    walk_tiles,
)
from penstock.engine.cuda.kernels.epilogue import Epilogue, Scratch, folds
from penstock.engine.cuda.kernels.expand_diagonal import DiagonalTile, expand_diagonal_launch, expand_diagonal_tiles
from penstock.engine.cuda.kernels.expand_walk import BOUNDED, ExpandWalkTile, expand_walk_launch, expand_walk_tiles
from penstock.engine.cuda.kernels.short_product import ShortTile, short_product_launch, short_tiles
from penstock.engine.cuda.kernels.tiles import Product
from penstock.engine.cuda.sites import Site
from penstock.engine.cuda.triton_joined import LAYERS, depthwise_and_gate, suits_gate_layers, sums_scratch
from penstock.engine.cuda.ways import (
    Config,
    Launched,
    Ready,
    Tensors,
    Way,
    compiles_cpp,
    count,
    dtype_of,
    float_weights,
    multiprocessors_of,
    narrow_everywhere,
)


def _walk(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launched:
    del scratch
    return walked(ready, operands, outputs[0], None)


def walked(
    ready: Ready, operands: Tensors, out: torch.Tensor, sums: torch.Tensor | None, scale: float | None = None
) -> Launched:
    """Of a map, with filters that `with_steady` has seen. `scale`: what INT8 is worth, if not as x says."""
    site, x = ready.site, operands[0]
    eight = x.dtype == torch.int8
    (high, wide), (top, left) = site.integers("strides"), site.integers("pads")[:2]
    return depthwise_walk_launch(
        x,
        ready.constants["steady"] if eight else ready.weight,
        out=out,
        config=WalkTile(*ready.config),
        factors=ready.constants["factors"] if eight else None,
        bias=ready.bias,
        sums=sums,
        epilogue=ready.epilogue,
        stride=(high, wide),
        padding=(top, left),
        scale=scale or site.scale(0) or 1.0,
        pdl=site.early,
    )


def tiles_of_walks(site: Site) -> list[Config]:
    return [astuple(tile) for tile in walk_tiles(_layer(site), multiprocessors_of(site.device))]


def _layer(site: Site) -> Layer:
    batch, height, width, channels = site.out_shape()
    _, high, wide, _ = site.shape("weight")
    down, across = site.integers("strides")
    return Layer((batch, height, width, channels), (high, wide), (down, across), dtype_of(site, 0).itemsize)


_SHORT: Final = len(fields(ShortTile))  # numbers of a product's cut; a walk's follow


def _pair(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> list[Launched]:
    """The wide map in memory: a product, and a walk."""
    del scratch
    site, x, first = ready.site, operands[0], ready.constants["first"]
    expanded = torch.empty((*x.shape[:3], first.shape[0]), dtype=x.dtype, device=x.device)
    product = short_product_launch(
        x,
        first,
        out=expanded,
        config=ShortTile(*ready.config[:_SHORT]),
        bias=ready.constants.get("first_bias"),
        scale=ready.scale,
        epilogue=_inner(ready),
        pdl=site.early,
    )
    behind = replace(ready, config=ready.config[_SHORT:])
    step = site.number("inner_step") if x.dtype == torch.int8 else None
    return [product, walked(behind, [expanded, *operands[1:]], outputs[0], None, step)]


def _inner(ready: Ready) -> Epilogue:
    """Of the first layer."""
    return replace(ready.activation("inner_"), out_scale=ready.site.number("inner_step", 1.0))


def _pairs(site: Site) -> list[Config]:
    """The best of one with the best of the other, and so on."""
    expanded, channels = site.shape("first")[0], site.shape("x")[3]
    product = Product(count(site.shape("x")[:3]), expanded, channels, itemsize=dtype_of(site, 0).itemsize)
    ours = [astuple(tile) for tile in short_tiles(product, multiprocessors_of(site.device))]
    others = tiles_of_walks(site)
    if not ours or not others:
        return []
    length = max(len(ours), len(others))
    return [(*ours[min(n, len(ours) - 1)], *others[min(n, len(others) - 1)]) for n in range(length)]


def _expand(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launched:
    """Both in one kernel."""
    del scratch
    site, constants = ready.site, ready.constants
    eight = operands[0].dtype == torch.int8
    (high, wide), (top, left) = site.integers("strides"), site.integers("pads")[:2]
    return expand_walk_launch(
        operands[0],
        constants["first"],
        constants["steady"] if eight else ready.weight,
        out=outputs[0],
        config=ExpandWalkTile(*ready.config),
        first_bias=constants.get("first_bias"),
        first_scale=ready.scale,
        bias=ready.bias,
        factors=constants["factors"] if eight else None,
        inner=_inner(ready),
        outer=ready.epilogue,
        stride=(high, wide),
        padding=(top, left),
        pdl=site.early,
    )


def _expand_tiles(site: Site) -> list[Config]:
    layer, narrow = _layer(site), site.shape("x")[3]
    return [astuple(tile) for tile in expand_walk_tiles(layer, narrow, multiprocessors_of(site.device))]


def _by_diagonals(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launched:
    """Both in one kernel, and the wide map nowhere."""
    del scratch
    site, constants, worth = ready.site, ready.constants, ready.scale
    if worth is None:
        raise ValueError("x: expected INT8 with a scale")
    (high, wide), (top, left) = site.integers("strides"), site.integers("pads")[:2]
    return expand_diagonal_launch(
        operands[0],
        constants["first"],
        constants["steady"],
        out=outputs[0],
        config=DiagonalTile(*ready.config),
        first_scale=worth,
        factors=constants["factors"],
        first_bias=constants.get("first_bias"),
        bias=ready.bias,
        inner=_inner(ready),
        outer=ready.epilogue,
        stride=(high, wide),
        padding=(top, left),
        pdl=site.early,
    )


def _diagonal_tiles(site: Site) -> list[Config]:
    layer, narrow = _layer(site), site.shape("x")[3]
    return [astuple(tile) for tile in expand_diagonal_tiles(layer, narrow, multiprocessors_of(site.device))]


def _flat(weight: torch.Tensor) -> torch.Tensor:
    return weight.reshape(weight.shape[0], -1).contiguous()


def _blocks(config: Config, height: int, width: int) -> int:
    return WalkTile(*config).walks(height, width)


def _taps_first(weight: torch.Tensor) -> torch.Tensor:
    return weight[..., 0].permute(1, 2, 0).contiguous()


def with_steady(constants: dict[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    weights, factors = steady(constants["weight"])
    return {**constants, "steady": weights, "factors": factors}


def suits_walks(site: Site) -> bool:
    channels = site.shape("weight")[0]
    if site.integer("groups") != channels or channels == 1 or site.index("residual") is not None:
        return False
    if set(site.integers("dilations")) != {1} or site.text("activation", "none") not in ACTIVATIONS:
        return False
    return bool(compiles_cpp(site) and tiles_of_walks(site))


def _suits_conv(site: Site) -> bool:
    return suits_walks(site) and site.shape("x")[3] == site.out_shape()[3]


def _suits_pair(site: Site) -> bool:
    return suits_walks(site) and site.text("inner", "none") in ACTIVATIONS and bool(_pairs(site))


def _suits_expand(site: Site) -> bool:
    return suits_walks(site) and site.text("inner", "none") in BOUNDED and bool(_expand_tiles(site))


def _suits_diagonals(site: Site) -> bool:
    return suits_walks(site) and site.text("inner", "none") in BOUNDED and bool(_diagonal_tiles(site))


def _suits_gate(site: Site) -> bool:
    return _suits_conv(site) and suits_gate_layers(site)


def types_of_two(site: Site) -> bool:
    """INT8 with scales throughout, or sixteen bits; what is folded into one layer is not known of two."""
    if dtype_of(site, 0) != torch.int8:
        return narrow_everywhere(site)
    scales = site.scale(0) is not None and site.step.operand("scale") is not None and site.number("inner_step") > 0
    return scales and float_weights(site) and not folds(site.text("activation", "none"))


WALKS: Final[dict[tuple[str, str], Way]] = {
    ("conv", "cuda_walk"): Way(
        _walk,
        tiles_of_walks,
        forms={"weight": _taps_first},
        suits=_suits_conv,
        types=float_weights,
        scales=True,
        combined=with_steady,
    ),
    ("conv_gate", "cuda_walk"): Way(
        depthwise_and_gate(walked, _blocks),
        tiles_of_walks,
        partial(sums_scratch, blocks_of=_blocks),
        forms={"weight": _taps_first, **LAYERS},
        suits=_suits_gate,
        combined=with_steady,
    ),
    ("expand_depthwise", "cuda_walk"): Way(
        _expand,
        _expand_tiles,
        forms={"first": _flat, "weight": _taps_first},
        suits=_suits_expand,
        types=types_of_two,
        scales=True,
        combined=with_steady,
    ),
    ("expand_depthwise", "cuda_diagonal"): Way(
        _by_diagonals,
        _diagonal_tiles,
        forms={"first": _flat, "weight": _taps_first},
        suits=_suits_diagonals,
        types=types_of_two,
        scales=True,
        combined=with_steady,
    ),
    ("expand_depthwise", "cuda_pair"): Way(
        _pair,
        _pairs,
        forms={"first": _flat, "weight": _taps_first},
        suits=_suits_pair,
        types=types_of_two,
        scales=True,
        combined=with_steady,
    ),
}
"""Kind and name -> kernels."""
