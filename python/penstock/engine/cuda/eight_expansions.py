"""Two layers of which the first multiplies INT8, in torch's own operators: what our kernels are judged by.

The map between them is rounded to INT8 as if it were written; the depthwise layer multiplies floats.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional

from penstock.engine.cuda.eight_bits import quantized
from penstock.engine.cuda.expressions import activate
from penstock.engine.cuda.layers import padding_of
from penstock.engine.cuda.sites import Run, Site


def expand_depthwise(site: Site) -> Run:
    first, scale, first_bias = site.weight("first"), site.weight("scale"), site.weight("first_bias")
    weight, bias = site.weight("weight"), site.weight("bias")
    out_scale, step = site.out_scale(), site.number("inner_step")
    assert first is not None
    assert scale is not None
    assert weight is not None
    assert out_scale is not None
    # Whole numbers below 2^24 are exact in FP32, and there are at most 64 products.
    matrix, filters = first.flatten(1).float(), weight.float().permute(0, 3, 1, 2)
    inner = site.text("inner", "none"), site.number("inner_alpha"), site.number("inner_beta")
    outer = site.text("activation", "none"), site.number("alpha"), site.number("beta")
    strides, groups, (around, padding) = site.integers("strides"), site.integer("groups"), padding_of(site)
    added = None if bias is None else bias.float()

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        y = functional.linear(operands[0].float(), matrix) * scale.float()
        y = activate(y if first_bias is None else y + first_bias.float(), *inner)
        y = quantized(y, torch.int8, step).float() * step
        y = functional.pad(y, around) if around else y
        y = functional.conv2d(y.permute(0, 3, 1, 2), filters, added, strides, padding, groups=groups)
        return (quantized(activate(y.permute(0, 2, 3, 1), *outer), site.out_dtype(), out_scale).contiguous(),)

    return run
