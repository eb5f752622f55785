"""`penstock bench`: loads for a model on any v2 server, by perf_analyzer's flags, with its report."""

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from penstock import limits
from penstock.cli.output import print_json, say
from penstock.cli.usage import number
from penstock.engine.archive import check_place
from penstock.errors import InvalidArgument, UsageError

if TYPE_CHECKING:
    from penstock.bench.load import Plan
    from penstock.bench.measuring import Measured, Settings
    from penstock.bench.schedule import Offsets
    from penstock.bench.searching import Levels

_SCHEDULE_SECONDS: Final = 60.0
"""Of arrivals that are drawn; a longer run has them again."""

_MOST: Final = 2**63 - 1
"""Of numbers that are 64 bits wide on their way: seeds and sequences."""

_MOST_CONNECTIONS: Final = 65536
"""There are no more ports on a client's side."""

_OF_THE_GENERATOR: Final = ("connection", "content-length", "inference-header-content-length", "transfer-encoding")
"""Headers that say how a request is laid out; wrong ones leave the server waiting."""

_IGNORED: Final = "accepted for perf_analyzer's sake, without effect"


def bench(
    model: Annotated[str, typer.Option("-m", "--model-name", help="The model's name.", show_default=False)],
    version: Annotated[str, typer.Option("-x", "--model-version", help="Default: the server's choice.")] = "",
    url: Annotated[
        str | None, typer.Option("-u", "--url", metavar="HOST:PORT", help="Default: localhost:8000, or 8001 for gRPC.")
    ] = None,
    protocol: Annotated[str, typer.Option("-i", "--protocol", help="http or grpc.")] = "http",
    batch: Annotated[int, typer.Option("-b", "--batch-size", min=1, help="Rows of a request.")] = 1,
    shape: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:D1,D2", help="Of an input with free dimensions, without the batch; repeatable."),
    ] = None,
    concurrency_range: Annotated[
        str | None,
        typer.Option(metavar="START:END:STEP", help="A closed loop: so many requests at once. Default: 1."),
    ] = None,
    request_rate_range: Annotated[
        str | None, typer.Option(metavar="START:END:STEP", help="An open loop: so many requests a second.")
    ] = None,
    request_distribution: Annotated[
        str,
        typer.Option(help="In an open loop: poisson, as independent users come (perf_analyzer's default is constant)."),
    ] = "poisson",
    request_intervals: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An open loop by these intervals in microseconds, one a line.")
    ] = None,
    request_trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An open loop by these moments in seconds, one a line.")
    ] = None,
    latency_threshold: Annotated[
        float | None,
        typer.Option(
            "-l",
            "--latency-threshold",
            min=0.001,
            max=1000 * limits.LONGEST_SECONDS,
            callback=number,
            metavar="MS",
            help="The first level beyond it is the last.",
        ),
    ] = None,
    binary_search: Annotated[
        bool, typer.Option("--binary-search", help="The highest level of the range within --latency-threshold.")
    ] = False,
    percentile: Annotated[
        int | None,
        typer.Option(min=1, max=99, help="Latency that must be stable and within the limit; default: the average."),
    ] = None,
    measurement_interval: Annotated[
        int,
        typer.Option(
            "-p",
            "--measurement-interval",
            min=10,
            max=1000 * limits.LONGEST_SECONDS,
            metavar="MS",
            help="Length of a window.",
        ),
    ] = 5000,
    measurement_mode: Annotated[str, typer.Option(help="time_windows or count_windows.")] = "time_windows",
    measurement_request_count: Annotated[int, typer.Option(min=1, help="Requests of a window of count_windows.")] = 50,
    stability_percentage: Annotated[
        float,
        typer.Option(
            "-s", "--stability-percentage", min=0.1, callback=number, help="Three windows alike to so many percent."
        ),
    ] = 10.0,
    max_trials: Annotated[
        int, typer.Option("-r", "--max-trials", min=3, help="Windows, before it is a best effort.")
    ] = 10,
    warm_up: Annotated[
        float,
        typer.Option(
            min=0.0, max=limits.LONGEST_SECONDS, callback=number, metavar="SECONDS", help="Before the first window."
        ),
    ] = 0.5,
    input_data: Annotated[
        str,
        typer.Option(metavar="random|zero|PATH", help="Or a JSON file as perf_analyzer's, or a folder of raw files."),
    ] = "random",
    string_length: Annotated[int, typer.Option(min=0, max=limits.BODY_BYTES, help="Of random strings.")] = 128,
    string_data: Annotated[str | None, typer.Option(help="The same string everywhere.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=_MOST, help="Of random inputs and arrivals.")] = 0,
    streaming: Annotated[
        bool, typer.Option("--streaming", help="gRPC: requests of a connection on one stream.")
    ] = False,
    sequence_length: Annotated[
        int | None,
        typer.Option(min=1, max=2**31 - 1, help="Requests are parts of sequences of so many; for models of sequences."),
    ] = None,
    start_sequence_id: Annotated[int, typer.Option(min=1, max=_MOST, help="The first sequence's number.")] = 1,
    input_tensor_format: Annotated[str, typer.Option(help="HTTP: binary or json.")] = "binary",
    output_tensor_format: Annotated[str, typer.Option(help="HTTP: binary or json.")] = "binary",
    header: Annotated[list[str] | None, typer.Option("-H", metavar="NAME:VALUE", help="Repeatable.")] = None,
    max_threads: Annotated[int, typer.Option(min=1, max=64, help="Of the generator.")] = 1,
    max_connections: Annotated[
        int, typer.Option(min=1, max=_MOST_CONNECTIONS, help="In an open loop, at once.")
    ] = 1024,
    request_timeout: Annotated[
        float,
        typer.Option(min=0.001, max=limits.LONGEST_SECONDS, callback=number, metavar="SECONDS", help="For an answer."),
    ] = 60.0,
    file: Annotated[
        Path | None, typer.Option("-f", "--latency-report-file", metavar="CSV", help="perf_analyzer's columns.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A page with the curve of latency and throughput.")
    ] = None,
    records: Annotated[bool, typer.Option("--records", help="With --json: every request.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    synchronous: Annotated[bool, typer.Option("--sync", help=_IGNORED, hidden=True)] = False,
    asynchronous: Annotated[bool, typer.Option("-a", "--async", help=_IGNORED, hidden=True)] = False,
) -> None:
    """Load a model on any v2 server, and report what clients see."""
    del synchronous, asynchronous
    from penstock.bench import report, requests, searching, subject
    from penstock.bench.load import GRPC, GRPC_STREAM, HTTP, Plan
    from penstock.bench.measuring import Settings, measure

    _one_of("protocol", protocol, (HTTP, GRPC))
    _one_of("measurement_mode", measurement_mode, ("time_windows", "count_windows"))
    for name, value in (("input", input_tensor_format), ("output", output_tensor_format)):
        _one_of(f"{name}_tensor_format", value, ("binary", "json"))
    if streaming and protocol != GRPC:
        raise UsageError("--streaming: only gRPC has streams; add -i grpc")
    if binary_search and latency_threshold is None:
        raise UsageError("--binary-search looks for the highest load within --latency-threshold; give one")
    levels, mode, offsets = _pace(
        concurrency_range, request_rate_range, request_intervals, request_trace, request_distribution, seed
    )
    shapes, headers = _shapes(shape or []), _headers(header or [])
    for place in (file, html):
        if place is not None:
            check_place(place)
    where = subject.address(url, protocol)
    server = subject.Server(protocol, where)
    found = server.subject(model, version)
    if found.decoupled:
        raise InvalidArgument(
            f"model {model} is decoupled: it answers a request any number of times, which is not measured"
        )
    if found.sequences and sequence_length is None:
        raise InvalidArgument(f"model {model} takes sequences: say how long they are, as in --sequence-length 20")
    wanted = requests.Wanted(
        input_data, batch, shapes, seed, string_length, string_data,
        input_tensor_format == "json", output_tensor_format == "json",
    )  # fmt: skip
    sent = requests.requests(found, wanted, protocol)
    settings = Settings(
        measurement_interval / 1000,
        measurement_request_count if measurement_mode == "count_windows" else None,
        stability_percentage / 100, max_trials, percentile, warm_up,
        None if latency_threshold is None else 1000 * latency_threshold,
    )  # fmt: skip
    wire = GRPC_STREAM if streaming else protocol

    def plan(level: float) -> "Plan":
        closed = mode == "concurrency"
        return Plan(
            wire, where, subject.infer_path(found, wire), sent, headers,
            int(level) if closed else None,
            () if closed else offsets(level).tolist(),
            sequence_length, start_sequence_id, max_threads, max_connections, request_timeout,
        )  # fmt: skip

    def measured(level: float) -> "Measured":
        return measure(plan(level), mode, level, batch, settings, lambda: server.statistics(model, version))

    def all_levels() -> "Iterator[Measured]":
        if binary_search:
            return searching.halved(levels, measured, settings.limit_us or 0.0, percentile)
        return searching.swept(levels, measured, settings.limit_us, percentile)

    if not as_json:
        pace = "Closed loop" if mode == "concurrency" else f"Open loop, {request_distribution} arrivals"
        print(report.settings_text(batch, settings, pace))
    results = _collected(all_levels(), protocol, percentile, quiet=as_json)
    _written(results, settings, file, html, f"{model}, batch {batch}, {wire}")
    if as_json:
        levels_found = report.document(results, with_records=records)
        print_json({"model": model, "url": where, "protocol": wire, "levels": levels_found})
    else:
        print(report.summary_text(results, percentile))
    if not any(each.requests for each in results):
        say("no request was answered")
        sys.exit(1)


def _collected(levels: "Iterator[Measured]", protocol: str, percentile: int | None, *, quiet: bool) -> "list[Measured]":
    from penstock.bench import report

    found = []
    for each in levels:
        found.append(each)
        if quiet:
            say(f"{each.mode} {each.level:g}: {each.throughput:.1f} infer/s")
        else:
            print(report.level_text(each, protocol, percentile), flush=True)
    return found


def _written(
    found: "Sequence[Measured]", settings: "Settings", file: Path | None, html: Path | None, title: str
) -> None:
    from penstock.bench import report

    if file is not None:
        file.write_text(report.csv_text(found))
    if html is not None:
        from penstock.bench import page

        html.write_text(page.page(found, settings, title))


def _pace(
    concurrency: str | None,
    rate: str | None,
    intervals: Path | None,
    trace: Path | None,
    distribution: str,
    seed: int,
) -> "tuple[Levels, str, Any]":
    """Levels, what they are, and for an open loop when requests are due at a level."""
    from penstock.bench import schedule
    from penstock.bench.searching import Levels

    given = [each for each in (concurrency, rate, intervals, trace) if each is not None]
    if len(given) > 1:
        raise UsageError(
            "give one of --concurrency-range, --request-rate-range, --request-intervals and --request-trace"
        )
    _one_of("request_distribution", distribution, schedule.DISTRIBUTIONS)
    if rate is not None:
        levels = Levels.parse(rate, "request_rate_range", whole=False)
        return levels, "request rate", lambda level: schedule.by_rate(level, distribution, _SCHEDULE_SECONDS, seed)
    if intervals is not None or trace is not None:
        offsets: Offsets = schedule.from_file(intervals) if intervals else schedule.from_trace(trace or Path())
        level = len(offsets) / (float(offsets[-1]) / 1e9)
        return Levels(level, level, 1.0), "request rate", lambda _: offsets
    return Levels.parse(concurrency or "1", "concurrency_range", whole=True), "concurrency", lambda _: None


def _one_of(what: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError.of(what, value, " or ".join(known))


def _shapes(given: Sequence[str]) -> dict[str, tuple[int, ...]]:
    found = {}
    for text in given:
        name, _, dims = text.rpartition(":")
        parts = dims.split(",")
        if not name or not all(re.fullmatch("0*[1-9][0-9]{0,18}", part) for part in parts):
            raise UsageError.of("shape", text, "NAME:D1,D2, as in x:3,224,224")
        found[name] = tuple(map(int, parts))
    return found


def _headers(given: Sequence[str]) -> list[tuple[str, str]]:
    found = []
    for text in given:
        name, colon, value = text.partition(":")
        if not colon or not name.strip():
            raise typer.BadParameter(f"expected NAME:VALUE, got {text!r}", param_hint="-H")
        if name.strip().lower() in _OF_THE_GENERATOR:
            raise typer.BadParameter(f"{name.strip()} is the generator's to say, for each request", param_hint="-H")
        found.append((name.strip().lower(), value.strip()))
    return found
