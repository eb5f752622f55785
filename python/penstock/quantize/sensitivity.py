"""Which layers must stay float for the model to stay right: as few as a search finds in the time it is given.

`search` speaks of names and scores only, so that it serves any gate. Layers are ranked by *unquantizing only this one*:
that asks the question in the model that will be sealed, with all other errors present, and the search is over at once
where one layer alone is to blame. `rank_by_noise` gives it a good order for the price of one pass over a few samples.
Called by build.
"""

import math
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType
from typing import Final

import onnx_ir as ir

from penstock.quantize.branches import Branches
from penstock.quantize.data import Calibration
from penstock.quantize.observe import runner
from penstock.quantize.place import NEAREST, Narrow
from penstock.quantize.probes import probe
from penstock.quantize.progress import Progress, quiet
from penstock.quantize.scheme import Range, Scheme

Evaluate = Callable[[frozenset[str]], float]

# Of the budget; the rest is for adding layers and taking them out again.
_RANKING_SHARE: Final = 0.5
_NOISE_SAMPLES: Final = 4
# Of the costs of all layers: where even so many in float do not do, what is left is not worth a long search.
_MANY: Final = 0.5


@dataclass(frozen=True, slots=True)
class Kept:
    """Where a search ended."""

    layers: frozenset[str]
    """To stay float: the smallest set that passed, else the one that scored best."""
    score: float
    passed: bool
    evaluations: int
    complete: bool
    """False: the budget ended it; fewer layers might do, or more might pass."""


class _Search:
    def __init__(
        self,
        layers: Sequence[str],
        evaluate: Evaluate,
        passes: Callable[[float], bool],
        budget_seconds: float,
        progress: Progress,
        costs: Mapping[str, float],
    ) -> None:
        self.costs = costs
        self.layers = list(dict.fromkeys(layers))
        self.evaluate = evaluate
        self.passes = passes
        self.budget = budget_seconds
        self.deadline = time.monotonic() + budget_seconds
        self.progress = progress
        self.scores: dict[frozenset[str], float] = {}
        self.longest = 0.0

    def score(self, kept: frozenset[str]) -> float:
        if kept not in self.scores:
            began = time.monotonic()
            found = self.evaluate(kept)
            # NaN is what a broken model scores; nothing compares with it.
            self.scores[kept] = -math.inf if math.isnan(found) else found
            self.longest = max(self.longest, time.monotonic() - began)
            self.progress("sensitivity", len(self.scores), 0)
        return self.scores[kept]

    def good(self, kept: frozenset[str]) -> bool:
        return self.passes(self.score(kept))

    def over(self, share: float = 1.0) -> bool:
        """Whether another evaluation would not end within this share of the budget."""
        left = self.deadline - time.monotonic()
        return left - self.longest < (1 - share) * self.budget

    def kept(self, layers: frozenset[str], complete: bool) -> Kept:
        score = self.score(layers)
        return Kept(layers, score, self.passes(score), len(self.scores), complete)

    def best(self) -> frozenset[str]:
        return max(self.scores, key=lambda kept: (self.scores[kept], -len(kept)))

    def run(self) -> Kept:
        if self.good(frozenset()) or not self.layers:
            return self.kept(frozenset(), complete=True)
        if self.is_long() and (self.over() or not self.good(self.suspects())):
            return self.kept(self.best(), complete=False)
        for layer in self.layers:
            if self.over(_RANKING_SHARE):
                break
            if self.good(frozenset({layer})):
                return self.kept(frozenset({layer}), complete=True)
        found = self.grow(self.ranked())
        if found is None:
            return self.kept(self.best(), complete=len(self.layers) == len(self.best()))
        return self.shrink(found)

    def is_long(self) -> bool:
        """Whether there is no time to try each layer alone."""
        return self.longest * len(self.layers) > _RANKING_SHARE * self.budget

    def suspects(self) -> frozenset[str]:
        """The most suspicious ones that cost at least as much as the others."""
        spent = list(accumulate(map(self.cost, self.layers)))
        return frozenset(self.layers[: 1 + bisect_left(spent, _MANY * spent[-1])])

    def cost(self, layer: str) -> float:
        return self.costs.get(layer, 1.0)

    def ranked(self) -> list[str]:
        """Those that help most for what they cost first; those that were not tried follow in the order they came in."""
        tried = [layer for layer in self.layers if frozenset({layer}) in self.scores]
        rest = [layer for layer in self.layers if frozenset({layer}) not in self.scores]
        return sorted(tried, key=self.worth, reverse=True) + rest

    def worth(self, layer: str) -> float:
        help_ = self.scores[frozenset({layer})] - self.scores[frozenset()]
        # What makes it worse is no better for being dear. NaN: of two scores that are both minus infinity.
        return help_ / self.cost(layer) if help_ > 0 else (-math.inf if math.isnan(help_) else help_)

    def grow(self, ranked: list[str]) -> list[str] | None:
        """The fewest of the front of the list that pass, by doubling and then halving; None when time ends first."""
        too_few, enough = 1, 2
        while not self.good(frozenset(ranked[: min(enough, len(ranked))])):
            if enough >= len(ranked) or self.over():
                return None
            too_few, enough = enough, 2 * enough
        enough = min(enough, len(ranked))
        while enough - too_few > 1 and not self.over():
            middle = (too_few + enough) // 2
            if self.good(frozenset(ranked[:middle])):
                enough = middle
            else:
                too_few = middle
        return ranked[:enough]

    def shrink(self, found: list[str]) -> Kept:
        """Take out whatever is not needed, least helpful first: halves of the set, quarters, ..., single layers."""
        kept = found[::-1]
        size = len(kept) // 2
        while size:
            position = 0
            while position < len(kept) and len(kept) > size:
                if self.over():
                    return self.kept(frozenset(kept), complete=False)
                fewer = kept[:position] + kept[position + size :]
                if self.good(frozenset(fewer)):
                    kept = fewer
                else:
                    position += size
            size //= 2
        return self.kept(frozenset(kept), complete=True)


