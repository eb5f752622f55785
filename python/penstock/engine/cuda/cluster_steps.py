"""Two layers of few rows by `kernels/cluster_mlp.py`, as an implementation of the step.

Compiled by NVRTC when tuned. Needs compute capability 9.0; elsewhere the other implementations stay.
"""

from collections.abc import Sequence
from dataclasses import astuple
from typing import Final

import torch

from penstock.engine.cuda.kernels.cluster_mlp import ACTIVATIONS, ClusterCut, cluster_cuts, cluster_mlp_launch
from penstock.engine.cuda.kernels.epilogue import Scratch
from penstock.engine.cuda.sites import Site
from penstock.engine.cuda.ways import (
    Config,
    Launched,
    Ready,
    Tensors,
    Way,
    compiles_cpp,
    count,
    multiprocessors_of,
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


def _plain(weight: torch.Tensor) -> torch.Tensor:
    return weight.contiguous()


CLUSTERS: Final[dict[tuple[str, str], Way]] = {
    ("mlp", "cuda_cluster"): Way(_build, _cuts, forms={"first": _plain, "second": _plain}, suits=_suits),
}
"""Kind and name -> kernel."""
