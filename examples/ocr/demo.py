"""The demonstration: a server for `read_line`, 16 clients in flight, and how well and how fast it reads.

Promises: the server is another process, spoken to only over the wire; the last line on stdout is one JSON object; the
exit status is not 0 when a request failed, a broken picture hurt another request, or plain lines were read with more
than MAX_CER. Writes `build/ocr-lines.png`. Run by `make demo`: `python -m examples.ocr.demo`.
"""

import contextlib
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.ocr.client import Batches, Protocol, Run, batches, read_lines
from examples.ocr.contact_sheet import write_contact_sheet
from examples.ocr.lines import Kind, Line, page_lines, rendered_lines
from examples.ocr.metrics import character_error_rate
from examples.ocr.terminal import picture_rows, style_of

CHECKOUT = Path(__file__).resolve().parents[2]
SHEET = CHECKOUT / "build" / "ocr-lines.png"
IN_FLIGHT = 16
ALONE = 120  # lines sent one at a time: enough for a rate, few enough to wait for
SHOWN = {"plain": 3, "hard": 3, "page": 1}
SHEET_LINES = 44
MAX_CER = 0.005  # of plain lines; the recogniser makes about 0.15 %
STOP_SECONDS = 35.0  # a server drains for at most 30
BROKEN = b"\x89PNG\r\n\x1a\n and then nothing"


@dataclass(frozen=True, slots=True)
class Server:
    http: str  # HOST:PORT
    grpc: str

    def address(self, protocol: Protocol) -> str:
        return self.grpc if protocol == "grpc" else self.http


@dataclass(frozen=True, slots=True)
class Measured:
    """One row of the table."""

    protocol: Protocol
    in_flight: int
    run: Run
    batches: Batches

    @property
    def name(self) -> str:
        return f"{self.protocol}_{self.in_flight}"

    def as_json(self) -> dict[str, float | None]:
        figures = {
            "throughput": self.run.lines_per_second,
            "p50_ms": self.run.latency_ms(50),
            "p95_ms": self.run.latency_ms(95),
            "mean_batch": self.batches.mean,
        }
        # JSON has no NaN, which is what nothing measured is.
        return {name: None if math.isnan(value) else round(value, 2) for name, value in figures.items()}


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """The server as a child process; it ends when its standard input closes, also when this process dies."""
    command = [sys.executable, "-m", "examples.ocr.serve"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT)
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        line = child.stdout.readline()
        if not line:
            raise SystemExit(f"demo: the server ended with status {child.wait()} before it was ready; see above")
        ports = json.loads(line)
        yield Server(f"127.0.0.1:{ports['http_port']}", f"127.0.0.1:{ports['grpc_port']}")
    finally:
        child.stdin.close()
        try:
            child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def measure(where: Server, protocol: Protocol, lines: Sequence[Line], in_flight: int) -> Measured:
    before = batches(where.http)
    run = read_lines(protocol, where.address(protocol), [line.encoded for line in lines], in_flight)
    return Measured(protocol, in_flight, run, batches(where.http).since(before))


