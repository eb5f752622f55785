"""Generators side by side: what penstock bench says of a server, what wrk, h2load and perf_analyzer say of the same.

    python benches/load_generator.py --rounds 9 --seconds 2

One server that doubles a row, closed loops over HTTP and gRPC, every generator in turns within each round; with
`--sleep 0.005` one whose batches take so long, where generators that cost more than the server still agree. The table
has the medians of throughput and p50, and the CPU that a request costs the generator. Ours over a peer's is taken
within a round and then the median of rounds, since machines change by more than generators differ. Peers that are not
installed are absent. Exits 1 where ours is more than 5 % from a peer that was there.
"""

import argparse
import csv
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.dialects import Post
from harness.generators import GeneratorError, Generators
from harness.lab import REPOSITORY
from harness.processes import Session, wait_until
from harness.servers import free_ports, taken
from harness.workload import Wire
from penstock.bench import requests, subject
from penstock.bench.load import GRPC, HTTP

MODEL = "ident"
OURS = "penstock"
AGREES = 0.05
WIRES = {HTTP: Wire.BINARY, GRPC: Wire.GRPC}


@dataclass(frozen=True)
class Seen:
    """By one generator in one run."""

    rate: float
    p50_us: float
    cpu_us: float


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--concurrency", default="1,16,64")
    parser.add_argument(
        "--sleep", type=float, default=0.0, help="seconds of a batch: a server that is slower than any generator"
    )
    parser.add_argument("--perf-analyzer", default=shutil.which("perf_analyzer"), metavar="FILE")
    parser.add_argument("--out", type=Path, help="where the figures are written as JSON")
    wanted = parser.parse_args()
    ports = free_ports()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, str(REPOSITORY / "benches" / "serve_double.py")]
        command += ["--http-port", str(ports.http), "--grpc-port", str(ports.grpc)]
        command += ["--sleep", str(wanted.sleep)] if wanted.sleep else []
        session = Session(command, {}, folder, folder / "server.log")
        try:
            problem = wait_until(30, session, lambda: len(taken(ports)) == 2)
            if problem:
                print(f"load_generator: {problem}", file=sys.stderr)
                return 2
            found = measure(wanted, {HTTP: ports.http, GRPC: ports.grpc}, folder)
        finally:
            session.stop()
    if wanted.out is not None:
        wanted.out.write_text(
            json.dumps([{**row, "seen": [each and vars(each) for each in row["seen"]]} for row in found])
        )
    return 1 if table(found) else 0


def measure(wanted: argparse.Namespace, ports: dict[str, int], folder: Path) -> list[dict]:
    rows = []
    for protocol, port in ports.items():
        for concurrency in map(int, wanted.concurrency.split(",")):
            ways = generators(protocol, port, concurrency, wanted.seconds, folder, wanted.perf_analyzer)
            seen: dict[str, list[Seen | None]] = {each: [] for each in ways}
            for number in range(wanted.rounds):
                for each in reversed(ways) if number % 2 else ways:
                    try:
                        seen[each].append(ways[each]())
                    except (GeneratorError, subprocess.SubprocessError, OSError, ValueError, KeyError) as error:
                        seen[each].append(None)
                        print(f"load_generator: {each}: {error}", file=sys.stderr)
            rows += [
                {"protocol": protocol, "concurrency": concurrency, "generator": each, "seen": runs}
                for each, runs in seen.items()
                if any(runs)
            ]
    return rows


def generators(
    protocol: str, port: int, concurrency: int, seconds: int, folder: Path, perf_analyzer: str | None
) -> dict[str, Callable[[], Seen]]:
    found: dict[str, Callable[[], Seen]] = {OURS: lambda: ours(protocol, port, concurrency, seconds)}
    peer = "wrk" if protocol == HTTP else "h2load"
    if shutil.which(peer):
        found[peer] = lambda: with_cpu(lambda: tool(protocol, port, concurrency, seconds, folder))
    if perf_analyzer:
        found["perf_analyzer"] = lambda: theirs(perf_analyzer, protocol, port, concurrency, seconds, folder)
    return found