def search(
    layers: Sequence[str],
    evaluate: Evaluate,
    passes: Callable[[float], bool],
    *,
    budget_seconds: float,
    progress: Progress = quiet,
    costs: Mapping[str, float] = MappingProxyType({}),
) -> Kept:
    """Find a small set of layers which, left in float, lets the model pass.

    layers    most suspicious first, as `rank_by_noise` orders them
    evaluate  scores the model with these layers left in float; higher is better. Never asked twice the same
    passes    whether a score will do
    costs     of a layer in float, above 0, in any unit; without any all are alike

    Looks at no layer, then at each alone (half of the budget at most), then at those together that help most for what
    they cost, doubling their number, and at last takes out what is not needed. Where there is no time to look at each
    alone it ends at once if the more suspicious half of them, by their costs, does not do: the time is worth more
    elsewhere. The budget is checked before each evaluation but the first, with the longest so far as an estimate; what
    was found by then is answered.
    """
    return _Search(layers, evaluate, passes, budget_seconds, progress, costs).run()


@dataclass(frozen=True, slots=True)
class Noise:
    """What quantizing one layer alone does to its own output."""

    layer: str
    sqnr_db: float
    """10 log10(sum y² / sum (quantized y - y)²)."""


def rank_by_noise(
    model: ir.Model,
    ranges: Mapping[str, Range],
    data: Calibration,
    *,
    scheme: Scheme,
    weights: Mapping[str, Narrow] = NEAREST,
    samples: int = _NOISE_SAMPLES,
) -> tuple[Noise, ...]:
    """Layers by the noise they make, worst first; without those that lack a range, and those of two activations."""
    graph = Branches(model, ranges, scheme, weights)
    probes: dict[str, tuple[str, str]] = {}
    for name, branch in graph.branches.items():
        signal = probe(graph.edit, "ReduceSumSquare", [branch.answer], {"keepdims": 0})
        noise = probe(graph.edit, "ReduceSumSquare", [branch.difference], {"keepdims": 0})
        probes[name] = (signal.name or "", noise.name or "")
    sums = {name: [0.0, 0.0] for name in probes}
    with runner(graph.finish(), [output for pair in probes.values() for output in pair]) as run:
        for sample in data.samples[:samples]:
            found = run(sample)
            for name, (signal_name, noise_name) in probes.items():
                sums[name][0] += float(found[signal_name])
                sums[name][1] += float(found[noise_name])
    ranked = [Noise(name, _decibels(signal, noise)) for name, (signal, noise) in sums.items()]
    return tuple(sorted(ranked, key=lambda each: each.sqnr_db))


def _decibels(signal: float, noise: float) -> float:
    if not math.isfinite(signal + noise):
        return -math.inf
    if noise <= 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf
