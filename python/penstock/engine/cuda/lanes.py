"""Which steps of a lowered graph run beside the others: two lanes, and who waits for whom. Pure; imports no torch.

Small graphs are bound by how long one kernel after the other takes, not by how much of the GPU they use. Steps that
nobody waits for yet go to a lane of their own, a second stream of the capture, and are met again where what they made
is read. A lane keeps the order of the steps. Called by the executor; `plan` promises the same answer for one graph,
since sealed kernels hold which of them were launched early.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from penstock.engine.cuda.costs import BYTES, FLOPS, IN_16_BITS, flops, moved
from penstock.engine.lowered import LoweredGraph
from penstock.errors import InvalidArgument

# Microseconds of one step, roughly: what it takes whatever it does, and a multiple of the least by arithmetic.
_FIXED: Final = 3.0
_SECOND_KERNEL: Final = 4.0
_TWO_KERNELS: Final = ("conv_gate", "squeeze_excite", "mlp", "gemm_top_1")
"""Kinds that are two kernels in a row, or one that waits for itself."""

_OF_FLOOR: Final = 3.0
_MEETING: Final = 2.0
"""Of a wait for the other lane: nothing behind it is launched early."""

_WORTH: Final = 0.02
"""Of the whole: what is gained by less is not worth a second stream."""

_LARGEST: Final = 1500.0
"""Microseconds beyond which kernels fill the GPU by themselves."""


@dataclass(frozen=True, slots=True)
class Lanes:
    side: frozenset[int] = frozenset()
    """Numbers of the steps that run beside the others."""

    waits: Mapping[int, int] = field(default_factory=dict)
    """Step -> the step of the other lane that has to be over; -1: what was before the first."""

    marks: frozenset[int] = frozenset()
    """Steps that somebody waits for."""

    last: int | None = None
    """Of the side: what the end waits for."""

    def behind(self, number: int) -> int | None:
        """The step ahead in the same lane; None where there is none, or where something else is waited for, too."""
        if number in self.waits:
            return None
        same = number in self.side
        return next((each for each in range(number - 1, -1, -1) if (each in self.side) == same), None)


def handed_over(graph: LoweredGraph, lanes: Lanes) -> frozenset[str]:
    """Values that one lane makes and the other one reads."""
    makers = {name: number in lanes.side for number, step in enumerate(graph.steps) for name in step.outputs}
    return frozenset(
        each.value
        for number, step in enumerate(graph.steps)
        for each in step.inputs
        if makers.get(each.value, number in lanes.side) != (number in lanes.side)
    )


def plan(graph: LoweredGraph) -> Lanes:
    """The lanes of a graph, all in one where that is as good."""
    cost = [_cost(graph, number) for number in range(len(graph.steps))]
    total = sum(fixed + floor for fixed, floor in cost)
    reads = _reads(graph)
    if total > _LARGEST or len(cost) < 2:
        return Lanes()
    slack = _slack(reads, cost)
    side: frozenset[int] = frozenset()
    best = _takes(reads, cost, side)
    whole = best
    for number in sorted((each for each in range(len(cost)) if slack[each] > 0), key=lambda each: -slack[each]):
        tried = _takes(reads, cost, side | {number})
        if tried < best:
            side, best = side | {number}, tried
    if not side or whole - best < _WORTH * whole:
        return Lanes()
    return _lanes(reads, side)


def beside(graph: LoweredGraph, side: frozenset[int]) -> Lanes:
    """These steps beside the others. Raises InvalidArgument for steps that are not there."""
    if not side:
        return Lanes()
    if max(side) >= len(graph.steps) or min(side) < 0:
        raise InvalidArgument(f"step {max(side)} beside the others, of {len(graph.steps)}")
    return _lanes(_reads(graph), side)


def _lanes(reads: list[frozenset[int]], side: frozenset[int]) -> Lanes:
    waits: dict[int, int] = {}
    seen = {True: -2, False: -2}  # by lane: up to where the other one is known to be over
    for number, before in enumerate(reads):
        here = number in side
        others = [each for each in before if (each in side) != here]
        needed = max(others, default=-2)
        if here and seen[here] == -2:
            needed = max(needed, -1)  # a stream becomes part of a capture by waiting for it
        if needed > seen[here]:
            waits[number] = seen[here] = needed
    return Lanes(side, waits, frozenset(waits.values()), max(side))


def _reads(graph: LoweredGraph) -> list[frozenset[int]]:
    """The steps whose values each step reads."""
    makers: dict[str, int] = {}
    found = []
    for number, step in enumerate(graph.steps):
        found.append(frozenset(makers[each.value] for each in step.inputs if each.value in makers))
        makers |= dict.fromkeys(step.outputs, number)
    return found


def _cost(graph: LoweredGraph, number: int) -> tuple[float, float]:
    step = graph.steps[number]
    floor = 1e6 * max(flops(graph, step) / FLOPS, moved(graph, step, IN_16_BITS) / BYTES)
    return _FIXED + (_SECOND_KERNEL if step.kind in _TWO_KERNELS else 0.0), _OF_FLOOR * floor


def _slack(reads: list[frozenset[int]], cost: list[tuple[float, float]]) -> list[float]:
    """How much later each step could end without anything else ending later, if every step had a lane of its own."""
    ends: list[float] = []
    for number, before in enumerate(reads):
        ends.append(sum(cost[number]) + max((ends[each] for each in before), default=0.0))
    tails = [0.0] * len(reads)
    for number in range(len(reads) - 1, -1, -1):
        for each in reads[number]:
            tails[each] = max(tails[each], tails[number] + sum(cost[number]))
    longest = max(ends)
    return [longest - end - tail for end, tail in zip(ends, tails, strict=True)]


def _takes(reads: list[frozenset[int]], cost: list[tuple[float, float]], side: frozenset[int]) -> float:
    """Microseconds with two lanes. What a step does is work that the other lane has to make room for: only what it
    takes in any case goes on beside.
    """
    lanes = _lanes(reads, side) if side else Lanes()
    ends: list[float] = []
    at, room = {True: 0.0, False: 0.0}, 0.0
    for number, (fixed, work) in enumerate(cost):
        here = number in side
        begins = at[here]
        if number in lanes.waits:
            waited = lanes.waits[number]
            begins = max(begins, ends[waited] if waited >= 0 else 0.0) + _MEETING
        at[here] = begins + fixed + work
        ends.append(at[here])
        room += work if here else 0.0
    over = at[False] if lanes.last is None else max(at[False], at[True]) + (_MEETING if _open(reads, side) else 0.0)
    return over + room


def _open(reads: list[frozenset[int]], side: frozenset[int]) -> bool:
    """Whether the side's last step is read by nobody of the other lane."""
    return not any(max(side) in before for number, before in enumerate(reads) if number not in side)
