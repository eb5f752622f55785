"""Matrix products and convolutions by our own kernel for Hopper's units.

`cuda_warpgroups` are products and convolutions that are such (`kernels/warpgroup_gemm.py`), `cuda_windows` convolutions
with windows (`kernels/warpgroup_conv.py`).

Compiled by NVRTC when tuned. Needs compute capability 9.0; elsewhere, and for tensors that the copying unit does not
take, the other implementations stay.
"""

from collections.abc import Mapping
from dataclasses import astuple
from typing import Final

import torch

from penstock.engine.cuda.kernels.driver import HOPPER
from penstock.engine.cuda.kernels.epilogue import Scratch, added
from penstock.engine.cuda.kernels.tiles import Product
from penstock.engine.cuda.kernels.warpgroup_conv import (
    Window,
    WindowTile,
    warpgroup_conv_launch,
    warpgroup_conv_tiles,
)
from penstock.engine.cuda.kernels.warpgroup_gemm import LINE, WarpgroupTile, warpgroup_gemm_launch, warpgroup_tiles
from penstock.engine.cuda.sites import Site, capability
from penstock.engine.cuda.ways import (
    Config,
    Launched,
    Ready,
    Tensors,
    Way,
    compiles_cpp,
    count,
    dtype_of,
    eight_or_narrow,
    multiplying,
    multiprocessors_of,
)

_multiply: Final = multiplying(warpgroup_gemm_launch, WarpgroupTile)


def _tiles(site: Site) -> list[Config]:
    weight, out = site.shape("weight"), site.out_shape()
    product = Product(count(out[:-1]), weight[0], weight[-1], itemsize=dtype_of(site, 0).itemsize)
    residual = site.index("residual") is not None
    found = warpgroup_tiles(product, multiprocessors_of(site.device), residual, site.out_dtype().itemsize)
    return [astuple(tile) for tile in found]


def runs_warpgroups(site: Site) -> bool:
    """Whether the device has the units, and here is a compiler."""
    return compiles_cpp(site) and capability(site.device) == HOPPER


def _suits_conv(site: Site) -> bool:
    """One pixel in, one out."""
    plain = site.shape("weight")[1:3] == (1, 1) and set(site.integers("strides")) == {1}
    here = site.out_shape()[:3] == site.shape("x")[:3] and not any(site.integers("pads"))
    return bool(plain and here and site.integer("groups") == 1 and runs_warpgroups(site))


def _slide(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launched:
    del scratch
    site, source = ready.site, ready.site.index("source")
    return warpgroup_conv_launch(
        operands[0],
        ready.weight,
        out=outputs[0],
        config=WindowTile(*ready.config),
        stride=_pair(site, "strides"),
        padding=_pair(site, "pads"),
        dilation=_pair(site, "dilations"),
        source=None if source is None else operands[source],
        shortcut=ready.constants.get("shortcut"),
        source_stride=_pair(site, "shortcut_strides"),
        bias=ready.bias,
        residual=ready.residual(operands),
        scale=ready.scale,
        epilogue=ready.epilogue,
        pdl=site.early,
    )


def _window_tiles(site: Site) -> list[Config]:
    images, high, wide, filters = site.out_shape()
    _, taps_high, taps_wide, channels = site.shape("weight")
    window = Window(
        images, high, wide, filters, channels, taps_high, taps_wide, _pair(site, "strides"), _pair(site, "dilations"),
        dtype_of(site, 0).itemsize, 0 if site.index("source") is None else site.shape("shortcut")[1],
    )  # fmt: skip
    residual = site.index("residual") is not None
    found = warpgroup_conv_tiles(window, multiprocessors_of(site.device), residual, site.out_dtype().itemsize)
    return [astuple(tile) for tile in found]


def fills_pieces(site: Site) -> bool:
    """Whether a window's channels fill most of the pieces that they are loaded in; others waste the units."""
    channels, itemsize = site.shape("weight")[3], dtype_of(site, 0).itemsize
    whole = LINE // itemsize if channels * itemsize > LINE // 2 else LINE // 2 // itemsize
    return bool(channels * 4 >= -(-channels // whole) * whole * 3)


def _suits_windows(site: Site) -> bool:
    """What is a product as it lies there is one."""
    product = site.step.kind == "conv" and _suits_conv(site)
    return site.integer("groups") == 1 and fills_pieces(site) and not product and runs_warpgroups(site)


def _one_bias(constants: dict[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Of both products."""
    found = [constants[role] for role in ("bias", "shortcut_bias") if role in constants]
    rest = {role: each for role, each in constants.items() if role not in ("bias", "shortcut_bias")}
    return rest | ({"bias": added(found)} if found else {})


def _pair(site: Site, name: str) -> tuple[int, int]:
    if name not in site.step.attributes:
        return 1, 1
    first, second, *_ = site.integers(name)
    return first, second


WINDOWS: Final[dict[tuple[str, str], Way]] = {
    ("conv", "cuda_windows"): Way(_slide, _window_tiles, suits=_suits_windows, types=eight_or_narrow, scales=True),
    ("conv_shortcut", "cuda_windows"): Way(
        _slide,
        _window_tiles,
        forms=dict.fromkeys(("weight", "shortcut"), torch.Tensor.contiguous),
        suits=_suits_windows,
        combined=_one_bias,
    ),
}
"""The same, of what is tried before others: compiled in half a second, and where it fits mostly the fastest."""

PRODUCTS: Final[dict[tuple[str, str], Way]] = {
    ("gemm", "cuda_warpgroups"): Way(_multiply, _tiles, suits=runs_warpgroups, types=eight_or_narrow, scales=True),
    ("conv", "cuda_warpgroups"): Way(_multiply, _tiles, suits=_suits_conv, types=eight_or_narrow, scales=True),
}
"""Kind and name -> kernel."""
