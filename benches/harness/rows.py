"""From the samples of alternating rounds to one row a point: medians, spreads, multiples of the floor.

It promises that a row with any error, or a wrong answer, says so and is never quoted: `valid` is what reports and bars
ask first. Pure: no I/O. Called by the rounds (which fill it), the bars and the report.
"""

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from harness.workload import Wire, Workload

FLOOR = "floor"

DISTURBED_SHARE = 0.1
"""Of the machine, used by others: past this, caches and turns on the cores are no longer the server's own."""


@dataclass(frozen=True)
class Point:
    """What is measured: one server under one load."""

    server: str
    workload: Workload
    wire: Wire
    concurrency: int


@dataclass(frozen=True)
class Sample:
    """One run of a generator at a point."""

    round: int
    requests: int
    requests_per_second: float
    cpu_us: float
    """CPU per request of all the server's processes, in microseconds."""
    p50_ms: float
    p99_ms: float
    errors: int
    mean_batch: float | None
    """Requests per execution, where the server tells."""
    foreign_share: float
    """CPU used by neither server nor generator, as a share of the machine: how disturbed the sample is."""


@dataclass(frozen=True)
class Row:
    """All samples of a point. `complaint` says why there are none, or why they don't count."""

    point: Point
    samples: tuple[Sample, ...]
    complaint: str | None = None

    @property
    def errors(self) -> int:
        return sum(sample.errors for sample in self.samples)

    @property
    def invalid(self) -> str | None:
        """Why the row must not be quoted; None when it may."""
        if self.complaint is not None:
            return self.complaint
        if not self.samples:
            return "not measured"
        return f"{self.errors} errors" if self.errors else None

    def median(self, measure: Callable[[Sample], float]) -> float:
        return statistics.median(measure(sample) for sample in self.samples)

    @property
    def cpu_us(self) -> float:
        return self.median(lambda sample: sample.cpu_us)

    @property
    def cpu_range(self) -> tuple[float, float]:
        values = [sample.cpu_us for sample in self.samples]
        return min(values), max(values)

    @property
    def requests_per_second(self) -> float:
        return self.median(lambda sample: sample.requests_per_second)

    @property
    def p50_ms(self) -> float:
        return self.median(lambda sample: sample.p50_ms)

    @property
    def p99_ms(self) -> float:
        return self.median(lambda sample: sample.p99_ms)

    @property
    def mean_batch(self) -> float | None:
        told = [sample.mean_batch for sample in self.samples if sample.mean_batch is not None]
        return statistics.median(told) if told else None


class Table:
    """All rows of a run by their point."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = {row.point: row for row in rows}

    @property
    def rows(self) -> list[Row]:
        return list(self._rows.values())

    def get(self, server: str, workload: Workload, wire: Wire, concurrency: int) -> Row | None:
        return self._rows.get(Point(server, workload, wire, concurrency))

    def servers(self, workload: Workload) -> list[str]:
        """In the order of measurement."""
        return list(dict.fromkeys(row.point.server for row in self._rows.values() if row.point.workload is workload))

    def times_floor(self, row: Row) -> float | None:
        """The row's CPU as a multiple of the floor's: the median over rounds of the ratio within each round, so that a
        machine that slows down from round to round moves it little. None without a valid floor."""
        base = self._rows.get(replace(row.point, server=FLOOR))
        if base is None or base.invalid or row.invalid:
            return None
        floors = {sample.round: sample.cpu_us for sample in base.samples}
        ratios = [sample.cpu_us / floors[sample.round] for sample in row.samples if floors.get(sample.round)]
        return statistics.median(ratios) if ratios else None
