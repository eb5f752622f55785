"""Which loads are measured: a range of concurrencies or of rates, or the highest that keeps a latency limit.

Called by `penstock bench`, and by whoever tunes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from penstock.bench.measuring import Measured
from penstock.errors import UsageError

_MOST_LEVELS: Final = 1000


@dataclass(frozen=True, slots=True)
class Levels:
    """`start:end:step`, as perf_analyzer's ranges."""

    start: float
    end: float
    step: float

    @classmethod
    def parse(cls, text: str, what: str, *, whole: bool) -> "Levels":
        """`4`, `1:16`, `1:16:2`; `what` is the setting; raises UsageError."""
        parts = text.split(":")
        try:
            numbers = [float(each) for each in parts]
        except ValueError:
            numbers = []
        start = numbers[0] if numbers else 0.0
        end = numbers[1] if len(numbers) > 1 else start
        step = numbers[2] if len(numbers) > 2 else 1.0
        good = 0 < len(numbers) < 4 and 0 < start <= end < 1e9 and 0 < step < 1e9
        if not good or (whole and any(each != int(each) for each in numbers)):
            raise UsageError.of(what, text, "start:end:step, as in 1:16:1")
        if (end - start) / step >= _MOST_LEVELS:
            raise UsageError.of(what, text, f"at most {_MOST_LEVELS} levels; use a larger step")
        return cls(start, end, step)

    def __iter__(self) -> Iterator[float]:
        level = self.start
        while level <= self.end * (1 + 1e-9):
            yield level
            level += self.step


Measure = Callable[[float], Measured]


def swept(levels: Levels, measure: Measure, limit_us: float | None, percentile: int | None) -> Iterator[Measured]:
    """One after the other; the first beyond the limit is the last."""
    for level in levels:
        found = measure(level)
        yield found
        if not keeps(found, limit_us, percentile):
            return


def halved(levels: Levels, measure: Measure, limit_us: float, percentile: int | None) -> Iterator[Measured]:
    """The highest level within the limit, to within a step, by halving what is left."""
    low, high = levels.start, levels.end
    first = measure(low)
    yield first
    if not keeps(first, limit_us, percentile):
        return
    last = measure(high) if high > low else first
    if high > low:
        yield last
    if keeps(last, limit_us, percentile):
        return
    while high - low > levels.step * (1 + 1e-9):
        steps = max(1, round((high - low) / 2 / levels.step))
        middle = low + steps * levels.step
        found = measure(middle)
        yield found
        low, high = (middle, high) if keeps(found, limit_us, percentile) else (low, middle)


def keeps(found: Measured, limit_us: float | None, percentile: int | None) -> bool:
    """Whether the latency that counts is within the limit, and requests were answered at all."""
    if not found.requests:
        return False
    return limit_us is None or found.latency.stable(percentile) <= limit_us
