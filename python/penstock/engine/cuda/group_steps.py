"""Convolutions in groups as matrix products, a product for each unit of a few groups: an implementation of `conv`.

A group of ResNeXt, RegNet, NFNet or FastViT has 1 to 64 channels, too few to fill a matrix instruction. `together` of
them are multiplied as one unit whose weights are zero between groups: more multiplications, of which tensor cores have
plenty, and fewer and longer reads. How many is part of the cut that is timed. Layers of one channel to one channel have
kernels of their own.
"""

from functools import cache
from typing import Final

import torch

from penstock.engine.cuda.kernels.epilogue import Scratch
from penstock.engine.cuda.kernels.implicit_gemm import conv2d_nhwc_launch
from penstock.engine.cuda.kernels.launching import Launch
from penstock.engine.cuda.kernels.tiles import Product, Tile, clocks
from penstock.engine.cuda.sites import Site
from penstock.engine.cuda.ways import Config, Ready, Tensors, Way, count, dtype_of, multiprocessors_of, tiles_of

_WIDTHS: Final = (16, 32, 64, 128)
"""Of a unit's smaller side, in channels: the first is the least that a matrix instruction takes."""

_WIDEST: Final = 256
"""Of its larger side, where fewer groups together would do."""


def joined(weight: torch.Tensor, groups: int, together: int) -> torch.Tensor:
    """Weights [K, R, S, C / groups] as [K, R, S, C / units] of `groups / together` units: zeros between groups."""
    filters, high, wide, deep = weight.shape
    if together == 1:
        return weight
    if weight.is_meta:
        return weight.new_empty((filters, high, wide, together * deep))
    units, each = groups // together, filters // groups
    found = weight.new_zeros(units, together, each, high, wide, together, deep)
    apart = weight.reshape(units, together, each, high, wide, deep)
    for group in range(together):
        found[:, group, :, :, :, group] = apart[:, group]
    return found.view(filters, high, wide, together * deep)


def togethers(groups: int, filters: int, channels: int) -> tuple[int, ...]:
    """How many groups a unit may have: the fewest for each width that is worth a try, else all of them."""
    narrow, wide = (side(filters, channels) // groups for side in (min, max))
    numbers = [each for each in range(1, groups + 1) if groups % each == 0]
    found = [next((each for each in numbers if each * narrow >= width), groups) for width in _WIDTHS]
    return tuple(each for each in dict.fromkeys(found) if each in (1, found[0]) or each * wide <= _WIDEST)


def _product(site: Site, together: int) -> Product:
    out, weight, units = site.out_shape(), site.shape("weight"), site.integer("groups") // together
    return Product(
        count(out[:3]), out[3] // units, weight[3] * together, weight[1] * weight[2], units, dtype_of(site, 0).itemsize
    )


def _cuts(site: Site) -> list[Config]:
    """The most promising first, whatever its units."""
    multiprocessors = multiprocessors_of(site.device)
    return list(
        _ranked(site.integer("groups"), site.out_shape()[3], site.shape("x")[3], _product(site, 1), multiprocessors)
    )


@cache
def _ranked(groups: int, filters: int, channels: int, alone: Product, multiprocessors: int) -> tuple[Config, ...]:
    found: list[tuple[float, Config]] = []
    for together in togethers(groups, filters, channels):
        product = Product(
            alone.m, alone.n * together, alone.channels * together, alone.taps, groups // together, alone.itemsize
        )
        for tile in tiles_of(product, multiprocessors):
            found.append((clocks(product, Tile(*tile), multiprocessors), (together, *tile)))
    return tuple(config for _, config in sorted(found))


def _scratch(site: Site, config: Config) -> tuple[int, int]:
    together, *numbers = config
    product, tile = _product(site, together), Tile(*numbers)
    return tile.partial_sums(product), tile.counters(product)


def _conv(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launch:
    site, (together, *numbers) = ready.site, ready.config
    (high, wide), pads, (down, right) = (site.integers(name) for name in ("strides", "pads", "dilations"))
    return conv2d_nhwc_launch(
        operands[0],
        ready.weight,
        out=outputs[0],
        config=Tile(*numbers),
        bias=ready.bias,
        residual=ready.residual(operands),
        epilogue=ready.epilogue,
        stride=(high, wide),
        padding=(pads[0], pads[1]),
        dilation=(down, right),
        groups=site.integer("groups") // together,
        scratch=scratch,
        pdl=site.early,
    )


def _suits(site: Site) -> bool:
    groups, channels = site.integer("groups"), site.shape("x")[3]
    return groups > 1 and not groups == channels == site.out_shape()[3]


def _weights(ready: Ready) -> dict[str, torch.Tensor]:
    groups, together = ready.site.integer("groups"), ready.config[0]
    if together < 1 or groups % together:
        raise ValueError(f"{together} groups together: expected a number that divides {groups}")
    return {**ready.constants, "weight": joined(ready.weight, groups, together)}


GROUPS: Final[dict[tuple[str, str], Way]] = {
    ("conv", "triton_groups"): Way(_conv, _cuts, _scratch, suits=_suits, made=_weights),
}
"""Kind and name -> kernel."""
