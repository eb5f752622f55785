"""Our kernels as implementations of steps: `triton` and `triton_depthwise`, each with the cuts worth timing.

A step fits where the kernel itself accepts its tensors: the launch is built on tensors without memory, and whatever
the kernel refuses (strides, types, shapes) does not fit. The same launches, for a configuration, are what a tuner
compiles ahead. Biases and norms' weights are kept in FP32. Imported where Triton is wanted, never before.
"""

from collections.abc import Callable, Sequence
from dataclasses import astuple, replace
from typing import Final

import torch

from penstock.engine.cuda import workspace
from penstock.engine.cuda.cluster_steps import CLUSTERS
from penstock.engine.cuda.depthwise_steps import WALKS, types_of_two
from penstock.engine.cuda.free_steps import FREE
from penstock.engine.cuda.group_steps import GROUPS
from penstock.engine.cuda.implementations import IMPLEMENTATIONS, Implementation, register, writing
from penstock.engine.cuda.kernels.activations import ACTIVATIONS
from penstock.engine.cuda.kernels.depthwise import DepthwiseTile, depthwise_conv2d_nhwc_launch, depthwise_tiles
from penstock.engine.cuda.kernels.epilogue import Scratch, fold
from penstock.engine.cuda.kernels.expand_depthwise import ExpandTile, expand_depthwise_launch, expand_tiles
from penstock.engine.cuda.kernels.implicit_gemm import conv2d_nhwc_launch, gemm_launch
from penstock.engine.cuda.kernels.implicit_gemm_kernel import implicit_gemm_kernel
from penstock.engine.cuda.kernels.launching import Launch, interpreted
from penstock.engine.cuda.kernels.resident import ResidentTile, resident_conv_launch, resident_tiles
from penstock.engine.cuda.kernels.tiles import Product, Tile
from penstock.engine.cuda.lane_blocks import LANE_BLOCKS
from penstock.engine.cuda.recurrent import RECURRENT
from penstock.engine.cuda.short_steps import SHORT
from penstock.engine.cuda.sites import RunInto, Site, seen
from penstock.engine.cuda.tile_steps import TILED
from penstock.engine.cuda.triton_blocks import BLOCKS
from penstock.engine.cuda.triton_dense import DENSE
from penstock.engine.cuda.triton_joined import JOINED, LAYERS, depthwise_and_gate, suits_gate_layers, sums_scratch
from penstock.engine.cuda.triton_moves import MOVES
from penstock.engine.cuda.triton_pointwise import WRITTEN
from penstock.engine.cuda.triton_pools import POOLS
from penstock.engine.cuda.triton_stems import STEMS
from penstock.engine.cuda.triton_tokens import TOKENS
from penstock.engine.cuda.warpgroup_blocks import WARPGROUP_BLOCKS
from penstock.engine.cuda.warpgroup_steps import PRODUCTS, WINDOWS
from penstock.engine.cuda.ways import (
    Config,
    Launched,
    Ready,
    Tensors,
    Way,
    count,
    dtype_of,
    eight_or_narrow,
    float_weights,
    integers_or_narrow,
    multiprocessors_of,
    tile_scratch,
    tiles_of,
)
from penstock.errors import InvalidArgument

# ---- products ----


