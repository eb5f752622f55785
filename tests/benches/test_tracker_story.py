"""What the story of the tracker computes from its figures, and requests under way on an engine of the CPU."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import penstock as ps
from benches.stories import tracker_page as page
from benches.stories import tracker_results as results
from benches.stories.report import document
from benches.stories.tracker_flights import WrongError, flight, there_and_back
from benches.stories.tracker_lab import Lab, MissingError, lab
from benches.stories.tracker_results import Flight, Measured, Rows, Split, Way
from penstock import graph

EAGER = Way("eager FP32", 1, "FP32", (40.0, 44.0, 39.0), 1.0, True)
FAST = Way("engine, INT8 allowed", 1, "INT8", (10.0, 11.0, 13.0), 0.9995, True)
WRONG = Way("engine, BF16 allowed", 1, "BF16", (1.0, 1.0, 1.0), 0.2, False)
WIDE = Way("engine FP32", 1, "FP32", (20.0, 22.0, 26.0), 1.0, True)
LATER = (replace(EAGER, batch=8, turns_ms=(160.0, 160.0)), replace(FAST, batch=8, turns_ms=(100.0, 100.0)))
ROWS = (
    Rows(1, "1 rows", (10.0, 10.0)),
    Rows(1, "1 to 8 rows", (12.0, 11.0)),
    Rows(3, "1 to 8 rows", (24.0,)),
    Rows(8, "8 rows", (48.0,)),
)
MEASURED = Measured(
    device="cpu",
    machine={"cpu": "a processor", "cores": 2, "memory_gib": 8, "gpus": []},
    settings={"rounds": 3},
    ways=(EAGER, WRONG, FAST, WIDE, *LATER),
    rows=ROWS,
    flights=(
        Flight("each waited for at once", 1, 1, 20.0, 50.0, 60.0),
        Flight("two contexts", 2, 4, 30.0, 130.0, 150.0),
    ),
    splits=(Split("engine FP16", 1, 0.1, 1.0, 6.0, 1.0, 8.5),),
)


def test_a_gain_is_the_median_of_ratios_within_rounds_and_never_of_a_wrong_answer() -> None:
    assert results.speed_up(FAST, EAGER) == 4.0
    assert math.isnan(results.speed_up(replace(FAST, turns_ms=()), EAGER))
    assert results.best(MEASURED.ways, 1, "engine") is FAST
    assert results.best(MEASURED.ways, 1, "engine", "BF16") is None
    assert results.best([replace(FAST, likeness=math.nan, accurate=False)], 1, "engine") is None


def test_without_torch_the_base_is_onnx_runtime() -> None:
    base = Way("ONNX Runtime FP32", 1, "FP32", (30.0,), 1.0, True)
    assert results.plain([base, FAST], 1) is base
    assert results.plain([base, EAGER], 1) is EAGER
    assert results.plain([FAST], 1) is None


def test_findings_say_what_the_figures_say() -> None:
    said = list(page.findings(MEASURED))
    assert "4.0 times faster (2.5 in the report; inside or above the 3 to 5 called possible)" in said[0]
    assert "1.6 times faster (1.6 in the report; below the 3 to 5 called possible)" in said[1]
    assert "shrinks, 4.0 to 1.6 times" in said[2]
    assert "eager FP32 takes 4.0 times as long and the engine 9.1 times" in said[2]
    assert said[3] == "Batch 1, times faster than the engine in FP32: INT8 2.00."
    assert said[4] == "A call of 1: the engine for 1 to 8 rows takes 1.15 times what the one for 1 rows does."
    assert said[5] == "Rows that no shape was prepared for: 3 rows 0.50 times a call of 8."
    assert "20 a second when each is waited for, 30 with two contexts (1.50 times)" in said[6]
    assert "copies are 25 %" in said[7]
    assert len(said) == 8


@pytest.mark.parametrize(
    ("turns", "verdict"),
    [((36.0, 40.0, 39.0), "faster"), ((10.0, 11.1, 13.2), "no slower"), ((5.0, 5.0, 5.0), "slower")],
)
def test_an_engine_is_judged_beside_the_best_of_the_others(turns: tuple[float, ...], verdict: str) -> None:
    other = Way("torch.compile BF16, channels last", 1, "BF16", turns, 0.9999, True)
    said = next(page.findings(replace(MEASURED, ways=(EAGER, other, FAST))))
    assert f"; {verdict} than the best of the others (torch.compile BF16, channels last" in said


def test_a_graph_is_compared_with_launches_of_its_own_precision() -> None:
    off = Way("engine FP16, no CUDA graph", 1, "FP16", (3.0, 3.0), 1e-3, True)
    on = Way("engine FP16, CUDA graph", 1, "FP16", (1.0, 1.5), 1e-3, True)
    faster = Way("engine INT8, CUDA graph", 1, "INT8", (0.5, 0.5), 1e-2, True)
    said = list(page.findings(replace(MEASURED, ways=(off, on, faster), rows=(), flights=(), splits=())))
    assert said == ["Batch 1: launched kernel by kernel the engine takes 2.5 times as long as one graph."]


def test_what_is_absent_is_said_and_nothing_measured_is_no_error() -> None:
    empty = replace(MEASURED, ways=(), rows=(), flights=(), splits=(), absent=("eager rows: torch is not installed",))
    assert list(page.findings(empty)) == ["Not measured: eager rows: torch is not installed."]
    assert page.story(empty).tables[0].rows == ()


def test_what_was_measured_can_be_told_again_from_its_file() -> None:
    lost = replace(EAGER, turns_ms=(), likeness=math.nan, lost="no compiler")
    measured = replace(MEASURED, ways=(*MEASURED.ways, lost))
    written = json.dumps(document(page.story(measured), measured.machine), allow_nan=False)
    again = results.from_data(json.loads(written)["data"])
    assert page.story(again).tables == page.story(measured).tables
    assert again.flights == measured.flights
    with pytest.raises(ValueError, match="too many or too few"):
        results.from_data({**results.to_data(measured), "rows": [{"rows": 1}]})
    with pytest.raises(ValueError, match="expected the data"):
        results.from_data({"device": "cpu"})


def test_a_figure_shows_only_ways_that_are_right() -> None:
    pytest.importorskip("plotly")
    figure, _ = page.story(MEASURED).figures
    names = [list(each.y) for each in figure.data]
    assert names == [["engine FP32", "engine, INT8 allowed", "eager FP32"], ["engine, INT8 allowed", "eager FP32"]]


# ---- requests under way ----


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """y = 2 x, of floats [n, 4]."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", 4]))
    node = ir.node("Add", [x, x])
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", ir.TensorType(ir.DataType.FLOAT), ir.Shape(["n", 4])
    made = ir.Model(ir.Graph([x], [y], nodes=[node], opset_imports={"": 18}, name="double"), ir_version=10)
    path = tmp_path_factory.mktemp("double") / "double.onnx"
    graph.save(made, path)
    return ps.build(path, precision="fp32", device="cpu", shapes="x:1x4,1x4,2x4", budget_seconds=3)


