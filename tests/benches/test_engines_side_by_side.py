"""The bench of engines: what counts as faster, what doesn't count, and contenders that fail."""

import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from benches.engines import report
from benches.engines.contenders import BASE, OURS, TWINS, Contender, Files, contenders, reference
from benches.engines.contest import Row, base_of, best_single, contest, ours_of, speed_up
from benches.engines.judging import DifferentError, Gate, Judge, Judged, likeness
from tests.onnx_models import scale


def row(name: str, *turns: float, cosine: float = 1.0, batch: int = 1) -> Row:
    return Row(name, batch, "", "", Judged(cosine >= 0.99, cosine, 1.0), turns)


def judged(one: Row) -> tuple[bool, float]:
    assert one.judged is not None
    return one.judged.accurate, one.judged.least_cosine


def run_of(*results: report.Result) -> report.Run:
    return report.Run("cpu", ("avx2",), 2, (("numpy", "2"),), 3, 60.0, results, (("gone", "not here"),))


def test_a_speed_up_is_the_median_of_ratios_within_rounds() -> None:
    # The machine becomes ten times slower in the last round: the ratio of the medians would be 2.5.
    assert speed_up(row("a", 2, 4, 40), row("b", 4, 10, 80)) == (2.0, 2.0, 2.5)


def test_a_row_without_turns_has_no_speed_up() -> None:
    assert all(math.isnan(value) for value in speed_up(row("a"), row("b", 1.0)))


def test_the_best_single_candidate_is_the_fastest_that_is_accurate_enough() -> None:
    rows = [
        row(BASE, 9.0),
        row("narrow", 1.0, cosine=0.98),
        row("broken", 0.5, cosine=math.nan),
        row("good", 3.0, cosine=0.99),
        row(OURS, 2.0),
        Row("gone", 1, lost="crashed"),
    ]
    best = best_single(rows)
    assert best is not None
    assert best.contender == "good"
    assert base_of(rows) == rows[0]
    assert ours_of(rows) == rows[4]
    assert best_single([row(OURS, 1.0)]) is None


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [(1.0, "faster"), (1.97, "as fast"), (2.03, "as fast"), (2.5, "SLOWER"), (None, "not measured")],
)
def test_the_check_says_how_ours_stands_to_the_best_single_candidate(ours: float | None, verdict: str) -> None:
    rows = [row(BASE, 8.0), row("single", 2.0)] + ([row(OURS, ours)] if ours else [])
    (check,) = report.checks(run_of(report.Result("m", (4,), tuple(rows), 1.0, "cosine>=0.99")))
    assert (check.single, check.verdict) == ("single", verdict)


@pytest.mark.parametrize(
    ("details", "ours", "said"),
    [
        (("computes in bf16", "computes in bf16"), 2.2, "as fast (equal programs are 17% apart)"),
        (("computes in bf16", "computes in bf16"), 2.6, "SLOWER (equal programs are 17% apart)"),
        (("computes in bf16", "computes in f16"), 2.2, "SLOWER |"),
    ],
)
def test_a_difference_that_equal_programs_have_is_none(details: tuple[str, str], ours: float, said: str) -> None:
    twins = [replace(row(name, ms), detail=what) for name, ms, what in zip(TWINS, (2.0, 2.4), details, strict=True)]
    run = run_of(report.Result("m", (4,), (row(BASE, 8.0), *twins, row(OURS, ours)), 1.0, "cosine>=0.99"))
    assert f"| {said}" in report.markdown(run)


def test_an_engine_that_is_not_accurate_on_new_inputs_is_no_success() -> None:
    rows = (row(BASE, 8.0), row(OURS, 2.0, cosine=0.9))
    (check,) = report.checks(run_of(report.Result("m", (4,), rows, 1.0, "cosine>=0.99")))
    assert check.verdict == "INACCURATE"


