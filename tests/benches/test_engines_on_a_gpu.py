"""The bench of engines on a GPU, without one: floors, bars, verdicts, the table, and what is not measured again."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benches.gpu import floor, report
from benches.gpu.results import (
    OURS,
    Point,
    Row,
    bar_kept,
    from_data,
    same_work,
    speed_up,
    to_data,
    verdict,
)  # fmt: skip
from benches.gpu.store import Store, digest
from benches.gpu.subjects import LISTED, SUBJECTS, Bar
from penstock.engine.lowered import Input, LoweredGraph, Operand, Output, Step, Value, View, Weight

STAMP = {"device": "NVIDIA H200", "rounds": 3}


def row(way: str, *turns: float, error: float = 1e-4, repeats: bool = True) -> Row:
    return Row(way, turns, error, repeats=repeats)


def point(*rows: Row, model: str = "resnet50", batch: int = 1, **more: Any) -> Point:
    return replace(Point(model, batch, rows, 0.1, 2e9, 2e9, stamp=STAMP), **more)


def one_step(step: Step, values: dict[str, Value], weights: dict[str, Weight] | None = None) -> LoweredGraph:
    inputs = tuple(Input(name, each.shape, each.datatype) for name, each in values.items() if name not in step.outputs)
    outputs = tuple(Output(name, name, values[name].shape) for name in step.outputs)
    return LoweredGraph(inputs, outputs, values, weights or {}, (step,))


# ---- floor ----

FLOPS_AND_BYTES = [
    (
        "a convolution",
        one_step(
            Step("s", "conv", (Operand("x", "x"), Operand("w", "weight")), ("y",)),
            {"x": Value((2, 8, 8, 16), "FP32"), "y": Value((2, 4, 4, 32), "FP32")},
            {"w": Weight((32, 3, 3, 16), "FP32")},
        ),
        2 * (2 * 4 * 4 * 32) * (3 * 3 * 16),
        2 * (2 * 8 * 8 * 16 + 32 * 3 * 3 * 16 + 2 * 4 * 4 * 32),
    ),
    (
        "a product",
        one_step(
            Step("s", "gemm", (Operand("x", "x"), Operand("w", "weight"), Operand("x", "residual")), ("y",)),
            {"x": Value((6, 10), "FP32"), "y": Value((6, 10), "FP32")},
            {"w": Weight((10, 10), "FP32")},
        ),
        2 * 6 * 10 * 10,
        2 * (60 + 100 + 60),  # the residual is what came in, and read once
    ),
    (
        "attention",
        one_step(
            Step("s", "attention", (Operand("q", "q"), Operand("k", "k"), Operand("v", "v")), ("y",)),
            {
                **{name: Value((2, 3, 5, 4), "FP32") for name in "qkv"},
                "y": Value((2, 5, 3, 4), "FP32"),
            },
        ),
        2 * (2 * 3) * 5 * 5 * (4 + 4),
        2 * 4 * 120,
    ),
    (
        "a gather",
        one_step(
            Step("s", "gather", (Operand("w", "x"), Operand("i", "indices")), ("y",), {"axis": 0}),
            {"i": Value((7,), "INT64"), "y": Value((7, 10), "FP32")},
            {"w": Weight((1000, 10), "FP32")},
        ),
        0,
        2 * 70 + 8 * 7 + 2 * 70,  # of the table what is looked up
    ),
    (
        "a slice that is repeated",
        one_step(
            Step("s", "copy", (Operand("x", "", View((4, 5), (0, 1), 2)),), ("y",)),
            {"x": Value((9,), "FP32"), "y": Value((4, 5), "FP32")},
        ),
        0,
        2 * (5 + 20),
    ),
    (
        "a stem with weights that only fill up",
        one_step(
            Step(
                "s",
                "conv",
                (Operand("x", "x", View((2, 9, 4, 16), (400, 40, 8, 1))), Operand("w", "weight")),
                ("y",),
                {"products": 27},
            ),
            {"x": Value((2, 10, 10, 4), "FP32"), "y": Value((2, 4, 4, 8), "FP32")},
            {"w": Weight((8, 3, 1, 16), "FP32")},
        ),
        2 * (2 * 4 * 4 * 8) * 27,
        2 * (800 + 8 * 48 + 256),  # pixels that overlap are read once
    ),
    (
        "attention of channels",
        one_step(
            Step("s", "channel_attention", (Operand("q", "q"), Operand("k", "k"), Operand("v", "v")), ("y",)),
            {
                "q": Value((2, 3, 5, 4), "FP32"),
                **{name: Value((2, 3, 5, 7), "FP32") for name in "kv"},
                "y": Value((2, 5, 3, 4), "FP32"),
            },
        ),
        2 * (2 * 3) * 5 * (4 * 7 + 7 * 4),
        2 * (120 + 210 + 210 + 120),
    ),
]


@pytest.mark.parametrize(("graph", "flops", "moved"), [each[1:] for each in FLOPS_AND_BYTES],
                         ids=[each[0] for each in FLOPS_AND_BYTES])  # fmt: skip
def test_flops_and_bytes_are_those_that_have_to_be(graph: LoweredGraph, flops: float, moved: float) -> None:
    found = floor.cost(graph)
    assert (found.flops, found.bytes) == (flops, moved)
    assert found.milliseconds == pytest.approx(1e3 * max(flops / 724e12, moved / 4.28e12))


def test_the_floor_is_a_sum_over_steps_and_not_of_sums() -> None:
    heavy, light = FLOPS_AND_BYTES[0][1], FLOPS_AND_BYTES[4][1]
    values = {**heavy.values, "z": Value((9,), "FP32"), "c": Value((4, 5), "FP32")}
    second = replace(light.steps[0], inputs=(Operand("z", "", View((4, 5), (0, 1), 2)),), outputs=("c",))
    both = replace(heavy, values=values, steps=(*heavy.steps, second))
    found = floor.cost(both).milliseconds
    assert found == pytest.approx(floor.cost(heavy).milliseconds + floor.cost(light).milliseconds)


@pytest.mark.parametrize(
    ("theirs", "same"), [(100.0, True), (95.3, True), (95.1, False), (102.0, True), (103.0, False), (math.nan, True)]
)
def test_ours_may_multiply_five_percent_more_and_leaves_nothing_out(theirs: float, same: bool) -> None:
    assert same_work(100.0, theirs) is same


# ---- bars and verdicts ----


def test_every_subject_has_a_bar_and_the_tracker_is_measured_against_torch() -> None:
    for name in LISTED:
        assert all(str(bar) for bar in SUBJECTS[name].bars.values()), name
    assert SUBJECTS["resnet50"].bars == {1: Bar(0.30), 64: Bar(1.38)}
    assert SUBJECTS["recogniser"].batches == (1, 8, 32)
    assert str(SUBJECTS["tracker"].bars[8]) == "1.5x compile, 3x eager"


@pytest.mark.parametrize(
    ("milliseconds", "error", "kept"),
    [(0.30, 1e-4, True), (0.31, 1e-4, False), (0.2, 0.5, False), (0.2, math.nan, False), (None, 0.0, None)],
)
def test_a_bar_is_kept_by_a_fast_and_right_answer(milliseconds: float | None, error: float, kept: bool | None) -> None:
    rows = [row(OURS, milliseconds, error=error)] if milliseconds else []
    assert bar_kept(point(*rows), Bar(0.30)) is kept


@pytest.mark.parametrize(
    ("compiled", "eager", "kept"), [(1.6, 3.1, True), (1.4, 3.1, False), (1.6, 2.9, False), (None, 3.1, None)]
)
def test_a_bar_of_multiples_is_of_the_fastest_rival_of_its_kind(
    compiled: float | None, eager: float, kept: bool | None
) -> None:
    rows = [row(OURS, 1.0), row("eager", eager), row("CUDA graph of eager", 0.5)]
    if compiled:
        rows += [row("torch.compile default", 9.0), row("torch.compile reduce-overhead", compiled)]
    assert bar_kept(point(*rows), Bar(times_compiled=1.5, times_eager=3.0)) is kept


def test_milliseconds_are_no_bar_on_another_chip() -> None:
    elsewhere = point(row(OURS, 0.1), stamp={"device": "CPU"})
    assert report.bar_of(elsewhere) == Bar()
    assert report.bar_of(point(row(OURS, 0.1))) == Bar(0.30)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row(OURS, 1.0), row("eager", 2.0)], "faster"),
        ([row(OURS, 1.0), row("eager", 0.98)], "as fast"),
        ([row(OURS, 1.0), row("eager", 0.9)], "SLOWER"),
        ([row(OURS, 1.0), row("eager", 0.5, error=0.2), row("compiled", 1.5)], "faster"),
        ([row(OURS, 1.0), row("eager", 0.5, error=math.nan)], "no peer"),
        ([row(OURS, 1.0, error=math.nan), row("eager", 2.0)], "INACCURATE"),
        ([row(OURS, 1.0, repeats=False), row("eager", 2.0)], "UNSTEADY"),
        ([Row(OURS, lost="no memory"), row("eager", 2.0)], "not measured"),
    ],
)
def test_a_verdict_is_about_answers_that_are_right(rows: list[Row], said: str) -> None:
    assert verdict(point(*rows)) == said


def test_ours_is_the_fastest_of_our_ways_that_is_right() -> None:
    ways = [row(OURS, 3.0), row(f"{OURS}, early launch", 2.0), row(f"{OURS}, wrong", 1.0, error=0.5)]
    ours = point(*ways).ours
    assert ours is not None
    assert ours.way == f"{OURS}, early launch"


def test_indices_that_differ_make_a_row_inaccurate() -> None:
    assert not replace(row(OURS, 1.0), different=0.03).accurate
    assert replace(row(OURS, 1.0), different=0.01).accurate


def test_a_speed_up_is_the_median_of_ratios_within_rounds() -> None:
    # The chip becomes ten times slower in the last round: the ratio of the medians would be 2.5.
    assert speed_up(row("a", 2, 4, 40), row("b", 4, 10, 80)) == 2.0
    assert math.isnan(speed_up(row("a", 1.0), None))


# ---- table ----


def run_of(*points: Point, absent: tuple[tuple[str, str], ...] = ()) -> report.Run:
    return report.Run("NVIDIA H200", (("torch", "2"),), 3, points, absent)


def test_the_table_has_what_a_reader_needs_to_judge_it() -> None:
    ours = replace(row(OURS, 0.2), transfers=0.25)
    wrong = row("narrow", 0.1, error=math.nan)
    run = run_of(point(ours, row("eager", 0.5), wrong, Row("gone", lost="a | b"), alone="same bits"))
    text = report.markdown(run)
    assert (
        "| resnet50 | 1 | 0.2000 | 0.2500 | eager | 0.5000 | - | 2.50 | faster | 1.0e-04 | 0.1000 | 50% | 0.3 ms | kept"
        in text
    )
    assert "| yes | same bits |" in text
    assert "| resnet50 | 1 | narrow | (0.1000) | (0.50) | NaN |" in text
    assert "| gone | | | | | | a / b |" in text
    assert json.loads(json.dumps(report.document(run), allow_nan=False))["verdicts"]["resnet50 1"]["bar_kept"] is True
    assert report.counts(run.points) == "faster 1; bars 1 kept, 0 missed"


def test_a_check_fails_for_what_is_slower_inaccurate_or_missing() -> None:
    good = point(row(OURS, 1.0), row("eager", 2.0))
    assert report.failures(run_of(good)) == []
    slow = point(row(OURS, 1.0), row("eager", 0.5))
    half_wrong = point(row(OURS, 1.0), row(f"{OURS}, early launch", 0.5, error=math.nan), row("eager", 2.0))
    assert report.failures(run_of(slow)) == ["resnet50 at batch 1: SLOWER"]
    assert report.failures(run_of(half_wrong)) == [f"resnet50 at batch 1, {OURS}, early launch: INACCURATE, NaN"]
    assert report.failures(run_of(good, absent=(("yolo at batch 8", "no time"),))) == ["yolo at batch 8: no time"]


# ---- what is not measured again ----


def test_a_point_comes_back_from_data_as_it_was() -> None:
    kept = point(replace(row(OURS, 1.0, 2.0), transfers=3.0), row("narrow", 1.0, error=math.nan), peer_flops=math.nan)
    back = from_data(json.loads(json.dumps(to_data(kept), allow_nan=False)))
    assert back.rows[0] == kept.rows[0]
    assert math.isnan(back.rows[1].error)
    assert math.isnan(back.peer_flops)
    assert not back.rows[1].accurate


def test_a_point_counts_as_measured_with_its_own_settings_only(tmp_path: Path) -> None:
    Store(tmp_path).keep(point(row(OURS, 1.0), batch=1))
    Store(tmp_path).keep(point(row(OURS, 2.0), batch=64))
    store = Store(tmp_path)
    found = store.measured("resnet50", 64, STAMP)
    assert found is not None
    assert found.rows[0].turns == (2.0,)
    assert store.measured("resnet50", 1, STAMP) is not None
    assert store.measured("resnet50", 1, STAMP | {"rounds": 7}) is None
    assert store.measured("resnet34", 1, STAMP) is None


def test_a_point_that_was_cut_short_is_measured_again(tmp_path: Path) -> None:
    Store(tmp_path).keep(point(row(OURS, 1.0), complete=False))
    assert Store(tmp_path).measured("resnet50", 1, STAMP) is None


def test_documents_of_earlier_runs_count_and_the_folder_is_newer(tmp_path: Path) -> None:
    document = tmp_path / "elsewhere.json"
    earlier = run_of(point(row(OURS, 1.0)), point(row(OURS, 5.0), batch=64))
    document.write_text(json.dumps(report.document(earlier)))
    folder = tmp_path / "out"
    Store(folder).keep(point(row(OURS, 3.0)))
    store = Store(folder, [document])
    assert [store.points["resnet50", batch].rows[0].turns for batch in (1, 64)] == [(3.0,), (5.0,)]


@pytest.mark.parametrize("name", ["kernel.py", "kernel.cu", "kernel.cuh"])
def test_other_sources_are_another_engine(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("a = 1\n")
    before = digest(tmp_path)
    assert digest(tmp_path) == before
    (tmp_path / name).write_text("a = 2\n")
    assert digest(tmp_path) != before


# ---- tuning ----


@pytest.mark.torch
@pytest.mark.parametrize(
    ("ways", "left", "seconds"),
    [((), 30.0, 10.0), ((OURS,), 30.0, 22.0), ((OURS, "eager"), 30.0, 10.0), ((OURS,), 100.0, 40.0), ((), 2.0, 1.0)],
)
def test_rivals_want_most_of_the_seconds_that_are_left(ways: tuple[str, ...], left: float, seconds: float) -> None:
    pytest.importorskip("torch")
    from benches.gpu.points import Settings

    assert Settings(Path(), "cuda", 3, 40.0, 90.0, 7, search=False, kernels="", ways=ways).tuning(left) == seconds