def ours(protocol: str, port: int, concurrency: int, seconds: int) -> Seen:
    command = [
        sys.executable,
        "-c",
        "from penstock.cli import main; main()",
        "bench",
        "-m",
        MODEL,
        "-u",
        f"127.0.0.1:{port}",
        "-i",
        protocol,
    ]
    command += ["--concurrency-range", str(concurrency), "-p", str(1000 * seconds // 3), "-r", "3", "--json"]
    command += ["--max-threads", str(threads())]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60 + 4 * seconds)
    if done.returncode:
        raise GeneratorError(f"exited {done.returncode}: {done.stderr[-300:]}")
    (level,) = json.loads(done.stdout)["levels"]
    return Seen(level["inferences_per_s"], level["latency_us"]["p50"], level["generator_cpu_us_per_request"])


def threads() -> int:
    """Of our generator: where cores are many one is not enough for a fast server."""
    return max(1, (os.cpu_count() or 1) // 4)


def tool(protocol: str, port: int, concurrency: int, seconds: int, folder: Path) -> tuple[int, float, float]:
    found = subject.Server(protocol, f"127.0.0.1:{port}").subject(MODEL, "")
    request = requests.requests(found, requests.Wanted(), protocol)[0]
    kind = "application/octet-stream" if protocol == HTTP else "application/grpc"
    # The five bytes of a gRPC message's prefix belong to the body there.
    prefix = b"" if protocol == HTTP else b"\0" + len(request.body).to_bytes(4, "big")
    post = Post(subject.infer_path(found, protocol), prefix + request.body, kind, request.json_bytes)
    load = Generators(folder).load(post, WIRES[protocol], port, concurrency, seconds, answer_bytes=1)
    if load.errors:
        raise GeneratorError(f"{load.errors} errors")
    return load.requests, load.requests_per_second, 1000 * load.p50_ms


def with_cpu(run: Callable[[], tuple[int, float, float]]) -> Seen:
    before = children_seconds()
    count, rate, p50 = run()
    return Seen(rate, p50, 1e6 * (children_seconds() - before) / count)


def children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def theirs(binary: str, protocol: str, port: int, concurrency: int, seconds: int, folder: Path) -> Seen:
    table = folder / "perf_analyzer.csv"
    command = [binary, "-m", MODEL, "-u", f"127.0.0.1:{port}", "-i", protocol, "-p", str(1000 * seconds // 3)]
    command += ["--concurrency-range", str(concurrency), "-f", str(table), "-s", "50", "--async"]
    before = children_seconds()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120 + 4 * seconds, check=False)
    if done.returncode not in (0, 2):
        raise GeneratorError(f"perf_analyzer exited {done.returncode}: {(done.stderr or done.stdout)[-300:]}")
    (row,) = csv.DictReader(table.read_text().splitlines())
    count = sum(int(line.split(":")[1]) for line in done.stdout.splitlines() if "Request count:" in line)
    return Seen(
        float(row["Inferences/Second"]), float(row["p50 latency"]), 1e6 * (children_seconds() - before) / max(1, count)
    )


def table(rows: list[dict]) -> int:
    """Printed; how many peers ours is too far from."""
    print(f"{os.cpu_count()} cores, medians of {max(len(row['seen']) for row in rows)} rounds\n")
    print("| protocol | at once | generator | requests/s | ours over it | range | p50 us | CPU us/request |")
    print("|---|---|---|---|---|---|---|---|")
    ours_at = {(row["protocol"], row["concurrency"]): row["seen"] for row in rows if row["generator"] == OURS}
    far = 0
    for row in rows:
        own = ours_at.get((row["protocol"], row["concurrency"]), [])
        pairs = [mine.rate / each.rate for mine, each in zip(own, row["seen"], strict=False) if mine and each]
        ratio = statistics.median(pairs) if pairs else float("nan")
        far += abs(ratio - 1) > AGREES
        rate, p50, cpu = (
            statistics.median(getattr(each, name) for each in row["seen"] if each)
            for name in ("rate", "p50_us", "cpu_us")
        )
        between = f"{min(pairs):.2f}-{max(pairs):.2f}" if pairs else ""
        print(
            f"| {row['protocol']} | {row['concurrency']} | {row['generator']} | {rate:.0f} | {ratio:.3f} | {between} "
            f"| {p50:.0f} | {cpu:.1f} |"
        )
    return far


if __name__ == "__main__":
    sys.exit(main())
