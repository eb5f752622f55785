"""Convolutions whose windows do not overlap, as one matrix product: patch embeddings, and upsampling by the stride.

cuDNN takes 194 us for the 32 x 32 patches of one picture of ViT-B/32 on an H200, and 662 us for 64 pictures; the copy
into rows and the product move some tenths of a megabyte, and 20 MB.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional

from penstock.engine.cuda.expressions import epilogue
from penstock.engine.cuda.sites import Run, Site


def fits(site: Site) -> bool:
    """Window and stride are the same, and the windows tile the picture."""
    weight = site.shape("weight")
    height, width = site.shape("x")[1:3]
    high, wide = weight[1:3]
    tiles = site.integers("strides") == (high, wide) and height % high == 0 and width % wide == 0
    return tiles and (high, wide) != (1, 1) and _plain(site)


def fits_transposed(site: Site) -> bool:
    weight = site.shape("weight")
    grown = tuple(
        size * step == out
        for size, step, out in zip(site.shape("x")[1:3], weight[1:3], site.out_shape()[1:3], strict=True)
    )
    return site.integers("strides") == tuple(weight[1:3]) and all(grown) and _plain(site)


def _plain(site: Site) -> bool:
    plain = site.integers("pads") == (0, 0, 0, 0) and site.integer("groups") == 1
    return plain and all(each == 1 for each in site.integers("dilations"))


def conv(site: Site) -> Run:
    """Weight [K, R, S, C]: its rows are patches already."""
    weight, bias = site.weight("weight"), site.weight("bias")
    assert weight is not None
    outputs, high, wide, channels = weight.shape
    rows = weight.reshape(outputs, -1)
    batch, height, width, _ = site.shape("x")
    down, across = height // high, width // wide
    finish = epilogue(site)

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        patches = operands[0].reshape(batch, down, high, across, wide, channels).permute(0, 1, 3, 2, 4, 5)
        y = functional.linear(patches.reshape(batch, down, across, -1), rows, bias)
        return (finish(y, operands),)

    return run


def conv_transpose(site: Site) -> Run:
    """Weight [C, R, S, K]: each pixel becomes R x S of them."""
    weight, bias = site.weight("weight"), site.weight("bias")
    assert weight is not None
    channels, high, wide, outputs = weight.shape
    columns = weight.reshape(channels, -1)
    spread = bias.repeat(high * wide) if bias is not None else None
    batch, height, width, _ = site.shape("x")
    finish = epilogue(site)

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        pixels = operands[0].reshape(-1, channels)
        y = torch.addmm(spread, pixels, columns) if spread is not None else pixels @ columns
        grown = y.reshape(batch, height, width, high, wide, outputs).permute(0, 1, 3, 2, 4, 5)
        return (finish(grown.reshape(batch, height * high, width * wide, outputs), operands),)

    return run