def broken_picture_fails_alone(where: Server, lines: Sequence[Line]) -> tuple[bool, str]:
    """Sends a broken picture among 15 good ones; whether it alone failed, and the reason the server gave."""
    images = [line.encoded for line in lines[: IN_FLIGHT - 1]]
    images.insert(IN_FLIGHT // 2, BROKEN)
    answers = read_lines("grpc", where.grpc, images, IN_FLIGHT).answers
    failed = [index for index, answer in enumerate(answers) if answer.error]
    return failed == [IN_FLIGHT // 2], answers[IN_FLIGHT // 2].error


def error_rate(kind: Kind, lines: Sequence[Line], rows: Sequence[Measured]) -> float:
    """Over the answers of all rows that read all lines: what HTTP loses counts as much as what gRPC loses."""
    read = [(line, answer) for row in rows for line, answer in zip(lines, row.run.answers, strict=True)]
    mine = [(line.text, answer.text) for line, answer in read if line.kind == kind]
    return character_error_rate([truth for truth, _ in mine], [text for _, text in mine])


def show_lines(lines: Sequence[Line], run: Run) -> None:
    columns = min(100, shutil.get_terminal_size((100, 24)).columns)
    left: dict[str, int] = dict(SHOWN)
    for line, answer in zip(lines, run.answers, strict=True):
        # Short ones: a long line shrunk to a terminal's width shows no letters.
        if left[line.kind] == 0 or len(line.text) > 25:
            continue
        left[line.kind] -= 1
        print()
        print("\n".join(picture_rows(line.encoded, columns, style_of(sys.stdout))))
        verdict = "" if answer.text == line.text else f"   (truth: {line.text})"
        print(f"  {line.kind:5} {answer.score:4.0%}  {answer.text}{verdict}")
    print()


def print_table(rows: Sequence[Measured]) -> None:
    names: Mapping[Protocol, str] = {"grpc": "gRPC", "http": "HTTP"}
    print(f"{'':22}{'lines/s':>9}{'p50 ms':>9}{'p95 ms':>9}{'mean batch':>12}   batches: size x times")
    for row in rows:
        title = f"{names[row.protocol]}, {'one at a time' if row.in_flight == 1 else f'{row.in_flight} in flight'}"
        sizes = " ".join(f"{size}x{count}" for size, count in row.batches.counts.items())
        figures = f"{row.run.lines_per_second:9.1f}{row.run.latency_ms(50):9.1f}{row.run.latency_ms(95):9.1f}"
        print(f"{title:22}{figures}{row.batches.mean:12.2f}   {sizes}")
    print()


def main() -> int:
    print("rendering lines and starting the server ...", file=sys.stderr)
    lines = rendered_lines() + page_lines()
    with server() as where:
        # A first look, so that buffers and connections' first times are not in the figures.
        warm_up = read_lines("grpc", where.grpc, [line.encoded for line in lines[: 2 * IN_FLIGHT]], IN_FLIGHT)
        if warm_up.errors:
            raise SystemExit(f"demo: the server is up but cannot read: {warm_up.errors[0]}")
        print(f"reading {len(lines)} lines, {IN_FLIGHT} in flight, gRPC then HTTP ...", file=sys.stderr)
        together = [measure(where, protocol, lines, IN_FLIGHT) for protocol in ("grpc", "http")]
        print(f"reading {ALONE} lines, one at a time, gRPC then HTTP ...", file=sys.stderr)
        alone = [measure(where, protocol, lines[:ALONE], 1) for protocol in ("grpc", "http")]
        isolated, reason = broken_picture_fails_alone(where, lines)

    first = together[0].run
    show_lines(lines, first)
    cer, cer_hard = error_rate("plain", lines, together), error_rate("hard", lines, together)
    page = [(line, answer) for line, answer in zip(lines, first.answers, strict=True) if line.kind == "page"]
    matched = sum(answer.text == line.text for line, answer in page)
    print(f"character error rate  plain {cer:.2%}   hard {cer_hard:.2%}   photographed page {matched} of {len(page)}")
    print(f"a broken picture      {'failed alone' if isolated else 'DID NOT FAIL ALONE'}: {reason or 'no error'}\n")
    print_table([*together, *alone])
    sample = [*lines[-len(page) :], *lines[: SHEET_LINES - len(page)]]
    readings = {line.name: answer.text for line, answer in zip(lines, first.answers, strict=True)}
    write_contact_sheet(sample, [readings[line.name] for line in sample], SHEET)
    print(f"pictures and readings: {SHEET.relative_to(CHECKOUT)}")

    errors = [error for row in (*together, *alone) for error in row.run.errors]
    for error in errors[:5]:
        print(f"demo: failed: {error}", file=sys.stderr)
    good = not errors and isolated and cer <= MAX_CER
    if cer > MAX_CER:
        print(f"demo: plain lines read with CER {cer:.3%}, the limit is {MAX_CER:.1%}", file=sys.stderr)
    summary = {
        "cer": round(cer, 6),
        "cer_hard": round(cer_hard, 6),
        "page_lines": len(page),
        "page_lines_matched": matched,
        **together[0].as_json(),
        "in_flight": IN_FLIGHT,
        "lines": len(lines),
        "failed_requests": len(errors),
        "broken_picture_failed_alone": isolated,
        "runs": {row.name: row.as_json() for row in (*together, *alone)},
    }
    print(json.dumps(summary), flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
