"""What passes the gate and what does not; the words of a failure; the drop's bound holds as often as it says."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from penstock.build.gate import Cosine, Metric, Run, Verdict, parse
from penstock.build.metrics import OutputError
from penstock.build.paired import drop_of, further_cosine, t_quantile
from penstock.errors import ExecutionError, InvalidArgument

Array = npt.NDArray[Any]
SAMPLES = [{"x": np.array([[3.0, 4.0]])}, {"x": np.array([[1.0, 0.0], [0.0, 1.0]])}]


def identity(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {"y": arrays["x"], "ids": np.argmax(arrays["x"], axis=-1)}


def turned(degrees: float) -> Run:
    angle = math.radians(degrees)
    matrix = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return lambda arrays: {**identity(arrays), "y": arrays["x"] @ matrix}


def judged(gate: Cosine | Metric, candidate: Run, reference: Run = identity) -> Verdict:
    return gate.against(reference, SAMPLES)(candidate)


# ---- cosine ----


@pytest.mark.parametrize(("degrees", "passed"), [(0, True), (2.5, True), (2.6, False), (180, False)])
def test_outputs_turned_too_far_fail(degrees: float, passed: bool) -> None:
    """cos 2.5° is 0.99905, cos 2.6° is 0.99897."""
    verdict = judged(Cosine(0.999), turned(degrees))
    assert verdict.passed is passed
    assert verdict.measured == pytest.approx(math.cos(math.radians(degrees)))
    assert (verdict.limit, verdict.interval) == (0.999, None)


def test_a_failure_says_which_output_how_far_and_what_to_do() -> None:
    verdict = judged(Cosine(0.999), turned(10))
    assert verdict.output == "y"
    for word in ("output 'y'", "cosine 0.984808", "at least 0.999", "--precision", "--accuracy"):
        assert word in verdict.message


def test_what_is_usually_lost_is_the_mean_over_inputs_of_the_worst_output() -> None:
    def errors(*cosines: float | None) -> list[OutputError]:
        return [OutputError(f"y{at}", each, agreement=1.0) for at, each in enumerate(cosines)]

    gate = Cosine(0.999)
    assert gate.verdict([errors(0.99, 0.9), errors(0.97, 1.0)]).usual == pytest.approx((0.1 + 0.03) / 2)
    assert gate.verdict([errors(0.99, None)]).usual == pytest.approx(0.01)
    assert gate.verdict([errors(None)]).usual is None
    assert gate.verdict([[OutputError("y", fault="NaN in 1 of 4 values")]]).usual is None


def test_one_bad_row_of_one_sample_is_enough() -> None:
    def candidate(arrays: Mapping[str, Array]) -> dict[str, Array]:
        found = np.array(arrays["x"])
        if len(found) == 2:
            found[1] = [1, 1]
        return {**identity(arrays), "y": found}

    verdict = judged(Cosine(0.9), candidate)
    assert not verdict.passed
    assert verdict.measured == pytest.approx(math.sqrt(0.5))


def test_inputs_that_just_pass_are_not_enough_where_further_ones_would_fail() -> None:
    """Twenty angles, all under the limit of 2.56°: spread widely up to it, or all just as far below."""
    wide = np.geomspace(0.3, 2.5, 20)
    for angles, passed in (
        (wide, False),
        (np.full(20, 2.5), True),
        (wide[-7:], True),
        (np.geomspace(2.0, 2.2, 20), True),
    ):
        samples = [{"x": np.eye(2, dtype=np.float32) * (number + 1)} for number in range(len(angles))]

        def candidate(arrays: Mapping[str, Array], angles: Array = angles) -> dict[str, Array]:
            number = round(float(arrays["x"].max())) - 1
            return dict(turned(float(angles[number]))(arrays))

        verdict = Cosine(0.999).against(identity, samples)(candidate)
        assert verdict.passed is passed, angles
        assert verdict.measured == pytest.approx(math.cos(math.radians(float(angles.max()))))
        if len(angles) < 8:  # too few to say anything
            assert verdict.expected is None
        else:
            assert verdict.expected is not None
            assert (verdict.expected >= 0.999) is passed
        if not passed:
            assert "1 in 100 further ones" in verdict.message


def test_the_cosine_of_further_inputs_is_expected_as_often_as_it_says() -> None:
    """1,000 draws of 19 and one more: below the bound in 1 %, with a standard error of 0.3 %."""
    rng = np.random.default_rng(5)
    below = 0
    for _ in range(1000):
        cosines = 1 - np.exp(rng.normal(-8, 0.8, 20))
        bound = further_cosine(cosines[:19])
        assert bound is not None
        below += cosines[19] < bound
    assert 2 <= below <= 22
    assert further_cosine([*cosines[:18], math.nan]) is None


def test_ids_are_judged_by_their_agreement() -> None:
    def candidate(arrays: Mapping[str, Array]) -> dict[str, Array]:
        return {**identity(arrays), "ids": np.zeros(len(arrays["x"]), np.int64)}

    verdict = judged(Cosine(0.9), candidate)
    assert (verdict.passed, verdict.output) == (False, "ids")
    assert verdict.measured == pytest.approx(1 / 3)  # of three rows over both samples only (1, 0) has id 0
    assert "agreement 0.333333" in verdict.message
    assert judged(Cosine(0.3), candidate).passed


@pytest.mark.parametrize("minimum", [-1, 0, 0.999])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_never_passes(minimum: float, value: float) -> None:
    def candidate(arrays: Mapping[str, Array]) -> dict[str, Array]:
        return {**identity(arrays), "y": np.where(arrays["x"] == 4, value, arrays["x"])}

    verdict = judged(Cosine(minimum), candidate)
    assert not verdict.passed
    assert math.isnan(verdict.measured)
    assert "output 'y'" in verdict.message


def test_a_reference_with_nan_passes_nothing() -> None:
    def broken(arrays: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": arrays["x"] * math.nan}

    assert not judged(Cosine(-1), broken, broken).passed


def test_a_model_without_outputs_passes_nothing() -> None:
    assert not judged(Cosine(-1), lambda _: {}, lambda _: {}).passed


def test_the_reference_runs_once_for_many_candidates() -> None:
    calls: list[int] = []

    def counted(arrays: Mapping[str, Array]) -> dict[str, Array]:
        calls.append(1)
        return identity(arrays)

    judge = Cosine().against(counted, SAMPLES)
    assert [judge(turned(degrees)).passed for degrees in (0, 1, 90)] == [True, True, False]
    assert len(calls) == len(SAMPLES)


def test_a_run_that_fails_is_no_verdict() -> None:
    def failing(_: Mapping[str, Array]) -> dict[str, Array]:
        raise ExecutionError("it broke")

    with pytest.raises(ExecutionError):
        judged(Cosine(), failing)


def test_no_samples_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="at least one"):
        Cosine().against(identity, [])


# ---- metrics ----


def scores(run: Run) -> Array:
    """A metric whose scores are the model's answer to nothing at all: the runs below hold them."""
    return run({})["scores"]


