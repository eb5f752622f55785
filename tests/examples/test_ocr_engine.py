"""The OCR example's engine: built once and found again, read with as the recogniser is, and measured beside it."""

from dataclasses import replace
from pathlib import Path

import pytest

from examples.ocr import metrics
from examples.ocr.client import Answer, Batches, Run
from examples.ocr.demo import Result, complaints, speedup, summary
from examples.ocr.engine import Ask, Built, engine
from examples.ocr.lines import rendered_lines
from examples.ocr.model import line_reader, recogniser
from examples.ocr.reader import read
from examples.ocr.servers import Measured, in_turns, joined, server

# One library in FP32 is enough here: a build as the demonstration asks for it takes a minute.
QUICK = Ask(
    shapes="x:1x3x48x160,1x3x48x160,4x3x48x1200",
    calibration="",
    accuracy="cosine>=0.99",
    budget_seconds=6,
    precision="fp32",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def built(folder: Path) -> Built:
    return engine(QUICK, folder)


@pytest.mark.slow
def test_an_engine_is_built_once_and_then_found(built: Built, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    again = engine(QUICK, folder)
    assert not built.found
    assert again == replace(built, found=True)
    assert list(folder.glob("*.engine")) == [built.path]
    assert capfd.readouterr() == ("", "")
    assert built.summary["file_bytes"] == built.path.stat().st_size > 1_000_000
    assert built.summary["precision"] == "fp32"
    assert 0 < built.build_seconds < 60


@pytest.mark.slow
def test_an_engine_asked_for_otherwise_is_another_and_a_build_that_fails_leaves_none(
    built: Built, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RuntimeError, match="could not be built"):
        engine(replace(QUICK, reduce="no_such_output:argmax@2"), folder)
    assert "no_such_output" in capfd.readouterr().err
    assert list(folder.glob("*.engine")) == [built.path]


@pytest.mark.slow
def test_the_engine_reads_lines_as_the_recogniser_does(built: Built) -> None:
    lines = [line.encoded for line in rendered_lines(8)]
    plain, quick = (read(lines, *recogniser(path)) for path in (None, built.path))
    assert [line.text for line in quick] == [line.text for line in plain]
    assert [line.score for line in quick] == pytest.approx([line.score for line in plain], abs=1e-3)


@pytest.mark.slow
def test_both_servers_answer_in_turns_and_batches_are_counted(built: Built) -> None:
    lines = rendered_lines(10)
    with server("plain") as before, server("engine", built.path) as after:
        measured = in_turns([before, after], "grpc", lines, in_flight=4, turns=3)
        held = [each.rss_mb() for each in (before, after)]
    for each in measured:
        assert not each.run.errors
        assert sum(size * count for size, count in each.batches.counts.items()) == len(lines)
        texts = [answer.text for answer in each.run.answers]
        assert metrics.character_error_rate([line.text for line in lines], texts) < 0.2
    assert all(50 < megabytes < 4_000 for megabytes in held)


@pytest.mark.slow
def test_only_an_engine_needs_its_file(tmp_path: Path) -> None:
    assert line_reader().name == "read_line"
    with pytest.raises(Exception, match="does not exist"):
        line_reader(tmp_path / "gone.engine")


def measured(seconds: float, count: int = 10, *, failed: int = 0, counts: dict[int, int] | None = None) -> Measured:
    answers = [Answer("a", 1.0, 0.1)] * (count - failed) + [Answer("", 0.0, 0.1, "gone")] * failed
    return Measured("grpc", 16, Run(tuple(answers), seconds), Batches(counts or {1: count}))


def result(seconds: float, cer: float = 0.001, *, failed: int = 0, isolated: bool = True) -> Result:
    rows = (measured(seconds, failed=failed), measured(seconds))
    return Result(rows, rows, cer, 0.09, 7, isolated, "said why", 100.0)


def test_turns_join_to_one_row_in_the_order_of_the_lines() -> None:
    whole = joined([measured(1.0, 4, counts={2: 2}), measured(3.0, 8, counts={2: 1, 6: 1})])
    assert whole.run.lines_per_second == 3.0
    assert whole.batches.counts == {2: 3, 6: 1}


def test_a_speed_up_is_a_ratio_of_throughputs() -> None:
    assert speedup(measured(4.0), measured(2.0)) == 2.0
    assert speedup(measured(2.0), measured(4.0)) == 0.5


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (result(1.0, cer=0.0051), "CER 0.510%, the limit is 0.5%"),
        (result(1.0, failed=1), "failed: gone"),
        (result(1.0, isolated=False), "did not fail alone"),
    ],
    ids=["cer", "request", "isolation"],
)
def test_whatever_misses_a_promise_is_said_and_is_not_good(bad: Result, said: str) -> None:
    assert not bad.good
    assert said in "\n".join(complaints("engine", bad))


def test_a_good_result_has_no_complaints() -> None:
    assert result(1.0, cer=0.005).good
    assert complaints("engine", result(1.0)) == []


def test_the_summary_has_the_engines_figures_and_the_plain_ones_below() -> None:
    made = Built(Path("e.engine"), True, "int8", ("openvino",), ("openvino int8",), 61.25, "drop 0", 34)
    found = summary(result(4.0, cer=0.001), result(2.0, cer=0.002), made, rendered_lines(2))
    assert (found["cer"], found["throughput"], found["speedup"]) == (0.002, 5.0, 2.0)
    assert {"p50_ms", "p95_ms", "mean_batch"} <= found.keys()
    assert isinstance(found["plain"], dict)
    assert (found["plain"]["cer"], found["plain"]["throughput"]) == (0.001, 2.5)
    assert found["engine"] == {
        "precision": "int8", "library": "openvino", "build_seconds": 61.2, "file_bytes": 34, "found": True,
    }  # fmt: skip
    assert found["rss_mb"] == {"plain": 100.0, "engine": 100.0}
