"""Matrix products with the rows brought by the GPU's unit for copies, as implementations of `gemm` and `gemm_norm`."""

from dataclasses import astuple
from typing import Final

import torch

from penstock.engine.cuda.kernels.dense import Affine, Normed, dense_launch, dense_tiles
from penstock.engine.cuda.kernels.epilogue import Scratch
from penstock.engine.cuda.kernels.launching import Launch
from penstock.engine.cuda.kernels.tiles import Product, Tile
from penstock.engine.cuda.sites import Site
from penstock.engine.cuda.ways import Config, Ready, Tensors, Way, count, multiprocessors_of, same, tile_scratch


def _product(site: Site) -> Product:
    n, k = site.shape("weight")
    return Product(count(site.shape("x")) // k, n, k)


def _part(site: Site) -> int:
    """Columns of a part of whose rows the moments are written; 1 where none are."""
    if len(site.step.outputs) == 1:
        return 1
    return site.out_shape()[-1] // site.out_shape(1)[1]


def _tiles(site: Site) -> list[Config]:
    return [astuple(each) for each in dense_tiles(_product(site), multiprocessors_of(site.device), _part(site))]


def _scratch(site: Site, config: Config) -> tuple[int, int]:
    return tile_scratch(_product(site), config)


def _dense(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launch:
    site = ready.site
    n, k = ready.weight.shape
    residual = ready.residual(operands)
    if residual is not None and residual.shape != outputs[0].shape:
        raise ValueError("residual: expected the result's shape")
    x_norm = _normed(site, operands, "x_moments", "epsilon")
    residual_norm = _normed(site, operands, "residual_moments", "residual_epsilon")
    affine = Affine(ready.constants["residual_scale"], ready.constants["residual_shift"]) if residual_norm else None
    return dense_launch(
        operands[0].view(-1, k),
        ready.weight,
        out=outputs[0].view(-1, n),
        config=Tile(*ready.config),
        bias=ready.bias,
        residual=None if residual is None else residual.view(-1, n),
        epilogue=ready.epilogue,
        x_norm=x_norm,
        column_sums=None if x_norm is None else ready.constants["column_sums"],
        residual_norm=residual_norm,
        residual_affine=affine,
        out_moments=outputs[1] if len(outputs) > 1 else None,
        scratch=scratch,
        pdl=site.early,
    )


def _normed(site: Site, operands: Tensors, role: str, epsilon: str) -> Normed | None:
    index = site.index(role)
    return None if index is None else Normed(operands[index], site.number(epsilon))


def _suits(site: Site) -> bool:
    """Rows of whole 16 bytes; of a plain product, which others do too, enough of them to fill a block."""
    k = site.shape("weight")[1]
    return k % 8 == 0 and (site.step.kind == "gemm_norm" or _product(site).m >= _FEWEST_ROWS)


_FEWEST_ROWS: Final = 33


def _wide(weight: torch.Tensor) -> torch.Tensor:
    return weight.float().contiguous()


def _sums(weight: torch.Tensor) -> torch.Tensor:
    """Of the rounded weights, which are what a mean is multiplied with."""
    if weight.is_meta:  # for which torch imports its tracer: seconds
        return weight.new_empty(weight.shape[0], dtype=torch.float32)
    return weight.float().sum(1)


_FORMS: Final = {"weight": same, "residual_scale": _wide, "residual_shift": _wide, "column_sums": _sums}

DENSE: Final[dict[tuple[str, str], Way]] = {
    ("gemm", "triton_dense"): Way(_dense, _tiles, _scratch, suits=_suits),
    ("gemm_norm", "triton_dense"): Way(_dense, _tiles, _scratch, forms=_FORMS, suits=_suits),
}
"""Kind and name -> kernel."""