def giving(*values: float) -> Run:
    return lambda _: {"scores": np.array(values)}


def number(value: float) -> Run:
    return lambda _: {"scores": np.array(value)}


@pytest.mark.parametrize(
    ("reference", "candidate", "drop", "passed", "measured"),
    [
        (number(0.92), number(0.91), 0.01, True, 0.01),
        (number(0.92), number(0.905), 0.01, False, 0.015),
        (number(0.9), number(0.95), 0.0, True, -0.05),
        (giving(1), giving(1), 0.0, True, 0),  # one sample is a number without an interval
        (giving(1), giving(0.5), 0.1, False, 0.5),
    ],
)
def test_one_number_is_judged_as_it_is(
    reference: Run, candidate: Run, drop: float, passed: bool, measured: float
) -> None:
    verdict = judged(Metric(scores, drop), candidate, reference)
    assert (verdict.passed, verdict.interval) == (passed, None)
    assert verdict.measured == pytest.approx(measured)


def test_of_scores_per_sample_the_upper_bound_is_judged() -> None:
    """Drops 0, 0.02, ..., five of each: mean 0.01, deviation 0.01054, t(0.95, 9) = 1.8331: bound at least 0.01611."""
    reference, candidate = giving(*[1.0] * 10), giving(*[1.0, 0.98] * 5)
    strict, loose = (judged(Metric(scores, drop), candidate, reference) for drop in (0.0105, 0.02))
    assert strict.measured == pytest.approx(0.01)
    assert strict.interval is not None
    assert strict.interval[1] == pytest.approx(0.01 + 1.8331 * 0.0105409 / math.sqrt(10), abs=1e-3)
    assert strict.interval[1] >= 0.0161
    assert (strict.passed, loose.passed) == (False, True)
    assert "more samples" in strict.message  # the mean is within the limit: the bound is what is wide


