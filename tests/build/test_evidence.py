"""Evidence goes to JSON and back, and its table says of every candidate what became of it."""

import json
import math
from dataclasses import replace

import pytest

from penstock.build import evidence
from penstock.build.evidence import (
    Accuracy,
    Alone,
    CalibrationRecord,
    Environment,
    Evidence,
    Left,
    Refused,
    SensitivityRecord,
)
from penstock.build.evidence import Timing as T
from penstock.build.gate import Cosine, Verdict
from penstock.build.metrics import OutputError
from penstock.engine.plan import Fingerprint, Tactic
from penstock.errors import InvalidArgument
from penstock.graph import PassRecord
from penstock.tactics import Lost, Measurement, Paired, Race, Skipped

PLAIN = Tactic("onnxruntime", "fp32")
FAST = Tactic("openvino", "bf16", "optimized", "static")
FASTER = Tactic("openvino", "int8", "int8-kl", "static", options=(("HINT", "f32"),))
BROKEN = Tactic("openvino", "fp16")
LATE = Tactic("openvino", "fp32")

FOUND = Evidence(
    buckets=({"x": (1, 3)}, {"x": (8, 3)}),
    chosen=(PLAIN, FAST),
    timings=(
        T(PLAIN, 0, 100.0, 1.0, 20, confirmed=True),
        T(PLAIN, 1, 1000.0, 1.0, 20),
        T(FAST, 0, 150.0, 2.0, 20, against=PLAIN, ratio=1.5, ratio_low=1.4, ratio_high=1.6),
        T(FAST, 1, 400.0, 2.0, 20, cached=True),
        T(FASTER, 1, 200.0, 2.0, 20),
    ),
    accuracy=Accuracy(
        "cosine>=0.999",
        True,
        0.9995,
        0.999,
        "fine",
        "noise",
        4,
        None,
        (OutputError("y", 0.9995, 0.1, 0.01, 30.0, 1.0, 4),),
    ),
    environment=Environment(
        Fingerprint("cpu", "a processor", ("avx2", "fma"), 2, {"openvino": "1.2"}),
        "0.1.0",
        "3.11.9",
        "2026-11-21T00:00:00+00:00",
    ),
    seconds=12.5,
    budget_seconds=60.0,
    lost=(Left(BROKEN, "crashed while compiling"), Left(FAST, "too slow", 0)),
    skipped=(Left(LATE, "no time was left"),),
    refused=(Refused(replace(FASTER, shapes="dynamic"), None, "NaN in 1 of 4 values"),),
    passes=(PassRecord("fold", 10, 8, 0.01, True),),
    calibration=CalibrationRecord("abc", 100, ("int8-minmax", "int8-kl"), "kl"),
    sensitivity=SensitivityRecord(("conv1",), 20, 0.99, 7),
    mixed=SensitivityRecord(("conv1", "conv2"), 20, 0.0002, 5, "mixed"),
    alone=(Alone(FASTER, 0, False, None, "NaN in 2 of 4 values"),),
    notes=("the budget ran out",),
)


@pytest.mark.parametrize("found", [FOUND, replace(FOUND, calibration=None, sensitivity=None, refused=(), notes=())])
def test_evidence_comes_back_from_json_as_it_was(found: Evidence) -> None:
    assert evidence.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found


def test_evidence_from_before_there_were_mixes_is_read() -> None:
    written = FOUND.to_json()
    del written["mixed"]
    assert evidence.from_json(written) == replace(FOUND, mixed=None)


@pytest.mark.parametrize(
    ("kept", "text"),
    [
        (2, "2 of 20 layers that can stay in FP32 do: conv0, conv1"),
        (6, "6 of 20 layers that can stay in FP32 do: conv0, conv1, conv2, conv3, conv4, conv5"),
        (9, "9 of 20 layers that can stay in FP32 do: conv0, conv1, conv2, conv3, conv4, conv5 and 3 more"),
    ],
)
def test_what_stays_wide_is_told_by_name(kept: int, text: str) -> None:
    assert evidence.kept_wide(SensitivityRecord(tuple(f"conv{at}" for at in range(kept)), 20, 0.1, 3)) == text


