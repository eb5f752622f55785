"""Layers of few channels over large maps in CUDA C++: a tile of the map lies in shared memory, windows overlap there.

A stem's fork (`kernels/fork_tiles.py`) and convolutions of few filters (`kernels/tile_conv.py`). Compiled by NVRTC when
tuned. Needs compute capability 9.0; elsewhere the other implementations stay.
"""

from collections.abc import Sequence
from dataclasses import astuple
from typing import Final

from penstock.engine.cuda.kernels import fork_tiles, tile_conv
from penstock.engine.cuda.kernels.epilogue import Scratch
from penstock.engine.cuda.kernels.fork_tiles import ForkCut, fork_cuts, fork_tiles_launch
from penstock.engine.cuda.kernels.tile_conv import ConvCut, Window, conv_cuts, tile_conv_launch
from penstock.engine.cuda.sites import Site
from penstock.engine.cuda.ways import Config, Launched, Ready, Tensors, Way, compiles_cpp, multiprocessors_of


def _fork(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launched:
    del scratch
    constants = ready.constants
    return fork_tiles_launch(
        operands[0],
        constants["first"],
        constants.get("first_bias"),
        constants["second"],
        constants.get("second_bias"),
        between=ready.site.shape("first")[0],
        out=outputs[0],
        config=ForkCut(*ready.config),
        inner=ready.activation("inner_"),
        outer=ready.epilogue,
        pdl=ready.site.early,
    )


def _fork_cuts(site: Site) -> Sequence[Config]:
    images, height, width, channels = site.shape("x")
    between, made = site.shape("first")[0], site.shape("second")[0]
    found = fork_cuts(images, height, width, channels, between, made, multiprocessors_of(site.device))
    return [astuple(cut) for cut in found]


def _suits_fork(site: Site) -> bool:
    names = site.text("activation", "none"), site.text("inner", "none")
    return bool(compiles_cpp(site) and all(name in fork_tiles.ACTIVATIONS for name in names) and _fork_cuts(site))


def _window(site: Site) -> Window:
    _, high, wide, _ = site.shape("weight")
    stride, pads = site.integers("strides"), site.integers("pads")
    return Window(high, wide, (stride[0], stride[1]), (pads[0], pads[1]))


def _conv(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launched:
    del scratch
    return tile_conv_launch(
        operands[0],
        ready.weight,
        out=outputs[0],
        config=ConvCut(*ready.config),
        window=_window(ready.site),
        bias=ready.bias,
        epilogue=ready.epilogue,
        pdl=ready.site.early,
    )


def _conv_cuts(site: Site) -> Sequence[Config]:
    (images, high, wide, filters), channels = site.out_shape(), site.shape("x")[3]
    found = conv_cuts(images, high, wide, channels, filters, _window(site), multiprocessors_of(site.device))
    return [astuple(cut) for cut in found]


def _suits_conv(site: Site) -> bool:
    plain = site.integer("groups") == 1 and set(site.integers("dilations")) == {1} and site.index("residual") is None
    known = site.text("activation", "none") in tile_conv.ACTIVATIONS
    return bool(plain and known and compiles_cpp(site) and _conv_cuts(site))


TILED: Final[dict[tuple[str, str], Way]] = {
    ("fork", "cuda_tiles"): Way(
        _fork, _fork_cuts, forms={"first": fork_tiles.packed, "second": fork_tiles.packed}, suits=_suits_fork
    ),
    ("conv", "cuda_tiles"): Way(_conv, _conv_cuts, forms={"weight": tile_conv.packed}, suits=_suits_conv),
}
"""Kind and name -> kernel."""
