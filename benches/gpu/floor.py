"""The least time the chip needs for a lowered graph, and its arithmetic: sums over the steps. Pure, no library.

    floor = sum over steps of max(FLOPs / 724 TFLOP/s, bytes / 4.28 TB/s)

The rates are the ceilings that plain FP16 products and copies reached on one H200. FLOPs are those of matrix products
and convolutions (two for a multiplication and its addition), which run on the matrix units; everything else is counted
by its bytes. Bytes: of each value what the step sees of it, once, and what it writes, once, 16 bits a float. A fused
pair of steps may pass below the floor: it is of these steps, not of the model.
"""

import math
from dataclasses import dataclass
from typing import Final

from penstock.engine.lowered import LoweredGraph, Operand, Step, Value, Weight

FLOPS: Final = 724e12
BYTES: Final = 4.28e12

_SIZES: Final = {
    **dict.fromkeys(("BOOL", "INT8", "UINT8"), 1),
    **dict.fromkeys(("FP16", "BF16", "FP32", "INT16"), 2),  # what the graph calls FP32 is executed in 16 bits
    "INT32": 4,
    **dict.fromkeys(("FP64", "INT64"), 8),
}


@dataclass(frozen=True)
class Cost:
    flops: float
    bytes: float
    """Moved between the steps and memory."""

    milliseconds: float
    """The floor."""


def cost(graph: LoweredGraph) -> Cost:
    steps = [(flops(graph, step), moved(graph, step)) for step in graph.steps]
    floor = sum(max(arithmetic / FLOPS, traffic / BYTES) for arithmetic, traffic in steps)
    return Cost(sum(pair[0] for pair in steps), sum(pair[1] for pair in steps), 1e3 * floor)


def flops(graph: LoweredGraph, step: Step) -> float:
    """Of the matrix products in it; 0 for everything else."""

    def shape(role: str) -> tuple[int, ...]:
        operand = step.operand(role)
        assert operand is not None, role
        return graph.shape(operand)

    if step.kind in ("conv", "conv_gate"):  # each result is a sum over the filter
        products = step.attributes.get("products")  # those with weights that only fill up are none
        each = products if isinstance(products, int) else math.prod(shape("weight")[1:])
        return 2.0 * _written(graph, step) * each
    if step.kind in ("conv_shortcut", "bottleneck", "bottleneck_next"):
        return 2.0 * _of_a_block(graph, step)
    if step.kind == "conv_transpose":  # each input goes into a filter's worth of results
        return 2.0 * math.prod(shape("x")) * math.prod(shape("weight")[1:])
    if step.kind == "gemm":
        return 2.0 * _written(graph, step) * shape("weight")[-1]
    if step.kind == "matmul":
        return 2.0 * _written(graph, step) * shape("a")[-1]
    if step.kind == "attention":
        *queries, depth = shape("q")
        keys, width = shape("v")[-2:]
        return 2.0 * math.prod(queries) * keys * (depth + width)
    if step.kind == "lstm":  # four gates from what comes in and from the state
        time, batch, *_ = shape("x")
        return 2.0 * time * batch * (math.prod(shape("weight")) + math.prod(shape("recurrence")))
    if step.kind in _LAYERS:
        return _of_layers(graph, step)
    return 0.0


_LAYERS: Final = ("mlp", "gemm_top_1", "gated_layers", "fork", "expand_depthwise")


def _of_layers(graph: LoweredGraph, step: Step) -> float:
    """Every pixel or row of what is read meets every weight once, but for a depthwise one, of which its results do."""
    total, rows = 0.0, 0
    for operand in step.inputs:
        shape = graph.shape(operand)
        if operand.role in ("x", *(f"{number}_x" for number in range(9))):
            rows = math.prod(shape[:-1])
        elif operand.role.partition("_")[2] == "weight" or operand.role in ("first", "second"):
            total += 2.0 * rows * math.prod(shape)
        elif operand.role == "weight":
            each = math.prod(shape[1:]) if step.kind == "expand_depthwise" else 0
            total += 2.0 * _written(graph, step) * each if each else 2.0 * rows * math.prod(shape)
    return total


def _of_a_block(graph: LoweredGraph, step: Step) -> float:
    """Multiplications of its layers, each for every pixel that it writes."""
    pixels = math.prod(graph.values[step.outputs[0]].shape[:3])
    layers = (step.operand(role) for role in ("weight", "second", "third", "shortcut"))
    return float(pixels * sum(math.prod(graph.shape(each)) for each in layers if each is not None))


def moved(graph: LoweredGraph, step: Step) -> float:
    """Bytes read and written. A gather reads what it answers with, not the whole table."""
    read: dict[str, int] = {}
    for operand in step.inputs:
        stored = graph.stored(operand.value)
        seen = min(_distinct(graph, operand), math.prod(stored.shape))
        if step.kind == "gather" and operand.role == "x":
            seen = min(seen, math.prod(graph.values[step.outputs[0]].shape))
        # Two views of one value: at most all of it.
        read[operand.value] = min(read.get(operand.value, 0) + seen, math.prod(stored.shape))
    total = sum(count * _size(graph.stored(name)) for name, count in read.items())
    return float(total + sum(math.prod(graph.values[name].shape) * _size(graph.values[name]) for name in step.outputs))


def _written(graph: LoweredGraph, step: Step) -> int:
    return math.prod(graph.values[step.outputs[0]].shape)


def _distinct(graph: LoweredGraph, operand: Operand) -> int:
    """Elements that an operand touches: axes of stride 0 repeat what is there."""
    if operand.view is None:
        return math.prod(graph.stored(operand.value).shape)
    pairs = zip(operand.view.shape, operand.view.strides, strict=True)
    return math.prod(size for size, stride in pairs if stride)


def _size(stored: Value | Weight) -> int:
    return _SIZES[stored.datatype]
