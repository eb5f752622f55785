"""The recogniser served four ways: what is computed of figures, what requests are, and one run with a real server."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benches.stories import machine, ocr_findings, ocr_lines, ocr_models
from benches.stories.ocr_findings import Reading, Results
from benches.stories.ocr_lines import Lines
from benches.stories.ocr_measuring import Point, in_turns, read, requests
from benches.stories.ocr_ways import OURS, Layout, Way, _repository, layouts, serving
from benches.stories.report import markdown_table
from penstock.repository.config import parse

LEVELS = (2, 16)
RANDOM = np.random.default_rng(0)
LINES = Lines(
    ("ab", "b"), RANDOM.integers(0, 256, (2, 48, 320, 3), np.uint8), (False, True), ("", "a", "b")
)  # fmt: skip


def figures(rate: float, p95: float = 10.0, **more: float) -> dict[str, float]:
    point = Point(seconds=2.0, latencies=[np.full(int(rate), p95)], turns=[rate], busy=0.1)
    return point.figures() | more


def results(rates: dict[str, tuple[float, float]], peers: tuple[str, ...] = (), **more: bool) -> Results:
    points = {
        (name, level): figures(rate, cpu_ms=CPU_MS.get(name, 25.0))
        for name, pair in rates.items()
        for level, rate in zip(LEVELS, pair, strict=True)
    }
    ours = tuple(name for name in rates if name not in peers)
    readings = dict.fromkeys(rates, Reading(1.0, 0.9, 1.0))
    about = {"gpu": False, "amx": False} | more
    return Results(ours, peers, LEVELS, points, readings, dict.fromkeys(rates, "?"), **about)


CPU_MS = {"plain": 20.0, "engine": 8.0}
RATES = {"plain": (100.0, 110.0), "engine": (200.0, 231.0), "Triton": (100.0, 105.0)}


def test_figures_of_a_point_are_of_all_its_turns() -> None:
    point = Point(seconds=2.0, latencies=[np.array([1.0, 2.0]), np.array([3.0])], turns=[4.0, 2.0])
    point.counts, point.nanoseconds = {"queue": 2, "compute_infer": 2}, {"queue": 4_000_000, "compute_infer": 6_000_000}
    found = point.figures()
    assert (found["infer_per_s"], found["p50_ms"], found["queue_ms"]) == (3.0, 2.0, 2.0)
    assert (found["lowest_turn"], found["highest_turn"]) == (2.0, 4.0)
    assert math.isnan(Point().figures()["p95_ms"])


def test_findings_compare_the_engine_with_the_plain_model_and_with_the_best_peer() -> None:
    said = "\n".join(ocr_findings.findings(results(RATES, ("Triton",))))
    assert "serves 2.10 times what the plain model does (bar without AMX: 2): kept" in said
    assert "The best peer is Triton: at their peaks the engine serves 2.20 times as much." in said
    assert "ours (plain) serves 1.05 times what Triton does" in said
    assert "failed: none" in said
    assert "costs 20.00 ms of a core with the plain model and 8.00 ms with the engine: 2.50 times less" in said


@pytest.mark.parametrize(
    ("rates", "more", "said"),
    [
        ({"plain": (100, 110), "engine": (200, 400)}, {"amx": True}, "(bar with AMX: 4): MISSED"),
        ({"plain": (100, 110), "engine": (200, 0)}, {}, "MISSED"),
        ({"plain": (100, 0), "engine": (200, 300)}, {}, "MISSED"),
        ({"plain": (100, 110), "engine": (900, 1100)}, {"gpu": True}, "10.0 times (bar: 9.9): kept"),
        ({"plain": (100, 110), "engine": (900, 1000)}, {"gpu": True}, "9.1 times (bar: 9.9): MISSED"),
        ({"engine": (900, 1000)}, {"gpu": True}, "p95 at its peak is 10.00 ms (bar: 4.8 ms): MISSED"),
    ],
)
def test_bars(rates: dict[str, tuple[float, float]], more: dict[str, bool], said: str) -> None:
    assert said in "\n".join(ocr_findings.findings(results(rates, **more)))


@pytest.mark.parametrize(("mine", "good"), [(0.995, True), (0.98, False), (math.nan, False)])
def test_who_misreads_is_told(mine: float, good: bool) -> None:
    found = results(RATES)
    read_worse = replace(found, readings=dict(found.readings) | {"engine": Reading(mine, 0.9, 1.0)})
    assert ocr_findings.accurate(read_worse) is good
    (said,) = [each for each in ocr_findings.findings(read_worse) if "1 point below the first" in each]
    assert said.endswith("kept." if good else "MISSED.")


def test_what_was_measured_elsewhere_is_drawn_from_its_json() -> None:
    found = results(RATES, ("Triton",))
    again = ocr_findings.from_data(json.loads(json.dumps(ocr_findings.to_data(found)).replace("NaN", "null")))
    assert ocr_findings.findings(again) == ocr_findings.findings(found)
    assert [*map(markdown_table, ocr_findings.tables(again))] == [*map(markdown_table, ocr_findings.tables(found))]
    assert len(ocr_findings.figures(again)) == 3


def test_lines_are_read_off_and_judged_by_kind(tmp_path: Path) -> None:
    assert LINES.read(np.array([[0, 1, 1, 0, 2], [2, 2, 0, 2, 0]])) == ["ab", "bb"]
    assert LINES.accuracy(["ab", "bb"], hard=False) == 1
    assert LINES.accuracy(["ab", "bb"], hard=True) == 0
    LINES.save(tmp_path)
    again = ocr_lines.saved(tmp_path)
    assert (again.texts, again.hard, again.alphabet) == (LINES.texts, LINES.hard, LINES.alphabet)
    np.testing.assert_array_equal(again.pictures, LINES.pictures)


def test_requests_carry_the_pictures() -> None:
    (v2,), (bare,) = requests(LINES, v2=True), requests(LINES, v2=False)
    assert bare.body == LINES.pictures.tobytes()
    assert v2.json_bytes is not None
    assert v2.body[v2.json_bytes :] == bare.body
    assert json.loads(v2.body[: v2.json_bytes])["inputs"][0]["shape"] == [2, 48, 320, 3]


@pytest.mark.parametrize(("rows", "batches"), [(2, False), (8, True)])
def test_a_configuration_batches_where_it_may_join_requests(rows: int, batches: bool, tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(b"any")
    folder = _repository(tmp_path / "repository", model, rows, Layout(2, 1)) / "recogniser"
    config = parse("recogniser", (folder / "config.pbtxt").read_text())
    assert (config.message.max_batch_size, config.instance_count, config.threads) == (rows, 2, 1)
    assert config.message.HasField("dynamic_batching") is batches
    assert (folder / "1" / "model.onnx").read_bytes() == b"any"


def test_layouts_use_all_cores() -> None:
    assert [each.instances * each.threads for each in layouts(2)] == [2, 2]
    assert len(layouts(1)) == 1
    assert machine.machine()["cores"]


@pytest.mark.slow
def test_a_server_reads_lines_and_is_measured(tmp_path: Path) -> None:
    pytest.importorskip("rapidocr", reason="it carries the recogniser")
    lines = ocr_lines.rendered(8)
    repository = _repository(tmp_path / "repository", ocr_models.onnx_file(tmp_path), 8, layouts(2)[-1])
    start = (sys.executable, "-c", "from penstock.cli import main; main()", "serve", f"--model-repository={repository}")
    way = Way(OURS[1], "", lambda port: (*start, f"--http-port={port}", "--grpc-port=0", "--allow-metrics=false"))
    with serving(way, tmp_path) as server:
        texts = read(server, lines, 4)
        points = in_turns([server], lines, (2,), 1, 1.5)
    assert lines.accuracy(texts, hard=False) > 0.9
    found = points[way.name, 2].figures()
    assert found["failed"] == 0
    assert found["infer_per_s"] > 0
    assert 0 < found["compute_ms"] < found["p99_ms"]
