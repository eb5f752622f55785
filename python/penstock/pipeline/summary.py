"""What there is in a trace: what requests and steps of a name took together, and the requests that are worth a look.

Reads a trace once and keeps a number for each step, so percentiles are exact, which those of a running server are not.
Called by `penstock inspect`.
"""

import heapq
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Row:
    """The requests of a pipeline, or its steps of one name. Times are those of `ok` ones; null without any."""

    pipeline: str
    step: str
    """`request` for the whole."""
    kind: str
    """`request`, `call` of a model, or `cpu`."""
    ok: int
    failed: int
    cancelled: int
    mean_ms: float | None
    queue_mean_ms: float | None
    """A step's is part of its time; that of a request passed before."""
    median_ms: float | None
    percentile_99_ms: float | None
    max_ms: float | None


@dataclass(frozen=True, slots=True)
class Summary:
    """Of all requests in a trace."""

    requests: int
    rows: tuple[Row, ...]
    """By pipeline, its requests before its steps, which stand in the order in which they first ran."""
    shown: tuple[Mapping[str, Any], ...]
    """The slowest requests, slowest first; or all, in the order in which they ended."""


def summary(requests: Iterable[Mapping[str, Any]], most: int | None) -> Summary:
    """`most`: how many of the slowest are shown; None: all."""
    found: dict[tuple[str, str, str], _Times] = {}
    counted = _counted(requests, found)
    shown = list(counted) if most is None else heapq.nlargest(most, counted, key=lambda record: record["total_ms"])
    rows = sorted((times.row(*key) for key, times in found.items()), key=lambda row: row.pipeline)
    whole = [row.ok + row.failed + row.cancelled for row in rows if row.kind == "request"]
    return Summary(sum(whole), tuple(rows), tuple(shown))


@dataclass(slots=True)
class _Times:
    """Of what stands in one row."""

    failed: int = 0
    cancelled: int = 0
    queue_ms: float = 0.0
    milliseconds: "array[float]" = field(default_factory=lambda: array("d"))

    def add(self, status: str, queue_ms: float | None, milliseconds: float) -> None:
        if status == "ok":
            self.milliseconds.append(milliseconds)
            self.queue_ms += queue_ms or 0.0
        elif status == "cancelled":
            self.cancelled += 1
        else:
            self.failed += 1

    def row(self, pipeline: str, step: str, kind: str) -> Row:
        times = np.frombuffer(self.milliseconds)
        return Row(
            *(pipeline, step, kind),
            *(len(self.milliseconds), self.failed, self.cancelled),
            *(_figures(times, self.queue_ms / times.size) if times.size else (None,) * 5),
        )


def _figures(times: npt.NDArray[np.float64], queue_mean: float) -> tuple[float, ...]:
    """In the order of the fields, to a microsecond, as they are in the trace."""
    median, late = np.percentile(times, (50, 99))
    return tuple(round(float(each), 3) for each in (times.mean(), queue_mean, median, late, times.max()))


def _counted(
    requests: Iterable[Mapping[str, Any]], found: dict[tuple[str, str, str], _Times]
) -> Iterator[Mapping[str, Any]]:
    for record in requests:
        pipeline = record["pipeline"]
        whole = found.setdefault((pipeline, "request", "request"), _Times())
        whole.add(record["status"], record["queue_ms"], record["total_ms"])
        for step in record["steps"]:
            times = found.setdefault((pipeline, step["step"], step["kind"]), _Times())
            times.add(step["status"], step["queue_ms"], step["end_ms"] - step["start_ms"])
        yield record
