"""The limits that Penstock must keep, checked against one run.

It promises four verdicts: kept, missed, invalid (the row had errors) and not measured; nothing is assumed of a figure
that is missing. Absolute limits are for an idle machine of the class on which they were set (two cores of a current
server CPU); multiples of the floor and comparisons hold on any. Pure. Called by `dataplane.py` and the report.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from harness.rows import FLOOR, Row, Table
from harness.workload import Wire, Workload

SUBJECT = "penstock"
RIVALS = {"mosec": frozenset({Wire.BINARY, Wire.JSON}), "triton": frozenset(Wire)}

CPU_US = {
    (Workload.DOUBLE, Wire.BINARY): {1: 45.0, 16: 14.0, 64: 12.0},
    (Workload.DOUBLE, Wire.JSON): {1: 50.0, 16: 17.0, 64: 15.0},
    (Workload.DOUBLE, Wire.GRPC): {1: 60.0, 16: 24.0, 64: 21.0},
    (Workload.IMAGE, Wire.BINARY): {16: 250.0},
    (Workload.IMAGE, Wire.GRPC): {16: 250.0},
}
TIMES_FLOOR = {1: 2.2, 16: 2.0, 64: 1.7}
FLOOR_WIRES = (Wire.BINARY, Wire.GRPC)
BATCHING = {
    Wire.BINARY: {1: 185.0, 16: 2900.0, 64: 11000.0},
    Wire.GRPC: {1: 185.0, 16: 2850.0, 64: 10000.0},
}
IMPORT_MS = 150.0


class Verdict(StrEnum):
    KEPT = "kept"
    MISSED = "MISSED"
    INVALID = "INVALID"
    ABSENT = "not measured"


@dataclass(frozen=True)
class Bar:
    """One limit: `got` in the limit's unit, None when there is no figure to compare."""

    name: str
    limit: str
    got: float | None
    verdict: Verdict


def number(value: float) -> str:
    """Four digits at least, never an exponent: what is just missed must not read as kept."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


def check(table: Table, import_ms: float | None, workloads: frozenset[Workload]) -> list[Bar]:
    """Every limit about the workloads of this run."""
    bars = [bar for bar in _all(table) if bar[0] in workloads]
    checked = [bar for _, bar in bars]
    if Workload.DOUBLE in workloads:
        checked.append(_judge("import penstock, ms", IMPORT_MS, "≤", import_ms))
    return checked


def _all(table: Table) -> Iterator[tuple[Workload, Bar]]:
    for (workload, wire), limits in CPU_US.items():
        for concurrency, limit in limits.items():
            name = f"{_name(workload, wire, concurrency)}: CPU µs"
            yield workload, _row_bar(table, name, (workload, wire, concurrency), limit, "≤", lambda row: row.cpu_us)
    for wire in FLOOR_WIRES:
        for concurrency, limit in TIMES_FLOOR.items():
            name = f"{_name(Workload.DOUBLE, wire, concurrency)}: × {FLOOR}"
            key = (Workload.DOUBLE, wire, concurrency)
            yield Workload.DOUBLE, _row_bar(table, name, key, limit, "≤", table.times_floor)
    for rival, wires in RIVALS.items():
        for (workload, wire), limits in CPU_US.items():
            for concurrency in limits if wire in wires else ():
                yield from _against(table, rival, (workload, wire, concurrency))
    for wire in Wire:
        yield from _latency(table, wire)
    for wire, limits in BATCHING.items():
        for concurrency, limit in limits.items():
            name = f"{_name(Workload.SLEEP, wire, concurrency)}: req/s"
            key = (Workload.SLEEP, wire, concurrency)
            yield Workload.SLEEP, _row_bar(table, name, key, limit, "≥", lambda row: row.requests_per_second)


def _name(workload: Workload, wire: Wire, concurrency: int) -> str:
    size = {Workload.DOUBLE: "", Workload.IMAGE: " 602 KB", Workload.SLEEP: " batching"}[workload]
    return f"{wire.label}{size} at {concurrency}"


def _judge(name: str, limit: float, sign: str, got: float | None) -> Bar:
    text = f"{sign} {number(limit)}"
    if got is None:
        return Bar(name, text, None, Verdict.ABSENT)
    kept = got <= limit if sign == "≤" else got >= limit if sign == "≥" else got < limit
    return Bar(name, text, got, Verdict.KEPT if kept else Verdict.MISSED)


def _row_bar(
    table: Table,
    name: str,
    key: tuple[Workload, Wire, int],
    limit: float,
    sign: str,
    measure: Callable[[Row], float | None],
) -> Bar:
    row = table.get(SUBJECT, *key)
    if row is None:
        return Bar(name, f"{sign} {number(limit)}", None, Verdict.ABSENT)
    if row.invalid:
        return Bar(name, f"{sign} {number(limit)}", None, Verdict.INVALID)
    return _judge(name, limit, sign, measure(row))


def _against(table: Table, rival: str, key: tuple[Workload, Wire, int]) -> Iterator[tuple[Workload, Bar]]:
    """CPU below the rival's."""
    row = table.get(rival, *key)
    name = f"{_name(*key)}: CPU µs below {rival}'s"
    if row is None or row.invalid:
        yield key[0], Bar(name, f"< {rival}'s", None, Verdict.ABSENT)
    else:
        yield key[0], _row_bar(table, name, key, row.cpu_us, "<", lambda own: own.cpu_us)


def _latency(table: Table, wire: Wire) -> Iterator[tuple[Workload, Bar]]:
    key = (Workload.DOUBLE, wire, 1)
    row = table.get("triton", *key)
    name = f"{_name(*key)}: p50 ms, not above triton's"
    if row is None or row.invalid:
        yield Workload.DOUBLE, Bar(name, "≤ triton's", None, Verdict.ABSENT)
    else:
        yield Workload.DOUBLE, _row_bar(table, name, key, row.p50_ms, "≤", lambda own: own.p50_ms)
