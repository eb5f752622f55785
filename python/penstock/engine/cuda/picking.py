"""Steps that pick elements by number, rank them, run along an axis or look between pixels, by torch's own operators.

Called through the table of implementations.
"""

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from penstock.engine.cuda.sites import Run, Site, narrow


def top_k(site: Site) -> Run:
    """By a stable sort, so that of equal ones the first comes first, as ONNX wants it."""
    axis, descending = site.integer("axis"), site.text("how") == "max"
    count, dtype = site.out_shape()[axis], site.out_dtype()

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        found, places = torch.sort(operands[0], dim=axis, descending=descending, stable=True)
        return found.narrow(axis, 0, count).to(dtype).contiguous(), places.narrow(axis, 0, count).contiguous()

    return run


def cumsum(site: Site) -> Run:
    """16-bit floats are summed in FP32."""
    axis, dtype = site.integer("axis"), site.out_dtype()
    exclusive, reverse = (bool(site.step.attributes[name]) for name in ("exclusive", "reverse"))
    wide = torch.float32 if narrow(dtype) else dtype

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        x = operands[0].flip(axis) if reverse else operands[0]
        if exclusive and x.shape[axis]:  # each is seen by the next
            x = torch.cat((torch.zeros_like(x.narrow(axis, 0, 1)), x.narrow(axis, 0, x.shape[axis] - 1)), axis)
        total = x.cumsum(axis, dtype=wide)
        return ((total.flip(axis) if reverse else total).to(dtype).contiguous(),)

    return run


def gather_elements(site: Site) -> Run:
    """As `gather`, an element at a time."""
    axis, dtype = site.integer("axis"), site.out_dtype()

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        x, indices = operands
        return (x.gather(axis, indices.long() % x.shape[axis]).to(dtype),)

    return run


def gather_nd(site: Site) -> Run:
    """As `gather`, rows by places of several axes."""
    batch, shape, dtype = site.integer("batch"), site.out_shape(), site.out_dtype()
    whole, places = site.shape("x"), site.shape("indices")
    sizes = whole[: batch + places[-1]]
    strides = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    # What the axes that both have add to a row's number.
    ahead = torch.zeros((1,) * (len(places) - 1), dtype=torch.int64)
    for axis in range(batch):
        steps = torch.arange(sizes[axis]) * strides[axis]
        ahead = ahead + steps.reshape(*(-1 if each == axis else 1 for each in range(len(places) - 1)))
    ahead = ahead.to(site.device)

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        x, indices = operands
        rows = ahead
        for at, (size, stride) in enumerate(zip(sizes[batch:], strides[batch:], strict=True)):
            rows = rows + indices[..., at].long() % size * stride
        picked = x.reshape(math.prod(sizes), -1).index_select(0, rows.reshape(-1))
        return (picked.reshape(shape).to(dtype),)

    return run


def grid_sample(site: Site) -> Run:
    """Of maps in NHWC; places in FP32."""
    mode, padding, align = site.text("mode"), site.text("padding"), bool(site.step.attributes["align"])
    dtype = site.out_dtype()

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        x, grid = operands
        seen = x.permute(0, 3, 1, 2)
        # Places that come in as FP32 stay so; of those that a step made in 16 bits a fraction of a pixel is gone.
        found = functional.grid_sample(seen.float(), grid.float(), mode, padding, align)
        return (found.to(dtype).permute(0, 2, 3, 1).contiguous(),)

    return run
