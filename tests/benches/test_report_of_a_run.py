"""The report shows what was measured, and an invalid row without its figures."""

import json
from dataclasses import replace

import pytest

from harness import report
from harness.machine import Machine, parse_cpuinfo
from harness.rows import Point, Row, Sample, Table
from harness.servers import Absent
from harness.startup import Duration
from harness.workload import Wire, Workload

SAMPLE = Sample(0, 1000, 4321.0, 23.4, 0.25, 0.75, 0, 7.5, 0.02)
MACHINE = Machine("A CPU", 2, ("avx512_vnni",), ("amx_int8",), "6.1", (0.1, 0.2, 0.3), (("wrk", "4.1.0"),))


def row(
    server: str, workload: Workload = Workload.DOUBLE, sample: Sample = SAMPLE, complaint: str | None = None
) -> Row:
    return Row(Point(server, workload, Wire.BINARY, 16), (sample,), complaint)


def run(*rows: Row, absent: tuple[Absent, ...] = ()) -> report.Run:
    return report.Run(MACHINE, 3, 4, True, Table(rows), absent, [], [])


def test_figures_of_a_valid_row_stand_in_both_forms() -> None:
    text = report.markdown(run(row("triton")))
    for figure in ("23.4", "4321", "0.25 (0.75)"):
        assert figure in text
    document = report.document(run(row("triton")))
    found = json.loads(json.dumps(document))["rows"][0]
    assert (found["cpu_us_per_request"], found["p99_ms"], found["mean_batch"]) == (23.4, 0.75, 7.5)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (row("triton", sample=replace(SAMPLE, errors=3)), "3 errors"),
        (row("triton", complaint="wrong answer: expected (1.0,), got (0.0,)"), "wrong answer"),
    ],
)
def test_an_invalid_row_shows_its_reason_and_no_figure(broken: Row, reason: str) -> None:
    text = report.markdown(run(broken))
    assert "**INVALID**" in text
    assert reason in text
    assert "23.4" not in text
    assert "4321" not in text
    document = report.document(run(broken))
    found = json.loads(json.dumps(document))["rows"][0]
    assert reason in found["invalid"]
    assert "cpu_us_per_request" not in found


def test_each_table_stands_only_with_its_rows() -> None:
    assert "## Batching" not in report.markdown(run(row("triton")))
    assert "## Data plane" not in report.markdown(run(row("triton", Workload.SLEEP)))


def test_a_server_that_could_not_be_had_is_named_with_the_reason() -> None:
    text = report.markdown(run(absent=(Absent("mosec", "mosec: pip exited 1"),)))
    assert "**mosec not measured**: mosec: pip exited 1" in text


@pytest.mark.parametrize(("share", "told"), [(0.02, False), (0.4, True)])
def test_a_disturbed_machine_is_told(share: float, told: bool) -> None:
    text = report.markdown(run(row("triton", sample=replace(SAMPLE, foreign_share=share))))
    assert ("**Disturbed**" in text) is told


def test_a_time_that_could_not_be_taken_says_why() -> None:
    text = report.markdown(
        replace(run(), durations=[Duration("import", reason="no package"), Duration("ready", (3.0,))])
    )
    assert "not measured: no package" in text
    assert "| ready | 3 |" in text


def test_cpu_facts_are_those_of_the_first_core() -> None:
    text = "processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fpu avx2 amx_int8\n\nprocessor\t: 1\nmodel name\t: Other\n"
    assert parse_cpuinfo(text) == ("A CPU", frozenset({"fpu", "avx2", "amx_int8"}))
