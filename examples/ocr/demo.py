"""The demonstration: two servers for `read_line`, one with the recogniser as it is and one with an engine built of it.

Promises: the servers are other processes, spoken to only over the wire and loaded one at a time, in turns; the last
line on stdout is one JSON object, whose figures are the engine's unless they say `plain`; the exit status is not 0 when
a request failed, a broken picture hurt another request, or either read plain lines with more than MAX_CER. Writes
`build/ocr-lines.png`. Run by `make demo`: `python -m examples.ocr.demo`.
"""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from examples.children import CHECKOUT
from examples.ocr.client import Protocol, Run, read_lines
from examples.ocr.contact_sheet import write_contact_sheet
from examples.ocr.engine import Built, engine
from examples.ocr.lines import Kind, Line, page_lines, rendered_lines
from examples.ocr.metrics import character_error_rate
from examples.ocr.servers import Measured, Server, in_turns, rounded, server
from examples.ocr.terminal import picture_rows, style_of

SHEET = CHECKOUT / "build" / "ocr-lines.png"
IN_FLIGHT = 16
ALONE = 120  # lines sent one at a time: enough for a rate, few enough to wait for
WARM_UP = 2 * IN_FLIGHT
SHOWN = {"plain": 3, "hard": 3, "page": 1}
SHEET_LINES = 44
MAX_CER = 0.005  # of plain lines; the recogniser makes about 0.15 %
BROKEN = b"\x89PNG\r\n\x1a\n and then nothing"
PROTOCOLS: Mapping[Protocol, str] = {"grpc": "gRPC", "http": "HTTP"}


@dataclass(frozen=True, slots=True)
class Result:
    """Everything one server did."""

    together: tuple[Measured, ...]  # all lines, IN_FLIGHT at a time; gRPC, HTTP
    alone: tuple[Measured, ...]  # the first lines, one at a time
    cer: float
    cer_hard: float
    page_matched: int
    isolated: bool  # a broken picture failed, and nothing else did
    reason: str  # why it failed
    rss_mb: float

    @property
    def rows(self) -> tuple[Measured, ...]:
        return (*self.together, *self.alone)

    @property
    def errors(self) -> list[str]:
        return [error for row in self.rows for error in row.run.errors]

    @property
    def good(self) -> bool:
        return not self.errors and self.isolated and self.cer <= MAX_CER

    def as_json(self) -> dict[str, object]:
        return {
            "cer": round(self.cer, 6),
            "cer_hard": round(self.cer_hard, 6),
            "page_lines_matched": self.page_matched,
            **self.together[0].as_json(),
            "failed_requests": len(self.errors),
            "broken_picture_failed_alone": self.isolated,
            "runs": {row.name: row.as_json() for row in self.rows},
        }