def test_rounded_weights_are_told_beside_what_stays_wide() -> None:
    together = "weights of 21 layers rounded to sixteen bits together"
    found = SensitivityRecord((), 20, 0.1, 1, "mixed", 21)
    assert evidence.kept_wide(found) == f"{together}, no layer in FP32"
    some = evidence.kept_wide(replace(found, kept=("conv0",)))
    assert some == f"1 of 20 layers that can stay in FP32 do: conv0; {together} but for those"


def test_evidence_from_before_weights_were_rounded_together_is_read() -> None:
    written = FOUND.to_json()
    del written["mixed"]["rounded"]
    assert evidence.from_json(written) == FOUND


def test_evidence_from_before_programs_were_judged_alone_is_read() -> None:
    written = FOUND.to_json()
    del written["alone"]
    assert evidence.from_json(written) == replace(FOUND, alone=())


def test_what_was_judged_alone_is_no_worse_for_its_dynamic_sibling() -> None:
    """At the bucket of its verdict; elsewhere it is refused as before."""
    timings = (*FOUND.timings, T(FASTER, 0, 50.0, 2.0, 20))
    own = Alone(FASTER, 1, True, 0.9997, "fine")
    found = replace(FOUND, timings=timings, alone=(own,))
    assert {row.tactic: row.verdict for row in evidence.rows(found)}[FASTER] == "left out at 8x3"
    first, second = evidence.reasons(found)
    assert "faster and refused by the gate: openvino int8 int8-kl static" in first
    assert "faster, and left out, is openvino int8 int8-kl static" in second
    assert "refused" not in second
    failed = replace(found, alone=(replace(own, passed=False, reason="cosine 0.9; do this"),))
    assert {row.tactic: row.verdict for row in evidence.rows(failed)}[FASTER] == "inaccurate: cosine 0.9"
    assert "refused by the gate: openvino int8 int8-kl static" in evidence.reasons(failed)[1]
    chosen = replace(found, chosen=(PLAIN, FASTER))
    assert {row.tactic: row.verdict for row in evidence.rows(chosen)}[FASTER] == "chosen at 8x3"
    assert evidence.from_json(json.loads(json.dumps(chosen.to_json()))) == chosen


def test_what_json_has_no_word_for_is_null() -> None:
    verdict = Verdict(False, math.nan, 0.999, errors=(OutputError("y", snr_db=math.inf, maximum_relative=math.inf),))
    accuracy = evidence.of_verdict(Cosine(), verdict, inputs="noise", samples=1)
    text = json.dumps(replace(FOUND, accuracy=accuracy).to_json(), allow_nan=False)
    back = evidence.from_json(json.loads(text)).accuracy
    assert (back.measured, back.outputs[0].snr_db, back.outputs[0].maximum_relative) == (None, None, None)


@pytest.mark.parametrize(
    "damage",
    [
        {"version": 2},
        {"version": None},
        {"timings": [{}]},
        {"accuracy": None},
        {"chosen": [{"runtime": "x"}]},
        {"lost": [{"tactic": {}, "surprise": 1}]},
        {"buckets": 3},
        {"environment": {"fingerprint": []}},
    ],
)
def test_damaged_evidence_is_refused(damage: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument, match="evidence"):
        evidence.from_json({**FOUND.to_json(), **damage})