def request(kind: int) -> dict[str, Any]:
    return {"x": np.full((1, 4), kind + 1, np.float32)}


@pytest.mark.parametrize(("contexts", "ahead"), [(1, 1), (1, 3), (2, 4)])
def test_requests_under_way_are_answered_each_with_its_own_answer(engine: Any, contexts: int, ahead: int) -> None:
    found = flight(engine, "a way", contexts, ahead, 0.05, request, 3)
    assert (found.way, found.contexts, found.ahead) == ("a way", contexts, ahead)
    assert found.per_second > 20
    assert 0 < found.p50_ms <= found.p99_ms


def test_ways_run_there_and_back_and_count_by_their_means() -> None:
    ran: list[str] = []

    def once(way: tuple[str, int, int]) -> Flight:
        ran.append(way[0])
        return Flight(*way, float(len(ran)), 10.0 * len(ran), 20.0 * len(ran))

    found = there_and_back([("a", 1, 1), ("b", 2, 2)], once)
    assert ran == ["a", "b", "b", "a"]
    assert found == [Flight("a", 1, 1, 2.5, 25.0, 50.0), Flight("b", 2, 2, 2.5, 25.0, 50.0)]


def test_an_answer_to_another_request_is_found(engine: Any) -> None:
    calls: list[int] = []

    def changing(kind: int) -> dict[str, Any]:
        calls.append(kind)
        return {"x": np.array([[1, 0, 0, 0]] if len(calls) <= 3 else [[0, 1, 0, 0]], np.float32)}

    with pytest.raises(WrongError, match=r"cosine of 0\.0000"):
        flight(engine, "a way", 1, 2, 0.02, changing, 3)


def test_without_torch_and_without_files_the_fix_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benches.stories.tracker_lab.has_torch", lambda: False)
    with pytest.raises(MissingError, match=r"tracker_search\.onnx, and torch, which makes it, is not installed"):
        lab(tmp_path)
    for name in ("tracker_search.onnx", "tracker_calibration.npz"):
        (tmp_path / name).touch()
    np.savez(tmp_path / "tracker_held_out.npz", x=np.arange(8)[:, None])
    assert lab(tmp_path) == Lab(tmp_path)
    assert lab(tmp_path).held_out(2)["x"].tolist() == [[0], [1]]
