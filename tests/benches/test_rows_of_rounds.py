"""Samples of several rounds become one row: medians, ratios within rounds, and no figure from a row with errors."""

from dataclasses import replace

import pytest

from harness.dialects import BatchCounts
from harness.rounds import mean_batch
from harness.rows import Point, Row, Sample, Table
from harness.workload import Wire, Workload

SAMPLE = Sample(
    round=0,
    requests=1000,
    requests_per_second=500.0,
    cpu_us=10.0,
    p50_ms=1.0,
    p99_ms=2.0,
    errors=0,
    mean_batch=None,
    foreign_share=0.0,
)


def row(server: str, cpu: list[float], complaint: str | None = None, errors: int = 0) -> Row:
    samples = [replace(SAMPLE, round=number, cpu_us=value) for number, value in enumerate(cpu)]
    if errors:
        samples[0] = replace(samples[0], errors=errors)
    return Row(Point(server, Workload.DOUBLE, Wire.BINARY, 16), tuple(samples), complaint)


def test_one_disturbed_round_does_not_move_the_median() -> None:
    measured = row("triton", [10.0, 900.0, 12.0])
    assert measured.cpu_us == 12.0
    assert measured.cpu_range == (10.0, 900.0)


def test_the_multiple_of_the_floor_is_taken_within_each_round() -> None:
    # The machine slows down threefold; the server is twice the floor in every round.
    table = Table([row("floor", [10.0, 20.0, 30.0]), row("triton", [20.0, 40.0, 60.0])])
    assert table.times_floor(table.rows[1]) == 2.0


def test_a_round_that_the_floor_missed_is_left_out_of_the_multiple() -> None:
    floor = row("floor", [10.0, 10.0, 10.0])
    floor = replace(floor, samples=floor.samples[1:])
    assert Table([floor]).times_floor(row("triton", [90.0, 20.0, 40.0])) == 3.0


@pytest.mark.parametrize("floor", [None, row("floor", [10.0], errors=1), row("floor", [], complaint="did not start")])
def test_without_a_valid_floor_there_is_no_multiple(floor: Row | None) -> None:
    table = Table([floor] if floor is not None else [])
    assert table.times_floor(row("triton", [20.0])) is None


@pytest.mark.parametrize(
    ("measured", "reason"),
    [
        (row("triton", [10.0, 11.0]), None),
        (row("triton", [10.0, 11.0], errors=1), "1 errors"),
        (row("triton", []), "not measured"),
        (row("triton", [10.0], complaint="wrong answer"), "wrong answer"),
    ],
)
def test_a_row_with_errors_or_a_complaint_is_invalid(measured: Row, reason: str | None) -> None:
    assert measured.invalid == reason


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (BatchCounts(100, 50), BatchCounts(164, 52), 32.0),
        (BatchCounts(100, 50), BatchCounts(100, 50), None),
        (None, BatchCounts(1, 1), None),
        (BatchCounts(1, 1), None, None),
    ],
)
def test_mean_batch_counts_only_what_ran_between_two_readings(
    before: BatchCounts | None, after: BatchCounts | None, expected: float | None
) -> None:
    assert mean_batch(before, after) == expected


def test_points_differ_by_workload_wire_and_concurrency() -> None:
    one = row("triton", [10.0])
    others = [
        replace(one, point=replace(one.point, workload=Workload.SLEEP)),
        replace(one, point=replace(one.point, wire=Wire.GRPC)),
        replace(one, point=replace(one.point, concurrency=64)),
    ]
    assert len(Table([one, *others]).rows) == 4
