"""What wrk and h2load print becomes figures, and no failed request goes uncounted."""

import pytest

from harness.generators import GeneratorError, parse_h2load, parse_wrk, percentile

WRK = (
    "Running 2s test @ http://127.0.0.1:8000/v2/models/ident/infer\n  2 requests in 2.00s\n"
    'RESULT {{"requests": {n}, "duration_us": 2000000, "p50_us": 157, "p99_us": 311, '
    '"bad_status": {bad}, "broken": {broken}}}\n'
)

H2LOAD = """finished in 2.00s, 2.00 req/s, 300B/s
requests: 4 total, 4 started, 4 done, 4 succeeded, 0 failed, 0 errored, 0 timeout
traffic: 1.17KB (1200) total, 100B (100) headers (space savings 90.00%), 400B ({data}) data
"""


def h2load_log(*lines: tuple[str, int]) -> str:
    return "".join(f"17000{index}\t{status}\t{duration}\n" for index, (status, duration) in enumerate(lines))


def test_wrk_result_becomes_rates_and_milliseconds() -> None:
    load = parse_wrk(WRK.format(n=4000, bad=0, broken=0))
    assert (load.requests, load.requests_per_second) == (4000, 2000.0)
    assert (load.p50_ms, load.p99_ms, load.errors) == (0.157, 0.311, 0)


@pytest.mark.parametrize(("bad", "broken", "errors"), [(3, 0, 3), (0, 2, 2), (3, 2, 5)])
def test_wrk_counts_bad_statuses_and_broken_connections(bad: int, broken: int, errors: int) -> None:
    assert parse_wrk(WRK.format(n=10, bad=bad, broken=broken)).errors == errors


@pytest.mark.parametrize("output", ["", "unable to connect to 127.0.0.1:8000", WRK.format(n=0, bad=0, broken=9)])
def test_wrk_without_a_completed_request_is_no_figure(output: str) -> None:
    with pytest.raises(GeneratorError):
        parse_wrk(output)


def test_h2load_latency_comes_from_the_sorted_log() -> None:
    log = h2load_log(("200", 900), ("200", 100), ("200", 300), ("200", 200))
    load = parse_h2load(H2LOAD.format(data=400), log, seconds=2, answer_bytes=100)
    assert (load.requests, load.requests_per_second) == (4, 2.0)
    assert (load.p50_ms, load.p99_ms, load.errors) == (0.2, 0.9, 0)


def test_h2load_counts_statuses_other_than_200() -> None:
    log = h2load_log(("200", 1), ("503", 1), ("-1", 1), ("200", 1))
    assert parse_h2load(H2LOAD.format(data=400), log, seconds=2, answer_bytes=100).errors == 2


@pytest.mark.parametrize(
    ("data", "errors"),
    [(400, 0), (450, 0), (300, 1), (299, 2), (0, 4)],
    ids=["all answered", "one under way at the end", "one without a message", "a cut message", "all without"],
)
def test_a_grpc_error_is_a_200_whose_message_is_missing(data: int, errors: int) -> None:
    log = h2load_log(*[("200", 1)] * 4)
    assert parse_h2load(H2LOAD.format(data=data), log, seconds=2, answer_bytes=100).errors == errors


@pytest.mark.parametrize(("output", "log"), [("", h2load_log(("200", 1))), (H2LOAD.format(data=0), "")])
def test_h2load_without_a_summary_or_a_request_is_no_figure(output: str, log: str) -> None:
    with pytest.raises(GeneratorError):
        parse_h2load(output, log, seconds=2, answer_bytes=100)


@pytest.mark.parametrize(
    ("count", "share", "expected"),
    [(1, 0.5, 1), (2, 0.5, 1), (3, 0.5, 2), (100, 0.99, 99), (101, 0.99, 100), (10, 0.99, 10), (10, 0.0, 1)],
)
def test_percentiles_are_nearest_rank(count: int, share: float, expected: int) -> None:
    assert percentile(list(range(1, count + 1)), share) == expected
