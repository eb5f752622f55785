"""Residual blocks in a row of our own kernels for Hopper's units: a window, and the products behind it.

What lies between the layers goes through memory, of which the second cache holds most where maps are small; in return
each layer is cut as suits it, and reaches the rate that it has as a step of its own. Joined blocks stay ahead where
maps are larger than that cache. Sixteen bits. Compiled by NVRTC when tuned; needs compute capability 9.0 and no other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Final

import torch

from penstock.engine.cuda.kernels.activations import ACTIVATIONS
from penstock.engine.cuda.kernels.epilogue import Scratch, added
from penstock.engine.cuda.kernels.tiles import Product
from penstock.engine.cuda.kernels.warpgroup_conv import Window, WindowTile, warpgroup_conv_launch, warpgroup_conv_tiles
from penstock.engine.cuda.kernels.warpgroup_gemm import WarpgroupTile, warpgroup_gemm_launch, warpgroup_tiles
from penstock.engine.cuda.sites import Site
from penstock.engine.cuda.warpgroup_steps import fills_pieces, runs_warpgroups
from penstock.engine.cuda.ways import Config, Launched, Ready, Tensors, Way, count, dtype_of, multiprocessors_of

_WINDOW: Final = 9  # numbers of a window's cut
_PRODUCT: Final = 7


def _pair(site: Site, name: str) -> tuple[int, int]:
    if name not in site.step.attributes:
        return 1, 1
    first, second, *_ = site.integers(name)
    return first, second


def _row(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> list[Launched]:
    del scratch
    site, constants, wide, source = ready.site, ready.constants, outputs[0], ready.site.index("source")
    middle = torch.empty((*wide.shape[:3], ready.weight.shape[0]), dtype=wide.dtype, device=wide.device)
    first, second, third = _split(site, ready.config)
    launches = [
        warpgroup_conv_launch(
            operands[0], ready.weight, out=middle, config=WindowTile(*first), stride=_pair(site, "strides"),
            padding=_pair(site, "pads"), dilation=_pair(site, "dilations"), bias=ready.bias,
            epilogue=ready.activation("inner_"), pdl=site.early,
        )
    ]  # fmt: skip
    bias = constants.get("second_bias")
    if source is None:
        launches.append(
            warpgroup_gemm_launch(
                middle, constants["second"], out=wide, config=WarpgroupTile(*second), bias=bias,
                residual=ready.residual(operands), epilogue=ready.epilogue, pdl=site.early,
            )
        )  # fmt: skip
    else:
        launches.append(
            warpgroup_conv_launch(
                middle, constants["second"][:, None, None, :], out=wide, config=WindowTile(*second), bias=bias,
                source=operands[source], shortcut=constants["shortcut"],
                source_stride=_pair(site, "shortcut_strides"), epilogue=ready.epilogue, pdl=site.early,
            )
        )  # fmt: skip
    if len(outputs) > 1:
        launches.append(
            warpgroup_gemm_launch(
                wide, constants["third"], out=outputs[1], config=WarpgroupTile(*third),
                bias=constants.get("third_bias"), epilogue=ready.activation("outer_"), pdl=site.early,
            )
        )  # fmt: skip
    return list(launches)


def _split(site: Site, config: Config) -> tuple[Config, Config, Config]:
    """The cut of each layer; none of one that is not there."""
    until = _WINDOW + (_PRODUCT if site.index("source") is None else _WINDOW)
    return config[:_WINDOW], config[_WINDOW:until], config[until:]


def _configs(site: Site) -> list[Config]:
    """The most promising cut of each layer together, then another one of a single layer at a time."""
    parts = _cuts(site)
    if not all(parts):
        return []
    best = [cuts[0] for cuts in parts]
    found = [best]
    for rank in range(1, max(map(len, parts))):
        # The last layers' cuts are the ones that are hard to tell apart: they move more than they multiply.
        for number in reversed(range(len(parts))):
            if rank < len(parts[number]):
                found.append([*best[:number], parts[number][rank], *best[number + 1 :]])
    return [tuple(number for cut in cuts for number in cut) for cuts in found]


def _cuts(site: Site) -> list[Sequence[Config]]:
    images, high, wide, filters = site.out_shape()
    middle, taps_high, taps_wide, channels = site.shape("weight")
    multiprocessors, rows = multiprocessors_of(site.device), count((images, high, wide))
    itemsize = dtype_of(site, 0).itemsize

    def windows(window: Window) -> Sequence[Config]:
        return [astuple(tile) for tile in warpgroup_conv_tiles(window, multiprocessors, False, itemsize)]

    def products(product: Product, residual: bool) -> Sequence[Config]:
        return [astuple(tile) for tile in warpgroup_tiles(product, multiprocessors, residual, itemsize)]

    first = Window(
        images, high, wide, middle, channels, taps_high, taps_wide, _pair(site, "strides"), _pair(site, "dilations"),
        itemsize,
    )  # fmt: skip
    found = [windows(first)]
    if site.index("source") is None:
        found.append(products(Product(rows, filters, middle, itemsize=itemsize), site.index("residual") is not None))
    else:
        others = site.shape("shortcut")[1]
        found.append(windows(Window(images, high, wide, filters, middle, 1, 1, itemsize=itemsize, others=others)))
    if site.step.operand("third") is not None:
        found.append(products(Product(rows, site.shape("third")[0], filters, itemsize=itemsize), False))
    return found


def _suits(site: Site) -> bool:
    known = all(site.text(name, "none") in ACTIVATIONS for name in ("inner", "activation", "outer"))
    return known and site.integer("groups") == 1 and fills_pieces(site) and runs_warpgroups(site)


def _one_bias(constants: dict[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Of what is added up."""
    roles = ("second_bias", "shortcut_bias")
    found = [constants[role] for role in roles if role in constants]
    rest = {role: each for role, each in constants.items() if role not in roles}
    return rest | ({"second_bias": added(found)} if found else {})


WARPGROUP_BLOCKS: Final[dict[tuple[str, str], Way]] = {
    (kind, "cuda_row"): Way(
        _row,
        _configs,
        forms=dict.fromkeys(("weight", "second", "third", "shortcut"), torch.Tensor.contiguous),
        suits=_suits,
        combined=_one_bias,
    )
    for kind in ("bottleneck", "bottleneck_next")
}
"""Kind and name -> kernels."""
