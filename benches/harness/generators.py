"""Load from wrk (HTTP) and h2load (gRPC), and what they report.

It promises that a request that failed is counted: statuses and broken connections by wrk; statuses by h2load, and,
since a gRPC error is a 200 without a message, answers whose bytes are missing from what h2load received. Both tools
run on the server's own cores and are not niced. Called by the rounds.
"""

import json
import math
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from harness.dialects import Post
from harness.workload import Wire

TIMEOUT_SECONDS = 10
LUA = Path(__file__).parent.parent / "peers" / "post.lua"


class GeneratorError(Exception):
    """The tool itself failed: there is no figure."""


@dataclass(frozen=True)
class Load:
    """What one run of a generator saw. Latencies in milliseconds."""

    requests: int
    requests_per_second: float
    p50_ms: float
    p99_ms: float
    errors: int


def percentile(ordered: list[int], share: float) -> int:
    """The nearest-rank percentile of sorted values."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def parse_wrk(output: str) -> Load:
    found = re.search(r"^RESULT (\{.*\})$", output, re.MULTILINE)
    if found is None:
        raise GeneratorError(f"wrk gave no result: {output.strip()[-300:]}")
    result: dict[str, int] = json.loads(found[1])
    if not result["requests"] or not result["duration_us"]:
        raise GeneratorError("wrk completed no request")
    return Load(
        requests=result["requests"],
        requests_per_second=result["requests"] / result["duration_us"] * 1e6,
        p50_ms=result["p50_us"] / 1e3,
        p99_ms=result["p99_us"] / 1e3,
        errors=result["bad_status"] + result["broken"],
    )


def parse_h2load(output: str, log: str, seconds: int, answer_bytes: int) -> Load:
    """`log`: a line per request (start, status, duration; microseconds). `answer_bytes`: the size of a right answer."""
    statuses: list[str] = []
    durations: list[int] = []
    for line in log.splitlines():
        _start, status, duration = line.split("\t")
        statuses.append(status)
        durations.append(int(duration))
    received = re.search(r"\((\d+)\) data$", output, re.MULTILINE)
    if not durations or received is None:
        raise GeneratorError(f"h2load completed no request: {output.strip()[-300:]}")
    durations.sort()
    # Answers under way at the end may add bytes, never take any.
    short = max(0, len(durations) * answer_bytes - int(received[1]))
    return Load(
        requests=len(durations),
        requests_per_second=len(durations) / seconds,
        p50_ms=percentile(durations, 0.5) / 1e3,
        p99_ms=percentile(durations, 0.99) / 1e3,
        errors=sum(status != "200" for status in statuses) + math.ceil(short / answer_bytes),
    )


@dataclass(frozen=True)
class Generators:
    """Runs the tools; bodies and logs lie in `folder`."""

    folder: Path

    def load(self, post: Post, wire: Wire, port: int, concurrency: int, seconds: int, answer_bytes: int) -> Load:
        body = self.folder / "body.bin"
        body.write_bytes(post.body)
        url = f"http://127.0.0.1:{port}{post.path}"
        if wire is Wire.GRPC:
            return self._h2load(body, url, concurrency, seconds, answer_bytes)
        return self._wrk(post, body, url, concurrency, seconds)

    def _wrk(self, post: Post, body: Path, url: str, concurrency: int, seconds: int) -> Load:
        env = {**os.environ, "BENCH_BODY": str(body), "BENCH_CONTENT_TYPE": post.content_type}
        if post.json_length is not None:
            env["BENCH_JSON_LENGTH"] = str(post.json_length)
        command = ["wrk", "-t1", f"-c{concurrency}", f"-d{seconds}s", "--timeout", f"{TIMEOUT_SECONDS}s"]
        command += ["-s", str(LUA), url]
        return parse_wrk(_run(command, env, seconds))

    def _h2load(self, body: Path, url: str, concurrency: int, seconds: int, answer_bytes: int) -> Load:
        log = self.folder / "h2load.log"
        log.unlink(missing_ok=True)
        command = ["h2load", "-t1", f"-c{concurrency}", "-m1", "-D", str(seconds), "-d", str(body)]
        command += ["-H", "content-type: application/grpc", "-H", "te: trailers", "--log-file", str(log), url]
        output = _run(command, dict(os.environ), seconds)
        return parse_h2load(output, log.read_text() if log.exists() else "", seconds, answer_bytes)


def _run(command: list[str], env: dict[str, str], seconds: int) -> str:
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=seconds + 60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GeneratorError(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        raise GeneratorError(f"{command[0]} exited {done.returncode}: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout
