"""The measurement: in every round each server is started alone, verified, warmed, measured at every point, and ended.

It promises that one server lives at a time, so that none pays for another; that servers take turns in every round,
each round beginning with another one, so that drift of the machine hits all alike; and that nothing is measured before
a real answer was right. Called by `dataplane.py`.
"""

import os
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.dialects import BatchCounts, Dialect
from harness.generators import GeneratorError, Generators
from harness.lab import Lab
from harness.processes import Session, machine_busy_seconds, wait_until
from harness.rows import DISTURBED_SHARE, Point, Row, Sample, Table
from harness.servers import Ports, Server, taken
from harness.single import RefusedError, get, send
from harness.workload import Wire, Workload

READY_SECONDS = 90
"""Peers import their worlds at start; on two shared cores that takes seconds, not minutes."""

WARM_CONCURRENCY, WARM_SECONDS = 8, 1

CORES = os.cpu_count() or 1


@dataclass(frozen=True)
class Plan:
    """What to measure of a workload: pairs of wire and concurrency."""

    workload: Workload
    loads: tuple[tuple[Wire, int], ...]

    def wires(self, dialect: Dialect) -> list[Wire]:
        return [wire for wire in dict.fromkeys(wire for wire, _ in self.loads) if wire in dialect.wires]

    def concurrencies(self, wire: Wire) -> list[int]:
        return [concurrency for one, concurrency in self.loads if one is wire]


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    name: str
    workload: Workload
    session: Session
    dialect: Dialect
    ports: Ports

    def port(self, wire: Wire) -> int:
        return self.ports.grpc if wire is Wire.GRPC else self.ports.http

    def point(self, wire: Wire, concurrency: int) -> Point:
        return Point(self.name, self.workload, wire, concurrency)

    def batches(self) -> BatchCounts | None:
        try:
            return self.dialect.batches(get(self.ports.http, self.dialect.statistics_path))
        except (RefusedError, ValueError, KeyError, IndexError):
            return None  # a server without statistics: the batch column stays empty


