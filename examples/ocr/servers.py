"""Servers for `read_line` as child processes, and what they do under load, measured in turns.

Promises: a server ends when this process does; figures of two servers come from the same lines at nearly the same time,
one server loaded while the other idles, so that neither gets the machine's better minutes. Called by `demo`.
"""

import contextlib
import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from examples import children
from examples.ocr.client import Batches, Protocol, Run, batches, read_lines
from examples.ocr.lines import Line

# Of one server in a row. More would even out drift better and cost more starts and ends, when fewer are in flight.
TURNS = 4


@dataclass(frozen=True, slots=True)
class Server:
    name: str
    http: str  # HOST:PORT
    grpc: str
    process: int

    def address(self, protocol: Protocol) -> str:
        return self.grpc if protocol == "grpc" else self.http

    def rss_mb(self) -> float:
        """What it holds in memory now, in millions of bytes; NaN where the system does not say."""
        try:
            status = Path(f"/proc/{self.process}/status").read_text(encoding="ascii")
        except OSError:
            return math.nan
        (kilobytes,) = (int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
        return kilobytes * 1024 / 1e6


@dataclass(frozen=True, slots=True)
class Measured:
    """What one server did with a set of lines: one row of a table."""

    protocol: Protocol
    in_flight: int
    run: Run
    batches: Batches = field(default_factory=lambda: Batches({}))

    @property
    def name(self) -> str:
        return f"{self.protocol}_{self.in_flight}"

    def as_json(self) -> dict[str, float | None]:
        return {
            "throughput": rounded(self.run.lines_per_second),
            "p50_ms": rounded(self.run.latency_ms(50)),
            "p95_ms": rounded(self.run.latency_ms(95)),
            "mean_batch": rounded(self.batches.mean),
        }


def rounded(value: float) -> float | None:
    """JSON has no NaN, which is what nothing measured is."""
    return None if math.isnan(value) else round(value, 2)


def server(name: str, engine: Path | None = None) -> contextlib.AbstractContextManager[Server]:
    """`serve` as a child process."""
    return child(name, "examples.ocr.serve", ["--engine", str(engine)] if engine else [])


@contextlib.contextmanager
def child(name: str, module: str, flags: Sequence[str]) -> Iterator[Server]:
    """A module that serves and prints its ports; it ends when its standard input closes, also when we die."""
    with children.child([sys.executable, "-m", module, *flags]) as started:
        assert started.stdout is not None
        line = started.stdout.readline()
        if not line:
            raise SystemExit(f"the {name} server ended with status {started.wait()} before it was ready; see above")
        ports = json.loads(line)
        yield Server(name, f"127.0.0.1:{ports['http_port']}", f"127.0.0.1:{ports['grpc_port']}", started.pid)


def measure(where: Server, protocol: Protocol, lines: Sequence[Line], in_flight: int) -> Measured:
    before = batches(where.http)
    run = read_lines(protocol, where.address(protocol), [line.encoded for line in lines], in_flight)
    return Measured(protocol, in_flight, run, batches(where.http).since(before))


def in_turns(
    servers: Sequence[Server], protocol: Protocol, lines: Sequence[Line], in_flight: int, turns: int = TURNS
) -> list[Measured]:
    """The same lines to each server, a part of them at a time, in the servers' order and then in the reverse of it."""
    parts: dict[str, list[Measured]] = {each.name: [] for each in servers}
    for turn in range(turns):
        part = lines[len(lines) * turn // turns : len(lines) * (turn + 1) // turns]
        for each in servers if turn % 2 == 0 else servers[::-1]:
            parts[each.name].append(measure(each, protocol, part, in_flight))
    return [joined(parts[each.name]) for each in servers]


def joined(parts: Sequence[Measured]) -> Measured:
    """One after the other as one: answers in order, seconds and batches added up."""
    answers = tuple(answer for part in parts for answer in part.run.answers)
    counts: Counter[int] = Counter()
    for part in parts:
        counts.update(part.batches.counts)
    run = Run(answers, sum(part.run.seconds for part in parts))
    return Measured(parts[0].protocol, parts[0].in_flight, run, Batches(dict(sorted(counts.items()))))