def test_every_candidate_has_its_times_and_its_verdict() -> None:
    found = {row.tactic: (row.microseconds, row.verdict) for row in evidence.rows(FOUND)}
    assert found == {
        PLAIN: ((100.0, 1000.0), "chosen at 1x3"),
        FAST: ((150.0, 400.0), "chosen at 8x3"),
        FASTER: ((None, 200.0), "inaccurate: NaN in 1 of 4 values"),  # judged by the program for all shapes
        BROKEN: ((None, None), "lost: crashed while compiling"),
        LATE: ((None, None), "not timed: no time was left"),
    }
    everywhere = replace(FOUND, chosen=(FAST, FAST))
    assert {row.tactic: row.verdict for row in evidence.rows(everywhere)}[FAST] == "chosen"
    assert {row.tactic: row.verdict for row in evidence.rows(everywhere)}[PLAIN] == "left out at 1x3"


@pytest.mark.parametrize(
    ("microseconds", "verdict", "words"),
    [
        (401.0, "slower", "; next is"),
        (399.0, "as fast at 8x3", "; as fast is"),
        (200.0, "left out at 8x3", "; faster, and left out, is"),
    ],
)
def test_what_is_not_slower_is_not_called_so(microseconds: float, verdict: str, words: str) -> None:
    found = replace(FOUND, refused=(), timings=(*FOUND.timings[:4], T(FASTER, 1, microseconds, 1.0, 20)))
    assert {row.tactic: row.verdict for row in evidence.rows(found)}[FASTER] == verdict
    assert words in evidence.reasons(found)[1]


def test_the_chosen_come_first_and_the_untimed_last() -> None:
    assert [row.tactic for row in evidence.rows(FOUND)] == [PLAIN, FAST, FASTER, BROKEN, LATE]


def test_reasons_say_by_how_much_and_what_may_not_be_used() -> None:
    first, second = evidence.reasons(FOUND)
    assert first == (
        "1x3: onnxruntime fp32 source dynamic, 0.1 ms; next is openvino bf16 optimized static with 0.15 ms (1.50 x)"
    )
    assert second == (
        "8x3: openvino bf16 optimized static, 0.4 ms; next is onnxruntime fp32 source dynamic with 1 ms (2.50 x); "
        "faster and refused by the gate: openvino int8 int8-kl static HINT=f32"
    )


def test_a_race_becomes_timings_and_losses() -> None:
    race = Race(
        buckets=({"x": (1, 3)},),
        measurements=(
            Measurement(FAST, 0, 10.0, 0.5, 40, Paired(PLAIN, 0.5, 0.4, 0.6, 12), confirmed=True),
            Measurement(PLAIN, 0, 20.0, 0.5, 40),
        ),
        lost=(Lost(BROKEN, "hung"),),
        skipped=(Skipped(LATE, "no time was left", 0),),
    )
    timings, lost, skipped = evidence.of_race(race)
    assert timings == (
        T(FAST, 0, 10.0, 0.5, 40, True, False, PLAIN, 0.5, 0.4, 0.6),
        T(PLAIN, 0, 20.0, 0.5, 40),
    )
    assert (lost, skipped) == ((Left(BROKEN, "hung"),), (Left(LATE, "no time was left", 0),))


def test_buckets_are_read_from_small_to_large() -> None:
    assert evidence.by_size([{"x": (8, 3)}, {"x": (1, 3)}, {"x": (64, 3)}]) == (1, 0, 2)
    turned = replace(
        FOUND,
        buckets=FOUND.buckets[::-1],
        chosen=FOUND.chosen[::-1],
        timings=tuple(replace(each, bucket=1 - each.bucket) for each in FOUND.timings),
    )
    assert [each.partition(":")[0] for each in evidence.reasons(turned)] == ["1x3", "8x3"]


@pytest.mark.parametrize(
    ("shapes", "text"),
    [({"x": (1, 3, 8)}, "1x3x8"), ({"x": (1, 3), "m": (1,)}, "x:1x3 m:1"), ({"x": ()}, "scalar")],
)
def test_labels_of_buckets(shapes: dict[str, tuple[int, ...]], text: str) -> None:
    assert evidence.label(shapes) == text
