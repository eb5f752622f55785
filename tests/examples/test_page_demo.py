"""The demonstration of whole pages: what it counts, and when it says that something is wrong."""

import json
from dataclasses import replace

import numpy as np
import pytest

from examples.ocr.documents import rendered_documents
from examples.ocr.page.client import GRPC, HTTP, Answer, Run
from examples.ocr.page.demo import Page, Result, complaints, matched, summary, word_accuracy
from examples.ocr.page.words import Line

BOX = np.zeros((4, 2), np.float32)


def line(text: str) -> Line:
    return Line(text, 1.0, BOX, ())


def run(*answers: Answer, seconds: float = 2.0) -> Run:
    return Run(answers, seconds)


def result(name: str, accuracy: float = 0.99, *, seconds: float = 2.0) -> Result:
    answered = Answer((line("a"),), 0.5)
    runs = {GRPC: run(answered, answered, seconds=seconds), HTTP: run(answered, answered, seconds=seconds)}
    return Result(name, runs, accuracy, 7, "INVALID_ARGUMENT: no picture", 100.0)


def test_pages_read_right_lose_no_words_and_a_page_without_an_answer_loses_all() -> None:
    documents = list(rendered_documents(2, first=7))
    pages = [Page(np.asarray(each.pixels), each) for each in documents]
    right = [
        Answer(tuple(Line(one.text, 1.0, np.asarray(one.corners, np.float32), ()) for one in each.lines), 0.1)
        for each in documents
    ]
    assert word_accuracy(pages, [run(*right)]) == 1.0
    lost = word_accuracy(pages, [run(right[0], Answer((), 0.1, "page-1: gone"))])
    words = [sum(len(one.text.split()) for one in each.lines) for each in documents]
    assert lost == pytest.approx(words[0] / sum(words))


def test_lines_are_matched_by_their_text_in_any_order() -> None:
    assert matched(Answer((line("b"), line("x"), line("a")), 0.1), ["a", "b", "c"]) == 2
    assert matched(Answer((), 0.1, "gone"), ["a"]) == 0


def test_rates_count_answered_pages_only() -> None:
    half = run(Answer((line("a"),), 0.5), Answer((), 9.0, "page-1: gone"))
    assert half.pages_per_second == 0.5
    assert half.latency_ms(100) == 500
    assert half.errors == ["page-1: gone"]


def test_nothing_is_said_when_all_is_well_and_each_fault_is() -> None:
    plain, built = result("plain"), result("engines", 0.985)
    assert complaints([plain, built]) == []
    worse = complaints([plain, replace(built, word_accuracy=0.97)])
    assert len(worse) == 1
    assert "97.00%" in worse[0]
    assert len(complaints([plain, replace(built, broken="")])) == 1
    failed = replace(built, runs={GRPC: run(Answer((), 1.0, "page-0: gone"))})
    assert "page-0: gone" in complaints([plain, failed])[0]


def test_the_summary_is_json_with_the_engines_figures_on_top() -> None:
    told = json.loads(json.dumps(summary([result("plain", seconds=4), result("engines", seconds=2)], {}, 7)))
    assert told["pages_per_second"] == 1.0
    assert told["speedups"] == {"plain": 1.0, "engines": 2.0}
    assert told["plain"]["pages_per_second"] == 0.5
    assert told["runs"]["grpc"]["slowest_ms"] == 500
