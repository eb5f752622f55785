"""The least time the chip needs for a lowered graph, and its arithmetic: sums over the steps. Pure, no library.

    floor = sum over steps of max(FLOPs / 724 TFLOP/s, bytes / 4.28 TB/s)

The rates are the ceilings that plain FP16 products and copies reached on one H200; products of eight bits count at
twice the rate. FLOPs and bytes are those of `penstock.engine.cuda.costs`, 16 bits a float, 8 where it has a scale. A
fused pair of steps may pass below the floor: it is of these steps, not of the model.
"""

from dataclasses import dataclass

from penstock.engine.cuda import costs
from penstock.engine.lowered import LoweredGraph


@dataclass(frozen=True)
class Cost:
    flops: float
    bytes: float
    """Moved between the steps and memory."""

    milliseconds: float
    """The floor."""


def cost(graph: LoweredGraph) -> Cost:
    flops = sum(costs.flops(graph, step) for step in graph.steps)
    moved = sum(costs.moved(graph, step, costs.IN_16_BITS) for step in graph.steps)
    return Cost(flops, moved, costs.floor_milliseconds(graph))
