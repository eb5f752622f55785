"""Our kernels for the layers of a residual block: all in one, or in a row of kernels.

`triton` keeps what lies between the layers on the chip, `triton_row` has a kernel for each, as separate steps would:
where there are few pixels the rows of a block leave most of the chip idle. Both are timed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Final

import torch

from penstock.engine.cuda.kernels.activations import ACTIVATIONS
from penstock.engine.cuda.kernels.bottleneck import BottleneckTile, Steps, Widths, bottleneck_launch, bottleneck_tiles
from penstock.engine.cuda.kernels.epilogue import Scratch, fold
from penstock.engine.cuda.kernels.implicit_gemm import conv2d_nhwc_launch
from penstock.engine.cuda.kernels.launching import Launch
from penstock.engine.cuda.kernels.tiles import Product, Tile
from penstock.engine.cuda.kernels.window_conv import window_conv_launch, window_product
from penstock.engine.cuda.sites import Site
from penstock.engine.cuda.ways import (
    Config,
    Form,
    Ready,
    Tensors,
    Way,
    count,
    dtype_of,
    multiprocessors_of,
    narrow_everywhere,
    tile_scratch,
    tiles_of,
)

_TILE: Final = 7  # numbers of a product's cut
_WINDOWS: Final = 5  # cuts of a window that are timed
_FEW_PIXELS: Final = 2048


def _dense(weight: torch.Tensor) -> torch.Tensor:
    return weight.contiguous()


_FORMS: Final[dict[str, Form]] = dict.fromkeys(("weight", "second", "third", "shortcut"), _dense)


def _pair(site: Site, name: str) -> tuple[int, int]:
    if name not in site.step.attributes:
        return 1, 1
    numbers = site.integers(name)
    return numbers[0], numbers[1]


def _rows(site: Site) -> int:
    return count(site.out_shape()[:3])


def _taps(site: Site) -> int:
    weight = site.shape("weight")
    return weight[1] * weight[2]


# ---- a convolution and a shortcut ----


def _conv_shortcut(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launch:
    site, constants = ready.site, ready.constants
    source = site.index("source")
    assert source is not None
    return window_conv_launch(
        operands[0],
        ready.weight,
        operands[source],
        constants["shortcut"],
        out=outputs[0],
        config=Tile(*ready.config),
        bias=ready.bias,
        shortcut_bias=constants.get("shortcut_bias"),
        epilogue=ready.epilogue,
        stride=_pair(site, "strides"),
        padding=_pair(site, "pads"),
        dilation=_pair(site, "dilations"),
        source_stride=_pair(site, "shortcut_strides"),
        scratch=scratch,
        pdl=site.early,
    )


def _both(site: Site) -> Product:
    filters, _, _, channels = site.shape("weight")
    return window_product(_rows(site), filters, channels, _taps(site), site.shape("shortcut")[1])


def _conv_shortcut_tiles(site: Site) -> list[Config]:
    product = _both(site)
    found = tiles_of(product, multiprocessors_of(site.device))
    return [config for config in found if product.channels % Tile(*config).block_k == 0]


def _conv_shortcut_scratch(site: Site, config: Config) -> tuple[int, int]:
    return tile_scratch(_both(site), config)


def _suits_conv_shortcut(site: Site) -> bool:
    return site.integer("groups") == 1


# ---- a window, all taps of a few channels at a time ----


def _window(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launch:
    site = ready.site
    return window_conv_launch(
        operands[0],
        ready.weight,
        out=outputs[0],
        config=Tile(*ready.config),
        bias=ready.bias,
        residual=ready.residual(operands),
        epilogue=ready.epilogue,
        stride=_pair(site, "strides"),
        padding=_pair(site, "pads"),
        dilation=_pair(site, "dilations"),
        scratch=scratch,
        pdl=site.early,
    )


def _of_window(site: Site) -> Product:
    filters, _, _, channels = site.shape("weight")
    return window_product(_rows(site), filters, channels, _taps(site))


def _window_tiles(site: Site) -> list[Config]:
    product = _of_window(site)
    found = tiles_of(product, multiprocessors_of(site.device))
    return [config for config in found if product.channels % Tile(*config).block_k == 0][:_WINDOWS]


def _window_scratch(site: Site, config: Config) -> tuple[int, int]:
    return tile_scratch(_of_window(site), config)


def _suits_window(site: Site) -> bool:
    """Where pixels are read more than once, and often enough for the order to matter."""
    channels = site.shape("weight")[3]
    return site.integer("groups") == 1 and _taps(site) > 1 and channels % 32 == 0 and _rows(site) >= _FEW_PIXELS


# ---- a bottleneck in one kernel ----


def _bottleneck(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launch:
    del scratch
    site, constants = ready.site, ready.constants
    source = site.index("source")
    return bottleneck_launch(
        operands[0],
        ready.weight,
        ready.bias,
        constants["second"],
        constants.get("second_bias"),
        wide=outputs[0],
        config=BottleneckTile(*ready.config),
        inner=ready.activation("inner_"),
        epilogue=ready.epilogue,
        residual=ready.residual(operands),
        source=None if source is None else operands[source],
        shortcut=constants.get("shortcut"),
        shortcut_bias=constants.get("shortcut_bias"),
        source_stride=_pair(site, "shortcut_strides"),
        third=constants.get("third"),
        third_bias=constants.get("third_bias"),
        out=outputs[1] if len(outputs) > 1 else None,
        outer=ready.activation("outer_"),
        stride=_pair(site, "strides"),
        padding=_pair(site, "pads"),
        dilation=_pair(site, "dilations"),
        steps=_steps(ready),
        pdl=site.early,
    )


def _integers(site: Site) -> bool:
    return site.step.operand("scale") is not None


def _steps(ready: Ready) -> Steps | None:
    constants, site = ready.constants, ready.site
    if not _integers(site):
        return None
    index, shortcut = site.index("residual"), constants.get("shortcut_scale")
    added = None if index is None else site.scale(index)
    worth = 1.0 if added is None else added / ready.out_scale
    return Steps(constants["scale"], constants["second_scale"], constants.get("third_scale"), shortcut, worth)


def _folded(site: Site, constants: dict[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Each layer's sums in steps of what is made of them."""
    found = dict(constants)
    wide = site.out_scale() or 1.0
    steps = {"weight": site.number("inner_step"), "second": wide, "shortcut": wide}
    if len(site.step.outputs) > 1:
        steps["third"] = site.out_scale(1) or 1.0
    for role, step in steps.items():
        if role not in constants:
            continue
        prefix = "" if role == "weight" else f"{role}_"
        scale, bias = constants[f"{prefix}scale"], constants.get(f"{prefix}bias")
        largest = constants[role][0].numel() * 128 * 128
        found[f"{prefix}scale"], found[f"{prefix}bias"] = fold(scale, bias, step, largest)
    return found


