"""Our kernels for joined layers: the gate of a squeeze-and-excite, its application, two layers in one or in a row.

Two layers have two ways: `triton`, where hidden values never leave the chip, and `triton_pair`, a matrix product each
with the hidden values in memory; which is faster depends on rows and weights, so both are timed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Final

import torch

from penstock.engine.cuda.kernels.activations import ACTIVATIONS
from penstock.engine.cuda.kernels.apply_gate import apply_gate_launch
from penstock.engine.cuda.kernels.chunked_mlp import chunked_mlp_launch, chunked_mlp_tiles
from penstock.engine.cuda.kernels.chunked_mlp import fits as chunks_fit
from penstock.engine.cuda.kernels.depthwise import DepthwiseTile
from penstock.engine.cuda.kernels.epilogue import Epilogue, Scratch
from penstock.engine.cuda.kernels.fork import ForkTile, fork_launch, fork_tiles
from penstock.engine.cuda.kernels.gated_layers import MOST as MOST_LAYERS
from penstock.engine.cuda.kernels.gated_layers import Group, LayersTile, gated_layers_launch, layers_tiles
from penstock.engine.cuda.kernels.gated_mlp import WIDEST, MlpTile, gated_mlp_launch, mlp_tiles
from penstock.engine.cuda.kernels.gemm_top_1 import TopTile, gemm_top_1_launches, top_tiles
from penstock.engine.cuda.kernels.implicit_gemm import gemm_launch
from penstock.engine.cuda.kernels.launching import Launch
from penstock.engine.cuda.kernels.rows import power_of_two
from penstock.engine.cuda.kernels.squeeze_excite import splits_for, squeeze_excite_gate_launch, squeeze_excite_launch
from penstock.engine.cuda.kernels.tiles import Product, Tile
from penstock.engine.cuda.kernels.top_1 import top_1_launch
from penstock.engine.cuda.sites import Site
from penstock.engine.cuda.ways import (
    Build,
    Config,
    Form,
    Launched,
    Ready,
    Tensors,
    Way,
    count,
    dtype_of,
    multiprocessors_of,
    operand_number,
    same,
    tile_scratch,
    tiles_of,
)

Depthwise = Callable[[Ready, Tensors, torch.Tensor, torch.Tensor | None], Launched]
"""A depthwise convolution of the operands into a map, with sums on the side."""

Blocks = Callable[[Config, int, int], int]
"""How many blocks a cut makes of an image so high and wide."""


def blocks_of_tile(config: Config, height: int, width: int) -> int:
    return DepthwiseTile(*config).blocks(height, width)


LAYERS: Final[Mapping[str, Form]] = {
    "first": lambda weight: weight.contiguous(),
    "second": lambda weight: weight.t().contiguous(),
}
"""A gate's two matrices as its kernels want them: both [reduced, channels]."""

_TILE: Final = 7  # numbers of a product's cut
_SUMS: Final = 4096  # that one block reads in about the time in which others add up their pixels


def _plain(weight: torch.Tensor) -> torch.Tensor:
    return weight.contiguous()


def _suits_layers(site: Site) -> bool:
    return site.text("inner", "none") in ACTIVATIONS


# ---- the gate ----


