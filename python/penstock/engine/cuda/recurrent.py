"""An LSTM layer of ours: what the inputs add to the gates of all steps as one matrix product, then the recurrence.

The product is Triton's, the recurrence CUDA C++ on clusters of blocks (`kernels/lstm.py`), compiled by NVRTC when
tuned. Needs compute capability 9.0; elsewhere, and for layers that no cluster can hold, cuDNN's stays.
"""

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Final

import torch

from penstock.engine.cuda.kernels.epilogue import Scratch, added
from penstock.engine.cuda.kernels.implicit_gemm import gemm_launch
from penstock.engine.cuda.kernels.lstm import LstmCut, by_unit, lstm_cuts, lstm_launch, packed
from penstock.engine.cuda.kernels.tiles import Product, Tile
from penstock.engine.cuda.sites import Site
from penstock.engine.cuda.ways import (
    Config,
    Launched,
    Ready,
    Tensors,
    Way,
    compiles_cpp,
    count,
    dtype_of,
    multiprocessors_of,
    narrow_everywhere,
    tile_scratch,
    tiles_of,
)

_CUT: Final = 3  # numbers of a recurrence's cut; a product's follow
_MOST: Final = 3  # of each, to be paired


def _lstm(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Sequence[Launched]:
    site, constants = ready.site, ready.constants
    x, weight, (out, last_hidden, last_cell) = operands[0], constants["weight"], outputs
    time, batch, width = x.shape
    batch_first = x.stride(0) < x.stride(1)
    rows = (x.transpose(0, 1) if batch_first else x).view(time * batch, width)
    # Of two numbers with few bits the sum has fewer: BF16's gates stay wide.
    dtype = x.dtype if x.dtype == torch.float16 else torch.float32
    products = torch.empty((time * batch, weight.shape[0]), dtype=dtype, device=x.device)
    seen = products.view(batch, time, -1).transpose(0, 1) if batch_first else products.view(time, batch, -1)
    hidden, cell = (site.index(role) for role in ("hidden", "cell"))
    return (
        gemm_launch(
            rows,
            weight,
            out=products,
            config=Tile(*ready.config[_CUT:]),
            bias=constants.get("bias"),
            scratch=scratch,
            pdl=site.early,
        ),
        lstm_launch(
            seen,
            constants["recurrence"],
            out=out.view(time, batch, -1, site.integer("hidden")),
            last_hidden=last_hidden,
            last_cell=last_cell,
            config=LstmCut(*ready.config[:_CUT]),
            hidden=None if hidden is None else operands[hidden],
            cell=None if cell is None else operands[cell],
            pdl=site.early,
        ),
    )


def _product(site: Site) -> Product:
    time, batch, width = site.shape("x")
    return Product(time * batch, count(site.shape("weight")[:2]), width)


def _cuts(site: Site) -> list[LstmCut]:
    directions, _, hidden = site.shape("recurrence")
    return lstm_cuts(hidden, site.shape("x")[1], directions, multiprocessors_of(site.device))


def _configs(site: Site) -> list[Config]:
    """The first of one with the first of the other, then each of both with what follows of the other."""
    cuts, tiles = _cuts(site)[:_MOST], tiles_of(_product(site), multiprocessors_of(site.device))[:_MOST]
    pairs = sorted((at + other, other, at) for at in range(len(cuts)) for other in range(len(tiles)))
    return [(*astuple(cuts[at]), *tiles[other]) for _, other, at in pairs]


def _scratch(site: Site, config: Config) -> tuple[int, int]:
    return tile_scratch(_product(site), config[_CUT:])


def _suits(site: Site) -> bool:
    return compiles_cpp(site) and bool(_cuts(site))


def _types(site: Site) -> bool:
    """Sixteen bits throughout, but for answers of the graph."""
    states = (each for each in ("hidden", "cell") if site.index(each) is not None)
    same = all(dtype_of(site, site.index(role) or 0) == dtype_of(site, 0) for role in states)
    return narrow_everywhere(site) and same


def _wide_by_unit(bias: torch.Tensor) -> torch.Tensor:
    return by_unit(bias.float())


def _one_bias(constants: dict[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    both = [constants.pop(role) for role in ("bias", "recurrence_bias") if role in constants]
    return {**constants, "bias": added(both)} if len(both) == 2 else constants


RECURRENT: Final[dict[tuple[str, str], Way]] = {
    ("lstm", "cuda_cluster"): Way(
        _lstm,
        _configs,
        _scratch,
        forms={
            "weight": by_unit,
            "recurrence": packed,
            "bias": _wide_by_unit,
            "recurrence_bias": _wide_by_unit,
        },
        suits=_suits,
        types=_types,
        combined=_one_bias,
    ),
}
"""Kind and name -> kernels."""
