"""Timing programs against each other: warm first, then in turns, so that drift of the machine hits all alike.

Only one process runs at any instant. A round gives each contender one turn of several calls, in an order that
reverses every round; contenders are compared by the ratio of their turns of the same round, which cancels what
changes from round to round. Numbers are medians, with the median absolute deviation for spread: on shared machines
means tell of the neighbours. Called by `race`.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from penstock.engine.plan import Tactic
from penstock.tactics.child import CandidateLost, Child
from penstock.tactics.results import Measurement, Paired

# Beyond this the cost of waking a process that idled while others ran (caches, clock) is below 1 % of a call, and a
# warm call in each turn would double the time that timing takes.
_SLOW_CALL_US: Final = 20_000.0
# A block of calls that is less than this much faster than the one before: warm.
_WARM_GAIN: Final = 0.05
_BLOCK_CALLS: Final = 5
_MOST_CALLS: Final = 2000  # of a turn: enough for any median
_FEW_ROUNDS: Final = 6  # below, no 95 % interval exists for a median (0.5^5 * 2 > 0.05)
# A turn may take this many times what it was meant to, and these seconds, before it counts as a hang: a machine that is
# busy with other things must not cost a good candidate.
_PATIENCE: Final = 20.0
_PATIENCE_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Effort:
    """How much time a comparison may take."""

    warm_seconds: float
    turn_seconds: float
    rounds: int
    """At most; fewer when the answer is certain."""

    drop_ratio: float
    """Who is certainly slower than the best by more than this is not timed further."""

    close_ratio: float
    """Good enough when every ratio is known within this part of itself."""


QUALIFYING: Final = Effort(warm_seconds=0.3, turn_seconds=0.05, rounds=4, drop_ratio=1.5, close_ratio=0.02)
CONFIRMING: Final = Effort(warm_seconds=0.5, turn_seconds=0.1, rounds=25, drop_ratio=1.1, close_ratio=0.01)


@dataclass(eq=False, slots=True)
class Contender:
    """A program in its process, the inputs of the bucket loaded and called once."""

    child: Child
    bucket: int
    first_us: float
    call_us: float = 0.0
    """Latest rough time of one call."""

    bytes: int = 0

    @property
    def tactic(self) -> Tactic:
        return self.child.tactic


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the rounds gave: measurements of those who came through, and who was lost on the way."""

    measurements: tuple[Measurement, ...]
    lost: tuple[CandidateLost, ...] = ()


def first_call(child: Child, bucket: int, limit: float) -> Contender:
    """The first call, which sets up buffers and may compile; raises CandidateLost beyond `limit` seconds."""
    timed = child.time(bucket, calls=1, seconds=0, limit=limit)
    microseconds = timed.nanoseconds[0] / 1000
    return Contender(child, bucket, microseconds, microseconds, timed.bytes)


