"""Steps without weights: pooling, norms, reductions, softmax, resizing, and what moves numbers, in torch operators."""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from penstock.engine.cuda import expressions
from penstock.engine.cuda.sites import Run, Site
from penstock.engine.places import ROUND, Numbers, places
from penstock.errors import Unsupported

_TO_TORCH = (0, 3, 1, 2)
_TO_OURS = (0, 2, 3, 1)


def max_pool(site: Site) -> Run:
    kernel, strides, dilations = (site.integers(name) for name in ("kernel", "strides", "dilations"))
    around = _around(site)
    dtype = site.out_dtype()

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        x = operands[0]
        if any(around):
            x = functional.pad(x, around, value=float("-inf"))
        y = functional.max_pool2d(x.permute(_TO_TORCH), kernel, strides, 0, dilations)
        return (y.permute(_TO_OURS).to(dtype).contiguous(),)

    top, left, bottom, right = site.integers("pads")
    fits = 2 * top <= kernel[0] and 2 * left <= kernel[1] and around == (0, 0, left, right, top, bottom)
    if not fits or (top, left) != (bottom, right):
        return run

    def direct(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        y = functional.max_pool2d(operands[0].permute(_TO_TORCH), kernel, strides, (top, left), dilations)
        return (y.permute(_TO_OURS).to(dtype).contiguous(),)

    return direct


def average_pool(site: Site) -> Run:
    kernel, strides, dilations = (site.integers(name) for name in ("kernel", "strides", "dilations"))
    around, dtype = _around(site), site.out_dtype()
    x_shape = site.shape("x")
    if dilations != (1, 1):
        raise Unsupported(f"average pooling with dilations {dilations} in step {site.step.name!r}")
    # How many numbers each mean is of: all of the kernel, or those that are not padding.
    inside = torch.ones((1, 1, *x_shape[1:3]))
    whole = bool(site.number("count_pads"))
    top, left, bottom, right = site.integers("pads")
    counted = functional.pad(inside, (left, right, top, bottom), value=1.0 if whole else 0.0)
    more = (around[3] - right, around[5] - bottom)  # what ceil_mode reaches beyond; never counted
    counted = functional.pad(counted, (0, more[0], 0, more[1]))
    share = functional.avg_pool2d(counted, kernel, strides)
    correction = (1.0 / share).permute(_TO_OURS).to(site.device)
    exact = bool((share == 1).all())

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        x = functional.pad(operands[0], around) if any(around) else operands[0]
        y = functional.avg_pool2d(x.permute(_TO_TORCH), kernel, strides).permute(_TO_OURS)
        return ((y if exact else y * correction).to(dtype).contiguous(),)

    return run


def _around(site: Site) -> tuple[int, ...]:
    """Padding of a stored map so that the windows of the output fit exactly; a negative one cuts off."""
    kernel, strides, dilations = (site.integers(name) for name in ("kernel", "strides", "dilations"))
    top, left, _, _ = site.integers("pads")
    ends = []
    for axis, begin in enumerate((top, left)):
        size, out = site.shape("x")[1 + axis], site.out_shape()[1 + axis]
        ends.append((out - 1) * strides[axis] + dilations[axis] * (kernel[axis] - 1) + 1 - size - begin)
    return (0, 0, left, ends[1], top, ends[0])


def _rows(table: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """As `gather` has them."""
    return table.index_select(0, indices.reshape(-1) % table.shape[0]).reshape(*indices.shape, -1)


def norm_factors(site: Site) -> Run:
    """Of groups of channels over the pixels of each image, in FP32."""
    batch, height, width, channels = site.shape("x")
    groups, epsilon = site.integer("groups"), site.number("epsilon")
    each = channels // groups

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        x = operands[0].float().reshape(batch, height * width, groups, each)
        variance, mean = torch.var_mean(x, (1, 3), correction=0)
        scale = torch.rsqrt(variance + epsilon)
        whole = (found.repeat_interleave(each, 1).view(batch, 1, 1, channels) for found in (scale, -mean * scale))
        return tuple(whole)

    return run


def layer_norm(site: Site) -> Run:
    weight, bias = site.weight("weight"), site.weight("bias")
    size, epsilon, dtype = site.shape("x")[-site.integer("axes") :], site.number("epsilon"), site.out_dtype()
    indices, residual = site.index("indices"), site.index("residual")
    totals = [site.out_dtype(index) for index in range(1, len(site.step.outputs))]

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        x = operands[0] if indices is None else _rows(operands[0], operands[indices])
        x = x if residual is None else x + operands[residual]
        y = functional.layer_norm(x, size, weight, bias, epsilon).to(dtype).contiguous()
        return (y, *(x.to(total).contiguous() for total in totals))

    return run


_REDUCE: Final[dict[str, Callable[[torch.Tensor, tuple[int, ...]], torch.Tensor]]] = {
    "mean": lambda x, axes: x.mean(axes, keepdim=True),
    "sum": lambda x, axes: x.sum(axes, keepdim=True),
    "max": lambda x, axes: x.amax(axes, keepdim=True),
    "min": lambda x, axes: x.amin(axes, keepdim=True),
    "l2": lambda x, axes: torch.linalg.vector_norm(x, dim=axes, keepdim=True, dtype=torch.float32),
}


def reduce(site: Site) -> Run:
    function, axes, dtype = _REDUCE[site.text("how")], site.integers("axes"), site.out_dtype()

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        x = operands[0]
        return ((function(x, axes) if axes else x).to(dtype).contiguous(),)

    return run


def arg_max(site: Site) -> Run:
    axis, function = site.integer("axis"), torch.argmax if site.text("how") == "max" else torch.argmin

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return (function(operands[0], dim=axis, keepdim=True),)

    return run


def softmax(site: Site) -> Run:
    axis, dtype = site.integer("axis"), site.out_dtype()

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return (torch.softmax(operands[0], axis, dtype=_wide(dtype)).to(dtype),)

    return run


def log_softmax(site: Site) -> Run:
    axis, dtype = site.integer("axis"), site.out_dtype()

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return (torch.log_softmax(operands[0], axis, dtype=_wide(dtype)).to(dtype),)

    return run


def _wide(dtype: torch.dtype) -> torch.dtype | None:
    """torch's kernels sum 16-bit numbers in FP32 by themselves; they write FP32 only if told to."""
    return torch.float32 if dtype == torch.float32 else None


def copy(site: Site) -> Run:
    shape, dtype = site.out_shape(), site.out_dtype()

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return (operands[0].to(dtype, memory_format=torch.contiguous_format).reshape(shape).contiguous(),)

    return run


def concat(site: Site) -> Run:
    """Operands of more axes than the result have theirs merged: pixels seen as runs that repeat."""
    axis, whole, dtype = site.integer("axis"), site.out_shape(), site.out_dtype()

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        parts = [each if each.dim() == len(whole) else each.reshape(*whole[:-1], -1) for each in operands]
        return (torch.cat(parts, axis).to(dtype).contiguous(),)

    return run


def gather(site: Site) -> Run:
    """Indices count from the end where negative; any index stays inside."""
    axis, shape, dtype = site.integer("axis"), site.out_shape(), site.out_dtype()

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        x, indices = operands
        picked = x.index_select(axis, indices.reshape(-1) % x.shape[axis])
        return (picked.reshape(shape).to(dtype),)

    return run


def pad(site: Site) -> Run:
    begin, end, value = site.integers("begin"), site.integers("end"), site.number("value")
    around = [size for pair in reversed(list(zip(begin, end, strict=True))) for size in pair]
    program, dtype = site.step.program, site.out_dtype()

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        x = expressions.computed(program, operands, dtype) if program else operands[0]
        return (functional.pad(x, around, value=value).to(dtype).contiguous(),)

    return run


# ---- resizing ----


def resize(site: Site) -> Run:
    """Nearest by repeating where the factors are whole, else by index; linear between two rows and two columns."""
    batch, height, width, channels = site.shape("x")
    out_height, out_width = site.out_shape()[1:3]
    dtype = site.out_dtype()
    if site.text("mode") == "nearest":
        rows, columns = (_nearest(site, axis) for axis in (0, 1))
        tall, wide = out_height // height, out_width // width
        repeats = np.array_equal(rows, np.arange(height).repeat(max(tall, 1))) and np.array_equal(
            columns, np.arange(width).repeat(max(wide, 1))
        )

        def repeat(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
            x = operands[0].reshape(batch, height, 1, width, 1, channels)
            y = x.expand(batch, height, tall, width, wide, channels)
            # One pixel, repeated, would be a view that has no memory of its own.
            return (y.reshape(batch, out_height, out_width, channels).to(dtype).contiguous(),)

        if repeats:
            return repeat
        at_rows, at_columns = (torch.from_numpy(each).to(site.device) for each in (rows, columns))

        def pick(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
            return (operands[0].index_select(1, at_rows).index_select(2, at_columns).to(dtype),)

        return pick
    taps = [_linear(site, axis) for axis in (0, 1)]
    (low, high, part), (left, right, share) = (
        (torch.from_numpy(a).to(site.device), torch.from_numpy(b).to(site.device), torch.from_numpy(c).to(site.device))
        for a, b, c in taps
    )
    part, share = part.reshape(1, -1, 1, 1), share.reshape(1, 1, -1, 1)

    def between(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        x = operands[0].float()
        x = x.index_select(1, low) * (1 - part) + x.index_select(1, high) * part
        x = x.index_select(2, left) * (1 - share) + x.index_select(2, right) * share
        return (x.to(dtype).contiguous(),)

    return between


def _positions(site: Site, axis: int) -> Numbers:
    """Where each output pixel lies in the input."""
    size, out, scale = site.shape("x")[1 + axis], site.out_shape()[1 + axis], site.numbers("scales")[axis]
    return places(site.text("coordinates"), size, out, scale)


def line_of(site: Site, axis: int) -> tuple[float, float]:
    """Step and shift of a resize: output pixel p lies at p * step + shift of the input, rows being axis 0."""
    positions = _positions(site, axis)
    step = (positions[-1] - positions[0]) / (len(positions) - 1) if len(positions) > 1 else 0.0
    return float(step), float(positions[0])


def _nearest(site: Site, axis: int) -> NDArray[np.int64]:
    positions, size = _positions(site, axis), site.shape("x")[1 + axis]
    rounded = ROUND[site.text("nearest")](positions)
    picked: NDArray[np.int64] = np.clip(rounded, 0, size - 1).astype(np.int64)
    return picked


def _linear(site: Site, axis: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """The two neighbours of each output pixel and the second one's share."""
    size = site.shape("x")[1 + axis]
    positions = np.clip(_positions(site, axis), 0, size - 1)
    low = np.floor(positions).astype(np.int64)
    return low, np.minimum(low + 1, size - 1), (positions - low).astype(np.float32)
