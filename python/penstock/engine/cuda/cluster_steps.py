"""Joined layers in CUDA C++: two layers of few rows, and a product of which only the largest is asked for.

Their kernels are `kernels/cluster_mlp.py` and `kernels/gemm_top_1.py`.

Compiled by NVRTC when tuned. Needs compute capability 9.0; elsewhere the other implementations stay.
"""

from collections.abc import Sequence
from dataclasses import astuple
from typing import Final

import torch

from penstock.engine.cuda.kernels.cluster_mlp import ACTIVATIONS, ClusterCut, cluster_cuts, cluster_mlp_launch
from penstock.engine.cuda.kernels.epilogue import Scratch
from penstock.engine.cuda.kernels.gemm_top_1 import WIDEST, WalkCut, walk_cuts, walk_top_1_launches
from penstock.engine.cuda.sites import Site, narrow
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
    same,
)

_TILE: Final = 16  # rows, of one gate where there are gates


def _build(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launched:
    del scratch
    site, constants, (x, out) = ready.site, ready.constants, (operands[0], outputs[0])
    index, residual, images = site.index("gate"), ready.residual(operands), x.shape[0]
    return cluster_mlp_launch(
        x.view(images, -1, x.shape[-1]),
        constants["first"],
        constants.get("first_bias"),
        constants["second"],
        constants.get("second_bias"),
        out=out.view(images, -1, out.shape[-1]),
        config=ClusterCut(*ready.config),
        inner=ready.activation("inner_"),
        gate=None if index is None else operands[index][:, 0, 0, :],
        residual=None if residual is None else residual.view(images, -1, out.shape[-1]),
        skip=bool(site.number("skip")),
        epilogue=ready.epilogue,
        pdl=site.early,
    )


def _cuts(site: Site) -> Sequence[Config]:
    (hidden, wide), out = site.shape("first"), site.shape("second")[0]
    rows, gated = count(site.shape("x")) // wide, site.index("gate") is not None
    found = cluster_cuts(rows, wide, hidden, out, gated, multiprocessors_of(site.device))
    return [astuple(cut) for cut in found]


def _suits(site: Site) -> bool:
    known = site.text("activation", "none") in ACTIVATIONS and site.text("inner", "none") in ACTIVATIONS
    images, *pixels, _ = site.shape("x")
    whole = images == 1 or site.index("gate") is None or count(pixels) % _TILE == 0
    return bool(compiles_cpp(site) and known and whole and _cuts(site))


def _top_1(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Sequence[Launched]:
    del scratch
    (index, score), cut = outputs, WalkCut(*ready.config)
    x = operands[0].view(-1, operands[0].shape[-1])
    parts = torch.empty((3, x.shape[0], cut.splits * cut.wide), dtype=torch.float32, device=x.device)
    return walk_top_1_launches(
        x,
        ready.weight,
        ready.bias,
        index=index.view(-1),
        score=score.view(-1),
        parts=parts,
        config=cut,
        pdl=ready.site.early,
    )


def _top_cuts(site: Site) -> Sequence[Config]:
    columns, deep = site.shape("weight")
    rows = count(site.shape("x")) // deep
    return [astuple(cut) for cut in walk_cuts(rows, columns, multiprocessors_of(site.device))]


def _suits_top(site: Site) -> bool:
    deep = site.shape("weight")[1]
    return compiles_cpp(site) and deep % 8 == 0 and deep <= WIDEST


def _narrow_in(site: Site) -> bool:
    return narrow(dtype_of(site, 0)) and site.out_dtype(0) == torch.int64


def _plain(weight: torch.Tensor) -> torch.Tensor:
    return weight.contiguous()


CLUSTERS: Final[dict[tuple[str, str], Way]] = {
    ("mlp", "cuda_cluster"): Way(_build, _cuts, forms={"first": _plain, "second": _plain}, suits=_suits),
    ("gemm_top_1", "cuda_walk"): Way(_top_1, _top_cuts, forms={"weight": same}, suits=_suits_top, types=_narrow_in),
}
"""Kind and name -> kernel."""