def _product(site: Site) -> Product:
    weight, itemsize = site.shape("weight"), dtype_of(site, 0).itemsize
    if site.step.kind == "gemm":
        n, k = weight
        size = site.shape("x")
        return Product(count(size) // k, n, k, itemsize=itemsize)
    out = site.out_shape()
    return Product(count(out[:3]), out[3], weight[3], weight[1] * weight[2], itemsize=itemsize)


def _tiles(site: Site) -> tuple[Config, ...]:
    return tiles_of(_product(site), multiprocessors_of(site.device))


def _tile_scratch(site: Site, config: Config) -> tuple[int, int]:
    return tile_scratch(_product(site), config)


def _conv(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launch:
    site = ready.site
    strides, pads, dilations = (site.integers(name) for name in ("strides", "pads", "dilations"))
    return conv2d_nhwc_launch(
        operands[0],
        ready.weight,
        out=outputs[0],
        config=Tile(*ready.config),
        bias=ready.bias,
        residual=ready.residual(operands),
        scale=ready.scale,
        epilogue=ready.epilogue,
        stride=_pair(strides),
        padding=_pair(pads),
        dilation=_pair(dilations),
        scratch=scratch,
        pdl=site.early,
    )


def _gemm(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launch:
    n, k = ready.weight.shape
    residual = ready.residual(operands)
    if residual is not None and residual.shape != outputs[0].shape:
        raise ValueError("residual: expected the result's shape")
    return gemm_launch(
        operands[0].view(-1, k),
        ready.weight,
        out=outputs[0].view(-1, n),
        config=Tile(*ready.config),
        bias=ready.bias,
        residual=None if residual is None else residual.view(-1, n),
        scale=ready.scale,
        epilogue=ready.epilogue,
        scratch=scratch,
        pdl=ready.site.early,
    )


def _resident(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launch:
    """A product is a convolution of a picture one pixel wide."""
    del scratch
    site, weight, residual = ready.site, ready.weight, ready.residual(operands)
    if residual is not None and residual.shape != outputs[0].shape:
        raise ValueError("residual: expected the result's shape")
    x, out = operands[0], outputs[0]
    strides = pads = dilations = (1, 1)
    if site.step.kind == "gemm":
        n, k = weight.shape
        x, out, weight, pads = x.view(1, -1, 1, k), out.view(1, -1, 1, n), weight[:, None, None, :], (0, 0)
        residual = None if residual is None else residual.view(1, -1, 1, n)
    else:
        strides, pads, dilations = (_pair(site.integers(name)) for name in ("strides", "pads", "dilations"))
    return resident_conv_launch(
        x,
        weight,
        out=out,
        config=ResidentTile(*ready.config),
        bias=ready.bias,
        residual=residual,
        scale=ready.scale,
        epilogue=ready.epilogue,
        stride=strides,
        padding=pads,
        dilation=dilations,
        multiprocessors=multiprocessors_of(site.device),
        pdl=site.early,
    )


def _resident_tiles(site: Site) -> list[Config]:
    residual = site.step.operand("residual") is not None
    return [astuple(tile) for tile in resident_tiles(_product(site), residual, multiprocessors_of(site.device))]


# ---- one channel at a time, one row, one head ----


def _depthwise(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launch:
    del scratch
    return _filtered(ready, operands, outputs[0], None)


def _filtered(
    ready: Ready, operands: Tensors, out: torch.Tensor, sums: torch.Tensor | None, scale: float | None = None
) -> Launch:
    """`scale`: what a step of INT8 is worth, if not what is said of x."""
    site = ready.site
    strides, pads, dilations = (site.integers(name) for name in ("strides", "pads", "dilations"))
    return depthwise_conv2d_nhwc_launch(
        operands[0],
        ready.weight,
        out=out,
        config=DepthwiseTile(*ready.config),
        bias=ready.bias,
        residual=ready.residual(operands),
        sums=sums,
        epilogue=ready.epilogue,
        stride=_pair(strides),
        padding=_pair(pads),
        dilation=_pair(dilations),
        scale=scale or site.scale(0) or 1.0,
        pdl=site.early,
    )


def _depthwise_tiles(site: Site) -> list[Config]:
    batch, height, width, channels = site.out_shape()
    wide, stride = site.shape("weight")[2], site.integers("strides")[1]
    found = depthwise_tiles((batch, height, width, channels), wide, stride, multiprocessors_of(site.device))
    return [astuple(tile) for tile in found]


def _expand(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launch:
    del scratch
    site, constants = ready.site, ready.constants
    strides, pads, dilations = (site.integers(name) for name in ("strides", "pads", "dilations"))
    return expand_depthwise_launch(
        operands[0],
        constants["first"],
        constants.get("first_bias"),
        ready.weight,
        ready.bias,
        out=outputs[0],
        config=ExpandTile(*ready.config),
        inner=ready.activation("inner_"),
        outer=ready.epilogue,
        stride=_pair(strides),
        padding=_pair(pads),
        dilation=_pair(dilations),
        pdl=site.early,
    )


def _expand_tiles(site: Site) -> list[Config]:
    _, high, wide, _ = site.shape("weight")
    found = expand_tiles(count(site.out_shape()[:3]), site.shape("x")[3], high * wide, multiprocessors_of(site.device))
    return [astuple(tile) for tile in found]


_TILE: Final = 7  # numbers of a product's cut


def _expand_pair(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> list[Launch]:
    """The wide map in memory: a product, and a depthwise convolution."""
    site, x = ready.site, operands[0]
    first, pdl, step = ready.constants["first"], site.early, site.number("inner_step", 1.0)
    expanded = torch.empty((*x.shape[:3], first.shape[0]), dtype=x.dtype, device=x.device)
    product = gemm_launch(
        x.view(-1, x.shape[3]), first, out=expanded.view(-1, first.shape[0]), config=Tile(*ready.config[:_TILE]),
        bias=ready.constants.get("first_bias"), scale=ready.scale,
        epilogue=replace(ready.activation("inner_"), out_scale=step), scratch=scratch, pdl=pdl,
    )  # fmt: skip
    behind = replace(ready, config=ready.config[_TILE:])
    return [product, _filtered(behind, [expanded, *operands[1:]], outputs[0], None, step)]


def _expand_product(site: Site) -> Product:
    expanded, channels = site.shape("first")[0], site.shape("x")[3]
    return Product(count(site.shape("x")[:3]), expanded, channels, itemsize=dtype_of(site, 0).itemsize)


def _expand_pair_tiles(site: Site) -> list[Config]:
    """The best of one with the best of the other, and so on."""
    ours, others = tiles_of(_expand_product(site), multiprocessors_of(site.device)), _depthwise_tiles(site)
    length = max(len(ours), len(others))
    return [(*ours[min(n, len(ours) - 1)], *others[min(n, len(others) - 1)]) for n in range(length)]


def _expand_pair_scratch(site: Site, config: Config) -> tuple[int, int]:
    return tile_scratch(_expand_product(site), config[:_TILE])


# ---- all of them ----


def _taps_first(weight: torch.Tensor) -> torch.Tensor:
    return weight[..., 0].permute(1, 2, 0).contiguous()


def _flat(weight: torch.Tensor) -> torch.Tensor:
    return weight.reshape(weight.shape[0], -1).contiguous()


def _suits_layers(site: Site) -> bool:
    return site.text("inner", "none") in ACTIVATIONS


def _suits_conv(site: Site) -> bool:
    return site.integer("groups") == 1


def _suits_depthwise(site: Site) -> bool:
    channels = site.shape("x")[3]
    return site.integer("groups") == channels == site.out_shape()[3] and channels > 1


def _suits_depthwise_and_gate(site: Site) -> bool:
    return _suits_depthwise(site) and suits_gate_layers(site)


WAYS: Final[dict[tuple[str, str], Way]] = {
    **WINDOWS,
    **WARPGROUP_BLOCKS,
    ("conv", "triton"): Way(_conv, _tiles, _tile_scratch, suits=_suits_conv, types=eight_or_narrow, scales=True),
    ("conv", "triton_depthwise"): Way(
        _depthwise,
        _depthwise_tiles,
        forms={"weight": _taps_first},
        suits=_suits_depthwise,
        types=float_weights,
        scales=True,
    ),
    ("conv_gate", "triton_depthwise"): Way(
        depthwise_and_gate(_filtered),
        _depthwise_tiles,
        sums_scratch,
        forms={"weight": _taps_first, **LAYERS},
        suits=_suits_depthwise_and_gate,
    ),
    ("expand_depthwise", "triton"): Way(
        _expand, _expand_tiles, forms={"first": _flat, "weight": _taps_first}, suits=_suits_layers
    ),
    ("expand_depthwise", "triton_pair"): Way(
        _expand_pair,
        _expand_pair_tiles,
        _expand_pair_scratch,
        {"first": _flat, "weight": _taps_first},
        _suits_layers,
        types_of_two,
        scales=True,
    ),
    ("conv", "triton_resident"): Way(
        _resident, _resident_tiles, suits=_suits_conv, types=integers_or_narrow, scales=True
    ),
    ("gemm", "triton"): Way(_gemm, _tiles, _tile_scratch, types=eight_or_narrow, scales=True),
    ("gemm", "triton_resident"): Way(_resident, _resident_tiles, types=integers_or_narrow, scales=True),
    **GROUPS,
    **DENSE,
    **BLOCKS,
    **LANE_BLOCKS,
    **JOINED,
    **MOVES,
    **FREE,
    **POOLS,
    **RECURRENT,
    **STEMS,
    **TOKENS,
    **PRODUCTS,
    **WRITTEN,
    **SHORT,
    **CLUSTERS,
    **TILED,
    **WALKS,
}
"""Kind and name -> kernel."""


def add() -> None:
    """Into the table of implementations, once."""
    for (kind, name), way in WAYS.items():
        if name not in IMPLEMENTATIONS[kind]:
            made = Implementation(writing(_binding(way)), _fitting(name, way), way.configs, way.scales)
            register(kind, name, made)


def launch(site: Site, name: str, config: Config) -> tuple[Launched, ...]:
    """What the step would launch, on tensors without memory but with the addresses' alignment: for compiling ahead.

    `Launch.run` of it is senseless. ValueError or RuntimeError where the kernel refuses the step's tensors.
    """
    way = WAYS[site.step.kind, name]
    floats, counters = way.scratch(site, config)
    scratch = None
    if floats:
        scratch = Scratch(_meta((floats,), torch.float32), _meta((counters,), torch.int32))
    outputs = [_meta(site.out_shape(index), site.out_dtype(index)) for index in range(len(site.step.outputs))]
    return way.launches(_ready(way, site, config, on_meta=True), _operands_on_meta(site), outputs, scratch)


def launches(sites: Sequence[Site], names: Sequence[str]) -> list[Launched]:
    """What steps with these implementations would launch, for those of them that are ours."""
    pairs = ((site, name) for site, name in zip(sites, names, strict=True) if (site.step.kind, name) in WAYS)
    return [
        each
        for site, name in pairs
        for each in launch(site, name, site.config or WAYS[site.step.kind, name].configs(site)[0])
    ]


def _binding(way: Way) -> Callable[[Site], RunInto]:
    def bind(site: Site) -> RunInto:
        config = site.config or way.configs(site)[0]
        try:
            floats, counters = way.scratch(site, config)
            ready = _ready(way, site, config)
        except (TypeError, ValueError, ArithmeticError) as error:
            raise InvalidArgument(f"step {site.step.name!r} can't have the configuration {config}: {error}") from None
        site.needs.ask(floats, counters)

        def run(operands: Tensors, outputs: Tensors) -> None:
            scratch = None
            if floats:
                shared = workspace.current()
                scratch = Scratch(shared.partial_sums, shared.counters)
            first, *others = way.launches(ready, operands, outputs, scratch)
            for each in (replace(first, alone=site.early and not site.behind), *others):
                each.run()

        return run

    return bind


def _fitting(name: str, way: Way) -> Callable[[Site], bool]:
    def fits(site: Site) -> bool:
        # Kernels made for Triton's interpreter run on the CPU, compiled ones do not.
        if (site.device.type == "cuda") == interpreted(implicit_gemm_kernel) or not site.step.inputs:
            return False
        if site.text("activation", "none") not in ACTIVATIONS or not way.types(site):
            return False
        try:
            return way.suits(site) and accepted(site)
        except (ValueError, RuntimeError, LookupError):  # the last one: a role that is not there
            return False
        except (TypeError, ArithmeticError):
            return bool(site.config)  # numbers that are none of this kernel's: binding says so

    def accepted(site: Site) -> bool:
        configs = (site.config,) if site.config else way.configs(site)
        if configs:
            launch(site, name, configs[0])  # to see whether the kernel takes these tensors
        return bool(configs)

    return fits


def _ready(way: Way, site: Site, config: Config, *, on_meta: bool = False) -> Ready:
    constants: dict[str, torch.Tensor] = {}
    for role in _roles(site):
        form = way.forms.get(role) or (_row if role in _SCALES or role.endswith("bias") else None)
        weight = None if form is None else site.weight(role)
        if form is not None and weight is not None:
            constants[role] = form(_without_memory(weight) if on_meta else weight)
    if way.folded is not None and "scale" in constants:
        constants = dict(way.folded(site, constants))
    elif Ready(site, config, constants).folds:
        # Sums that blocks share come as floats.
        integers = dtype_of(site, 0) == torch.int8 and not way.scratch(site, config)[0]
        largest = _product(site).k * 128 * 128 if integers else 0
        out_scale = site.out_scale() or 1.0
        constants["scale"], constants["bias"] = fold(constants["scale"], constants.get("bias"), out_scale, largest)
    ready = Ready(site, config, way.combined(constants))
    return ready if way.made is None else replace(ready, constants=way.made(ready))


_SCALES: Final = ("scale", "second_scale", "third_scale", "shortcut_scale")


def _row(bias: torch.Tensor) -> torch.Tensor:
    return bias.reshape(-1).float().contiguous()


def _operands_on_meta(site: Site) -> list[torch.Tensor]:
    found = []
    for index, operand in enumerate(site.step.inputs):
        stored = site.graph.stored(operand.value)
        found.append(seen(_meta(stored.shape, dtype_of(site, index)), operand))
    return found


def _without_memory(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _meta(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(tuple(shape), dtype=dtype, device="meta")


def _roles(site: Site) -> set[str]:
    return {each.role for each in site.step.inputs}


def _pair(numbers: tuple[int, ...]) -> tuple[int, int]:
    return numbers[0], numbers[1]
