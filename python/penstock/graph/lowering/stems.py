"""Convolutions over a picture of a few planes: the picture with zeros around it, and what of it a column reads.

A pixel gets four channels, since six bytes can't be fetched in one go and eight can. Where the window has rows and
columns, a column of the result sees the pixels of one row of its window as the channels of one pixel, which lie side by
side: pixels overlap, nothing is unfolded in memory, and the convolution goes down the rows only. Called by the
lowering of convolutions.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from penstock.engine.lowered import Operand, View
from penstock.graph.editing import Array
from penstock.graph.lowering.builder import Builder
from penstock.graph.lowering.views import NHWC, Ref, lies_in

_CHANNELS: Final = 4
_RUN: Final = 16
"""Channels of a row of the window are a multiple of this: the depth of one matrix instruction."""
_EVEN: Final = 2
"""Pixels in 16 bytes: rows begin where such a load may."""


@dataclass(frozen=True, slots=True)
class Window:
    """Of a convolution, all of it without groups."""

    weight: Array
    """[out, kh, kw, in]"""
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    """Top, left, bottom, right."""
    dilations: tuple[int, ...]
    out: tuple[int, ...]
    """Rows and columns of the result."""


@dataclass(frozen=True, slots=True)
class Stem:
    """The same convolution over what was made of the picture."""

    x: Operand
    weight: Array
    form: str
    """What was done to the weights."""
    strides: tuple[int, ...]
    pads: tuple[int, ...]


def stem(builder: Builder, node: ir.Node, x: Ref, window: Window) -> Stem | None:
    """Emits what makes the picture ready; None where the convolution is better left as it is.

    Patches are: they are a matrix product, and would become a third longer.
    """
    kernel = tuple(window.weight.shape[1:3])
    few = x.shape[1] == window.weight.shape[3] <= _CHANNELS
    # It must be moved anyway: to NHWC, or to the type that is computed in.
    given = any(each.name == x.value for each in builder.inputs) or _is_computed(builder, node, x)
    if not few or kernel == window.strides or (lies_in(x, NHWC) and not given):
        return None
    if min(kernel) > 1 and all(each == 1 for each in window.dilations):
        return _in_rows(builder, node, x, window)
    return _pixel_by_pixel(builder, node, x, window) if x.shape[1] == _CHANNELS - 1 else None


def _is_computed(builder: Builder, node: ir.Node, x: Ref) -> bool:
    """For this convolution alone, number by number: the same can be done while zeros are put around it."""
    value = node.inputs[0]
    maker = next((step for step in reversed(builder.steps) if x.value in step.outputs), None)
    return value is not None and len(value.uses()) == 1 and maker is not None and maker.kind == "pointwise"


def _pixel_by_pixel(builder: Builder, node: ir.Node, x: Ref, window: Window) -> Stem:
    picture = builder.padded(x, (0, 0, 0, 0), (0, 0, 0, _CHANNELS - x.shape[1]), node)
    rows = _widened(window.weight)
    return Stem(builder.operand(picture, "x", NHWC), rows, f"krsc{_CHANNELS}", window.strides, window.pads)


def _in_rows(builder: Builder, node: ir.Node, x: Ref, window: Window) -> Stem:
    batch, channels, height, width = x.shape
    filters, high, wide, _ = window.weight.shape
    (down, across), (top, left, _, _) = window.strides, window.pads
    out_high, out_wide = window.out
    run = -(-wide * _CHANNELS // _RUN) * _RUN  # longer than a row of the window by some pixels with weights of zero
    seen_high = (out_high - 1) * down + high
    seen_wide = (out_wide - 1) * across + run // _CHANNELS
    # Strides may leave rows and columns out; all of the picture is kept, cutting it would be no cheaper.
    all_high = max(seen_high, top + height)
    all_wide = -(-max(seen_wide, left + width) // _EVEN) * _EVEN
    begin = (0, top, left, 0)
    end = (0, all_high - top - height, all_wide - left - width, _CHANNELS - channels)
    picture = builder.padded(x, begin, end, node)
    row = all_wide * _CHANNELS
    view = View((batch, seen_high, out_wide, run), (all_high * row, row, across * _CHANNELS, 1))
    flat = _widened(window.weight).reshape(filters, high, 1, wide * _CHANNELS)
    rows = np.pad(flat, ((0, 0), (0, 0), (0, 0), (0, run - flat.shape[3])))
    return Stem(Operand(picture.value, "x", view), rows, f"krsc{_CHANNELS}.rows{run}", (down, 1), (0, 0, 0, 0))


def _widened(weight: Array) -> Array:
    return np.pad(weight, ((0, 0), (0, 0), (0, 0), (0, _CHANNELS - weight.shape[3])))
