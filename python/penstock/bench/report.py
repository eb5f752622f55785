"""What was measured, as text in perf_analyzer's layout, as its CSV, and as JSON.

Called by `penstock bench`.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from penstock.bench.load import LOST, REFUSED, UNSENT, WRONG
from penstock.bench.measuring import Latencies, Measured, Settings
from penstock.bench.subject import Statistics

_OUTCOMES: Final = {REFUSED: "refused", LOST: "lost", WRONG: "wrong", UNSENT: "unsent"}
_COLUMNS: Final = (
    "Inferences/Second", "Client Send", "Network+Server Send/Recv", "Server Queue", "Server Compute Input",
    "Server Compute Infer", "Server Compute Output", "Client Recv", "p50 latency", "p90 latency", "p95 latency",
    "p99 latency",
)  # fmt: skip


def settings_text(batch: int, settings: Settings, pace: str) -> str:
    """What stands above all levels."""
    counted = settings.percentile
    window = (
        f"  Measurement window: {settings.count} requests"
        if settings.count
        else f"  Measurement window: {settings.window_seconds * 1000:.0f} msec"
    )
    limit = [f"  Latency limit: {settings.limit_us / 1000:g} msec"] if settings.limit_us is not None else []
    return "\n".join(
        [
            "*** Measurement Settings ***",
            f"  Batch size: {batch}",
            f'  Using "{"count" if settings.count else "time"}_windows" mode for stabilization',
            f"  Stabilizing using {f'p{counted}' if counted else 'average'} latency and throughput",
            window,
            *limit,
            f"  {pace}",
            "",
        ]
    )


def level_text(found: Measured, protocol: str, percentile: int | None) -> str:
    """One level."""
    return "\n".join([f"{_title(found)}", "  Client: ", *_client(found, protocol, percentile), *_server(found), ""])


def _title(found: Measured) -> str:
    return f"Request concurrency: {found.level:g}" if _closed(found) else f"Request Rate: {found.level:g}"


def _closed(found: Measured) -> bool:
    return found.mode == "concurrency"


def _client(found: Measured, protocol: str, percentile: int | None) -> Iterator[str]:
    yield f"    Request count: {found.requests}"
    yield f"    Throughput: {found.throughput:.2f} infer/sec"
    yield from _latencies(found.latency, percentile)
    if not _closed(found):
        sent = found.since_sent
        yield "    Latency counts from when a request was due. From when it was sent:"
        yield "      " + " ".join(f"p{each} {sent.percentiles[each]:.0f} usec" for each in (50, 90, 95, 99))
    if found.server is not None and found.server.counts["success"]:
        server = _request_us(found.server)
        average = found.latency.mean
        outside = f"network and queues {max(0.0, average - server):.0f} usec"
        yield f"    Avg {protocol.upper()} time: {average:.0f} usec ({outside} + server {server:.0f} usec)"
    yield f"    Generator: {found.cpu_us_per_request:.1f} usec of CPU a request"
    if found.saturated:
        yield f"    CLIENT SATURATED: {found.saturated}; the server may be faster"
    if not found.stable:
        yield f"    UNSTABLE: a best effort after {len(found.windows)} windows{_intervals(found, percentile)}"
    for count, what in ((found.failed - found.wrong, "failed"), (found.wrong, "were answered wrongly")):
        if count:
            yield f"    {count} requests {what}"
    if found.unsent:
        yield f"    {found.unsent} requests were due and never sent: more were under way than connections are allowed"
    for message, count in sorted(found.messages.items(), key=lambda each: -each[1])[:3]:
        yield f"      {count} x {message}"


def _intervals(found: Measured, percentile: int | None) -> str:
    rate, latency = found.throughput_interval, found.latency_interval
    if rate is None or latency is None:
        return ""
    name = f"p{percentile}" if percentile else "average"
    return (
        f"; 95 % interval of throughput {rate.low:.1f} to {rate.high:.1f}, "
        f"of {name} latency {latency.low:.0f} to {latency.high:.0f} usec"
    )


def _latencies(found: Latencies, percentile: int | None) -> Iterator[str]:
    if percentile is None:
        yield f"    Avg latency: {found.mean:.0f} usec (standard deviation {found.deviation:.0f} usec)"
    for each, value in found.percentiles.items():
        yield f"    p{each} latency: {value:.0f} usec"
    yield f"    max latency: {found.maximum:.0f} usec"


def _request_us(found: Statistics) -> float:
    return found.nanoseconds["success"] / max(1, found.counts["success"]) / 1e3


def split_us(found: Statistics) -> Mapping[str, float]:
    """Of a request in the server, on the average: queue, compute input, infer, output, and what is left, in us."""
    count = max(1, found.counts["success"])
    names = ("queue", "compute_input", "compute_infer", "compute_output")
    spent = {name: found.nanoseconds[name] / count / 1e3 for name in names}
    return {"overhead": max(0.0, _request_us(found) - sum(spent.values())), **spent}


def _server(found: Measured) -> Iterator[str]:
    server = found.server
    if server is None:
        return
    spent = {name: round(value) for name, value in split_us(server).items()}
    yield "  Server: "
    yield f"    Inference count: {server.inferences}"
    yield f"    Execution count: {server.executions}"
    yield f"    Successful request count: {server.counts['success']}"
    yield (
        f"    Avg request latency: {_request_us(server):.0f} usec (overhead {spent['overhead']} usec + "
        f"queue {spent['queue']} usec + compute input {spent['compute_input']} usec + "
        f"compute infer {spent['compute_infer']} usec + compute output {spent['compute_output']} usec)"
    )
    if server.batches:
        sizes = ", ".join(f"{size} x {count}" for size, count in sorted(server.batches.items()))
        yield f"    Batch sizes: {sizes}"


def summary_text(found: Sequence[Measured], percentile: int | None) -> str:
    """What stands below all levels."""
    name = f"p{percentile} Batch Latency" if percentile else "Client Average Batch Latency"
    lines = [f"Inferences/Second vs. {name}"]
    for each in found:
        title = "Concurrency" if _closed(each) else "Request Rate"
        mark = "" if each.stable else " (unstable)"
        latency = each.latency.stable(percentile)
        lines.append(
            f"{title}: {each.level:g}, throughput: {each.throughput:.2f} infer/sec, latency {latency:.0f} usec{mark}"
        )
    return "\n".join(lines)


def csv_text(found: Sequence[Measured]) -> str:
    """perf_analyzer's columns. What it measures inside its clients, sending and receiving, is in the network's here."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    closed = not found or _closed(found[0])
    writer.writerow(["Concurrency" if closed else "Request Rate", *_COLUMNS])
    for each in found:
        server = split_us(each.server) if each.server is not None and each.server.counts["success"] else None
        parts = ("queue", "compute_input", "compute_infer", "compute_output")
        inside = [round(server[name]) for name in parts] if server is not None else [0, 0, 0, 0]
        # Who was due and who was counted by the server need not be the same requests.
        network = max(0, round(each.latency.mean - sum(inside))) if each.requests else 0
        shown = [round(each.latency.percentiles[name]) if each.requests else "" for name in (50, 90, 95, 99)]
        writer.writerow([f"{each.level:g}", f"{each.throughput:.2f}", 0, network, *inside, 0, *shown])
    return out.getvalue()


