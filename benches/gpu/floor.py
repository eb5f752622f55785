"""The least time the chip needs for a lowered graph, and its arithmetic: sums over the steps. Pure, no library.

    floor = sum over steps of max(FLOPs / 724 TFLOP/s, bytes / 4.28 TB/s)

The rates are the ceilings that plain FP16 products and copies reached on one H200; products of eight bits count at
twice the rate. FLOPs and bytes are those of `penstock.engine.cuda.costs`, 16 bits a float, 8 where it has a scale. A
fused pair of steps may pass below the floor: it is of these steps, not of the model.
"""

from dataclasses import dataclass
from typing import Final

from penstock.engine.cuda import costs
from penstock.engine.lowered import LoweredGraph, Step

FLOPS: Final = 724e12
BYTES: Final = 4.28e12


@dataclass(frozen=True)
class Cost:
    flops: float
    bytes: float
    """Moved between the steps and memory."""

    milliseconds: float
    """The floor."""


def cost(graph: LoweredGraph) -> Cost:
    steps = [
        (costs.flops(graph, step), costs.moved(graph, step, costs.IN_16_BITS), _rate(step)) for step in graph.steps
    ]
    floor = sum(max(arithmetic / rate, traffic / BYTES) for arithmetic, traffic, rate in steps)
    return Cost(sum(each[0] for each in steps), sum(each[1] for each in steps), 1e3 * floor)


def _rate(step: Step) -> float:
    """Layers of eight bits have a scale; the units do twice as many of those."""
    return FLOPS if step.operand("scale") is None else 2 * FLOPS
