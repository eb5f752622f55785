"""Levels of load: what is stable, what counts from when, what the server says beside it, and how far to trust it."""

import math
import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest

import penstock as ps
from penstock.bench import measuring, report, searching
from penstock.bench.load import HTTP, RECORD
from penstock.bench.measuring import Latencies, Measured, Settings, Window, measure
from penstock.bench.schedule import CONSTANT, by_rate
from penstock.bench.searching import Levels
from penstock.errors import InvalidArgument
from tests.bench.loads import PROTOCOLS, served
from tests.serve.calls import Array

SHORT = Settings(window_seconds=0.2, trials=4, warm_up_seconds=0.1, stability=0.5)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_clients_and_server_count_the_same(protocol: str) -> None:
    with served() as target:
        found = measure(
            target.plan(protocol, {"batch": 4}, concurrency=3), "concurrency", 3, 4, SHORT,
            lambda: target.client(protocol).statistics("double", ""),
        )  # fmt: skip
    assert found.server is not None
    # Windows and statistics end some requests apart.
    assert found.server.counts["success"] == pytest.approx(found.requests, rel=0.15, abs=20)
    assert found.server.inferences == 4 * found.server.counts["success"]
    assert sum(size * count for size, count in found.server.batches.items()) == pytest.approx(
        found.server.inferences, rel=0.1, abs=20
    )
    seconds = (found.windows[-1].end - found.windows[-3].begin) / 1e9
    assert found.throughput == pytest.approx(4 * found.requests / seconds, rel=0.05)
    assert (found.failed, found.wrong, found.unsent) == (0, 0, 0)
    latency = [found.latency.percentiles[each] for each in (50, 90, 95, 99)]
    assert latency == sorted(latency)
    assert 0 < latency[0] <= found.latency.maximum
    assert found.latency == found.since_sent  # of a closed loop
    assert found.cpu_us_per_request > 0


def test_a_stall_is_in_the_latency_of_all_who_were_due() -> None:
    begun = time.monotonic()

    @ps.model(name="stalls", max_batch_size=1, outputs={"y": ps.F32[4]})
    def model(x: ps.F32[4]) -> Array:
        nonlocal begun
        if time.monotonic() - begun > 1.0:
            begun = time.monotonic()
            threading.Event().wait(0.3)
        return x

    with served(model) as target:
        offsets = by_rate(200.0, CONSTANT, 10.0, 0).tolist()
        plan = target.plan(HTTP, schedule_ns=offsets, most_connections=2)
        found = measure(plan, "request rate", 200, 1, Settings(1.0, trials=3, warm_up_seconds=0.2))
    # Three tenths of the requests are due in a stall, and wait for its end; two of sixty are sent before it.
    assert found.latency.percentiles[90] > 150_000
    assert found.since_sent.percentiles[90] < 100_000
    assert found.throughput == pytest.approx(200, rel=0.1)


def test_what_comes_slower_all_the_time_is_marked_unstable_with_an_interval() -> None:
    pause = [0.0]

    @ps.model(name="slower", max_batch_size=1, outputs={"y": ps.F32[4]})
    def model(x: ps.F32[4]) -> Array:
        pause[0] += 0.0002
        time.sleep(pause[0])
        return x

    with served(model) as target:
        settings = Settings(0.5, trials=4, warm_up_seconds=0.0)
        found = measure(target.plan(HTTP, concurrency=1), "concurrency", 1, 1, settings)
    assert not found.stable
    assert len(found.windows) == 4
    assert found.throughput_interval is not None
    assert found.throughput_interval.low < found.throughput < found.throughput_interval.high
    assert "UNSTABLE" in report.level_text(found, "http", None)


def windows(*pairs: tuple[float, float]) -> list[Window]:
    return [Window(0, 1, 10, rate, latency) for rate, latency in pairs]


@pytest.mark.parametrize(
    ("pairs", "stable"),
    [
        ([(100, 10), (105, 10.5), (95, 9.5)], True),
        ([(100, 10), (120, 10), (100, 10)], False),
        ([(100, 10), (100, 12), (100, 10)], False),
    ],
)
def test_three_windows_are_alike_in_throughput_and_latency(pairs: Sequence[tuple[float, float]], stable: bool) -> None:
    assert measuring._stable(windows(*pairs), Settings()) is stable


def test_windows_without_answers_are_not_stable() -> None:
    assert not measuring._stable([Window(0, 1, 0, 0.0, math.nan)] * 3, Settings())


def level(rate: float, milliseconds: float, **changes: object) -> Measured:
    latency = Latencies.of(np.full(100, 1e6 * milliseconds))
    whole = {
        "mode": "concurrency", "level": rate, "batch": 1, "stable": True, "windows": (), "requests": 100,
        "throughput": 10 * rate, "latency": latency, "since_sent": latency, "failed": 0, "wrong": 0, "unsent": 0,
        "messages": {}, "server": None, "cpu_us_per_request": 5.0, "busy": 0.1, "late_us": 0.0,
        "throughput_interval": None, "latency_interval": None, "records": np.empty(0, RECORD), **changes,
    }  # fmt: skip
    return Measured(**whole)  # type: ignore[arg-type]


@pytest.mark.parametrize(("limit", "best"), [(7.5, 7.0), (1.0, 1.0), (0.5, None), (99.0, 16.0)])
def test_the_highest_level_within_the_limit_is_found_by_halving(limit: float, best: float | None) -> None:
    found = list(searching.halved(Levels(1, 16, 1), lambda each: level(each, each), 1000 * limit, None))
    kept = [each.level for each in found if searching.keeps(each, 1000 * limit, None)]
    assert max(kept, default=None) == best
    assert len(found) <= 6


def test_a_sweep_ends_beyond_the_limit() -> None:
    found = list(searching.swept(Levels(1, 16, 5), lambda each: level(each, each), 7000, None))
    assert [each.level for each in found] == [1, 6, 11]


def test_a_server_that_answers_nothing_ends_a_sweep() -> None:
    assert len(list(searching.swept(Levels(1, 4, 1), lambda each: level(each, 1, requests=0), None, None))) == 1


@pytest.mark.parametrize(
    ("text", "expected"), [("4", [4]), ("1:3", [1, 2, 3]), ("2:9:3", [2, 5, 8]), ("0.5:1:0.25", [0.5, 0.75, 1.0])]
)
def test_ranges_are_start_end_and_step(text: str, expected: list[float]) -> None:
    assert list(Levels.parse(text, "range", whole=False)) == expected


@pytest.mark.parametrize("text", ["", "0", "3:1", "1:2:0", "1:2:3:4", "a", "1:100000", "1:2:inf", "nan", "1.5"])
def test_ranges_that_cant_be_meant_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="range"):
        Levels.parse(text, "range", whole=True)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"busy": 0.95}, "busy for 95 %"),
        ({"late_us": 5000.0}, "sent 5.0 ms late"),
        ({"late_us": 5000.0, "unsent": 3}, ""),
        ({}, ""),
    ],
)
def test_a_client_that_is_at_its_end_says_so(changes: dict[str, object], expected: str) -> None:
    found = level(1, 1, **changes).saturated
    assert expected in found
    assert bool(found) == bool(expected)
