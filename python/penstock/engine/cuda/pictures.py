"""A picture with zeros around it and the stem and pool that read it, as the two steps that it was joined of.

The reference is theirs in a row; kernels of ours that do both take them apart here, too.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from penstock.engine.cuda import blocks, shapes
from penstock.engine.cuda.sites import Run, Site, seen
from penstock.engine.stem_pools import apart


def parts(site: Site) -> tuple[Site, Site]:
    """Of a `picture_pool`: what lays the picture out, and what reads that."""
    graph, pad, pool = apart(site.graph, site.step)
    return replace(site, graph=graph, step=pad), replace(site, graph=graph, step=pool)


def picture_pool(site: Site) -> Run:
    first, second = parts(site)
    lay_out, pool, at = shapes.pad(first), blocks.conv_pool(second), site.index("x")
    assert at is not None

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        (picture,) = lay_out([operands[at]])
        windows = seen(picture, second.step.inputs[at])
        return pool([windows if number == at else each for number, each in enumerate(operands)])

    return run
