"""Which layers a narrower form keeps wide: few and cheap ones that bring it well inside the gate, or else inside.

The same for sixteen bits beside FP32 and for eight beside floats; they differ in how sets are searched and in what a
layer costs. Called by mixing and calibrating.
"""

import math
from collections.abc import Callable
from dataclasses import replace

from penstock.build.gate import Verdict
from penstock.build.judging import margin, well_inside
from penstock.quantize import Kept

Layers = frozenset[str]
Search = Callable[[Callable[[Layers], float], Callable[[float], bool]], Kept]
"""(evaluate, passes) -> where it ended."""


def choose(
    search: Search, judged: Callable[[Layers], Verdict], cost: Callable[[Layers], float], *, most: float
) -> tuple[Kept, Verdict]:
    """The set that a search ends with if it is good, else the cheapest good one that it came by; and its verdict.

    Good is what passes and costs no more than `most`. Without any, where the search ended, as not passed.

    judged  the verdict with these layers kept.

    The search is told what is usually lost where the verdict says it, and not the worst: what layers lose adds up to
    that, and it is known well from a few inputs.
    """
    found: dict[Layers, Verdict] = {}

    def evaluate(kept: Layers) -> float:
        found[kept] = judged(kept)
        usual = found[kept].usual
        return math.inf if well_inside(found[kept]) else margin(found[kept]) if usual is None else -usual

    ended = search(evaluate, lambda score: score == math.inf)
    good = [kept for kept, verdict in found.items() if verdict.passed and cost(kept) <= most]
    kept = ended.layers if ended.layers in good or not good else min(good, key=cost)
    return replace(ended, layers=kept, score=margin(found[kept]), passed=bool(good)), found[kept]