def warm(contender: Contender, seconds: float) -> None:
    """Call until a block of calls is no longer much faster than the one before, or until the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        # An equal share of the time for the slow ones: at least two blocks are needed to see that they got no faster.
        block = _turn(contender, _BLOCK_CALLS, seconds / 4, warm_calls=0)
        before, contender.call_us = contender.call_us, median(block) / 1000
        if contender.call_us > (1 - _WARM_GAIN) * before:
            return


def compare(contenders: Sequence[Contender], effort: Effort, proceed: Callable[[], bool]) -> Comparison:
    """Time contenders of one bucket in rounds; `proceed` is asked before each round but the first.

    The first contender is what the others are paired with. Contenders whose process fails are lost, the rest goes on.
    """
    turns: dict[Contender, list[tuple[int, ...]]] = {each: [] for each in contenders}
    lost: list[CandidateLost] = []
    running = list(contenders)
    for number in range(effort.rounds):
        if number and not proceed():
            break
        for each in list(running if number % 2 == 0 else reversed(running)):
            calls = max(1, min(_MOST_CALLS, int(effort.turn_seconds * 1e6 / max(each.call_us, 1.0))))
            try:
                samples = _turn(each, calls, effort.turn_seconds, warm_calls=int(each.call_us < _SLOW_CALL_US))
            except CandidateLost as error:
                lost.append(error)
                running.remove(each)
                continue
            turns[each].append(samples)
            each.call_us = median(samples) / 1000
        reference = contenders[0]
        if reference not in running:
            break  # nothing to be paired with: the caller takes another reference
        rest = [each for each in running if not _certainly_slower(turns, running, each, effort.drop_ratio)]
        # One that is alone, from the start or since the others dropped out, needs no more than a sound median.
        alone = len(rest) < 2 and (len(contenders) > 1 or number + 1 >= _FEW_ROUNDS)
        if alone or (len(rest) > 1 and _settled(turns, rest, effort.close_ratio)):
            break
        # The reference stays: later rounds are compared with it.
        running = [each for each in running if each in rest or each is reference]
    gone = {error.lost.tactic for error in lost}
    whole = [each for each in contenders if each.tactic not in gone and turns[each]]
    return Comparison(tuple(_measurement(turns, each, contenders[0]) for each in whole), tuple(lost))


def _turn(contender: Contender, calls: int, seconds: float, *, warm_calls: int) -> tuple[int, ...]:
    limit = _PATIENCE_SECONDS + _PATIENCE * (seconds + (1 + warm_calls) * contender.call_us / 1e6)
    timed = contender.child.time(contender.bucket, calls=calls, seconds=seconds, warm=warm_calls, limit=limit)
    contender.bytes = max(contender.bytes, timed.bytes)
    return timed.nanoseconds


_Turns = dict[Contender, list[tuple[int, ...]]]


def ratios(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> list[float]:
    """Our time over theirs in each round that both took part in."""
    return [median(our) / median(their) for our, their in zip(ours, theirs, strict=False)]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Where the median lies with 95 % certainty, by order statistics (binomial); with few values, all of them.

    The k-th smallest and largest of n enclose the median with probability 1 - 2 * P(Binomial(n, 1/2) < k).
    """
    ordered = sorted(values)
    count = len(ordered)
    if count < _FEW_ROUNDS:
        return ordered[0], ordered[-1]
    outside, at = 0.0, 0
    while True:
        outside += math.comb(count, at) / 2**count
        if 2 * outside > 0.05:
            break
        at += 1
    return ordered[at - 1], ordered[count - at]


def _certainly_slower(turns: _Turns, running: Sequence[Contender], one: Contender, ratio: float) -> bool:
    """By more than `ratio` than any other that is still running. Two rounds at least: one can be an accident."""
    for other in running:
        values = ratios(turns[one], turns[other])
        if other is not one and len(values) >= 2 and interval(values)[0] > ratio:
            return True
    return False


def _settled(turns: _Turns, running: Sequence[Contender], close: float) -> bool:
    """Whether the ratio of the fastest to each other one is known well enough, or shows it to be clearly faster."""
    if min(len(turns[each]) for each in running) < _FEW_ROUNDS:
        return False
    fastest = min(running, key=lambda each: median(map(median, turns[each])))
    for each in running:
        if each is not fastest:
            values = ratios(turns[each], turns[fastest])
            low, high = interval(values)
            if low < 1 + close and high - low > 2 * close:
                return False
    return True


def _measurement(turns: _Turns, contender: Contender, reference: Contender) -> Measurement:
    samples = [sample for turn in turns[contender] for sample in turn]
    middle = median(samples)
    spread = median(abs(sample - middle) for sample in samples)
    paired = None
    values = ratios(turns[contender], turns[reference]) if contender is not reference else []
    if values:
        paired = Paired(reference.tactic, median(values), *interval(values), len(values))
    return Measurement(contender.tactic, contender.bucket, middle / 1000, spread / 1000, len(samples), paired)