def _types(site: Site) -> bool:
    """16 bits, or INT8 from end to end."""
    if not _integers(site):
        return narrow_everywhere(site)
    outputs = range(len(site.step.outputs))
    return dtype_of(site, 0) == torch.int8 and all(site.out_dtype(index) == torch.int8 for index in outputs)


def _bottleneck_tiles(site: Site) -> list[Config]:
    middle, _, _, channels = site.shape("weight")
    out, shortcut = site.step.operand("third"), site.step.operand("shortcut")
    widths = Widths(
        channels,
        middle,
        site.out_shape()[3],
        0 if out is None else site.shape("third")[0],
        0 if shortcut is None else site.shape("shortcut")[1],
        _taps(site),
        dtype_of(site, 0).itemsize,
    )
    return [astuple(tile) for tile in bottleneck_tiles(_rows(site), widths, multiprocessors_of(site.device))]


def _suits_bottleneck(site: Site) -> bool:
    names = ("inner", "activation", "outer")
    return site.integer("groups") == 1 and all(site.text(name, "none") in ACTIVATIONS for name in names)


# ---- a bottleneck in a row of kernels ----


def _row(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> list[Launch]:
    site, constants = ready.site, ready.constants
    wide, source = outputs[0], site.index("source")
    middle = torch.empty((*wide.shape[:3], ready.weight.shape[0]), dtype=wide.dtype, device=wide.device)
    tiles = [Tile(*ready.config[at : at + _TILE]) for at in range(0, len(ready.config), _TILE)]
    second = constants["second"][:, None, None, :]
    launches = [
        conv2d_nhwc_launch(
            operands[0], ready.weight, out=middle, config=tiles[0], bias=ready.bias,
            epilogue=ready.activation("inner_"), stride=_pair(site, "strides"), padding=_pair(site, "pads"),
            dilation=_pair(site, "dilations"), scratch=scratch, pdl=site.early,
        )
    ]  # fmt: skip
    if source is None:
        launches.append(
            conv2d_nhwc_launch(
                middle, second, out=wide, config=tiles[1], bias=constants.get("second_bias"),
                residual=ready.residual(operands), epilogue=ready.epilogue, scratch=scratch, pdl=site.early,
            )
        )  # fmt: skip
    else:
        launches.append(
            window_conv_launch(
                middle, second, operands[source], constants["shortcut"], out=wide, config=tiles[1],
                bias=constants.get("second_bias"), shortcut_bias=constants.get("shortcut_bias"),
                epilogue=ready.epilogue, source_stride=_pair(site, "shortcut_strides"), scratch=scratch, pdl=site.early,
            )
        )  # fmt: skip
    if len(outputs) > 1:
        launches.append(
            conv2d_nhwc_launch(
                wide, constants["third"][:, None, None, :], out=outputs[1], config=tiles[2],
                bias=constants.get("third_bias"), epilogue=ready.activation("outer_"), scratch=scratch, pdl=site.early,
            )
        )  # fmt: skip
    return launches


def _products(site: Site) -> list[Product]:
    middle, _, _, channels = site.shape("weight")
    wide, rows = site.out_shape()[3], _rows(site)
    second = Product(rows, wide, middle)
    if site.step.operand("shortcut") is not None:
        second = window_product(rows, wide, middle, 1, site.shape("shortcut")[1])
    third = [Product(rows, site.shape("third")[0], wide)] if site.step.operand("third") is not None else []
    return [Product(rows, middle, channels, _taps(site)), second, *third]


def _row_tiles(site: Site) -> list[Config]:
    """The best of each with the best of the others, and so on."""
    found: list[Sequence[Config]] = []
    for number, product in enumerate(_products(site)):
        tiles = tiles_of(product, multiprocessors_of(site.device))
        whole = number == 1 and site.step.operand("shortcut") is not None
        found.append([each for each in tiles if not whole or product.channels % Tile(*each).block_k == 0])
    length = max(map(len, found))
    return [tuple(number for each in found for number in each[min(at, len(each) - 1)]) for at in range(length)]


def _row_scratch(site: Site, config: Config) -> tuple[int, int]:
    """One after the other in the same memory."""
    needs = [tile_scratch(product, config[at * _TILE : (at + 1) * _TILE]) for at, product in enumerate(_products(site))]
    return max(floats for floats, _ in needs), max(counters for _, counters in needs)


BLOCKS: Final[dict[tuple[str, str], Way]] = {
    ("conv", "triton_window"): Way(_window, _window_tiles, _window_scratch, {"weight": _dense}, _suits_window),
    ("conv_shortcut", "triton"): Way(
        _conv_shortcut, _conv_shortcut_tiles, _conv_shortcut_scratch, _FORMS, _suits_conv_shortcut
    ),
    **{
        (kind, name): way
        for kind in ("bottleneck", "bottleneck_next")
        for name, way in (
            (
                "triton",
                Way(
                    _bottleneck,
                    _bottleneck_tiles,
                    forms=_FORMS,
                    suits=_suits_bottleneck,
                    types=_types,
                    scales=True,
                    folded=_folded,
                ),
            ),
            ("triton_row", Way(_row, _row_tiles, _row_scratch, _FORMS, _suits_bottleneck)),
        )
    },
}
"""Kind and name -> kernels."""
