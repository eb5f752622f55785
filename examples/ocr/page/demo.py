"""The demonstration: pages read by three servers, each a step further: plain, batched, with engines.

Promises: the servers are other processes, spoken to only over the wire, by Triton's clients; each reads the same pages
over gRPC and over HTTP, in turns; the last line on stdout is one JSON object, whose figures are the engines' unless
they say otherwise; the exit status is not 0 when a page failed, a broken picture hurt another page, or the engines read
worse than the networks as they are by more than MAX_DROP. Writes `build/ocr-pages.png`. Run by `make demo`.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from examples.children import CHECKOUT
from examples.ocr.client import Protocol
from examples.ocr.documents import Document, real_page, rendered_documents
from examples.ocr.draw import Pixels, draw_pages
from examples.ocr.engine import DETECTOR_ASK, Ask, Built, engine
from examples.ocr.page.client import GRPC, HTTP, Answer, Run, read_pages
from examples.ocr.page_metrics import total, word_errors
from examples.ocr.readers import RapidReader
from examples.ocr.servers import Server, child

SHEET = CHECKOUT / "build" / "ocr-pages.png"
DOCUMENTS, FIRST = 6, 120
DRAWN = ("turned", "printed over")  # kinds of documents of which the picture shows one, before the photographed page
IN_FLIGHT = 8
MAX_DROP = 0.01  # of word accuracy
BROKEN = b"\x89PNG\r\n\x1a\n and then nothing"
PROTOCOLS: Mapping[Protocol, str] = {GRPC: "gRPC", HTTP: "HTTP"}


@dataclass(frozen=True, slots=True)
class Page:
    pixels: Pixels
    truth: Document | None  # None: the photographed page

    @property
    def encoded(self) -> bytes:
        good, encoded = cv2.imencode(".png", self.pixels)
        assert good
        return bytes(encoded)


@dataclass(frozen=True, slots=True)
class Result:
    """Everything one server did."""

    name: str
    runs: Mapping[Protocol, Run]
    word_accuracy: float
    page_matched: int
    broken: str  # the reason that a broken picture was answered with; empty when it did not fail alone
    rss_mb: float

    @property
    def errors(self) -> list[str]:
        return [error for run in self.runs.values() for error in run.errors]

    @property
    def pages_per_second(self) -> float:
        """Of all runs together."""
        runs = self.runs.values()
        return sum(len(run.answers) - len(run.errors) for run in runs) / sum(run.seconds for run in runs)

    def as_json(self) -> dict[str, object]:
        return {
            "word_accuracy": round(self.word_accuracy, 5),
            "page_lines_matched": self.page_matched,
            "failed_requests": len(self.errors),
            "broken_picture_failed_alone": bool(self.broken),
            "pages_per_second": round(self.pages_per_second, 3),
            "rss_mb": round(self.rss_mb),
            "runs": {
                protocol: {
                    "pages_per_second": round(run.pages_per_second, 3),
                    "p50_ms": round(run.latency_ms(50)),
                    "slowest_ms": round(run.latency_ms(100)),
                }
                for protocol, run in self.runs.items()
            },
        }


def pages() -> list[Page]:
    """Rendered documents of known truth, and a photographed page, last."""
    documents = rendered_documents(DOCUMENTS, first=FIRST)
    return [*(Page(np.asarray(each.pixels), each) for each in documents), Page(real_page(), None)]


def lines_of_the_page() -> list[str]:
    """Of the photographed page, as RapidOCR reads them with the same networks; without its classifier, which turns one
    of the seven upside down."""
    return [line.text for line in RapidReader("onnxruntime").without_turning(real_page())]


def results(servers: Sequence[Server], asked: Sequence[Page], expected: Sequence[str]) -> list[Result]:
    """All figures, of each server. `expected`: the lines of the last page."""
    encoded = [page.encoded for page in asked]
    print(
        f"reading {len(asked)} pages once, not counted: libraries prepare for shapes they meet first", file=sys.stderr
    )
    for where in servers:
        warm = read_pages(GRPC, where.grpc, encoded, IN_FLIGHT)
        if warm.errors:
            raise SystemExit(f"demo: the {where.name} server is up but cannot read: {warm.errors[0]}")
    runs: dict[str, dict[Protocol, Run]] = {where.name: {} for where in servers}
    for protocol, title in PROTOCOLS.items():
        print(f"reading {len(asked)} pages, {IN_FLIGHT} in flight, over {title}, in turns ...", file=sys.stderr)
        for where in servers:
            runs[where.name][protocol] = read_pages(protocol, where.address(protocol), encoded, IN_FLIGHT)
    return [
        Result(
            name=where.name,
            runs=runs[where.name],
            word_accuracy=word_accuracy(asked, runs[where.name].values()),
            page_matched=min(matched(run.answers[-1], expected) for run in runs[where.name].values()),
            broken=broken_alone(where, encoded[-1]),
            rss_mb=where.rss_mb(),
        )
        for where in servers
    ]


def word_accuracy(asked: Sequence[Page], runs: Iterable[Run]) -> float:
    """Over the answers of all runs: what HTTP loses counts as much as what gRPC loses."""
    return total(
        [
            word_errors(page.truth.lines, answer.lines)
            for run in runs
            for page, answer in zip(asked, run.answers, strict=True)
            if page.truth is not None
        ]
    ).accuracy


def matched(answer: Answer, expected: Sequence[str]) -> int:
    """How many of the lines are there."""
    return len(set(expected) & {line.text for line in answer.lines})


def broken_alone(where: Server, page: bytes) -> str:
    """Sends a broken picture between two good ones: why it failed, or nothing if it was not the only one."""
    answers = read_pages(GRPC, where.grpc, [page, BROKEN, page], 3).answers
    return answers[1].error if [bool(each.error) for each in answers] == [False, True, False] else ""


def print_tables(found: Sequence[Result], lines: int) -> None:
    columns = f"{'pages/s':>9}{'p50 ms':>9}{'slowest':>9}{'speed-up':>10}"
    print(f"\n{'':10}{'gRPC':>{len(columns) - 3}}   {'HTTP':>{len(columns) - 3}}")
    print(f"{'':10}{columns}   {columns}")
    for each in found:
        row = f"{each.name:10}"
        for protocol, run in each.runs.items():
            ratio = run.pages_per_second / found[0].runs[protocol].pages_per_second
            row += f"{run.pages_per_second:9.2f}{run.latency_ms(50):9.0f}{run.latency_ms(100):9.0f}{ratio:8.2f} x   "
        print(row)
    print(f"\n{'':10}{'word accuracy':>14}{'page as RapidOCR':>20}{'memory MB':>12}   a broken picture among good ones")
    for each in found:
        page = f"{each.page_matched} of {lines}"
        said = "fails alone" if each.broken else "DOES NOT FAIL ALONE"
        print(f"{each.name:10}{each.word_accuracy:14.2%}{page:>20}{each.rss_mb:12.0f}   {said}")
    print(f"the picture's answer: {found[-1].broken}\n")


def draw(asked: Sequence[Page], answers: Sequence[Answer]) -> None:
    """The picture of what was read."""
    read = list(zip(asked, answers, strict=True))
    shown = []
    for kind in DRAWN:
        shown += [pair for pair in read if pair[0].truth is not None and pair[0].truth.kind == kind][:1]
    draw_pages([(page.pixels, answer.lines) for page, answer in [*shown, read[-1]]], SHEET)
    print(f"pictures of pages with what was read of them: {SHEET.relative_to(CHECKOUT)}")


def complaints(found: Sequence[Result]) -> list[str]:
    """Why the exit status is not 0, in words."""
    said = [f"{each.name}: failed: {error}" for each in found for error in each.errors[:5]]
    said += [f"{each.name}: a broken picture did not fail alone" for each in found if not each.broken]
    plain, built = found[0], found[-1]
    if built.word_accuracy < plain.word_accuracy - MAX_DROP:
        said.append(
            f"{built.name}: word accuracy {built.word_accuracy:.2%}, that of the networks as they are is "
            f"{plain.word_accuracy:.2%}"
        )
    return said


def summary(found: Sequence[Result], engines: Mapping[str, Built], lines: int) -> dict[str, object]:
    """The JSON object: the engines' figures, the others' below their names."""
    return {
        **found[-1].as_json(),
        "speedups": {each.name: round(each.pages_per_second / found[0].pages_per_second, 2) for each in found},
        "engines": {name: built.summary for name, built in engines.items()},
        **{each.name: each.as_json() for each in found[:-1]},
        "in_flight": IN_FLIGHT,
        "documents": DOCUMENTS,
        "page_lines": lines,
    }


def main() -> int:
    engines = {"recogniser": engine(Ask()), "detector": engine(DETECTOR_ASK)}
    for name, built in engines.items():
        print(f"the {name}'s engine was {built.origin}", file=sys.stderr)
    asked = pages()
    flags = [flag for name, built in engines.items() for flag in (f"--{name}", str(built.path))]
    module = "examples.ocr.page.service"
    with (
        child("plain", module, ["--setting", "plain"]) as plain,
        child("batched", module, ["--setting", "batched"]) as batched,
        child("engines", module, flags) as built_server,
    ):
        expected = lines_of_the_page()
        found = results([plain, batched, built_server], asked, expected)
    print_tables(found, len(expected))
    for name, built in engines.items():
        megabytes = built.file_bytes / 1e6
        print(f"{name}: {built.precision} on {', '.join(built.libraries)}, {megabytes:.0f} MB, {built.origin}")
        print(f"    {built.accuracy}")
    draw(asked, found[-1].runs[GRPC].answers)
    said = complaints(found)
    for each in said:
        print(f"demo: {each}", file=sys.stderr)
    print(json.dumps(summary(found, engines, len(expected))), flush=True)
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