def test_equal_scores_are_exact() -> None:
    verdict = judged(Metric(scores, 0.0), giving(0.5, 1, 0), giving(0.5, 1, 0))
    assert (verdict.passed, verdict.interval) == (True, (0, 0))
    constant = judged(Metric(scores, 0.25), giving(0.25, 0.75), giving(0.5, 1))
    assert (constant.passed, constant.interval) == (True, (0.25, 0.25))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_never_passes(value: float) -> None:
    verdict = judged(Metric(scores, 10.0), giving(1, value), giving(1, 1))
    assert not verdict.passed
    assert "NaN or infinity" in verdict.message
    with pytest.raises(InvalidArgument, match="reference scores"):
        judged(Metric(scores, 10.0), giving(1, 1), giving(1, value))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda run: run({})["nothing"], "raised KeyError"),
        (lambda _: np.zeros((2, 2)), r"shape \[2, 2\]"),
        (lambda _: [], r"shape \[0\]"),
        (lambda _: "good", "raised ValueError"),
    ],
)
def test_a_metric_that_does_not_measure_is_an_error(function: Any, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        judged(Metric(function, 0.1, "module:metric"), giving(1, 1), giving(1, 1))


def test_other_samples_for_the_candidate_are_an_error() -> None:
    with pytest.raises(InvalidArgument, match="2 scores for the candidate and 3 for the reference"):
        judged(Metric(scores, 0.1), giving(1, 1), giving(1, 1, 1))


# ---- the bound ----


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 6.313752), (2, 2.919986), (3, 2.353363), (9, 1.833113), (30, 1.697261), (999, 1.646380)],
)
def test_quantiles_of_t_are_those_of_the_tables(degrees: int, quantile: float) -> None:
    assert t_quantile(0.95, degrees) == pytest.approx(quantile, abs=1e-6)


DRAWS = 300


def normal(rng: np.random.Generator) -> tuple[Array, Array, float]:
    return rng.normal(0.9, 0.05, 12), rng.normal(0.88, 0.05, 12), 0.02


def lost_answers(rng: np.random.Generator) -> tuple[Array, Array, float]:
    reference = (rng.random(300) < 0.9).astype(float)
    return reference, reference * (rng.random(300) >= 0.03), 0.9 * 0.03


@pytest.mark.parametrize("draw", [normal, lost_answers])
def test_the_bound_holds_as_often_as_it_says(draw: Any) -> None:
    """300 draws at 95 %: a standard error of 1.3 %. One that always holds would be none, so that is seen, too."""
    rng = np.random.default_rng(7)
    held = 0
    for _ in range(DRAWS):
        reference, candidate, drop = draw(rng)
        held += drop_of(reference, candidate).upper >= drop
    assert 0.92 <= held / DRAWS <= 0.995


def test_the_same_scores_give_the_same_bound() -> None:
    rng = np.random.default_rng(3)
    reference, candidate = rng.random(50), rng.random(50)
    assert drop_of(reference, candidate) == drop_of(reference, candidate)


# ---- the text ----


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [])
    (tmp_path / "accuracy_of_a_test.py").write_text("limit = 3\ndef top_1(run):\n    return [1.0, 0.5]\n")
    (tmp_path / "broken_in_a_test.py").write_text("raise RuntimeError('no data')\n")
    (tmp_path / "lacking_in_a_test.py").write_text("import no_such_module_anywhere\n")
    return "accuracy_of_a_test"


@pytest.mark.parametrize("text", ["cosine>=0.99", " cosine >= 0.99 ", "cosine>=99e-2"])
def test_a_cosine_is_read(text: str) -> None:
    assert parse(text) == Cosine(0.99)
    assert parse(text).text == "cosine>=0.99"


@pytest.mark.parametrize("spaces", ["drop<=0.01", "drop <= 1e-2"])
def test_a_metric_is_read_from_the_working_directory(module: str, spaces: str) -> None:
    gate = parse(f"{module}:top_1 {spaces}")
    assert isinstance(gate, Metric)
    assert gate.text == f"{module}:top_1 drop<=0.01"
    assert judged(gate, giving()).interval == (0, 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cosine>0.9", "expected 'cosine>=0.999' or 'module:metric drop<=0.01'"),
        ("cosine>=high", "'high' is no number"),
        ("cosine>=2", "from -1 to 1"),
        ("cosine>=nan", "from -1 to 1"),
        ("", "can't be read"),
        ("accuracy_of_a_test drop<=0.1", "can't be read"),
        ("accuracy_of_a_test:top_1", "can't be read"),
        ("accuracy_of_a_test:top_1 drop<=inf", "finite"),
        ("accuracy_of_a_test:top_5 drop<=0.1", "has no 'top_5'"),
        ("accuracy_of_a_test:limit drop<=0.1", "expected a function, got int"),
        ("no_module_of_a_test:top_1 drop<=0.1", "no module 'no_module_of_a_test', looked in the working directory"),
        ("lacking_in_a_test:top_1 drop<=0.1", "no module 'no_such_module_anywhere', which it imports"),
        ("broken_in_a_test:top_1 drop<=0.1", "raised RuntimeError: no data"),
    ],
)
@pytest.mark.usefixtures("module")
def test_what_is_no_gate_is_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(words)):
        parse(text)
