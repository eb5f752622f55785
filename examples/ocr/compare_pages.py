"""Reads whole pages with ours and with RapidOCR in the same run: word accuracy, times, the lines of a real page.

    python -m examples.ocr.compare_pages --documents 20 --runtime openvino

Every reader reads every page, in turns, so that what else runs on the machine meets all of them. The first page is read
twice and the first time not counted. `--show` prints every line that one of them read wrong and another did not.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from examples.ocr.documents import Document, real_page, rendered_documents
from examples.ocr.draw import draw_page
from examples.ocr.model import engines_in
from examples.ocr.page_metrics import (
    PlacedText,
    WordErrors,
    accuracy_gain,
    differing_lines,
    line_errors,
    total,
    word_errors,
)
from examples.ocr.readers import PageReader, RapidReader
from penstock.errors import NotFound

Pixels = npt.NDArray[np.uint8]
Read = Callable[[Pixels], Sequence[PlacedText]]
OURS = "ours"
PEERS = ("onnxruntime", "openvino")


@dataclass(slots=True)
class Record:
    """What one reader made of the documents."""

    pages: list[WordErrors] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--documents", type=int, default=20, help="how many rendered pages (default: 20)")
    parser.add_argument("--first", type=int, default=0, help="from which on (default: 0)")
    parser.add_argument("--runtime", choices=PEERS, default="openvino", help="what ours runs on (default: openvino)")
    parser.add_argument("--engines", type=Path, help="a folder of engines named after the networks, for ours")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS, help="RapidOCR on these (default: both)")
    parser.add_argument("--show", action="store_true", help="print the lines that were not read alike")
    parser.add_argument("--draw", type=Path, help="a folder: what ours read of each page, as pictures")
    parser.add_argument("--json", action="store_true", help="print one JSON document in place of tables")
    chosen = parser.parse_args(arguments)
    try:
        ours = PageReader(chosen.runtime, engines_in(chosen.engines))
    except NotFound as error:
        parser.error(str(error))
    peers = {f"rapidocr {peer}": RapidReader(peer) for peer in chosen.peers}
    readers: dict[str, Read] = {OURS: ours, **peers}
    documents = list(rendered_documents(chosen.documents, first=chosen.first))
    records = _read_all(documents, readers, ours, show=chosen.show)
    straight: dict[str, Read] = {f"{name}, no classifier": peer.without_turning for name, peer in peers.items()}
    page = {name: [line.text for line in read(real_page())] for name, read in (readers | straight).items()}
    report = _report(records, ours, page)
    if chosen.draw:
        for name, pixels in [(one.name, one.pixels) for one in documents] + [("page", real_page())]:
            draw_page(pixels, ours(pixels), chosen.draw / f"{name}.png")
    report |= {"runtime": chosen.runtime, "documents": chosen.documents, "first": chosen.first}
    print(json.dumps(report, indent=2) if chosen.json else _tables(report))


def _read_all(
    documents: Sequence[Document], readers: dict[str, Read], ours: PageReader, *, show: bool
) -> dict[str, Record]:
    records = {name: Record() for name in readers}
    for read in readers.values():
        read(documents[0].pixels)
    ours.steps.seconds.clear()
    for document in documents:
        answers = {}
        for name, read in readers.items():
            begin = time.perf_counter()
            answers[name] = read(document.pixels)
            records[name].seconds.append(time.perf_counter() - begin)
            records[name].pages.append(word_errors(document.lines, answers[name]))
        if show:
            _show(document, answers)
    return records


def _show(document: Document, answers: dict[str, Sequence[PlacedText]]) -> None:
    """Lines of the truth that the readers read differently well, and what was read where nothing stands."""
    found = {name: line_errors(document.lines, answer) for name, answer in answers.items()}
    for index, line in enumerate(document.lines):
        rows = {name: errors[index] for name, errors in found.items()}
        if len({row.errors for row in rows.values()}) > 1:
            print(f"{document.name}: {line.text!r}")
            for name, row in rows.items():
                print(f"    {row.errors} {name:22} {row.read!r}")
    for name, errors in found.items():
        for stray in errors[len(document.lines) :]:
            print(f"{document.name}: {name} read where nothing stands: {stray.read!r}")


def _report(records: dict[str, Record], ours: PageReader, page: dict[str, list[str]]) -> dict[str, Any]:
    steps = {name: 1e3 * statistics.median(values) for name, values in ours.steps.seconds.items()}
    rows = {}
    for name, record in records.items():
        gain = accuracy_gain(records[OURS].pages, record.pages) if name != OURS else None
        whole = total(record.pages)
        rows[name] = {
            "words": whole.words,
            "word_errors": whole.errors,
            "word_errors_by_page": [page.errors for page in record.pages],
            "words_by_page": [page.words for page in record.pages],
            "word_accuracy_percent": 100 * whole.accuracy,
            "ours_better_by_points": [100 * part for part in gain] if gain else None,
            "ms_per_page_median": 1e3 * statistics.median(record.seconds),
        }
    lines = {
        name: {"lines": len(texts), "differing": differing_lines(page[OURS], texts)}
        for name, texts in page.items()
        if name != OURS
    }
    return {"readers": rows, "real_page": lines, "ours_ms_by_step_median": steps}


def _tables(report: dict[str, Any]) -> str:
    lines = [f"{report['documents']} documents from {report['first']} on; ours on {report['runtime']}", ""]
    lines.append(
        f"{'reader':24}{'words':>7}{'errors':>8}{'accuracy':>10}{'ours better by, points':>30}{'ms a page':>11}"
    )
    for name, row in report["readers"].items():
        gain = row["ours_better_by_points"]
        better = f"{gain[0]:+.2f} ({gain[1]:+.2f} to {gain[2]:+.2f})" if gain else ""
        lines.append(
            f"{name:24}{row['words']:>7}{row['word_errors']:>8}{row['word_accuracy_percent']:>9.2f}%{better:>30}"
            f"{row['ms_per_page_median']:>11.0f}"
        )
    lines += ["", "ours by step, median ms a page"]
    lines += [f"    {name:12}{value:>8.2f}" for name, value in report["ours_ms_by_step_median"].items()]
    lines += ["", "lines of the real page"]
    for name, row in report["real_page"].items():
        lines.append(f"    {name}: {row['lines'] - len(row['differing'])} of {row['lines']} as ours")
        lines += [f"        ours {our!r}\n        it   {their!r}" for our, their in row["differing"]]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
