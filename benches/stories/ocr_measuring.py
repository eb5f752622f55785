"""Load on the servers of this story, and what they read: in turns, by `penstock bench`'s generator.

Promises: every server gets the same requests of real lines; each turn visits every server at one concurrency before it
goes on, in an order that turns round, so that none gets the machine's better minutes; what is reported of a point is of
all its turns together. A request that fails is counted and never a fast answer.
"""

import http.client
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benches.stories.ocr_lines import INDEX, INPUT, Lines
from benches.stories.ocr_models import CLIENT_ROWS, MODEL
from benches.stories.ocr_ways import Running
from penstock.bench.load import ANSWERED, HTTP, Plan, Request
from penstock.bench.measuring import Settings, measure
from penstock.bench.subject import Server, Statistics

_WARM_UP_SECONDS: Final = 0.5
_ASK_SECONDS: Final = 60.0


@dataclass
class Point:
    """One server at one concurrency: all turns together."""

    seconds: float = 0.0
    failed: int = 0
    messages: list[str] = field(default_factory=list)
    turns: list[float] = field(default_factory=list)
    """Inferences a second of each."""

    cpu_seconds: float = 0.0
    """Of the server's processes, warm-up included."""

    answered: int = 0
    """Requests, warm-up included."""

    busy: float = 0.0
    """The largest share of a turn that the generator computed."""

    latencies: list[NDArray[np.float64]] = field(default_factory=list)
    """Milliseconds."""

    counts: dict[str, int] = field(default_factory=dict)
    nanoseconds: dict[str, int] = field(default_factory=dict)
    rows: int = 0
    executions: int = 0

    def figures(self) -> dict[str, float]:
        """What is reported, times in ms; NaN for what this server does not tell."""
        latencies = np.concatenate(self.latencies) if self.latencies else np.empty(0)
        percentiles = np.percentile(latencies, (50, 95, 99)) if latencies.size else np.full(3, np.nan)
        return {
            "infer_per_s": CLIENT_ROWS * len(latencies) / self.seconds if self.seconds else float("nan"),
            **{f"p{name}_ms": float(value) for name, value in zip((50, 95, 99), percentiles, strict=True)},
            "mean_ms": float(latencies.mean()) if latencies.size else float("nan"),
            "queue_ms": self._each("queue"),
            "compute_ms": sum(self._each(name) for name in ("compute_input", "compute_infer", "compute_output")),
            "rows_of_a_batch": self.rows / self.executions if self.executions else float("nan"),
            "cpu_ms": 1e3 * self.cpu_seconds / self.answered / CLIENT_ROWS if self.answered else float("nan"),
            "requests": float(len(latencies)),
            "failed": float(self.failed),
            "lowest_turn": min(self.turns, default=float("nan")),
            "highest_turn": max(self.turns, default=float("nan")),
            "generator_busy": self.busy,
        }

    def _each(self, span: str) -> float:
        count = self.counts.get(span, 0)
        return self.nanoseconds[span] / count / 1e6 if count else float("nan")

    def count(self, found: Statistics) -> None:
        for mine, theirs in ((self.counts, found.counts), (self.nanoseconds, found.nanoseconds)):
            for name, number in theirs.items():
                mine[name] = mine.get(name, 0) + number
        self.rows += found.inferences
        self.executions += found.executions


Points = Mapping[tuple[str, int], Point]


def requests(lines: Lines, *, v2: bool) -> list[Request]:
    """All lines, two a request."""
    found = []
    for at in range(0, len(lines.pictures) - CLIENT_ROWS + 1, CLIENT_ROWS):
        pictures = lines.pictures[at : at + CLIENT_ROWS]
        data = pictures.tobytes()
        if not v2:
            found.append(Request(data))
            continue
        given: dict[str, Any] = {"name": INPUT, "shape": pictures.shape, "datatype": "UINT8"}
        given["parameters"] = {"binary_data_size": len(data)}
        wanted = {"name": INDEX, "parameters": {"binary_data": True}}
        head = json.dumps({"inputs": [given], "outputs": [wanted]}).encode()
        found.append(Request(head + data, len(head)))
    return found


def read(server: Running, lines: Lines, at_once: int) -> list[str]:
    """What the server reads, asked by so many clients at once. Raises RuntimeError for a request that fails."""
    asked = requests(lines, v2=server.way.v2)

    def ask(request: Request) -> list[str]:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=_ASK_SECONDS)
        headers = {"Content-Type": "application/octet-stream"}
        if request.json_bytes is not None:
            headers["Inference-Header-Content-Length"] = str(request.json_bytes)
        try:
            connection.request("POST", server.way.path, request.body, headers)
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        size = CLIENT_ROWS * (lines.pictures.shape[2] // 8) * 8  # INT64, a column for eight of pixels
        if answer.status != 200 or len(body) < size:
            raise RuntimeError(f"{server.way.name}: HTTP status {answer.status}: {body[:300]!r}")
        return lines.read(np.frombuffer(body[-size:], np.int64).reshape(CLIENT_ROWS, -1))

    with awake(server), ThreadPoolExecutor(at_once) as pool:
        return [text for pair in pool.map(ask, asked) for text in pair]


@contextmanager
def awake(server: Running) -> Iterator[None]:
    server.session.resume()
    try:
        yield
    finally:
        server.session.pause()


def in_turns(
    servers: Sequence[Running], lines: Lines, levels: Sequence[int], turns: int, seconds: float, threads: int = 1
) -> dict[tuple[str, int], Point]:
    """Server's name and concurrency -> what was measured, `seconds` in each turn."""
    asked = {each.way.name: requests(lines, v2=each.way.v2) for each in servers}
    points: dict[tuple[str, int], Point] = {}
    for turn in range(turns):
        for level in levels:
            print(f"turn {turn + 1} of {turns}, {level} at once ...", file=sys.stderr, flush=True)
            for each in servers if (turn + levels.index(level)) % 2 == 0 else servers[::-1]:
                point = points.setdefault((each.way.name, level), Point())
                add(point, each, asked[each.way.name], level, seconds, threads)
    return points


def add(point: Point, server: Running, asked: Sequence[Request], level: int, seconds: float, threads: int = 1) -> None:
    """One turn more."""
    teller = Server(HTTP, server.address)
    headers = () if server.way.v2 else (("content-type", "application/octet-stream"),)
    plan = Plan(HTTP, server.address, server.way.path, asked, headers, concurrency=level, threads=min(threads, level))
    settings = Settings(window_seconds=seconds, trials=1, warm_up_seconds=_WARM_UP_SECONDS, percentile=95)

    def told() -> Statistics | None:
        return teller.statistics(MODEL, "") if server.way.v2 else None

    with awake(server):
        before = server.session.cpu_seconds()
        found = measure(plan, "concurrency", level, CLIENT_ROWS, settings, told)
        point.cpu_seconds += server.session.cpu_seconds() - before
    (window,) = found.windows
    records: NDArray[Any] = found.records
    inside = records[(records["received"] >= window.begin) & (records["received"] < window.end)]
    answered = inside[inside["outcome"] == ANSWERED]
    point.answered += int(np.sum(records["outcome"] == ANSWERED))
    point.latencies.append((answered["received"] - answered["scheduled"]).astype(np.float64) / 1e6)
    point.seconds += (window.end - window.begin) / 1e9
    point.failed += found.failed
    point.messages += [f"{text} ({count} times)" for text, count in found.messages.items()]
    point.turns.append(found.throughput)
    point.busy = max(point.busy, found.busy)
    if found.server is not None:
        point.count(found.server)
