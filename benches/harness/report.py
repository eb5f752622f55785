"""One run as Markdown for people and JSON for programs.

It promises that an invalid row is printed as such, with its reason and without its figures; that every median stands
with the samples it came from in the JSON; and units in key names. Pure. Called by `dataplane.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from harness.bars import Bar, Verdict, number
from harness.machine import Machine
from harness.rows import DISTURBED_SHARE, FLOOR, Row, Table
from harness.servers import Absent
from harness.startup import Duration
from harness.workload import SLEEP_SECONDS, Wire, Workload

SCHEMA = 1


@dataclass(frozen=True)
class Run:
    """Everything that a report tells."""

    machine: Machine
    rounds: int
    seconds: int
    quotable: bool
    table: Table
    absent: Sequence[Absent]
    durations: Sequence[Duration]
    bars: Sequence[Bar]


def markdown(run: Run) -> str:
    parts = [_head(run)]
    if run.table.servers(Workload.DOUBLE) or run.table.servers(Workload.IMAGE):
        parts.append(_data_plane(run.table))
    if run.table.servers(Workload.SLEEP):
        parts.append(_batching(run.table))
    if run.durations:
        parts.append(_durations(run.durations))
    parts.append(_bars(run.bars))
    parts.append(_details(run.table))
    return "\n\n".join(parts) + "\n"


def document(run: Run) -> dict[str, object]:
    """The JSON document."""
    return {
        "schema": SCHEMA,
        "machine": asdict(run.machine) | {"versions": dict(run.machine.versions)},
        "rounds": run.rounds,
        "seconds_per_sample": run.seconds,
        "quotable": run.quotable,
        "absent": [asdict(absent) for absent in run.absent],
        "rows": [_row_document(run.table, row) for row in run.table.rows],
        "startup": [
            {"name": one.name, "median_ms": one.median, "runs_ms": one.milliseconds, "reason": one.reason}
            for one in run.durations
        ],
        "bars": [asdict(bar) for bar in run.bars],
    }


def _row_document(table: Table, row: Row) -> dict[str, object]:
    found: dict[str, object] = {
        "server": row.point.server,
        "workload": row.point.workload.value,
        "wire": row.point.wire.value,
        "concurrency": row.point.concurrency,
        "invalid": row.invalid,
        "errors": row.errors,
        "samples": [asdict(sample) for sample in row.samples],
    }
    if not row.invalid:
        found |= {
            "cpu_us_per_request": row.cpu_us,
            "times_floor": table.times_floor(row),
            "requests_per_second": row.requests_per_second,
            "p50_ms": row.p50_ms,
            "p99_ms": row.p99_ms,
            "mean_batch": row.mean_batch,
        }
    return found


def _head(run: Run) -> str:
    machine = run.machine
    shares = sorted(sample.foreign_share for row in run.table.rows for sample in row.samples)
    others = f"median {shares[len(shares) // 2]:.0%}, at most {shares[-1]:.0%} of the machine" if shares else "unknown"
    lines = [
        "# Side by side",
        "",
        f"- {machine.cpu}, {machine.cores} cores; has {', '.join(machine.flags) or 'none'}; lacks "
        f"{', '.join(machine.missing_flags) or 'none'} (of the flags of interest); kernel {machine.kernel}",
        f"- {'; '.join(f'{name} {version}' for name, version in machine.versions)}",
        f"- medians of {run.rounds} alternating rounds, {run.seconds} s a sample; wrk and h2load run on the same "
        f"{machine.cores} cores as the server",
        f"- load average at start {machine.load_average[0]:.2f}; CPU used by neither server nor generator: {others}",
    ]
    lines += [f"- **{absent.name} not measured**: {absent.reason}" for absent in run.absent]
    if shares and shares[len(shares) // 2] > DISTURBED_SHARE:
        lines.append("- **Disturbed**: others used the cores while measuring: times are too high, ratios uncertain.")
    if not run.quotable:
        lines.append("- **Not for quoting**: fewer than three rounds, or samples under two seconds.")
    return "\n".join(lines)


def _grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def _concurrencies(table: Table, workload: Workload, wire: Wire) -> list[int]:
    points = [row.point for row in table.rows if row.point.workload is workload and row.point.wire is wire]
    return sorted({point.concurrency for point in points})


def _columns(table: Table, workloads: Sequence[Workload]) -> list[tuple[Workload, Wire]]:
    return [(workload, wire) for workload in workloads for wire in Wire if _concurrencies(table, workload, wire)]


def _cells(table: Table, workloads: Sequence[Workload], show: Callable[[Row], str]) -> str:
    """Servers down, wires across, concurrencies within a cell."""
    columns = _columns(table, workloads)
    header = ["server"]
    for workload, wire in columns:
        size = " 602 KB" if workload is Workload.IMAGE else ""
        header.append(f"{wire.label}{size}, c = {' / '.join(map(str, _concurrencies(table, workload, wire)))}")
    names = list(dict.fromkeys(name for workload in workloads for name in table.servers(workload)))
    rows = []
    for name in names:
        cells = []
        for workload, wire in columns:
            found = [table.get(name, workload, wire, c) for c in _concurrencies(table, workload, wire)]
            shown = ["—" if row is None else "**INVALID**" if row.invalid else show(row) for row in found]
            cells.append("—" if set(shown) == {"—"} else " / ".join(shown))
        rows.append([name, *cells])
    return _grid(header, rows)


def _multiple(table: Table) -> Callable[[Row], str]:
    def show(row: Row) -> str:
        times = table.times_floor(row)
        return "—" if times is None else f"{times:.2f}"

    return show


def _data_plane(table: Table) -> str:
    both = (Workload.DOUBLE, Workload.IMAGE)
    return "\n\n".join(
        [
            "## Data plane\n\ny = 2x on float32[1, 16] (602 KB: x[:, :, 0, 0] of a 3×224×224 image); batching on, one "
            "instance. CPU of all the server's processes per request, µs:",
            _cells(table, both, lambda row: f"{row.cpu_us:.1f}"),
            f"As a multiple of the {FLOOR} of the same round:",
            _cells(table, both, _multiple(table)),
            "Latency p50 (p99), ms:",
            _cells(table, both, lambda row: f"{row.p50_ms:.2f} ({row.p99_ms:.2f})"),
            "Requests per second:",
            _cells(table, both, lambda row: f"{row.requests_per_second:.0f}"),
        ]
    )


def _batching(table: Table) -> str:
    sleep = (Workload.SLEEP,)

    def batch(row: Row) -> str:
        return "—" if row.mean_batch is None else f"{row.mean_batch:.1f}"

    most = [f"{count / SLEEP_SECONDS:.0f}" for count in _concurrencies(table, Workload.SLEEP, Wire.BINARY)]
    return "\n\n".join(
        [
            f"## Batching\n\nEach batch sleeps {SLEEP_SECONDS * 1e3:g} ms; one instance, batches of up to 64. "
            f"Requests per second (the most that is possible: {' / '.join(most)}):",
            _cells(table, sleep, lambda row: f"{row.requests_per_second:.0f}"),
            "Mean batch, as the server counts:",
            _cells(table, sleep, batch),
            "Latency p50 (p99), ms:",
            _cells(table, sleep, lambda row: f"{row.p50_ms:.2f} ({row.p99_ms:.2f})"),
        ]
    )


def _durations(durations: Sequence[Duration]) -> str:
    rows = []
    for one in durations:
        median = one.median
        if median is None:
            rows.append([one.name, f"not measured: {one.reason}", "—"])
        else:
            span = f"{min(one.milliseconds):.0f}–{max(one.milliseconds):.0f} ({len(one.milliseconds)} runs)"
            rows.append([one.name, f"{median:.0f}", span])
    return "## Start\n\n" + _grid(["what, fresh process", "median ms", "range ms"], rows)


def _bars(bars: Sequence[Bar]) -> str:
    rows = []
    for bar in bars:
        verdict = bar.verdict if bar.verdict is Verdict.KEPT else f"**{bar.verdict}**"
        rows.append([bar.name, bar.limit, "—" if bar.got is None else number(bar.got), verdict])
    counts = ", ".join(f"{sum(bar.verdict is verdict for bar in bars)} {verdict}" for verdict in Verdict)
    return f"## Bars\n\n{counts}.\n\n" + _grid(["bar", "limit", "got", "verdict"], rows)


def _details(table: Table) -> str:
    rows = []
    for row in table.rows:
        point = row.point
        place = [point.server, point.workload.value, point.wire.label, str(point.concurrency)]
        if row.invalid:
            rows.append([*place, f"**INVALID**: {row.invalid}", "", "", "", str(row.errors)])
            continue
        low, high = row.cpu_range
        rows.append(
            [
                *place,
                f"{row.cpu_us:.1f} ({low:.1f}–{high:.1f})",
                f"{row.requests_per_second:.0f}",
                f"{row.p50_ms:.3f}",
                f"{row.p99_ms:.3f}",
                str(row.errors),
            ]
        )
    header = ["server", "model", "wire", "c", "CPU µs (range of rounds)", "req/s", "p50 ms", "p99 ms", "errors"]
    return "## Every row\n\n" + _grid(header, rows)