def test_likeness_is_the_worst_of_all_samples_and_outputs() -> None:
    one = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert likeness([[one, one]], [[one, one]]) == (1.0, 1.0)
    assert likeness([[one, one]], [[one, one[::-1]]]) == (0.0, 0.5)
    assert math.isnan(likeness([[one]], [[one * np.nan]])[0])
    with pytest.raises(DifferentError, match=r"\[\[2, 2\]\], expected \[\[1, 2\]\]"):
        likeness([[one[:1]]], [[one]])


def test_a_metric_is_asked_with_any_number_of_rows_and_its_drop_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def metric(run: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> np.ndarray:
        found: np.ndarray = run({"x": np.arange(20.0).reshape(5, 4)})["y0"]
        return found[:, 0]

    def answer(inputs: Mapping[str, Any], plus: float = 0.0) -> list[np.ndarray]:
        sizes.append(len(inputs["x"]))
        return [inputs["x"] - plus]

    module = ModuleType("a_metric_of_this_test")
    monkeypatch.setattr(module, "metric", metric, raising=False)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    gate = Gate(0.99, f"{module.__name__}:metric", 0.5)
    judge = Judge(gate, {"x": np.ones((4, 4))}, 2, answer)
    assert judge.judge(answer).accurate
    worse = judge.judge(lambda inputs: answer(inputs, 0.75))
    assert (worse.accurate, worse.drop) == (False, pytest.approx(0.75))
    assert set(sizes) == {2}
    assert gate.text == "a_metric_of_this_test:metric drop<=0.5"


def test_inaccurate_rows_are_in_parentheses_and_in_no_mean() -> None:
    rows = (row(BASE, 8.0), row("narrow", 1.0, cosine=0.5), row(OURS, 2.0), Row("gone", 1, lost="a | b"))
    run = run_of(report.Result("m", (4,), rows, 1.0, "cosine>=0.99"))
    assert report.means(run) == {
        BASE: (pytest.approx(1.0), 1),
        OURS: (pytest.approx(4.0), 1),
        "best single of each point": (pytest.approx(1.0), 1),
    }
    text = report.markdown(run)
    assert "| narrow | 1 | (1.00) | (8.00) | (8.00-8.00) | 0.50000 |" in text
    assert "| gone | 1 | | | | | | | a / b |" in text
    assert "gone: not here" in text


def test_the_document_has_no_nan_and_a_result_comes_back_from_json_as_it_was() -> None:
    result = report.Result("m", (4,), (row(BASE, 8.0), Row("gone", 1, lost="why")), 1.5, "cosine>=0.99")
    document = report.document(run_of(result))
    assert json.loads(json.dumps(document, allow_nan=False))["results"][0]["rows"][0]["judged"]["drop"] is None
    back = report.result_from_json(json.loads(json.dumps(report.result_to_json(result))))
    assert back.rows[0].turns_ms == result.rows[0].turns_ms
    assert back.rows[0].accurate
    assert back.rows[1].lost == "why"


def test_libraries_are_compared_and_a_contender_that_fails_is_a_row_with_the_reason(tmp_path: Path) -> None:
    source, wrong = scale(tmp_path / "m.onnx", 2.0), scale(tmp_path / "wrong.onnx", -2.0)
    (tmp_path / "cut.onnx").write_bytes(source.read_bytes()[:40])
    files = Files(source, None, None, None)
    taking_part = [
        *(one for one in contenders(files) if one.hint in ("", "f32")),
        Contender("wrong", "onnxruntime", wrong),
        Contender("cut", "onnxruntime", tmp_path / "cut.onnx"),
    ]
    inputs = {"x": np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)}
    rows = {each.contender: each for each in contest(taking_part, reference(files), inputs, Gate(0.99), 2, rounds=1)}
    for name in (BASE, "OpenVINO FP32"):
        assert rows[name].accurate
        assert rows[name].milliseconds > 0
    assert judged(rows["wrong"]) == (False, pytest.approx(-1.0))
    assert "cut.onnx" in rows["cut"].lost
    assert not rows["cut"].turns_ms
