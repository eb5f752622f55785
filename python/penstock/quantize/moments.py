"""Second moments of what layers read: the matrix that says what an error in their weights does to their answers.

A layer's answer is a sum of products for each position; what goes into one such sum is a row. The rows of a convolution
are its patches, padding included. Rows are drawn at random places of every sample: a picture has thousands, and they
are alike. Called by rounding.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from penstock.graph.editing import constant, integer, integers, string
from penstock.quantize.layers import Layer
from penstock.quantize.observe import runner

Floats = NDArray[np.float32]

# Rows that a matrix is made of: enough for small ones, and more than it has columns.
_ROWS: Final = 2048
_ROWS_PER_INPUT: Final = 1.5
# Multiplied at once, at the least, and by what a matrix has.
_LEAST_ROWS: Final = 256
_ROWS_AT_ONCE: Final = 0.25
# Beyond this many inputs of a sum, a matrix and its factors take too much time and room.
_MOST_INPUTS: Final = 8192


@dataclass(frozen=True, slots=True)
class Reading:
    """A layer with constant weights, and how they become matrices."""

    layer: Layer
    weight: NDArray[Any]
    groups: int

    @property
    def name(self) -> str:
        return self.layer.node.name or ""

    @property
    def inputs(self) -> int:
        """Products in one sum."""
        size: int = self.weight.size // self.weight.shape[self.layer.axis]
        return size

    @property
    def bytes(self) -> int:
        """Of its matrices."""
        return 4 * self.groups * self.inputs**2


def reading(layer: Layer) -> Reading | None:
    """None for layers of two activations, convolutions that are not in two dimensions, and sums that are too long."""
    weight = constant(layer.weight)
    if weight is None:
        return None
    groups = 1
    if layer.node.op_type == "Conv":
        if weight.ndim != 4 or string(layer.node, "auto_pad", "NOTSET") != "NOTSET":
            return None
        groups = integer(layer.node, "group", 1)
    found = Reading(layer, weight, groups)
    return found if found.inputs <= _MOST_INPUTS else None


def moments(
    model: ir.Model, readings: Sequence[Reading], samples: Sequence[Mapping[str, Any]], deadline: float = math.inf
) -> dict[str, Floats]:
    """[groups, inputs, inputs] by layer: the mean of x x' over positions of the samples.

    deadline  on the monotonic clock; where it comes before half of the samples were seen, nothing is known.
    """
    random = np.random.default_rng(0)
    sums = {each.name: _Sum(each) for each in readings}
    with runner(model, {each.layer.activation.name or "" for each in readings}) as run:
        for number, sample in enumerate(samples):
            if time.monotonic() > deadline:
                if 2 * number < len(samples):
                    return {}
                break
            answers = run(sample)
            for each in readings:
                wanted = int(max(_ROWS, _ROWS_PER_INPUT * each.inputs)) // len(samples) + 1
                sums[each.name].add(_rows(each, answers[each.layer.activation.name or ""], wanted, random))
    return {name: each.mean() for name, each in sums.items()}


class _Sum:
    """Of products of rows. A few rows at a time would read and write the whole matrix for each few."""

    def __init__(self, read: Reading) -> None:
        self._matrix: Floats = np.zeros((read.groups, read.inputs, read.inputs), np.float32)
        self._enough = max(_LEAST_ROWS, _ROWS_AT_ONCE * read.inputs)
        self._rows: list[Floats] = []
        self._count = 0

    def add(self, rows: Floats) -> None:
        """[groups, rows, inputs]."""
        self._rows.append(rows)
        if sum(each.shape[1] for each in self._rows) >= self._enough:
            self._multiply()

    def mean(self) -> Floats:
        """[groups, inputs, inputs]."""
        self._multiply()
        self._matrix /= np.float32(max(1, self._count))
        return self._matrix

    def _multiply(self) -> None:
        if not self._rows:
            return
        together = np.concatenate(self._rows, axis=1)
        self._rows.clear()
        self._count += together.shape[1]
        # Of one matrix and its own transpose BLAS computes a half; of stacks of them numpy asks for the whole.
        for group, rows in enumerate(together):
            self._matrix[group] += rows.T @ rows


def _rows(each: Reading, array: NDArray[Any], wanted: int, random: np.random.Generator) -> Floats:
    """[groups, rows, inputs]: what goes into that many sums, from random places."""
    if each.layer.node.op_type != "Conv":
        flat = array.reshape(-1, array.shape[-1])
        return flat[_places(len(flat), wanted, random)].astype(np.float32, copy=False)[None]
    node = each.layer.node
    pads = integers(node, "pads") or (0, 0, 0, 0)
    strides, dilations = integers(node, "strides") or (1, 1), integers(node, "dilations") or (1, 1)
    padded = np.pad(array, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    taps = [np.arange(size) * step for size, step in zip(each.weight.shape[2:], dilations, strict=True)]
    counts = [
        (size - int(tap[-1]) - 1) // stride + 1
        for size, tap, stride in zip(padded.shape[2:], taps, strides, strict=True)
    ]
    places = _places(len(array) * counts[0] * counts[1], wanted, random)
    picture, top, left = np.unravel_index(places, (len(array), *counts))
    high = (top * strides[0])[:, None] + taps[0]
    wide = (left * strides[1])[:, None] + taps[1]
    # [rows, height, width, channels]: indices with a slice between them come first.
    found = padded[picture[:, None, None], :, high[:, :, None], wide[:, None, :]]
    grouped = found.transpose(0, 3, 1, 2).reshape(len(found), each.groups, -1)
    return np.ascontiguousarray(grouped.transpose(1, 0, 2), np.float32)


def _places(count: int, wanted: int, random: np.random.Generator) -> NDArray[np.int64]:
    return np.arange(count) if count <= wanted else random.choice(count, wanted, replace=False)
