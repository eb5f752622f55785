"""Matrix products and convolutions of a short depth by `kernels/short_product.py`.

Compiled by NVRTC when tuned. Needs compute capability 9.0; elsewhere the other implementations stay.
"""

from dataclasses import astuple
from typing import Final

from penstock.engine.cuda.kernels.depthwise_walk import ACTIVATIONS
from penstock.engine.cuda.kernels.epilogue import Scratch
from penstock.engine.cuda.kernels.short_product import (
    ShortTile,
    short_conv_launch,
    short_product_launch,
    short_tiles,
)
from penstock.engine.cuda.kernels.tiles import Product
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
    integers_or_narrow,
    multiplying,
    multiprocessors_of,
)

_multiply: Final = multiplying(short_product_launch, ShortTile)


def _convolve(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launched:
    if ready.weight.shape[1:3] == (1, 1):
        return _multiply(ready, operands, outputs, scratch)
    high, wide = ready.site.integers("strides")
    return short_conv_launch(
        operands[0],
        ready.weight,
        out=outputs[0],
        config=ShortTile(*ready.config),
        bias=ready.bias,
        residual=ready.residual(operands),
        scale=ready.scale,
        epilogue=ready.epilogue,
        stride=(high, wide),
        pdl=ready.site.early,
    )


def _tiles(site: Site) -> list[Config]:
    weight, out = site.shape("weight"), site.out_shape()
    product = Product(count(out[:-1]), weight[0], count(weight[1:]), itemsize=dtype_of(site, 0).itemsize)
    return [astuple(tile) for tile in short_tiles(product, multiprocessors_of(site.device))]


def _suits(site: Site) -> bool:
    return bool(compiles_cpp(site) and site.text("activation", "none") in ACTIVATIONS and _tiles(site))


def _suits_conv(site: Site) -> bool:
    """One pixel in, one out, or windows that lie within the picture."""
    if any(site.integers("pads")) or site.integer("groups") != 1 or set(site.integers("dilations")) != {1}:
        return False
    alone = site.shape("weight")[1:3] == (1, 1)
    return (not alone or site.out_shape()[:3] == site.shape("x")[:3]) and _suits(site)


SHORT: Final[dict[tuple[str, str], Way]] = {
    ("gemm", "cuda_short"): Way(_multiply, _tiles, suits=_suits, types=integers_or_narrow, scales=True),
    ("conv", "cuda_short"): Way(_convolve, _tiles, suits=_suits_conv, types=integers_or_narrow, scales=True),
}
"""Kind and name -> kernel."""