def broken_picture_fails_alone(where: Server, lines: Sequence[Line]) -> tuple[bool, str]:
    """Sends a broken picture among 15 good ones; whether it alone failed, and the reason the server gave."""
    images = [line.encoded for line in lines[: IN_FLIGHT - 1]]
    images.insert(IN_FLIGHT // 2, BROKEN)
    answers = read_lines("grpc", where.grpc, images, IN_FLIGHT).answers
    failed = [index for index, answer in enumerate(answers) if answer.error]
    return failed == [IN_FLIGHT // 2], answers[IN_FLIGHT // 2].error


def results(servers: Sequence[Server], lines: Sequence[Line]) -> list[Result]:
    """All figures, of each server."""
    for where in servers:
        # A first look, so that buffers and connections' first times are not in the figures.
        warm_up = read_lines("grpc", where.grpc, [line.encoded for line in lines[:WARM_UP]], IN_FLIGHT)
        if warm_up.errors:
            raise SystemExit(f"demo: the {where.name} server is up but cannot read: {warm_up.errors[0]}")
    print(f"reading {len(lines)} lines, {IN_FLIGHT} in flight, gRPC then HTTP, in turns ...", file=sys.stderr)
    together = [in_turns(servers, protocol, lines, IN_FLIGHT) for protocol in PROTOCOLS]
    print(f"reading {ALONE} lines, one at a time, gRPC then HTTP, in turns ...", file=sys.stderr)
    alone = [in_turns(servers, protocol, lines[:ALONE], 1) for protocol in PROTOCOLS]
    found = []
    for place, where in enumerate(servers):
        mine = tuple(each[place] for each in together)
        page = [pair for pair in zip(lines, mine[0].run.answers, strict=True) if pair[0].kind == "page"]
        isolated, reason = broken_picture_fails_alone(where, lines)
        found.append(
            Result(
                together=mine,
                alone=tuple(each[place] for each in alone),
                cer=error_rate("plain", lines, mine),
                cer_hard=error_rate("hard", lines, mine),
                page_matched=sum(answer.text == line.text for line, answer in page),
                isolated=isolated,
                reason=reason,
                rss_mb=where.rss_mb(),
            )
        )
    return found


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


def print_table(plain: Result, built: Result) -> None:
    figures = f"{'lines/s':>9}{'p50 ms':>9}{'p95 ms':>9}{'speed-up':>10}{'mean batch':>12}"
    print(f"{'':30}{figures}   batches: size x times")
    for before, after in zip(plain.rows, built.rows, strict=True):
        together = f"{before.in_flight} in flight"
        title = f"{PROTOCOLS[before.protocol]}, {'one at a time' if before.in_flight == 1 else together}"
        for name, row in (("plain", before), ("engine", after)):
            sizes = " ".join(f"{size}x{count}" for size, count in row.batches.counts.items())
            figures = f"{row.run.lines_per_second:9.1f}{row.run.latency_ms(50):9.1f}{row.run.latency_ms(95):9.1f}"
            ratio = f"{speedup(before, after):.2f} x" if row is after else ""
            print(f"{title:22}{name:8}{figures}{ratio:>10}{row.batches.mean:12.2f}   {sizes}")
            title = ""
    print()


def print_accuracy(plain: Result, built: Result, page_lines: int) -> None:
    print(f"{'':22}{'CER plain lines':>17}{'CER hard lines':>17}{'photographed page':>20}{'memory MB':>12}")
    for name, each in (("plain", plain), ("engine", built)):
        page = f"{each.page_matched} of {page_lines}"
        print(f"{name:22}{each.cer:17.2%}{each.cer_hard:17.2%}{page:>20}{each.rss_mb:12.0f}")
    isolated = plain.isolated and built.isolated
    verdict = "failed alone" if isolated else "DID NOT FAIL ALONE"
    print(f"a broken picture      {verdict}: {built.reason or plain.reason or 'no error'}\n")


def speedup(before: Measured, after: Measured) -> float:
    return after.run.lines_per_second / before.run.lines_per_second


def complaints(name: str, result: Result) -> list[str]:
    """Why the exit status is not 0, in words."""
    said = [f"{name}: failed: {error}" for error in result.errors[:5]]
    if not result.isolated:
        said.append(f"{name}: a broken picture among good ones did not fail alone")
    if result.cer > MAX_CER:
        said.append(f"{name}: plain lines read with CER {result.cer:.3%}, the limit is {MAX_CER:.1%}")
    return said


def summary(plain: Result, built: Result, made: Built, lines: Sequence[Line]) -> dict[str, object]:
    """The JSON object: the engine's figures, the plain recogniser's below `plain`."""
    return {
        **built.as_json(),
        "speedup": rounded(speedup(plain.together[0], built.together[0])),
        "speedups": {
            after.name: rounded(speedup(before, after)) for before, after in zip(plain.rows, built.rows, strict=True)
        },
        "engine": made.summary,
        "rss_mb": {"plain": rounded(plain.rss_mb), "engine": rounded(built.rss_mb)},
        "plain": plain.as_json(),
        "in_flight": IN_FLIGHT,
        "lines": len(lines),
        "page_lines": sum(line.kind == "page" for line in lines),
    }


def main() -> int:
    made = engine()
    print(f"the engine was {made.origin}; rendering lines and starting two servers ...", file=sys.stderr)
    lines = rendered_lines() + page_lines()
    with server("plain") as before, server("engine", made.path) as after:
        plain, built = results([before, after], lines)

    first = built.together[0].run
    show_lines(lines, first)
    pages = [line for line in lines if line.kind == "page"]
    print_accuracy(plain, built, len(pages))
    print_table(plain, built)
    print(f"the engine: {made.precision} on {', '.join(made.libraries)}, {made.file_bytes / 1e6:.0f} MB, {made.origin}")
    print(f"            {'; '.join(made.tactics)}")
    print(f"            {made.accuracy}")
    sample = [*pages, *lines[: SHEET_LINES - len(pages)]]
    readings = {line.name: answer.text for line, answer in zip(lines, first.answers, strict=True)}
    write_contact_sheet(sample, [readings[line.name] for line in sample], SHEET)
    print(f"pictures and the engine's readings: {SHEET.relative_to(CHECKOUT)}")

    for said in (*complaints("plain", plain), *complaints("engine", built)):
        print(f"demo: {said}", file=sys.stderr)
    print(json.dumps(summary(plain, built, made, lines)), flush=True)
    return 0 if plain.good and built.good else 1


if __name__ == "__main__":
    sys.exit(main())
