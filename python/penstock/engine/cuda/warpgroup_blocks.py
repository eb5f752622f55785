"""Residual blocks in a row of our own kernels for Hopper's units: a window, and the products behind it.

What lies between the layers goes through memory, of which the second cache holds most where maps are small; in return
each layer is cut as suits it, and reaches the rate that it has as a step of its own. In `cuda_row` each layer is a
kernel, in `cuda_pair` the last two are one (`kernels/warpgroup_pair.py`): what the block writes is the largest map, and
is not read again. Sixteen bits. Compiled by NVRTC when tuned; needs compute capability 9.0 and no other.
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
from penstock.engine.cuda.kernels.warpgroup_pair import Pair, PairTile, pair_tiles, warpgroup_pair_launch
from penstock.engine.cuda.sites import Site
from penstock.engine.cuda.warpgroup_steps import fills_pieces, runs_warpgroups
from penstock.engine.cuda.ways import Config, Form, Launched, Ready, Tensors, Way, count, dtype_of, multiprocessors_of

_WINDOW: Final = 9  # numbers of a window's cut
_PRODUCT: Final = 7
_VARIANTS: Final = 5  # of the most promising cuts together: all were within a microsecond or two of these


def _pair(site: Site, name: str) -> tuple[int, int]:
    if name not in site.step.attributes:
        return 1, 1
    first, second, *_ = site.integers(name)
    return first, second


def _window(ready: Ready, operands: Tensors, out: torch.Tensor, config: Config) -> Launched:
    site = ready.site
    return warpgroup_conv_launch(
        operands[0], ready.weight, out=out, config=WindowTile(*config), stride=_pair(site, "strides"),
        padding=_pair(site, "pads"), dilation=_pair(site, "dilations"), bias=ready.bias,
        epilogue=ready.activation("inner_"), pdl=site.early,
    )  # fmt: skip


def _between(ready: Ready, wide: torch.Tensor) -> torch.Tensor:
    return torch.empty((*wide.shape[:3], ready.weight.shape[0]), dtype=wide.dtype, device=wide.device)


def _row(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> list[Launched]:
    del scratch
    site, constants, wide, source = ready.site, ready.constants, outputs[0], ready.site.index("source")
    middle = _between(ready, wide)
    first, second, third = _split(site, ready.config)
    launches = [_window(ready, operands, middle, first)]
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
    return launches


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
    return [tuple(number for cut in cuts for number in cut) for cuts in found[: 1 + _VARIANTS]]


def _windows(site: Site) -> list[Config]:
    """Cuts of the first layer."""
    images, high, wide, _ = site.out_shape()
    middle, taps_high, taps_wide, channels = site.shape("weight")
    window = Window(
        images, high, wide, middle, channels, taps_high, taps_wide, _pair(site, "strides"), _pair(site, "dilations"),
        dtype_of(site, 0).itemsize,
    )  # fmt: skip
    return [astuple(tile) for tile in warpgroup_conv_tiles(window, multiprocessors_of(site.device), False)]


def _cuts(site: Site) -> list[Sequence[Config]]:
    images, high, wide, filters = site.out_shape()
    middle, multiprocessors = site.shape("weight")[0], multiprocessors_of(site.device)
    rows, itemsize = count((images, high, wide)), dtype_of(site, 0).itemsize

    def products(product: Product, residual: bool) -> Sequence[Config]:
        return [astuple(tile) for tile in warpgroup_tiles(product, multiprocessors, residual, itemsize)]

    found: list[Sequence[Config]] = [_windows(site)]
    if site.index("source") is None:
        found.append(products(Product(rows, filters, middle, itemsize=itemsize), site.index("residual") is not None))
    else:
        others = site.shape("shortcut")[1]
        window = Window(images, high, wide, filters, middle, 1, 1, itemsize=itemsize, others=others)
        found.append([astuple(tile) for tile in warpgroup_conv_tiles(window, multiprocessors, False, itemsize)])
    if site.step.operand("third") is not None:
        found.append(products(Product(rows, site.shape("third")[0], filters, itemsize=itemsize), False))
    return found


# ---- a window, and both products in one ----


def _two(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> list[Launched]:
    del scratch
    site, constants, (wide, out) = ready.site, ready.constants, outputs
    middle, source = _between(ready, wide), site.index("source")
    return [
        _window(ready, operands, middle, ready.config[:_WINDOW]),
        warpgroup_pair_launch(
            middle, constants["second"], constants["third"], constants["second_bias"], constants["third_bias"],
            wide=wide, out=out, config=PairTile(*ready.config[_WINDOW:]), residual=ready.residual(operands),
            source=None if source is None else operands[source], shortcut=constants.get("shortcut"),
            epilogue=ready.epilogue, outer=ready.activation("outer_"), pdl=site.early,
        ),
    ]  # fmt: skip


def _two_configs(site: Site) -> list[Config]:
    """As `_configs`, of which the window's cuts come last: there the row of kernels knows which is best."""
    windows, (out, wide) = _windows(site), site.shape("third")
    others = 0 if site.index("source") is None else site.shape("shortcut")[1]
    pair = Pair(count(site.out_shape()[:3]), site.shape("weight")[0], others, wide, out)
    tiles = [astuple(tile) for tile in pair_tiles(pair, multiprocessors_of(site.device))]
    if not windows or not tiles:
        return []
    found = [(*windows[0], *tile) for tile in tiles] + [(*window, *tiles[0]) for window in windows[1:]]
    return found[: 1 + _VARIANTS]


def _suits_two(site: Site) -> bool:
    return _suits(site) and _pair(site, "shortcut_strides") == (1, 1)


def _with_biases(constants: dict[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    found = dict(_one_bias(constants))
    for role in ("second", "third"):
        weight = constants[role]
        zeros = torch.zeros(weight.shape[0], dtype=torch.float32, device=weight.device)
        found.setdefault(f"{role}_bias", zeros)
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


_FORMS: Final[dict[str, Form]] = dict.fromkeys(("weight", "second", "third", "shortcut"), torch.Tensor.contiguous)

WARPGROUP_BLOCKS: Final[dict[tuple[str, str], Way]] = {
    **{
        (kind, "cuda_row"): Way(_row, _configs, forms=_FORMS, suits=_suits, combined=_one_bias)
        for kind in ("bottleneck", "bottleneck_next")
    },
    ("bottleneck_next", "cuda_pair"): Way(_two, _two_configs, forms=_FORMS, suits=_suits_two, combined=_with_biases),
}
"""Kind and name -> kernels."""
