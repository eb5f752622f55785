"""What a lowered graph has to do, by arithmetic: FLOPs and bytes of each step, and the memory between the steps. Pure.

FLOPs are those of matrix products and convolutions (two for a multiplication and its addition), which run on the matrix
units; everything else is counted by its bytes. Bytes: of each value what the step sees of it, once, and what it writes,
once. Imports no torch. Called by the runtime for its regions, and by the bench.
"""

import math
from collections.abc import Mapping
from typing import Final

from penstock.engine.lowered import LoweredGraph, Operand, Step, Value, Weight

_ALIGNMENT: Final = 512  # of every block that torch's allocator gives

SIZES: Final[Mapping[str, int]] = {
    **dict.fromkeys(("BOOL", "INT8", "UINT8", "FP8"), 1),
    **dict.fromkeys(("FP16", "BF16", "INT16"), 2),
    **dict.fromkeys(("INT32", "FP32"), 4),
    **dict.fromkeys(("FP64", "INT64"), 8),
}
IN_16_BITS: Final[Mapping[str, int]] = {**SIZES, "FP32": 2}
"""Of a graph that says FP32 and is executed in sixteen bits."""

FLOPS: Final = 724e12
BYTES: Final = 4.28e12
"""A second: what plain FP16 products and copies reached on one H200."""


def floor_milliseconds(graph: LoweredGraph) -> float:
    """The least that an H200 takes for it in sixteen bits, layers with a scale in eight, each step by itself."""

    def seconds(step: Step) -> float:
        rate = FLOPS if step.operand("scale") is None else 2 * FLOPS
        return max(flops(graph, step) / rate, moved(graph, step, IN_16_BITS) / BYTES)

    return 1e3 * sum(map(seconds, graph.steps))


def flops(graph: LoweredGraph, step: Step) -> float:  # noqa: PLR0911  (one for each kind)
    """Of the matrix products in it; 0 for everything else."""

    def shape(role: str) -> tuple[int, ...]:
        operand = step.operand(role)
        assert operand is not None, role
        return graph.shape(operand)

    if step.kind in ("conv", "conv_gate", "conv_pool", "picture_pool"):  # each result is a sum over the filter
        products = step.attributes.get("products")  # those with weights that only fill up are none
        each = products if isinstance(products, int) else math.prod(shape("weight")[1:])
        strides = step.attributes.get("pool_strides", (1, 1))
        pooled = math.prod(int(each) for each in strides) if isinstance(strides, tuple) else 1
        return 2.0 * pooled * _written(graph, step) * each
    if step.kind in ("conv_shortcut", "bottleneck", "bottleneck_next"):
        return 2.0 * _of_a_block(graph, step)
    if step.kind in _SEVERAL:
        return _of_layers(graph, step)
    if step.kind == "conv_transpose":  # each input goes into a filter's worth of results
        return 2.0 * math.prod(shape("x")) * math.prod(shape("weight")[1:])
    if step.kind in ("gemm", "gemm_norm"):
        return 2.0 * _written(graph, step) * shape("weight")[-1]
    if step.kind == "matmul":
        return 2.0 * _written(graph, step) * shape("a")[-1]
    if step.kind == "attention":
        *queries, depth = shape("q")
        keys, width = shape("v")[-2:]
        return 2.0 * math.prod(queries) * keys * (depth + width)
    if step.kind == "channel_attention":
        return 4.0 * math.prod(shape("q")) * shape("k")[-1]
    if step.kind in ("lstm", "gru"):  # gates from what comes in and from the state
        time, batch, *_ = shape("x")
        return 2.0 * time * batch * (math.prod(shape("weight")) + math.prod(shape("recurrence")))
    return 0.0


_SEVERAL: Final = ("mlp", "gemm_top_1", "gated_layers", "fork", "expand_depthwise")


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


def moved(graph: LoweredGraph, step: Step, sizes: Mapping[str, int] = SIZES) -> float:
    """Bytes read and written. A gather reads what it answers with, not the whole table."""
    read: dict[str, int] = {}
    for operand in step.inputs:
        stored = graph.stored(operand.value)
        seen = min(_distinct(graph, operand), math.prod(stored.shape))
        if operand.role == "x" and (step.kind.startswith("gather") or step.operand("indices") is not None):
            seen = min(seen, math.prod(graph.values[step.outputs[0]].shape))
        # Two views of one value: at most all of it.
        read[operand.value] = min(read.get(operand.value, 0) + seen, math.prod(stored.shape))
    total = sum(count * _size(graph.stored(name), sizes) for name, count in read.items())
    return float(
        total + sum(math.prod(graph.values[name].shape) * _size(graph.values[name], sizes) for name in step.outputs)
    )


def _written(graph: LoweredGraph, step: Step) -> int:
    return math.prod(graph.values[step.outputs[0]].shape)


def _distinct(graph: LoweredGraph, operand: Operand) -> int:
    """Elements that an operand touches: axes of stride 0 repeat what is there."""
    if operand.view is None:
        return math.prod(graph.stored(operand.value).shape)
    pairs = zip(operand.view.shape, operand.view.strides, strict=True)
    return math.prod(size for size, stride in pairs if stride)


def arena(graph: LoweredGraph) -> int:
    """The most that inputs, outputs and values between the steps take at once."""
    last: dict[str, int] = {}
    for number, step in enumerate(graph.steps):
        last |= {each.value: number for each in step.inputs if each.value in graph.values}
        for name in step.outputs:
            last.setdefault(name, number)
    last |= {each.value: len(graph.steps) for each in graph.outputs if each.value in graph.values}
    alive = {each.name: _bytes(graph, each.name) for each in graph.inputs}
    kept, most = set(alive), sum(alive.values())  # inputs lie where every replay finds them
    for number, step in enumerate(graph.steps):
        alive |= {name: _bytes(graph, name) for name in step.outputs}
        most = max(most, sum(alive.values()))
        alive = {name: size for name, size in alive.items() if name in kept or last[name] > number}
    return most


def _bytes(graph: LoweredGraph, name: str) -> int:
    value = graph.values[name]
    return -(-math.prod(value.shape) * SIZES[value.datatype] // _ALIGNMENT) * _ALIGNMENT


def _size(stored: Value | Weight, sizes: Mapping[str, int]) -> int:
    return sizes[stored.datatype]
