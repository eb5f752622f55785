"""Our kernels for a stem and the max pool behind it: both in one, or in a row; and for the picture before them.

The one in CUDA C++ (`kernels/stem_pool.py`) needs compute capability 9.0 and is compiled by NVRTC when tuned.
"""

from collections.abc import Mapping
from dataclasses import astuple, replace
from typing import Final

import torch

from penstock.engine.cuda.kernels.epilogue import Scratch, fold
from penstock.engine.cuda.kernels.implicit_gemm import conv2d_nhwc_launch
from penstock.engine.cuda.kernels.launching import Launch
from penstock.engine.cuda.kernels.max_pool import max_pool2d_nhwc_launch
from penstock.engine.cuda.kernels.resident import ResidentTile, resident_conv_launch, resident_tiles
from penstock.engine.cuda.kernels.stem_pool import StemCut, stem_cuts, stem_pool_launch
from penstock.engine.cuda.kernels.tiles import Product, Tile
from penstock.engine.cuda.kernels.warpgroup_stem import (
    StemRows,
    picture_stem_launch,
    stem_rows,
    warpgroup_stem_launch,
)
from penstock.engine.cuda.pictures import parts
from penstock.engine.cuda.sites import Site, seen
from penstock.engine.cuda.triton_moves import planes, suits_padding
from penstock.engine.cuda.warpgroup_steps import runs_warpgroups
from penstock.engine.cuda.ways import (
    Config,
    Launched,
    Ready,
    Tensors,
    Way,
    compiles_cpp,
    count,
    dtype_of,
    integers_or_narrow,
    multiprocessors_of,
    narrow_everywhere,
    tile_scratch,
    tiles_of,
)


