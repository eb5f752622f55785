"""What the steps of a pipeline took: counts since it was put in service, by step.

Written on the event loop's thread alone, and read from any: a snapshot may miss what happens while it is taken. What
the model behind a call took, batch by batch, is in the statistics of that model.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

# Buckets of durations are powers of two of a microsecond: a percentile is off by a factor of two at most, and less
# where it is interpolated. The last one holds what took longer than an hour.
_BUCKETS: Final = 32
_MICROSECOND: Final = 1000


@dataclass(frozen=True, slots=True)
class StepStatistics:
    """One step, or the whole request. Times are nanoseconds; those of `count` were answered."""

    name: str
    kind: str
    """`call` of a model, `cpu`, or `request`."""

    count: int
    errors: int
    cancelled: int
    total_ns: int
    """Of those in `count`, from the beginning of the step to its answer."""

    queue_ns: int
    """Of those in `count`, until an instance, a thread or the event loop took it."""

    longest_ns: int
    p50_ns: int
    p99_ns: int


@dataclass(frozen=True, slots=True)
class PipelineStatistics:
    """All that a pipeline did."""

    request: StepStatistics
    steps: tuple[StepStatistics, ...]
    """By name."""


class Step:
    """One step of one request. Times are those of `time.perf_counter_ns`."""

    __slots__ = ("began", "ended", "kind", "name", "queue_ns", "status")

    def __init__(self, name: str, kind: str) -> None:
        self.name = name
        self.kind = kind
        self.began = time.perf_counter_ns()
        self.ended = self.began
        self.queue_ns: int | None = None
        self.status = "open"

    def end(self, status: str) -> None:
        self.ended = time.perf_counter_ns()
        self.status = status


class _Counter:
    """The counts behind one `StepStatistics`."""

    __slots__ = ("buckets", "cancelled", "count", "errors", "longest", "queue", "total")

    def __init__(self) -> None:
        self.count = self.errors = self.cancelled = self.total = self.queue = self.longest = 0
        self.buckets = [0] * _BUCKETS

    def add(self, status: str, queue_ns: int, total_ns: int) -> None:
        if status == "cancelled":
            self.cancelled += 1
            return
        if status != "ok":
            self.errors += 1
            return
        self.count += 1
        self.total += total_ns
        self.queue += queue_ns
        self.longest = max(self.longest, total_ns)
        self.buckets[min((total_ns // _MICROSECOND).bit_length(), _BUCKETS - 1)] += 1

    def snapshot(self, name: str, kind: str) -> StepStatistics:
        buckets = list(self.buckets)
        return StepStatistics(
            name=name,
            kind=kind,
            count=self.count,
            errors=self.errors,
            cancelled=self.cancelled,
            total_ns=self.total,
            queue_ns=self.queue,
            longest_ns=self.longest,
            p50_ns=min(percentile(buckets, 0.5), self.longest),
            p99_ns=min(percentile(buckets, 0.99), self.longest),
        )


class Statistics:
    """The counters of one pipeline."""

    def __init__(self) -> None:
        self._request = _Counter()
        self._steps: dict[tuple[str, str], _Counter] = {}

    def count(self, step: Step) -> None:
        counter = self._steps.get((step.name, step.kind))
        if counter is None:
            counter = self._steps[step.name, step.kind] = _Counter()
        counter.add(step.status, step.queue_ns or 0, step.ended - step.began)

    def count_request(self, status: str, queue_ns: int, total_ns: int) -> None:
        self._request.add(status, queue_ns, total_ns)

    def snapshot(self) -> PipelineStatistics:
        steps = sorted(self._steps.copy().items())
        return PipelineStatistics(
            self._request.snapshot("request", "request"),
            tuple(counter.snapshot(name, kind) for (name, kind), counter in steps),
        )


def percentile(buckets: Sequence[int], share: float) -> int:
    """Nanoseconds below which that share of the durations lies, as if they were spread evenly inside a bucket."""
    wanted = share * sum(buckets)
    below = 0
    for index, count in enumerate(buckets):
        if count and below + count >= wanted:
            low = 0 if index == 0 else 1 << (index - 1)
            return int((low + (wanted - below) / count * ((1 << index) - low)) * _MICROSECOND)
        below += count
    return 0
