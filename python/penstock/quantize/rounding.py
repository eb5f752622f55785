"""Weights rounded one input after the other, each so that it makes up for the roundings before it.

To the nearest is best for a weight by itself, not for a sum of products: what counts is (w - q)' H (w - q), with H the
second moments of what the layer reads. With H = R' R, R upper triangular, that is a sum of squares: the last has one
rounding in it, the one before it two, and so on. From the last to the first, each weight is rounded to where its square
is least. So does the nearest-plane algorithm of Babai (1986), and so round Frantar et al. ("GPTQ: Accurate
Post-Training Quantization for Generative Pre-trained Transformers", ICLR 2023). Inputs with the largest moments come
last, and are rounded while there is most left to make up for them.

What a layer reads is read in eight bits: that noise is part of H. H is not centred, so what is least is the mean error,
too. To BF16 it is done in the same way, with that type's numbers in place of whole ones. Called by recipe and build.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from penstock.quantize.data import Calibration
from penstock.quantize.layers import plan
from penstock.quantize.moments import Floats, Reading, moments, reading
from penstock.quantize.place import Narrow, quantize_weight
from penstock.quantize.progress import Progress, quiet
from penstock.quantize.scheme import Range, Scheme
from penstock.tensors import bfloat16

# Layers that libraries compute in BF16: all that have constant weights.
_ALL: Final = Scheme("bf16", gates=True)
_Number = TypeVar("_Number", bound=np.generic)

_SAMPLES: Final = 64
# Of matrices that are collected in one run over the data.
_MEMORY: Final = 512 * 2**20
# What is added to the diagonal, as a share of its mean: so few rows say little of small moments.
_DAMPING: Final = 0.01
_BLOCK: Final = 128
# Of the time that is left: what layers read, and the rest for rounding.
_LOOKING: Final = 0.6


def rounded(
    model: ir.Model,
    ranges: Mapping[str, Range],
    data: Calibration,
    *,
    scheme: Scheme,
    samples: int = _SAMPLES,
    deadline: float = math.inf,
    progress: Progress = quiet,
) -> dict[str, Narrow]:
    """By name of the layer: weights in eight bits that answer more like the model's than the nearest ones do.

    ranges    of activations; layers whose input has none are left out, and those that are not understood.
    deadline  on the monotonic clock, after which no further layer is begun.
    """
    known = [layer for layer in plan(model, scheme).layers if layer.activation.name in ranges]
    readings = [each for layer in known if (each := reading(layer)) is not None]
    found: dict[str, Narrow] = {}
    for each, seen in _seen(model, readings, data.samples[:samples], deadline):
        grid = scheme.grid(ranges[each.layer.activation.name or ""])
        found[each.name] = _solved(each, seen, grid.scale**2 / 12, scheme.weight_bits)
        progress("rounding", len(found), len(readings))
    return found


def in_bfloat16(
    model: ir.Model, data: Calibration, *, samples: int = _SAMPLES, deadline: float = math.inf
) -> dict[str, Floats]:
    """By name of the layer: weights that BF16 holds exactly, in float32, which answer more like the model's than the
    nearest ones of that type do. Layers at the front come first.

    deadline  on the monotonic clock, after which no further layer is begun.
    """
    readings = [each for layer in plan(model, _ALL).layers if (each := reading(layer)) is not None]
    found: dict[str, Floats] = {}
    for each, seen in _seen(model, readings, data.samples[:samples], deadline):
        values = _planes(_matrix(each), seen, 0.0, _nearest_bfloat16)
        if values is not None:
            found[each.name] = _as_weight(each, _nearest_bfloat16(values))
    return found


def _nearest_bfloat16(numbers: NDArray[Any]) -> Floats:
    return numbers.astype(bfloat16()).astype(np.float32)


def _seen(
    model: ir.Model, readings: Sequence[Reading], samples: Sequence[Mapping[str, Any]], deadline: float
) -> Iterator[tuple[Reading, Floats]]:
    """Each layer, with the second moments of what it reads, until the deadline."""
    for part in _parts(readings):
        began = time.monotonic()
        seen = moments(model, part, samples, began + _LOOKING * (deadline - began))
        for each in part:
            if not seen or time.monotonic() > deadline:
                return
            yield each, seen.pop(each.name)


def _parts(readings: Sequence[Reading]) -> Iterator[list[Reading]]:
    """As many layers at once as their matrices have room for, and at least one."""
    part: list[Reading] = []
    for each in readings:
        if part and sum(other.bytes for other in (*part, each)) > _MEMORY:
            yield part
            part = []
        part.append(each)
    if part:
        yield part


def _solved(read: Reading, seen: Floats, noise: float, bits: int) -> Narrow:
    """noise: the variance that eight bits add to each input."""
    nearest = quantize_weight(read.weight, read.layer.axis, bits=bits)
    steps = nearest.scales.reshape(read.groups, 1, -1)
    values = nearest_plane(_matrix(read) / steps, seen, noise, 2 ** (bits - 1) - 1)
    return nearest if values is None else Narrow(_as_weight(read, values.astype(np.int8)), nearest.scales)


def _matrix(read: Reading) -> Floats:
    """Its weights as [groups, inputs, outputs of a group]."""
    rows = np.moveaxis(read.weight, read.layer.axis, 0)
    return rows.reshape(read.groups, -1, read.inputs).transpose(0, 2, 1).astype(np.float32)


def _as_weight(read: Reading, matrix: NDArray[_Number]) -> NDArray[_Number]:
    """The other way round."""
    rows = np.moveaxis(read.weight, read.layer.axis, 0).shape
    return np.ascontiguousarray(np.moveaxis(matrix.transpose(0, 2, 1).reshape(rows), 0, read.layer.axis))


def nearest_plane(weights: Floats, seen: Floats, noise: float, top: int) -> Floats | None:
    """Whole numbers in place of `weights`, none beyond `top` in size; None where the moments are of no use.

    weights  [groups, inputs, outputs], in steps.
    seen     [groups, inputs, inputs]: second moments of the inputs.
    noise    variance that is added to every input.
    """
    values = _planes(weights, seen, noise, lambda numbers: np.clip(np.rint(numbers), -top, top))
    return None if values is None else np.rint(values)


def _planes(
    weights: Floats, seen: Floats, noise: float, nearest: Callable[[NDArray[Any]], NDArray[Any]]
) -> Floats | None:
    """`nearest_plane` for the numbers that `nearest` answers; within float32's rounding of those."""
    inputs = weights.shape[1]
    diagonal = np.einsum("gii->gi", seen)
    order = np.argsort(diagonal, axis=1)
    ordered = np.take_along_axis(np.take_along_axis(seen, order[:, :, None], 1), order[:, None, :], 2)
    level = diagonal.mean(axis=1, keepdims=True)
    # Inputs that are always zero: any positive number says that each weight stands for itself.
    ordered[:, np.arange(inputs), np.arange(inputs)] += noise + np.where(level > 0, _DAMPING * level, 1.0)
    if not np.isfinite(ordered).all():
        return None
    try:
        factor = np.linalg.cholesky(ordered).transpose(0, 2, 1)
    except np.linalg.LinAlgError:
        return None
    factor = np.ascontiguousarray(factor / np.einsum("gii->gi", factor)[:, :, None])
    wanted = np.take_along_axis(weights, order[:, :, None], 1)
    errors = np.zeros_like(wanted)
    for end in range(inputs, 0, -_BLOCK):
        start = max(0, end - _BLOCK)
        behind = factor[:, start:end, end:] @ errors[:, end:]
        for at in range(end - 1, start - 1, -1):
            inside = factor[:, at : at + 1, at + 1 : end] @ errors[:, at + 1 : end]
            target = wanted[:, at] + behind[:, at - start] + inside[:, 0]
            errors[:, at] = wanted[:, at] - nearest(target)
    values = np.empty_like(wanted)
    np.put_along_axis(values, order[:, :, None], wanted - errors, 1)
    return values
