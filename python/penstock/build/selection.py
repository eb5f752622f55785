"""Which programs an engine holds: a pure function of what was timed, so that every choice can be explained and tested.

A bucket wants its fastest tactic, and every program more costs memory. So the smallest set is looked for in which each
bucket has a program within the tolerance of its best; among equals the one with the lowest summed time wins. Called by
the driver after the gate has struck out what may not be used.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from penstock.engine.plan import Tactic
from penstock.tactics import Race
from penstock.tactics.candidates import siblings

# Within this of the fastest counts as fast as the fastest: half the spread of paired medians on a quiet machine, so
# that what is given away and what is not seen together stay within that spread.
TOLERANCE = 0.015
# Programs in one engine: each holds weights of its own. More than three were never worth it among the models timed.
MOST_PROGRAMS = 3
# Behind the best by no more than this a tactic may be ahead in its other shapes: static ones gave up to 1.4 times.
_NEAR = 1.15
# Tactics that are looked at together; only those that are near the best of some bucket get so far.
_MOST_CANDIDATES = 12


def untried_siblings(wanted: Iterable[Tactic], race: Race) -> list[Tactic]:
    """Of these tactics, siblings of the best of some bucket, or of one near it, that were not tried at that bucket."""
    lost = {each.tactic for each in race.lost}
    tried = {(each.tactic, each.bucket_index) for each in race.measurements}
    near = [
        (each.tactic, at)
        for at in range(len(race.buckets))
        for timed in [race.at(at)]
        for each in timed
        if each.median_us <= _NEAR * timed[0].median_us
    ]
    return [
        each
        for each in wanted
        if each not in lost and any(siblings(each, other) and (each, at) not in tried for other, at in near)
    ]


@dataclass(frozen=True, slots=True)
class Candidate:
    """An accepted tactic and what it costs in each bucket; None where it can't run or was not timed."""

    tactic: Tactic
    microseconds: tuple[float | None, ...]
    bytes: int = 0
    """Memory of its program; for static tactics of each of them."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The tactic of every bucket, in the order of the buckets, and the one for all other shapes."""

    tactics: tuple[Tactic, ...]
    microseconds: tuple[float, ...]
    rest: Tactic | None = None
    """A dynamic tactic beyond those of the buckets, where calls come with shapes that none of them takes."""


def select(
    candidates: Sequence[Candidate], buckets: int, *, free_shapes: bool, workspace_bytes: int | None = None
) -> Selection | None:
    """The tactic for each of `buckets` buckets, or None when none of the sets that fit covers them all.

    free_shapes      calls come with shapes between the buckets that padding the batch can't reach: at least one
                     program must be dynamic.
    workspace_bytes  what the programs may hold together; None: no limit.
    """
    best: list[float] = []
    for at in range(buckets):
        times = [time for each in candidates if (time := each.microseconds[at]) is not None]
        if not times:
            return None
        best.append(min(times))
    near = sorted(candidates, key=lambda each: _distance(each, best))[:_MOST_CANDIDATES]
    rest = min(
        (each for each in candidates if each.tactic.shapes == "dynamic"),
        key=lambda each: _distance(each, best),
        default=None,
    )
    found: tuple[tuple[int, float, float], Selection] | None = None
    for size in range(1, min(MOST_PROGRAMS, len(near)) + 1):
        for chosen in combinations(near, size):
            selection = _assign(chosen, buckets)
            if selection is None:
                continue
            held = list(chosen)
            if free_shapes and all(tactic.shapes == "static" for tactic in selection.tactics):
                if rest is None:
                    continue
                selection = Selection(selection.tactics, selection.microseconds, rest.tactic)
                held.append(rest)
            programs = _programs(selection)
            if workspace_bytes is not None and _bytes(held, programs) > workspace_bytes:
                continue
            ratios = [time / (low or time) for time, low in zip(selection.microseconds, best, strict=True)]
            # Within the tolerance: fewest programs, then fastest. Beyond it: fastest, whatever the number.
            count, total = float(len(programs)), sum(ratios)
            rank = (0, count, total) if max(ratios) <= 1 + TOLERANCE else (1, total, count)
            if found is None or rank < found[0]:
                found = (rank, selection)
    return found[1] if found else None


def _distance(candidate: Candidate, best: Sequence[float]) -> float:
    """How near it comes to the best of any bucket; 1 is the best itself."""
    ratios = [time / low for time, low in zip(candidate.microseconds, best, strict=True) if time and low]
    return min(ratios, default=float("inf"))


def _assign(chosen: Iterable[Candidate], buckets: int) -> Selection | None:
    tactics: list[Tactic] = []
    times: list[float] = []
    for at in range(buckets):
        able = [(time, index) for index, each in enumerate(chosen) if (time := each.microseconds[at]) is not None]
        if not able:
            return None
        time, index = min(able)
        tactics.append(list(chosen)[index].tactic)
        times.append(time)
    return Selection(tuple(tactics), tuple(times))


def _programs(selection: Selection) -> set[tuple[Tactic, int]]:
    """What has to be held: a dynamic tactic once, a static one for each of its buckets."""
    held = {(tactic, at if tactic.shapes == "static" else -1) for at, tactic in enumerate(selection.tactics)}
    return held | ({(selection.rest, -1)} if selection.rest else set())


def _bytes(held: Iterable[Candidate], programs: set[tuple[Tactic, int]]) -> int:
    size: Mapping[Tactic, int] = {each.tactic: each.bytes for each in held}
    return sum(size[tactic] for tactic, _ in programs)
