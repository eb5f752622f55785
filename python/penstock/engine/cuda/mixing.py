"""Which layers of a graph in eight bits had better stay in 16: by the times of both, as the tuner found them.

A layer in eight bits is charged with its part of a copy that was made for it, and with what its input's maker takes
longer for writing eight bits. `without` takes those that lose out of what `in_eight_bits` goes by; what that makes is
another graph, to be tuned and raced as a whole. Called by benches.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Final

from penstock.engine.cuda.candidates import Tuned
from penstock.engine.eight_bits import Grids
from penstock.engine.lowered import LoweredGraph

CLEARLY: Final = 0.97
"""Of the time in eight bits: what is gained by less may be noise, and a mixture has its own costs."""


def times_of(rows: Sequence[Tuned]) -> dict[str, float]:
    """Microseconds of each step by name."""
    return {name: row.microseconds for row in rows for name in row.steps}


def slower(graph: LoweredGraph, narrow: Mapping[str, float], wide: Mapping[str, float]) -> frozenset[str]:
    """Names of the layers that lose.

    graph         in eight bits
    narrow, wide  microseconds of its steps, and of those of the same graph in 16 bits
    """
    makers = {name: step for step in graph.steps for name in step.outputs}
    readers = graph.readers()
    found: set[str] = set()
    for step in graph.steps:
        x = step.operand("x")
        if step.operand("scale") is None or x is None or step.name not in narrow or step.name not in wide:
            continue
        spent = narrow[step.name]
        maker = makers.get(x.value)
        if maker is not None and maker.operand("scale") is None and maker.name in narrow:
            # Another layer pays for what it writes itself; a copy has no time in 16 bits.
            more = narrow[maker.name] - wide.get(maker.name, 0.0)
            spent += max(0.0, more) / len(readers[x.value])
        if wide[step.name] < CLEARLY * spent:
            found.add(step.name)
    return frozenset(found)


def without(grids: Grids, graph: LoweredGraph, kept: Collection[str]) -> Grids:
    """`kept`: names of layers of the graph in floats; those that share a weight go together."""
    weights = {weight.value for step in graph.steps if step.name in kept and (weight := step.operand("weight"))}
    return replace(grids, weights={name: each for name, each in grids.weights.items() if name not in weights})
