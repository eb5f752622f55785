"""Our kernels for pointwise programs and for copies between layouts: written for each step, whatever it computes."""

from typing import Final

import numpy as np
import torch

from penstock.engine.cuda.kernels.epilogue import Scratch
from penstock.engine.cuda.kernels.launching import Launch
from penstock.engine.cuda.kernels.pointwise import COPY, Read, block_sizes, pointwise_launch
from penstock.engine.cuda.sites import Site
from penstock.engine.cuda.ways import Config, Ready, Tensors, Way, always, count


def _pointwise(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launch:
    """Views of one value are reads of one tensor."""
    del scratch
    site = ready.site
    shape = np.broadcast_shapes(*(each.shape for each in operands))  # torch's imports its tracer: seconds
    tensors: dict[str, torch.Tensor] = {}
    reads: list[Read] = []
    for index, (operand, seen) in enumerate(zip(site.step.inputs, operands, strict=True)):
        begin = 0 if operand.view is None else operand.view.offset
        if operand.value not in tensors:
            tensors[operand.value] = torch.as_strided(seen, (1,), (1,), seen.storage_offset() - begin)
        pointer = list(tensors).index(operand.value)
        reads.append(Read(pointer, begin, seen.expand(shape).stride(), site.scale(index)))
    return pointwise_launch(
        site.step.program or COPY,
        list(tensors.values()),
        reads,
        shape=shape,
        out=outputs[0],
        out_scale=site.out_scale(),
        block=ready.config[0],
        pdl=site.early,
    )


def _blocks(site: Site) -> list[Config]:
    return [(size,) for size in block_sizes(count(site.out_shape()))]


WRITTEN: Final[dict[tuple[str, str], Way]] = {
    ("pointwise", "triton"): Way(_pointwise, _blocks, types=always, scales=True),
    ("copy", "triton_tiles"): Way(_pointwise, _blocks, types=always, scales=True),
}
"""Kind and name -> kernel."""
