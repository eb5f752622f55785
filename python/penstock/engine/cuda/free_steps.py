"""Our kernels for what attention is made of where it is not one step: products of two matrices of the data, and steps
along one axis, or along axes that follow each other, softmax, sums, means, extremes.
"""

from dataclasses import astuple
from typing import Final

from penstock.engine.cuda.kernels.epilogue import Scratch
from penstock.engine.cuda.kernels.launching import Launch
from penstock.engine.cuda.kernels.lines import LineTile, along_lines_launch, line_tiles, lines_of
from penstock.engine.cuda.kernels.rows import INDEX_LIMIT
from penstock.engine.cuda.kernels.strided_matmul import (
    MOST_BATCH_AXES,
    MatmulTile,
    batch_axes,
    matmul_tiles,
    strided_matmul_launch,
)
from penstock.engine.cuda.sites import Site
from penstock.engine.cuda.ways import Config, Ready, Tensors, Way, count, dtype_of, narrow_everywhere
from penstock.engine.lowered import contiguous


def _axes(site: Site) -> tuple[int, ...]:
    return site.integers("axes") if site.step.kind == "reduce" else (site.integer("axis") % len(site.shape("x")),)


def _along(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launch:
    del scratch
    site = ready.site
    how = site.text("how") if site.step.kind == "reduce" else site.step.kind
    lines, tile = lines_of(site.shape("x"), _axes(site)), LineTile(*ready.config)
    return along_lines_launch(operands[0], how, lines, out=outputs[0], config=tile, pdl=site.early)


def _tiles(site: Site) -> list[Config]:
    return [astuple(tile) for tile in line_tiles(*lines_of(site.shape("x"), _axes(site)))]


def _suits(site: Site) -> bool:
    axes, size = _axes(site), count(site.shape("x"))
    return bool(axes) and axes == tuple(range(axes[0], axes[0] + len(axes))) and 0 < size < INDEX_LIMIT


def _sixteen(site: Site) -> bool:
    return narrow_everywhere(site) and dtype_of(site, 0) == dtype_of(site, 1)


def _matmul(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launch:
    del scratch
    site, out = ready.site, outputs[0]
    if "order" in site.step.attributes:
        order = site.integers("order")
        out = out.permute([order.index(axis) for axis in range(len(order))])
    tile = MatmulTile(*ready.config)
    return strided_matmul_launch(operands[0], operands[1], out=out, config=tile, pdl=site.early)


def _matmul_tiles(site: Site) -> list[Config]:
    *batch, m, k = site.shape("a")
    return [astuple(tile) for tile in matmul_tiles(count(batch), m, site.shape("b")[-1], k)]


def _suits_matmul(site: Site) -> bool:
    """Of one type, batches that few axes say."""
    operands = site.step.inputs[:2]
    shape = site.shape("a")[:-2]
    lying = [each.view.strides if each.view else contiguous(site.graph.shape(each)) for each in operands]
    few = len(batch_axes(shape, *(each[:-2] for each in lying))) <= MOST_BATCH_AXES
    return (few and "order" not in site.step.attributes) or len(shape) <= MOST_BATCH_AXES


FREE: Final[dict[tuple[str, str], Way]] = {
    ("matmul", "triton"): Way(_matmul, _matmul_tiles, suits=_suits_matmul, types=_sixteen),
    ("softmax", "triton"): Way(_along, _tiles, suits=_suits),
    ("log_softmax", "triton"): Way(_along, _tiles, suits=_suits),
    ("reduce", "triton_lines"): Way(_along, _tiles, suits=_suits),
}
"""Kind and name -> kernel."""
