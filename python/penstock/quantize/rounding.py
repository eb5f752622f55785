"""Weights rounded one input after the other, each so that it makes up for the roundings before it.

To the nearest is best for a weight by itself, not for a sum of products: what counts is (w - q)' H (w - q), with H the
second moments of what the layer reads. With H = R' R, R upper triangular, that is a sum of squares: the last has one
rounding in it, the one before it two, and so on. From the last to the first, each weight is rounded to where its square
is least. So does the nearest-plane algorithm of Babai (1986), and so round Frantar et al. ("GPTQ: Accurate
Post-Training Quantization for Generative Pre-trained Transformers", ICLR 2023). Inputs with the largest moments come
last, and are rounded while there is most left to make up for them.

What a layer reads is read in eight bits: that noise is part of H. H is not centred, so what is least is the mean error,
too. Called by recipe.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
import onnx_ir as ir

from penstock.quantize.data import Calibration
from penstock.quantize.layers import plan
from penstock.quantize.moments import Floats, Reading, moments, reading
from penstock.quantize.place import Narrow, quantize_weight
from penstock.quantize.progress import Progress, quiet
from penstock.quantize.scheme import Range, Scheme

_SAMPLES: Final = 64
# Of matrices that are collected in one run over the data.
_MEMORY: Final = 512 * 2**20
# What is added to the diagonal, as a share of its mean: so few rows say little of small moments.
_DAMPING: Final = 0.01
_BLOCK: Final = 128


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
    deadline  on the monotonic clock, after which no further group of layers is begun.
    """
    known = [layer for layer in plan(model, scheme).layers if layer.activation.name in ranges]
    readings = [each for layer in known if (each := reading(layer)) is not None]
    chosen = data.samples[:samples]
    found: dict[str, Narrow] = {}
    for part in _parts(readings):
        if time.monotonic() > deadline:
            break
        seen = moments(model, part, chosen)
        for each in part:
            grid = scheme.grid(ranges[each.layer.activation.name or ""])
            found[each.name] = _solved(each, seen.pop(each.name), grid.scale**2 / 12, scheme.weight_bits)
            progress("rounding", len(found), len(readings))
    return found


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
    rows = np.moveaxis(read.weight, read.layer.axis, 0)
    # [groups, inputs, outputs of a group]
    matrix: Floats = rows.reshape(read.groups, -1, read.inputs).transpose(0, 2, 1).astype(np.float32)
    values = nearest_plane(matrix / nearest.scales.reshape(read.groups, 1, -1), seen, noise, 2 ** (bits - 1) - 1)
    if values is None:
        return nearest
    narrow = values.transpose(0, 2, 1).reshape(rows.shape).astype(np.int8)
    return Narrow(np.ascontiguousarray(np.moveaxis(narrow, 0, read.layer.axis)), nearest.scales)


def nearest_plane(weights: Floats, seen: Floats, noise: float, top: int) -> Floats | None:
    """Whole numbers in place of `weights`, none beyond `top` in size; None where the moments are of no use.

    weights  [groups, inputs, outputs], in steps.
    seen     [groups, inputs, inputs]: second moments of the inputs.
    noise    variance that is added to every input.
    """
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
            errors[:, at] = wanted[:, at] - np.clip(np.rint(target), -top, top)
    values = np.empty_like(wanted)
    np.put_along_axis(values, order[:, :, None], wanted - errors, 1)
    return np.rint(values)
