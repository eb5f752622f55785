"""Sixteen bits with a few layers in FP32: when it is looked for, what is found, and what it is preferred to."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from penstock import graph
from penstock.build import mixing
from penstock.build.gate import Cosine, Metric, Verdict
from penstock.build.judging import Compared, in_steps, judges, well_inside
from penstock.engine import runtimes
from penstock.engine.plan import ROUNDED_KEY, WIDE_KEY, Tactic
from penstock.errors import ModelLoadError
from penstock.tactics import Form, Measurement, candidates, compiled
from tests.quantize import networks

Array = NDArray[Any]
BF16 = Tactic("openvino", "bf16", "optimized")
SOURCE_BF16 = Tactic("openvino", "bf16", "source", "static")
FP32 = Tactic("openvino", "fp32", "optimized")
ORT = Tactic("onnxruntime", "fp32")
INT8 = Tactic("openvino", "int8", "int8-kl", options=(("INFERENCE_PRECISION_HINT", "bf16"),))
MIXED = Tactic("openvino", "bf16", "mixed")


def timed(*each: tuple[Tactic, float]) -> list[Measurement]:
    return [Measurement(tactic, 0, microseconds, 0.1, 20) for tactic, microseconds in each]


@pytest.mark.parametrize(
    ("race", "expected"),
    [
        (timed((BF16, 50), (ORT, 100)), BF16),
        (timed((INT8, 20), (SOURCE_BF16, 50), (BF16, 51), (FP32, 90), (ORT, 100)), SOURCE_BF16),
        (timed((BF16, 95), (FP32, 100)), None),  # nothing to win
        (timed((FP32, 80), (BF16, 95)), None),
        (timed((INT8, 20), (ORT, 100)), None),
        (timed((BF16, 50)), BF16),
    ],
)
def test_only_what_is_fast_in_sixteen_bits_is_worth_it(race: list[Measurement], expected: Tactic | None) -> None:
    assert mixing.candidate(race, lambda _: False) == expected


@pytest.mark.parametrize(
    ("race", "passes", "expected"),
    [
        (timed((INT8, 40), (BF16, 50), (FP32, 100)), True, None),
        (timed((INT8, 40), (BF16, 50), (FP32, 100)), False, BF16),
        (timed((BF16, 50), (INT8, 60), (FP32, 100)), True, BF16),
    ],
)
def test_where_eight_bits_pass_and_are_faster_nothing_is_mixed(
    race: list[Measurement], passes: bool, expected: Tactic | None
) -> None:
    assert mixing.candidate(race, lambda _: passes) == expected


def cosine(least: float, expected: float | None = None) -> Verdict:
    passed = min(least, least if expected is None else expected) >= 0.999
    return Verdict(passed, least, 0.999, expected=expected, output="y")


@pytest.mark.parametrize(
    ("verdict", "inside"),
    [
        (cosine(0.9994), True),
        (cosine(0.9992), False),
        (cosine(0.9999, 0.9994), True),
        (cosine(0.9999, 0.9992), False),
        (cosine(0.998), False),
        (Verdict(True, 0.004, 0.005, (0.003, 0.005)), True),  # a metric's bound is the margin
        (Verdict(False, 0.004, 0.005, (0.003, 0.006)), False),
    ],
)
def test_well_inside_leaves_a_part_of_what_is_allowed(verdict: Verdict, inside: bool) -> None:
    assert well_inside(verdict) is inside


@pytest.mark.parametrize(
    ("alone", "kept"),
    [
        (cosine(0.9986), 1),
        (cosine(0.9995, 0.9986), 1),
        (cosine(0.9976), 4),
        (cosine(0.8), 4),
        (Verdict(False, 0.2, 0.005, (0.1, 0.3)), 1),  # scores say nothing of how many
        (Verdict(False, float("nan"), float("nan")), 1),
    ],
)
def test_many_layers_are_tried_first_where_much_is_lost(alone: Verdict, kept: int) -> None:
    first: list[int] = []

    def judged(model: ir.Model) -> Verdict:
        first.append(sum(WIDE_KEY in node.metadata_props for node in model.graph if node.op_type == "Conv"))
        return cosine(0.99999)

    model = graph.optimize(networks.residual()).model
    assert len([node for node in model.graph if node.op_type == "Conv"]) == 8
    mixing.search(model, BF16, alone, judged, budget_seconds=60)
    assert first[0] == kept


def trials_of(model: ir.Model, *verdicts: Verdict) -> tuple[list[tuple[int, int]], Any]:
    """Convolutions in FP32 and layers with rounded weights, of every trial; and a judge that says these in turn."""
    seen: list[tuple[int, int]] = []

    def judged(trial: ir.Model) -> Verdict:
        wide = sum(WIDE_KEY in node.metadata_props for node in trial.graph if node.op_type == "Conv")
        seen.append((wide, sum(ROUNDED_KEY in node.metadata_props for node in trial.graph)))
        return verdicts[min(len(seen), len(verdicts)) - 1]

    return seen, judged


def test_weights_rounded_together_may_be_all_that_is_needed() -> None:
    model = graph.optimize(networks.residual()).model
    seen, judged = trials_of(model, cosine(0.9999))
    found = mixing.search(model, BF16, cosine(0.9986), judged, networks.pictures(4), budget_seconds=60)
    assert found is not None
    assert found.model is not None
    assert seen == [(0, 9)]
    assert (found.record.kept, found.record.rounded, found.record.form) == ((), 9, "mixed")
    assert found.record.evaluations == 1
    assert found.inside


def test_layers_are_kept_beside_weights_that_are_rounded_together() -> None:
    model = graph.optimize(networks.residual()).model
    seen, judged = trials_of(model, cosine(0.9986), cosine(0.9999))
    found = mixing.search(model, BF16, cosine(0.8), judged, networks.pictures(4), budget_seconds=60)
    assert found is not None
    assert seen == [(0, 9), (1, 8)]  # as many as the rounded weights leave to do
    assert len(found.record.kept) == 1
    assert found.record.evaluations == 2


def test_what_just_passes_with_rounded_weights_is_better_than_nothing() -> None:
    model = graph.optimize(networks.residual()).model
    seen, judged = trials_of(model, cosine(0.9991), cosine(0.99))
    found = mixing.search(model, BF16, cosine(0.99), judged, networks.pictures(4), budget_seconds=60)
    assert found is not None
    assert found.model is not None
    assert len(seen) > 1
    assert (found.record.kept, found.record.form, found.inside) == ((), "mixed", False)


def test_a_network_without_convolutions_has_its_weights_rounded() -> None:
    model = graph.optimize(networks.transformer()).model
    seen, judged = trials_of(model, cosine(0.9999))
    assert mixing.search(model, BF16, cosine(0.99), judged, budget_seconds=60) is None
    found = mixing.search(model, BF16, cosine(0.99), judged, networks.sequences(3), budget_seconds=60)
    assert found is not None
    assert seen == [(0, 2)]
    failing = trials_of(model, cosine(0.99))[1]
    found = mixing.search(model, BF16, cosine(0.99), failing, networks.sequences(3), budget_seconds=60)
    assert found is not None
    assert found.model is None
    assert found.record.form == ""


def test_only_bf16_is_worth_rounding_together() -> None:
    model = graph.optimize(networks.residual()).model
    seen, judged = trials_of(model, cosine(0.9999))
    fp16 = Tactic("openvino", "fp16", "optimized")
    mixing.search(model, fp16, cosine(0.9986), judged, networks.pictures(4), budget_seconds=60)
    assert seen == [(1, 0)]


def test_weights_stay_where_nobody_can_say_what_layers_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any, **__: Any) -> Any:
        raise ModelLoadError("no kernel for it")

    monkeypatch.setattr("penstock.engine.runtimes.onnxruntime.OnnxRuntime.load", refuses)
    model = graph.optimize(networks.residual()).model
    seen, judged = trials_of(model, cosine(0.9999))
    found = mixing.search(model, BF16, cosine(0.9986), judged, networks.pictures(4), budget_seconds=60)
    assert found is not None
    assert seen == [(1, 0)]
    assert found.record.rounded == 0


@pytest.mark.parametrize(
    ("tactic", "verdict", "times", "of_mixes", "passed"),
    [
        (BF16, cosine(0.9992), (100, 800), [(101, 810)], True),
        (BF16, cosine(0.9992), (100, 800), [(101, 900), (120, 810)], True),
        (BF16, cosine(0.9992), (100, None), [(101, 900)], True),
        (BF16, cosine(0.9992), (100, 800), [(110, 800)], False),
        (BF16, cosine(0.9992), (100, 800), [(None, 800)], False),
        (BF16, cosine(0.9992), (100, 800), [], False),
        (BF16, cosine(0.9998), (100, 800), [(100, 800)], False),  # has as much to spare
        (FP32, cosine(0.9992), (100, 800), [(100, 800)], False),
        (MIXED, cosine(0.9992), (100, 800), [(100, 800)], False),
    ],
)
def test_what_just_passes_gives_way_to_a_mix_that_is_as_fast(
    tactic: Tactic, verdict: Verdict, times: Any, of_mixes: Any, passed: bool
) -> None:
    found = mixing.passed_over(tactic, {tactic: verdict}, times, of_mixes)
    assert found.passed is not passed
    assert ("mixed is as fast and further inside" in found.message) is passed


@pytest.mark.parametrize(
    ("finalists", "race", "expected"),
    [
        ([FP32, ORT], timed((FP32, 90), (ORT, 100), (MIXED, 300)), [FP32, MIXED]),
        ([FP32], timed((FP32, 90), (MIXED, 300)), [FP32, MIXED]),
        ([MIXED, FP32], timed((MIXED, 50), (FP32, 90)), [MIXED, FP32]),
        ([FP32, ORT], timed((FP32, 90), (ORT, 100)), [FP32, ORT]),
        ([], timed((MIXED, 300)), []),
    ],
)
def test_a_mix_is_timed_again_whatever_its_first_time_was(
    finalists: list[Tactic], race: list[Measurement], expected: list[Tactic]
) -> None:
    assert mixing.with_mix(finalists, race) == expected


@pytest.mark.parametrize(
    ("others", "passed"),
    [
        ({SOURCE_BF16: cosine(0.9995, 0.9989)}, False),
        ({SOURCE_BF16: cosine(0.9995, 0.9991)}, True),
        ({INT8: cosine(0.9), MIXED: cosine(0.9), Tactic("openvino", "fp32"): cosine(0.9)}, True),
    ],
)
def test_what_just_passes_is_refused_where_the_same_arithmetic_fails(
    others: Mapping[Tactic, Verdict], passed: bool
) -> None:
    """However much slower the mix is."""
    found = mixing.passed_over(BF16, {BF16: cosine(0.9992), **others}, (100, 800), [(150, 900)])
    assert found.passed is passed
    assert ("computes alike, fails" in found.message) is not passed
    inside = cosine(0.9998)
    assert mixing.passed_over(BF16, {BF16: inside, **others}, (100, 800), [(150, 900)]) is inside


def test_a_mixed_form_is_for_its_own_precision_alone() -> None:
    forms = {
        "source": Form(Path("source.onnx"), "fp32", False),
        "mixed": Form(Path("mixed.onnx"), "bf16", False),
    }
    found = candidates(forms, ("fp16", "bf16", "fp32"), ("avx512_bf16", "avx512_fp16"), [{"x": (1, 4)}])
    assert {each for each in found if each.form == "mixed"} == {MIXED, replace(MIXED, shapes="static")}
    assert not [each for each in candidates(forms, ("fp32",), ("avx512_bf16",), [{}]) if each.form == "mixed"]


@pytest.mark.skipif("bf16" not in runtimes.features()["openvino"], reason="this processor computes nothing in BF16")
def test_a_gate_that_bf16_misses_is_passed_with_some_layers_in_fp32(tmp_path: Path) -> None:
    """The limit lies between what BF16 reaches and what all convolutions in FP32 do, and only kept layers reach it."""
    source = networks.residual()
    model = graph.optimize(source, shapes={"x": (1, 3, 64, 64)}).model
    samples = networks.pictures(12).samples
    reference = dict(zip(map(id, samples), networks.answers(source, networks.pictures(12)), strict=True))
    trials: list[set[str]] = []

    def judged_by(gate: Cosine) -> Any:
        judge = gate.against(lambda sample: {"fc": reference[id(sample)]}, samples)

        def judged(trial: ir.Model) -> Verdict:
            path = tmp_path / "trial.onnx"
            graph.save(trial, path)
            with compiled(BF16, Form(path, "fp32", False)) as child:
                child.load(0, samples[0])
                regions = child.regions(0, 1)
                trials.append({region.name for region in regions if region.precision == "bf16"})
                return judge(child.run)

        return judged

    plain = judged_by(Cosine(0.5))(model)
    assert plain.expected is not None
    limit = 1 - (1 - plain.expected) * 0.8
    found = mixing.search(model, BF16, plain, judged_by(Cosine(limit)), budget_seconds=120)
    assert found is not None
    assert found.model is not None
    assert found.precision == "bf16"
    assert found.record.form == "mixed"
    assert found.record.layers == 8
    assert 1 <= len(found.record.kept) <= 6
    assert set(found.record.kept) <= {node.name for node in source.graph}
    assert found.record.score is not None
    assert found.record.score >= 0
    assert trials[-1] < trials[0]  # fewer layers in BF16, and still some
    assert trials[-1]


def counted(answers: list[int]) -> Any:
    def run(sample: Mapping[str, Array]) -> Mapping[str, Array]:
        answers.append(int(sample["x"][0, 0]))
        return {"y": sample["x"]}

    return run


def wrong_at(number: int, asked: list[int]) -> Any:
    """The other way round at one input."""

    def run(sample: Mapping[str, Array]) -> Mapping[str, Array]:
        answer = counted(asked)(sample)["y"]
        return {"y": -answer if asked[-1] == number else answer}

    return run


def of(*numbers: int) -> Sequence[Mapping[str, Array]]:
    return [{"x": np.array([[number, 1]], np.float32)} for number in numbers]


def test_what_learned_from_inputs_is_judged_on_others_first_and_on_more_of_them() -> None:
    asked: list[int] = []
    found = judges(Cosine(), counted(asked), Compared(of(1, 2), of(3, 4, 5), of(6, 7), 60), ())
    assert sorted(asked) == [1, 2, 3, 4, 5, 6, 7]
    for judge in (found.learned, found.plain):
        seen: list[int] = []
        assert judge(counted(seen)).passed
        assert seen == [1, 2, 3, 4, 5, 6, 7]
    assert len(found.inputs) == 7


@pytest.mark.parametrize(("wrong", "calls"), [(2, 2), (5, 7), (7, 7)])
def test_what_fails_on_an_input_that_it_learned_from_fails(wrong: int, calls: int) -> None:
    found = judges(Cosine(), counted([]), Compared(of(1, 2), of(3, 4, 5), of(6, 7), 60), ())
    asked: list[int] = []
    verdict = found.learned(wrong_at(wrong, asked))
    assert not verdict.passed
    assert verdict.measured == pytest.approx(-1)
    assert len(asked) == calls


def test_of_two_verdicts_that_pass_the_worse_one_counts() -> None:
    found = judges(Cosine(), counted([]), Compared(of(1), of(2)), ())

    def turned(sample: Mapping[str, Array]) -> Mapping[str, Array]:
        number = sample["x"][0, 0]
        return {"y": sample["x"] + np.array([[0, 0.01 * number]], np.float32)}

    one, both = found.learned(turned), found.plain(turned)
    assert one.passed
    assert one.measured == both.measured < 0.99999


def test_more_inputs_are_not_taken_beyond_their_time() -> None:
    asked: list[int] = []
    found = judges(Cosine(), counted(asked), Compared(of(1, 2), of(3), of(4, 5, 6), 0), ())
    assert asked == [1, 2, 3]
    assert len(found.inputs) == 3


def test_a_metric_has_its_own_data_and_is_asked_once() -> None:
    asked: list[int] = []
    found = judges(
        Metric(lambda run: float(run(of(9)[0])["y"].sum()), 0.1), counted(asked), Compared(of(1), of(2), of(3)), ()
    )
    assert asked == [9]
    assert found.learned is found.plain


def test_a_trial_that_fails_on_the_first_inputs_is_not_run_on_the_others() -> None:
    unseen, learned = of(*range(1, 11)), of(*range(11, 21))
    found = judges(Cosine(), counted([]), Compared(unseen, learned), ())

    for number, calls in ((3, 7), (9, 20), (0, 20)):
        asked: list[int] = []
        assert in_steps(found.first, found.plain, wrong_at(number, asked))[1].passed is (number == 0)
        assert asked == list(range(1, calls + 1))


def test_what_is_usually_lost_is_of_the_first_inputs_whether_they_pass_or_not() -> None:
    """So that trials that went on and trials that did not can be compared."""
    found = judges(Cosine(0.5), counted([]), Compared(of(*range(1, 11)), of(*range(11, 21))), ())

    def turned(sample: Mapping[str, Array]) -> Mapping[str, Array]:
        """Less and less right."""
        number = sample["x"][0, 0]
        return {"y": sample["x"] + np.array([[0, 0.2 * number]], np.float32)}

    first = found.first
    assert first is not None
    few, every = first(turned), found.plain(turned)
    assert few.usual != every.usual
    assert in_steps(first, found.plain, turned)[1] == replace(every, usual=few.usual)


def test_few_inputs_are_all_looked_at() -> None:
    found = judges(Cosine(), counted([]), Compared(of(*range(1, 11))), ())
    assert found.first is None
    asked: list[int] = []
    assert in_steps(found.first, found.plain, wrong_at(0, asked)) == (found.plain(wrong_at(0, [])),) * 2
    assert asked == list(range(1, 11))
