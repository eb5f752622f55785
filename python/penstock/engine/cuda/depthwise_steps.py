"""Depthwise convolutions by threads that walk (`kernels/depthwise_walk.py`): alone, before a gate, behind a product.

Compiled by NVRTC when tuned. Needs compute capability 9.0; elsewhere Triton's kernels stay.
"""

from collections.abc import Mapping
from dataclasses import astuple
from functools import partial
from typing import Final

import torch

from penstock.engine.cuda.kernels import nvrtc
from penstock.engine.cuda.kernels.depthwise_walk import (
    ACTIVATIONS,
    Layer,
    WalkTile,
    depthwise_walk_launch,
    steady,
    walk_tiles,
)
from penstock.engine.cuda.kernels.driver import HOPPER
from penstock.engine.cuda.kernels.epilogue import Scratch
from penstock.engine.cuda.sites import Site
from penstock.engine.cuda.triton_joined import LAYERS, depthwise_and_gate, suits_gate_layers, sums_scratch
from penstock.engine.cuda.ways import (
    Config,
    Launched,
    Ready,
    Tensors,
    Way,
    dtype_of,
    float_weights,
    multiprocessors_of,
)


def _walk(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launched:
    del scratch
    return walked(ready, operands, outputs[0], None)


def walked(ready: Ready, operands: Tensors, out: torch.Tensor, sums: torch.Tensor | None) -> Launched:
    """Of a map, with filters that `with_steady` has seen."""
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
        scale=site.scale(0) or 1.0,
        pdl=site.early,
    )


def tiles_of_walks(site: Site) -> list[Config]:
    batch, height, width, channels = site.out_shape()
    _, high, wide, _ = site.shape("weight")
    down, across = site.integers("strides")
    layer = Layer((batch, height, width, channels), (high, wide), (down, across), dtype_of(site, 0).itemsize)
    return [astuple(tile) for tile in walk_tiles(layer, multiprocessors_of(site.device))]


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
    if site.device.type != "cuda" or not nvrtc.available():
        return False
    major, minor = torch.cuda.get_device_capability(site.device)
    return bool(10 * major + minor >= HOPPER and tiles_of_walks(site))


def _suits_conv(site: Site) -> bool:
    return suits_walks(site) and site.shape("x")[3] == site.out_shape()[3]


def _suits_gate(site: Site) -> bool:
    return _suits_conv(site) and suits_gate_layers(site)


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
}
"""Kind and name -> kernels."""