def document(found: Sequence[Measured], *, with_records: bool = False) -> list[dict[str, Any]]:
    """For `--json`; `with_records`: every request."""
    return [_level(each, with_records) for each in found]


def _level(found: Measured, with_records: bool) -> dict[str, Any]:
    made: dict[str, Any] = {
        "mode": found.mode.replace(" ", "_"),
        "level": found.level,
        "batch": found.batch,
        "stable": found.stable,
        "windows": [
            {
                "seconds": (each.end - each.begin) / 1e9,
                "requests": each.requests,
                "requests_per_s": each.throughput,
                "latency_us": each.latency_us,
            }
            for each in found.windows
        ],
        "requests": found.requests,
        "inferences_per_s": found.throughput,
        "latency_us": _document(found.latency),
        "latency_since_sent_us": _document(found.since_sent),
        "failed": found.failed,
        "wrong": found.wrong,
        "unsent": found.unsent,
        "messages": dict(found.messages),
        "server": None if found.server is None else _server_document(found.server),
        "generator_cpu_us_per_request": found.cpu_us_per_request,
        "generator_busy": found.busy,
        "sent_late_p99_us": found.late_us,
        "saturated": found.saturated,
        "inferences_per_s_interval": _interval(found.throughput_interval),
        "latency_us_interval": _interval(found.latency_interval),
    }
    if with_records:
        names = ("scheduled", "sent", "received")
        made["records"] = [
            {
                **{f"{name}_ns": int(record[name]) for name in names},
                "outcome": _OUTCOMES.get(int(record["outcome"]), "answered"),
                "input": int(record["item"]),
            }
            for record in found.records
        ]
    return made


def _document(found: Latencies) -> dict[str, Any]:
    percentiles = {f"p{each}": value for each, value in found.percentiles.items()}
    return {"mean": found.mean, "deviation": found.deviation, **percentiles, "max": found.maximum}


def _server_document(found: Statistics) -> dict[str, Any]:
    return {
        "inferences": found.inferences,
        "executions": found.executions,
        "requests": found.counts["success"],
        "failed": found.counts["fail"],
        "request_us": _request_us(found),
        **{f"{name}_us": value for name, value in split_us(found).items()},
        "batch_sizes": {str(size): count for size, count in sorted(found.batches.items())},
    }


def _interval(found: Any) -> list[float] | None:
    return None if found is None else [found.low, found.high]