def _one(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launched:
    del scratch
    bias = ready.bias
    assert bias is not None
    return stem_pool_launch(
        operands[0],
        ready.weight,
        bias,
        out=outputs[0],
        config=StemCut(*ready.config),
        scale=ready.scale,
        epilogue=ready.epilogue,
        pdl=ready.site.early,
    )


def _cuts(site: Site) -> list[Config]:
    images, high, _, _ = site.out_shape()
    return [astuple(cut) for cut in stem_cuts(images, high, multiprocessors_of(site.device))]


def _suits_one(site: Site) -> bool:
    return compiles_cpp(site) and _is_usual(site)


def _units(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launched:
    del scratch
    bias = ready.bias
    assert bias is not None
    return warpgroup_stem_launch(
        operands[0],
        ready.weight,
        bias,
        out=outputs[0],
        config=StemRows(*ready.config),
        epilogue=ready.epilogue,
        pdl=ready.site.early,
    )


def _unit_cuts(site: Site) -> list[Config]:
    images, high, _, _ = site.out_shape()
    return [astuple(cut) for cut in stem_rows(images, high, multiprocessors_of(site.device))]


def _suits_units(site: Site) -> bool:
    return _is_usual(site) and runs_warpgroups(site)


def _is_usual(site: Site) -> bool:
    pool = tuple(site.integers(f"pool_{name}") for name in ("kernel", "strides", "pads"))
    window = tuple(site.integers(name) for name in ("strides", "pads", "dilations"))
    return (pool, window) == (((3, 3), (2, 2), (1, 1, 1, 1)), ((2, 1), (0, 0, 0, 0), (1, 1)))


def _folded(site: Site, constants: dict[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """In steps of the result where that has some."""
    step = site.out_scale()
    if step is None:
        return constants
    scale, bias = fold(constants["scale"], constants.get("bias"), step, 0)
    return {**constants, "scale": scale, "bias": bias}


def _with_bias(constants: dict[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    weight = constants["weight"]
    zeros = torch.zeros(weight.shape[0], dtype=torch.float32, device=weight.device)
    return {"bias": zeros, **constants}


def _row(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> list[Launch]:
    site, out = ready.site, outputs[0]
    between = _empty_between(site, out)
    strides, pads, dilations = _window(site)
    stem = conv2d_nhwc_launch(
        operands[0], ready.weight, out=between, config=Tile(*ready.config), bias=ready.bias, scale=ready.scale,
        epilogue=ready.epilogue, stride=strides, padding=pads, dilation=dilations, scratch=scratch, pdl=site.early,
    )  # fmt: skip
    return [stem, _pool(site, between, out)]


def _resident_row(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> list[Launch]:
    del scratch
    site, out = ready.site, outputs[0]
    between = _empty_between(site, out)
    strides, pads, dilations = _window(site)
    stem = resident_conv_launch(
        operands[0], ready.weight, out=between, config=ResidentTile(*ready.config), bias=ready.bias, scale=ready.scale,
        epilogue=ready.epilogue, stride=strides, padding=pads, dilation=dilations,
        multiprocessors=multiprocessors_of(site.device), pdl=site.early,
    )  # fmt: skip
    return [stem, _pool(site, between, out)]


_Pair = tuple[int, int]


def _window(site: Site) -> tuple[_Pair, _Pair, _Pair]:
    """Strides, pads and dilations."""
    strides, pads, dilations = (site.integers(name) for name in ("strides", "pads", "dilations"))
    return (strides[0], strides[1]), (pads[0], pads[1]), (dilations[0], dilations[1])


def _empty_between(site: Site, out: torch.Tensor) -> torch.Tensor:
    high, wide = _between(site)
    return torch.empty((out.shape[0], high, wide, out.shape[3]), dtype=out.dtype, device=out.device)


def _pool(site: Site, between: torch.Tensor, out: torch.Tensor) -> Launch:
    kernel, steps, around = (site.integers(f"pool_{name}") for name in ("kernel", "strides", "pads"))
    return max_pool2d_nhwc_launch(
        between, window=(kernel[0], kernel[1]), stride=(steps[0], steps[1]), padding=(around[0], around[1]), out=out,
        pdl=site.early,
    )  # fmt: skip


def _between(site: Site) -> tuple[int, int]:
    """Rows and columns of what the convolution makes."""
    sizes, taps = site.shape("x")[1:3], site.shape("weight")[1:3]
    strides, (top, left, bottom, right), dilations = (
        site.integers("strides"), site.integers("pads"), site.integers("dilations"),
    )  # fmt: skip
    high, wide = (
        (size + around - (tap - 1) * apart - 1) // stride + 1
        for size, around, tap, apart, stride in zip(
            sizes, (top + bottom, left + right), taps, dilations, strides, strict=True
        )
    )
    return high, wide


def _product(site: Site) -> Product:
    filters, taps_high, taps_wide, channels = site.shape("weight")
    rows = site.out_shape()[0] * count(_between(site))
    return Product(rows, filters, channels, taps_high * taps_wide, itemsize=dtype_of(site, 0).itemsize)


def _row_tiles(site: Site) -> tuple[Config, ...]:
    return tiles_of(_product(site), multiprocessors_of(site.device))


def _row_scratch(site: Site, config: Config) -> tuple[int, int]:
    return tile_scratch(_product(site), config)


def _resident_row_tiles(site: Site) -> list[Config]:
    return [astuple(tile) for tile in resident_tiles(_product(site), False, multiprocessors_of(site.device))]


def _suits_row(site: Site) -> bool:
    return site.integer("groups") == 1


# ---- from the picture on ----


def _picture(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launched:
    del scratch
    site, bias = ready.site, ready.bias
    assert bias is not None
    top, left = site.integers("begin")[1:3]
    return picture_stem_launch(
        operands[site.index("x") or 0].permute(0, 3, 1, 2),
        ready.weight,
        bias,
        out=outputs[0],
        config=StemRows(*ready.config),
        corner=(top, left),
        epilogue=ready.epilogue,
        pdl=site.early,
    )


def _suits_picture(site: Site) -> bool:
    return suits_padding(parts(site)[0]) and _suits_units(parts(site)[1])


def _behind_padding(way: Way) -> Way:
    """What lays the picture out, and the step behind it as it would be by itself."""

    def build(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> list[Launched]:
        first, second = parts(ready.site)
        at = ready.site.index("x") or 0
        laid_out = outputs[0].new_empty(first.out_shape())
        before = planes(Ready(first, (), {}), [operands[at]], [laid_out], None)
        windows = seen(laid_out, second.step.inputs[at])
        rest = [windows if number == at else each for number, each in enumerate(operands)]
        return [before, *way.launches(replace(ready, site=second), rest, outputs, scratch)]

    return Way(
        build,
        lambda site: way.configs(parts(site)[1]),
        lambda site, config: way.scratch(parts(site)[1], config),
        way.forms,
        lambda site: suits_padding(parts(site)[0]) and way.suits(parts(site)[1]),
        lambda site: dtype_of(site, 0).is_floating_point and narrow_everywhere(parts(site)[1]),
        combined=way.combined,
    )


_STEMS: Final[dict[str, Way]] = {
    "cuda_units": Way(_units, _unit_cuts, suits=_suits_units, combined=_with_bias),
    "cuda_stem": Way(
        _one, _cuts, suits=_suits_one, types=integers_or_narrow, scales=True, folded=_folded, combined=_with_bias
    ),
    "triton_row": Way(_row, _row_tiles, _row_scratch, suits=_suits_row, types=integers_or_narrow, scales=True),
    "triton_resident_row": Way(
        _resident_row, _resident_row_tiles, suits=_suits_row, types=integers_or_narrow, scales=True
    ),
}

STEMS: Final[dict[tuple[str, str], Way]] = {
    ("picture_pool", "cuda_picture"): Way(
        _picture,
        lambda site: _unit_cuts(parts(site)[1]),
        suits=_suits_picture,
        types=lambda site: dtype_of(site, 0).is_floating_point and narrow_everywhere(parts(site)[1]),
        combined=_with_bias,
    ),
    **{("conv_pool", name): way for name, way in _STEMS.items()},
    **{("picture_pool", name): _behind_padding(way) for name, way in _STEMS.items()},
}
"""Kind and name -> kernels."""
