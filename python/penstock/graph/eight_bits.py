"""A graph with Q/DQ as steps in eight bits: the float graph of it is lowered, and the scales are put back by name.

`unquantized` takes what `quantize` writes for GPUs: activations symmetric with one scale for each tensor, weights
symmetric with one for each output channel, both int8. `in_int8` lowers what it gave: layers between quantized tensors
become integer; whoever reads a quantized tensor and can read eight bits does so, whether its Q/DQ says so or not.
`in_fp8` needs no Q/DQ, only how large numbers are. Called by build.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from penstock.engine.eight_bits import LEAST_SCALE, TOP, Grids, in_eight_bits
from penstock.engine.lowered import LoweredGraph
from penstock.errors import Unsupported
from penstock.graph.editing import Array, Edit, constant, input_of, integer, producer
from penstock.graph.lowering import Weights, lower

_OFF: Final = 1e-3
"""Of a step: what dequantized weights may be off the grid. More, and a pass has changed them."""


@dataclass(frozen=True, slots=True)
class Unquantized:
    """A float graph, and what its Q/DQ said."""

    model: ir.Model
    values: Mapping[str, float]
    """Tensor -> what one step of it is worth."""
    weights: Mapping[str, Array]
    """Initialiser -> the same for each output channel."""


def in_int8(bound: ir.Model, found: Unquantized) -> tuple[LoweredGraph, Weights]:
    """Steps and weights of the float graph, optimized and its shapes bound. Raises what `lower` raises."""
    graph, weights = lower(bound, joined=False)
    return in_eight_bits(graph, weights, Grids(found.values, _rows(graph, weights, found.weights)))


def in_fp8(bound: ir.Model, most: Mapping[str, float]) -> tuple[LoweredGraph, Weights]:
    """Steps with layers in e4m3. `most`: of a tensor the largest number; layers that read others stay as they are."""
    graph, weights = lower(bound, joined=False)
    values = {name: max(span / TOP["FP8"], LEAST_SCALE) for name, span in most.items()}
    rows = {
        weight.value: _largest(weights[weight.value]) / np.float32(TOP["FP8"])
        for step in graph.steps
        if (weight := step.operand("weight")) is not None and weights[weight.value].ndim > 1
    }
    return in_eight_bits(graph, weights, Grids(values, rows), "FP8")


def _largest(weight: Array) -> Array:
    """Of each row; of rows of zeros something that can be divided by."""
    found: Array = np.abs(weight.reshape(len(weight), -1)).max(axis=1).astype(np.float32)
    return np.maximum(found, LEAST_SCALE * TOP["FP8"])


def unquantized(model: ir.Model) -> Unquantized:
    """A copy without Q/DQ: weights are dequantized, activations are what they were before."""
    copy = model.clone()
    edit = Edit(copy)
    values: dict[str, float] = {}
    weights: dict[str, Array] = {}
    for node in edit.nodes("DequantizeLinear"):
        narrow, wide = node.inputs[0], node.outputs[0]
        quantize = producer(narrow, "QuantizeLinear")
        if quantize is None:
            array, scales = _dequantized(node)
            made = edit.constant(wide, array)
            if scales is not None:
                weights[made.name or ""] = scales
            edit.forward(wide, made)
            continue
        origin = quantize.inputs[0]
        assert origin is not None
        values[origin.name or ""] = _scale(node, quantize)
        if not edit.forward(wide, origin):
            raise Unsupported(f"the output {wide.name!r} is quantized; give it back as a float")
    edit.remove(*edit.nodes("DequantizeLinear"))
    edit.remove(*[node for node in edit.nodes("QuantizeLinear") if not any(value.uses() for value in node.outputs)])
    return Unquantized(copy, values, weights)


def _scale(dequantize: ir.Node, quantize: ir.Node) -> float:
    """Of an activation."""
    found = []
    for node in (quantize, dequantize):
        scale, zero = constant(node.inputs[1]), constant(input_of(node, 2))
        if scale is None or scale.size != 1 or zero is None or zero.dtype != np.int8 or zero.any():
            raise Unsupported(
                f"{node.op_type} of node {node.name!r}: GPUs take int8 with one scale and the zero point 0; "
                "quantize with the scheme for GPUs"
            )
        found.append(float(scale.reshape(())))
    if found[0] != found[1]:
        raise Unsupported(f"node {dequantize.name!r} has another scale than what was quantized: {found[1]}, {found[0]}")
    return found[0]


def _dequantized(node: ir.Node) -> tuple[Array, Array | None]:
    """A constant, and what a step of each of its channels is worth where it is a weight in int8."""
    narrow, scale, zero = constant(node.inputs[0]), constant(node.inputs[1]), constant(input_of(node, 2))
    if narrow is None or scale is None or (zero is not None and zero.any()):
        raise Unsupported(
            f"DequantizeLinear of node {node.name!r}: GPUs take weights with constant scales and the zero point 0"
        )
    axis = integer(node, "axis", 1) % max(narrow.ndim, 1)
    rows = np.broadcast_to(scale.reshape(-1), (narrow.shape[axis],) if narrow.ndim else (1,))
    shape = [1] * narrow.ndim
    if narrow.ndim:
        shape[axis] = -1
    array = (narrow.astype(np.float32) * rows.reshape(shape)).astype(np.float32)
    return array, rows.astype(np.float32) if narrow.dtype == np.int8 and narrow.ndim > 1 else None


def _rows(graph: LoweredGraph, weights: Weights, scales: Mapping[str, Array]) -> dict[str, Array]:
    """Of the lowered weights, which are named after the constant that they were and what was done to it."""
    found: dict[str, Array] = {}
    for step in graph.steps:
        weight = step.operand("weight")
        if weight is None or weight.value not in weights:
            continue
        parts = weight.value.split(".")
        names = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
        rows = next((scales[name] for name in names if name in scales), None)
        array = weights[weight.value]
        if rows is None or len(rows) != array.shape[0]:
            continue
        steps = array / rows.reshape(-1, *(1,) * (array.ndim - 1))
        if np.abs(steps - np.rint(steps)).max(initial=0.0) <= _OFF:
            found[weight.value] = rows
    return found
