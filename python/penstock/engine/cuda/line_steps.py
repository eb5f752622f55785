"""Our kernel for steps along one axis, or along axes that follow each other: softmax, sums, means, extremes."""

from dataclasses import astuple
from typing import Final

from penstock.engine.cuda.kernels.epilogue import Scratch
from penstock.engine.cuda.kernels.launching import Launch
from penstock.engine.cuda.kernels.lines import LineTile, along_lines_launch, line_tiles, lines_of
from penstock.engine.cuda.kernels.rows import INDEX_LIMIT
from penstock.engine.cuda.sites import Site
from penstock.engine.cuda.ways import Config, Ready, Tensors, Way, count


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


LINES: Final[dict[tuple[str, str], Way]] = {
    (kind, "triton_lines"): Way(_along, _tiles, suits=_suits) for kind in ("softmax", "log_softmax", "reduce")
}
"""Kind and name -> kernel."""