class Rounds:
    """Runs plans over servers and collects rows."""

    def __init__(self, lab: Lab, seconds: int, retakes: int) -> None:
        self._lab = lab
        self._seconds = seconds
        self._retakes = retakes
        self._generators = Generators(lab.folder)
        self._samples: dict[Point, list[Sample]] = {}
        self._complaints: dict[Point, str] = {}
        self._given_up: set[tuple[str, Workload]] = set()

    def run(self, servers: Sequence[Server], plans: Sequence[Plan], rounds: int) -> Table:
        for number in range(rounds):
            for plan in plans:
                able = [server for server in servers if plan.workload in server.workloads]
                turn = number % len(able) if able else 0
                for server in able[turn:] + able[:turn]:
                    if (server.name, plan.workload) not in self._given_up:
                        self._visit(server, plan, number)
        order = {server.name: place for place, server in enumerate(servers)}
        points = sorted(self._samples, key=lambda point: order[point.server])
        return Table(Row(point, tuple(self._samples[point]), self._complaints.get(point)) for point in points)

    def _visit(self, server: Server, plan: Plan, number: int) -> None:
        ports = server.ports()
        launch = server.launch(plan.workload, ports)
        log = self._lab.logs / f"{server.name.replace(' ', '-')}-{plan.workload.value}.log"
        wires = plan.wires(launch.dialect)
        strangers = taken(ports)
        if strangers:
            self._give_up(server, plan, wires, f"did not start: somebody listens on {strangers} already")
            return
        try:
            session = Session(launch.command, launch.env, Path.cwd(), log)
        except OSError as error:
            self._give_up(server, plan, wires, f"did not start: {error}")
            return
        running = Running(server.name, plan.workload, session, launch.dialect, ports)
        try:
            why_not = wait_until(READY_SECONDS, session, lambda: _answers(running))
            if why_not is not None:
                self._give_up(server, plan, wires, why_not)
                return
            for wire in wires:
                self._measure_wire(running, wire, plan.concurrencies(wire), number)
        finally:
            session.stop()

    def _give_up(self, server: Server, plan: Plan, wires: Sequence[Wire], reason: str) -> None:
        _tell(f"{server.name}: {plan.workload.value}: {reason}")
        self._given_up.add((server.name, plan.workload))
        for wire in wires:
            for concurrency in plan.concurrencies(wire):
                self._complain(Point(server.name, plan.workload, wire, concurrency), reason)

    def _complain(self, point: Point, reason: str) -> None:
        self._samples.setdefault(point, [])
        self._complaints.setdefault(point, reason)

    def _measure_wire(self, running: Running, wire: Wire, concurrencies: Sequence[int], number: int) -> None:
        points = [running.point(wire, concurrency) for concurrency in concurrencies]
        try:
            answer_bytes = self._verify(running, wire)
            post = running.dialect.post(running.workload, wire)
            warm = self._generators.load(post, wire, running.port(wire), WARM_CONCURRENCY, WARM_SECONDS, answer_bytes)
            if warm.errors:
                raise GeneratorError(f"{warm.errors} errors while warming up")
        except (RefusedError, GeneratorError, ValueError, KeyError, IndexError) as error:
            # A missing key or an empty list says nothing by itself: it is a foreign answer's.
            reason = f"foreign answer: {error!r}" if isinstance(error, LookupError) else str(error)
            _tell(f"{running.name}: {running.workload.value} {wire.label}: {reason}")
            for point in points:
                self._complain(point, reason)
            return
        for point in points:
            try:
                sample = self._least_disturbed(running, point, answer_bytes, number)
            except GeneratorError as error:
                _tell(f"{running.name}: {running.workload.value} {wire.label}: {error}")
                self._complain(point, str(error))
                continue
            self._samples.setdefault(point, []).append(sample)
            _tell(_line(point, sample))

    def _verify(self, running: Running, wire: Wire) -> int:
        """Sends one request and compares the answer with what is right; the size of the answer's body."""
        post = running.dialect.post(running.workload, wire)
        begin = time.perf_counter()
        answer = send(running.port(wire), post, wire, self._lab.folder)
        took = time.perf_counter() - begin
        complaint = running.dialect.complaint(running.workload, wire, answer)
        if complaint is None and took < running.workload.sleep_seconds:
            complaint = f"answered after {took * 1e3:.2f} ms: its model does not sleep"
        if complaint is not None:
            raise ValueError(complaint)
        return len(answer.body)

    def _least_disturbed(self, running: Running, point: Point, answer_bytes: int, number: int) -> Sample:
        """A sample during which others used the machine is taken again, so often as allowed. What counts is chosen by
        the disturbance, never by the figures; errors of a discarded sample stay."""
        best = self._sample(running, point, answer_bytes, number)
        errors = best.errors
        for _ in range(self._retakes):
            if best.foreign_share <= DISTURBED_SHARE:
                break
            again = self._sample(running, point, answer_bytes, number)
            errors += again.errors
            best = min(best, again, key=lambda sample: sample.foreign_share)
        return replace(best, errors=errors)

    def _sample(self, running: Running, point: Point, answer_bytes: int, number: int) -> Sample:
        wire = point.wire
        post = running.dialect.post(running.workload, wire)
        counts = running.batches()
        begin, busy = time.perf_counter(), machine_busy_seconds()
        generator, own = _children_seconds(), time.process_time()
        server = running.session.cpu_seconds()
        load = self._generators.load(post, wire, running.port(wire), point.concurrency, self._seconds, answer_bytes)
        server = running.session.cpu_seconds() - server
        known = server + (_children_seconds() - generator) + (time.process_time() - own)
        foreign = machine_busy_seconds() - busy - known
        elapsed = time.perf_counter() - begin
        return Sample(
            round=number,
            requests=load.requests,
            requests_per_second=load.requests_per_second,
            cpu_us=server / load.requests * 1e6,
            p50_ms=load.p50_ms,
            p99_ms=load.p99_ms,
            errors=load.errors,
            mean_batch=mean_batch(counts, running.batches()),
            foreign_share=max(0.0, foreign / (elapsed * CORES)),
        )


def mean_batch(before: BatchCounts | None, after: BatchCounts | None) -> float | None:
    if before is None or after is None or after.batches <= before.batches:
        return None
    return (after.requests - before.requests) / (after.batches - before.batches)


def _answers(running: Running) -> bool:
    try:
        get(running.ports.http, running.dialect.ready_path, timeout=2)
    except RefusedError:
        return False
    return True


def _children_seconds() -> float:
    """CPU of the generators so far: the only children that are reaped during a sample."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _line(point: Point, sample: Sample) -> str:
    batch = "" if sample.mean_batch is None else f"  batch {sample.mean_batch:.1f}"
    return (
        f"round {sample.round + 1}  {point.server:14} {point.workload.value:6} {point.wire.label:11} "
        f"c={point.concurrency:<3} {sample.requests_per_second:9.0f}/s  CPU {sample.cpu_us:7.1f} µs  "
        f"p50 {sample.p50_ms:7.3f} ms  p99 {sample.p99_ms:7.3f} ms  errors {sample.errors}  "
        f"others {sample.foreign_share:4.0%}{batch}"
    )


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
