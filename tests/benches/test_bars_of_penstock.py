"""Each limit is kept, missed, invalid or not measured; a missing or broken figure never passes."""

import pytest

from harness.bars import Bar, Verdict, check
from harness.rows import Point, Row, Sample, Table
from harness.workload import Wire, Workload

ALL = frozenset(Workload)


def row(
    server: str,
    cpu_us: float,
    workload: Workload = Workload.DOUBLE,
    wire: Wire = Wire.BINARY,
    concurrency: int = 16,
    p50_ms: float = 1.0,
    requests_per_second: float = 1.0,
    errors: int = 0,
) -> Row:
    sample = Sample(0, 1000, requests_per_second, cpu_us, p50_ms, 2.0, errors, None, 0.0)
    return Row(Point(server, workload, wire, concurrency), (sample,))


def find(bars: list[Bar], name: str) -> Bar:
    return next(bar for bar in bars if bar.name == name)


@pytest.mark.parametrize(("cpu_us", "verdict"), [(13.9, Verdict.KEPT), (14.0, Verdict.KEPT), (14.1, Verdict.MISSED)])
def test_cpu_limits_include_the_limit(cpu_us: float, verdict: Verdict) -> None:
    bar = find(check(Table([row("penstock", cpu_us)]), None, ALL), "HTTP binary at 16: CPU µs")
    assert (bar.limit, bar.got, bar.verdict) == ("≤ 14", cpu_us, verdict)


@pytest.mark.parametrize(("floor", "verdict"), [(7.0, Verdict.KEPT), (6.9, Verdict.MISSED)])
def test_multiples_are_of_the_floor_of_the_run(floor: float, verdict: Verdict) -> None:
    table = Table([row("floor", floor), row("penstock", 14.0)])
    assert find(check(table, None, ALL), "HTTP binary at 16: × floor").verdict is verdict


@pytest.mark.parametrize(("rival", "verdict"), [(14.1, Verdict.KEPT), (14.0, Verdict.MISSED)])
def test_rivals_must_be_beaten_not_equalled(rival: float, verdict: Verdict) -> None:
    table = Table([row("penstock", 14.0), row("triton", rival)])
    assert find(check(table, None, ALL), "HTTP binary at 16: CPU µs below triton's").verdict is verdict


@pytest.mark.parametrize(("own", "verdict"), [(0.2, Verdict.KEPT), (0.3, Verdict.MISSED)])
def test_latency_alone_must_not_pass_triton_s(own: float, verdict: Verdict) -> None:
    table = Table([row("penstock", 1.0, concurrency=1, p50_ms=own), row("triton", 1.0, concurrency=1, p50_ms=0.2)])
    assert find(check(table, None, ALL), "HTTP binary at 1: p50 ms, not above triton's").verdict is verdict


@pytest.mark.parametrize(("rate", "verdict"), [(2900.0, Verdict.KEPT), (2899.0, Verdict.MISSED)])
def test_batching_limits_are_rates_from_below(rate: float, verdict: Verdict) -> None:
    table = Table([row("penstock", 1.0, workload=Workload.SLEEP, requests_per_second=rate)])
    assert find(check(table, None, ALL), "HTTP binary batching at 16: req/s").verdict is verdict


@pytest.mark.parametrize(
    ("import_ms", "verdict"), [(149.0, Verdict.KEPT), (151.0, Verdict.MISSED), (None, Verdict.ABSENT)]
)
def test_import_has_its_limit(import_ms: float | None, verdict: Verdict) -> None:
    assert find(check(Table([]), import_ms, ALL), "import penstock, ms").verdict is verdict


def test_a_row_with_errors_is_invalid_however_fast() -> None:
    bars = check(Table([row("penstock", 1.0, errors=1), row("floor", 1.0)]), None, ALL)
    told = {bar.verdict for bar in bars if bar.name.startswith("HTTP binary at 16: ") and "below" not in bar.name}
    assert told == {Verdict.INVALID}


@pytest.mark.parametrize("rival", [None, row("triton", 1000.0, errors=3)])
def test_no_victory_over_a_rival_that_was_not_measured(rival: Row | None) -> None:
    table = Table([row("penstock", 1.0), *([rival] if rival else [])])
    assert find(check(table, None, ALL), "HTTP binary at 16: CPU µs below triton's").verdict is Verdict.ABSENT


def test_nothing_measured_keeps_nothing() -> None:
    bars = check(Table([]), None, ALL)
    assert {bar.verdict for bar in bars} == {Verdict.ABSENT}


def test_only_the_workloads_of_the_run_are_judged() -> None:
    names = [bar.name for bar in check(Table([]), None, frozenset({Workload.SLEEP}))]
    assert len(names) == 6
    assert all("batching" in name for name in names)