def _squeeze_excite(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launch:
    assert scratch is not None
    x, constants, (splits,) = operands[0], ready.constants, ready.config
    return squeeze_excite_launch(
        x,
        constants["first"],
        constants.get("first_bias"),
        constants["second"],
        constants.get("second_bias"),
        out=outputs[0].view(x.shape[0], -1),
        splits=splits,
        inner=ready.activation("inner_"),
        outer=ready.epilogue,
        scratch=scratch,
        pdl=ready.site.early,
    )


def depthwise_and_gate(launch: Depthwise, blocks_of: Blocks = blocks_of_tile) -> Build:
    """The convolution leaves the sums of its blocks, of which the gate is made."""

    def build(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> list[Launched]:
        (y, gate), constants = outputs, ready.constants
        images, height, width, channels = y.shape
        blocks = blocks_of(ready.config, height, width)
        sums = torch.empty((images, blocks, channels), dtype=torch.float32, device=y.device)
        splits = splits_for(blocks, channels)
        layers = (
            constants["first"],
            constants.get("first_bias"),
            constants["second"],
            constants.get("second_bias"),
        )
        out, inner, outer = gate.view(images, -1), ready.activation("inner_"), ready.activation("outer_")
        if splits == 1:
            gating = squeeze_excite_gate_launch(
                sums, *layers, pixels=height * width, out=out, inner=inner, outer=outer, pdl=ready.site.early
            )
        else:
            assert scratch is not None
            gating = squeeze_excite_launch(
                sums[:, :, None], *layers, out=out, splits=splits, inner=inner, outer=outer, scratch=scratch,
                count=height * width, pdl=ready.site.early,
            )  # fmt: skip
        return [launch(ready, operands, y, sums), gating]

    return build


def sums_scratch(site: Site, config: Config, blocks_of: Blocks = blocks_of_tile) -> tuple[int, int]:
    images, height, width, channels = site.out_shape()
    splits = splits_for(blocks_of(config, height, width), channels)
    return (0, 0) if splits == 1 else (images * splits * channels, images)


def suits_gate_layers(site: Site) -> bool:
    """Whether the gate's two activations are known; the convolution's is asked for elsewhere."""
    return _suits_layers(site) and site.text("outer", "none") in ACTIVATIONS


def _gate_splits(site: Site) -> list[Config]:
    """Blocks that share an image: the last one reads as many sums of every channel, so few where channels are many."""
    images, height, width, channels = site.shape("x")
    wanted = max(1, min(2 * multiprocessors_of(site.device) // images, _SUMS // power_of_two(channels)))
    found = [each for each in (1, 2, 4, 8, 16, 32, 64, 128, 256) if each == 1 or each * 8 <= height * width]
    found.sort(key=lambda each: abs(each.bit_length() - wanted.bit_length()))
    return [(each,) for each in found[:5]]


def _gate_scratch(site: Site, config: Config) -> tuple[int, int]:
    images, _, _, channels = site.shape("x")
    return images * config[0] * channels, images


# ---- two layers ----


def _mlp_by(launch: Callable[..., Launch]) -> Build:
    """`gated_mlp_launch`, or what takes the same."""

    def build(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launch:
        del scratch
        rows, inner = _Rows.of(ready, operands, outputs), ready.activation("inner_")
        constants = ready.constants
        return launch(
            rows.x,
            constants["first"],
            constants.get("first_bias"),
            constants["second"],
            constants.get("second_bias"),
            out=rows.out,
            config=MlpTile(*ready.config),
            activation=inner.activation,
            alpha=inner.alpha,
            beta=inner.beta,
            gate=rows.gate,
            residual=rows.residual,
            skip=bool(ready.site.number("skip")),
            epilogue=ready.epilogue,
            pdl=ready.site.early,
        )

    return build


def _mlp_tiles(site: Site) -> list[Config]:
    rows, wide, hidden, out = _mlp_sizes(site)
    return [astuple(tile) for tile in mlp_tiles(rows, wide, hidden, multiprocessors_of(site.device), out)]


def _chunked_tiles(site: Site) -> list[Config]:
    return [astuple(tile) for tile in chunked_mlp_tiles(*_mlp_sizes(site), multiprocessors_of(site.device))]


def _mlp_sizes(site: Site) -> tuple[int, int, int, int]:
    """Rows, numbers in, between and out."""
    (hidden, wide), out = site.shape("first"), site.shape("second")[0]
    return count(site.shape("x")) // wide, wide, hidden, out


def _suits_chunks(site: Site) -> bool:
    return chunks_fit(*_mlp_sizes(site)[1:]) and _suits_layers(site)


def _suits_mlp(site: Site) -> bool:
    wide, out = site.shape("first")[1], site.shape("second")[0]
    return max(wide, out) <= WIDEST and _suits_layers(site)


def _pair(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> list[Launch]:
    """The gate applied, if there is one, and a product for each layer."""
    rows, inner, site = _Rows.of(ready, operands, outputs), ready.activation("inner_"), ready.site
    first, second = (ready.constants[role] for role in ("first", "second"))
    launches: list[Launch] = []
    x = rows.x
    if rows.gate is not None:
        gated = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        launches.append(apply_gate_launch(x[:, None], rows.gate, out=gated[:, None], pdl=site.early))
        x = gated
    flat = x.view(-1, x.shape[-1])
    hidden = torch.empty((flat.shape[0], first.shape[0]), dtype=x.dtype, device=x.device)
    out = rows.out.view(-1, second.shape[0])
    residual = x if site.number("skip") else rows.residual
    for source, weight, role, result, epilogue, added, config in (
        (flat, first, "first_bias", hidden, inner, None, ready.config[:_TILE]),
        (hidden, second, "second_bias", out, ready.epilogue, residual, ready.config[_TILE:]),
    ):
        launches.append(
            gemm_launch(
                source,
                weight,
                out=result,
                config=Tile(*config),
                bias=ready.constants.get(role),
                residual=None if added is None else added.view(-1, weight.shape[0]),
                epilogue=epilogue,
                scratch=scratch,
                pdl=site.early,
            )
        )
    return launches


def _products(site: Site) -> tuple[Product, Product]:
    (hidden, wide), out = site.shape("first"), site.shape("second")[0]
    rows = count(site.shape("x")) // wide
    return Product(rows, hidden, wide), Product(rows, out, hidden)


def _pair_tiles(site: Site) -> list[Config]:
    """The best of one with the best of the other, and so on: not every pair, of which there are too many."""
    ours, others = (tiles_of(product, multiprocessors_of(site.device)) for product in _products(site))
    length = max(len(ours), len(others))
    return [(*ours[min(n, len(ours) - 1)], *others[min(n, len(others) - 1)]) for n in range(length)]


def _pair_scratch(site: Site, config: Config) -> tuple[int, int]:
    """One after the other in the same memory."""
    first, second = _products(site)
    needs = tile_scratch(first, config[:_TILE]), tile_scratch(second, config[_TILE:])
    return max(floats for floats, _ in needs), max(counters for _, counters in needs)


@dataclass(frozen=True, slots=True)
class _Rows:
    """A step's tensors as [images, rows, channels]."""

    x: torch.Tensor
    gate: torch.Tensor | None
    residual: torch.Tensor | None
    out: torch.Tensor

    @staticmethod
    def of(ready: Ready, operands: Tensors, outputs: Tensors) -> "_Rows":
        x, index = operands[0], ready.site.index("gate")
        images, out = x.shape[0], outputs[0]
        gate = None if index is None else operands[index][:, 0, 0, :]
        residual = ready.residual(operands)
        return _Rows(
            x.view(images, -1, x.shape[-1]),
            gate,
            None if residual is None else residual.view(images, -1, out.shape[-1]),
            out.view(images, -1, out.shape[-1]),
        )


# ---- the gate, applied ----


def _gate(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launch:
    del scratch
    gated = _gated(ready.site)
    assert gated is not None
    out = outputs[0]
    images, _, _, channels = out.shape
    residual = None if gated.residual is None else operands[gated.residual]
    if residual is not None and gated.times != (1, 1):
        residual = residual[:, :, 0, :, 0, :]
    return apply_gate_launch(
        operands[gated.x].view(out.shape),
        _first_pixel(operands[gated.gate]).view(images, channels),
        out=out,
        residual=residual,
        repeat=gated.times,
        plus_x=gated.plus_x,
        epilogue=Epilogue(),
        pdl=ready.site.early,
    )


def _first_pixel(gate: torch.Tensor) -> torch.Tensor:
    return gate[(slice(None), *(0,) * (gate.dim() - 2), slice(None))]


@dataclass(frozen=True, slots=True)
class _Gated:
    """Which operands of a pointwise step play which part."""

    x: int
    gate: int
    plus_x: bool
    residual: int | None
    times: tuple[int, int]
    """How often the residual's rows and columns are repeated."""


def _gated(site: Site) -> _Gated | None:
    """x times one number for each image and channel, maybe plus x, maybe plus another; None for other programs."""
    program = site.step.program
    if len(site.out_shape()) != 4 or len(program) not in (1, 2, 3) or program[0].name != "mul":
        return None
    factors = [operand_number(each) for each in program[0].arguments]
    gates = [each for each in factors if each is not None and _is_gate(site, each)]
    if None in factors or len(gates) != 1:
        return None
    x = next(each for each in factors if each is not None and each != gates[0])
    added: list[int] = []
    for number, line in enumerate(program[1:]):
        others = [operand_number(each) for each in line.arguments if each != f"t{number}"]
        if line.name != "add" or len(others) != 1 or others[0] is None:
            return None
        added.append(others[0])
    plus_x = x in added
    if plus_x:
        added.remove(x)
    if len(added) > 1 or gates[0] in added or not _is_dense(site, x):
        return None
    if not added:
        return _Gated(x, gates[0], plus_x, None, (1, 1))
    times = (1, 1) if _is_dense(site, added[0]) else _times(site, added[0])
    return None if times is None else _Gated(x, gates[0], plus_x, added[0], times)


def _is_gate(site: Site, index: int) -> bool:
    operand, out = site.step.inputs[index], site.out_shape()
    if operand.view is None:
        return site.graph.shape(operand) == (out[0], 1, 1, out[3])
    shape, strides = operand.view.shape, operand.view.strides
    whole = count(shape) == count(out) and (shape[0], shape[-1]) == (out[0], out[3]) and out[1] * out[2] > 1
    return whole and not any(strides[1:-1]) and strides[-1] == 1


def _is_dense(site: Site, index: int) -> bool:
    """All of a value in its own order, however its axes are cut; anything else of the result's shape will do too."""
    view, out = site.step.inputs[index].view, site.out_shape()
    if view is None or view.shape == out:
        return site.graph.shape(site.step.inputs[index]) == out
    strides = torch.empty(view.shape, device="meta").stride()
    dense = all(size == 1 or each == right for size, each, right in zip(view.shape, view.strides, strides, strict=True))
    return dense and count(view.shape) == count(out) and _times_of(view.shape, out) is not None


def _times(site: Site, index: int) -> tuple[int, int] | None:
    """Of an operand whose rows and columns are seen as runs of the same pixel."""
    view, out = site.step.inputs[index].view, site.out_shape()
    if view is None or (found := _times_of(view.shape, out)) is None:
        return None
    return found if (view.strides[2], view.strides[4]) == (0, 0) else None


def _times_of(shape: Sequence[int], out: Sequence[int]) -> tuple[int, int] | None:
    if len(shape) != 6:
        return None
    batch, height, high, width, wide, channels = shape
    return (high, wide) if (batch, height * high, width * wide, channels) == tuple(out) else None


def _suits_gate(site: Site) -> bool:
    return _gated(site) is not None


def _top_1(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launch:
    del scratch
    x, (index, score) = operands[0], outputs
    return top_1_launch(x.view(-1, x.shape[-1]), index=index.view(-1), score=score.view(-1), pdl=ready.site.early)


def _fork(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launch:
    del scratch
    constants = ready.constants
    return fork_launch(
        operands[0],
        constants["first"],
        constants.get("first_bias"),
        constants["second"],
        constants.get("second_bias"),
        out=outputs[0],
        config=ForkTile(*ready.config),
        inner=ready.activation("inner_"),
        outer=ready.epilogue,
        pdl=ready.site.early,
    )


def _fork_tiles(site: Site) -> list[Config]:
    pixels = count(site.shape("x")[:3])
    return [astuple(tile) for tile in fork_tiles(pixels, multiprocessors_of(site.device))]


def _gated_layers(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launch:
    del scratch
    site, constants, times = ready.site, ready.constants, ready.site.integers("times")
    groups = []
    for number in range(len(times) // 2):
        x, gate = (site.index(f"{number}_{role}") for role in ("x", "gate"))
        if x is None or gate is None:
            raise ValueError(f"{number}_x: expected a map and its gate")
        weight, bias = constants[f"{number}_weight"], constants.get(f"{number}_bias")
        high, wide = times[2 * number : 2 * number + 2]
        groups.append(Group(operands[x], weight, bias, operands[gate][:, 0, 0, :], (high, wide)))
    residual = ready.residual(operands)
    high, wide = site.integers("residual_times") if residual is not None else (1, 1)
    return gated_layers_launch(
        groups,
        out=outputs[0],
        config=LayersTile(*ready.config),
        plus=bool(site.number("plus")),
        residual=residual,
        residual_times=(high, wide),
        pdl=site.early,
    )


def _layers_tiles(site: Site) -> list[Config]:
    made = site.shape("0_weight")[0]
    pixels = count(site.out_shape()[:3])
    return [astuple(tile) for tile in layers_tiles(pixels, made, multiprocessors_of(site.device))]


def _flat(weight: torch.Tensor) -> torch.Tensor:
    return weight.reshape(weight.shape[0], -1).contiguous()


def _gemm_top_1(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Sequence[Launch]:
    del scratch
    (index, score), tile = outputs, TopTile(*ready.config)
    x = operands[0].view(-1, operands[0].shape[-1])
    parts = torch.empty((3, x.shape[0], tile.splits), dtype=torch.float32, device=x.device)
    return gemm_top_1_launches(
        x,
        ready.weight,
        ready.bias,
        index=index.view(-1),
        score=score.view(-1),
        parts=parts,
        config=tile,
        pdl=ready.site.early,
    )


def _top_tiles(site: Site) -> list[Config]:
    columns, deep = site.shape("weight")
    rows = count(site.shape("x")) // deep
    return [astuple(tile) for tile in top_tiles(rows, columns, multiprocessors_of(site.device))]


def _any_float(site: Site) -> bool:
    return bool(dtype_of(site, 0).is_floating_point) and site.out_dtype(0) == torch.int64


JOINED: Final[dict[tuple[str, str], Way]] = {
    ("squeeze_excite", "triton"): Way(_squeeze_excite, _gate_splits, _gate_scratch, LAYERS, _suits_layers),
    ("mlp", "triton"): Way(
        _mlp_by(gated_mlp_launch), _mlp_tiles, forms={"first": _plain, "second": _plain}, suits=_suits_mlp
    ),
    ("mlp", "triton_chunks"): Way(
        _mlp_by(chunked_mlp_launch), _chunked_tiles, forms={"first": _plain, "second": _plain}, suits=_suits_chunks
    ),
    ("mlp", "triton_pair"): Way(_pair, _pair_tiles, _pair_scratch, {"first": same, "second": same}, _suits_layers),
    ("gated_layers", "triton"): Way(
        _gated_layers, _layers_tiles, forms={f"{number}_weight": _flat for number in range(MOST_LAYERS)}
    ),
    ("fork", "triton"): Way(_fork, _fork_tiles, forms={"first": _plain, "second": _plain}, suits=_suits_layers),
    ("gemm_top_1", "triton"): Way(_gemm_top_1, _top_tiles, types=_any_float),
    ("top_1", "triton"): Way(_top_1, forms={}, types=_any_float),
    ("pointwise", "triton_gate"): Way(_gate, suits=_suits_gate),
}
"""Kind and name -> kernels."""
