"""The story of full use: what its rules compute, what its sentences say either way, and the process it measures in."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from benches.stories.utilising import batches, eight_bits, findings, memory, sizes
from benches.stories.utilising.engines import Built, fate
from benches.stories.utilising.gpu_findings import findings as gpu_findings
from benches.stories.utilising.layers import Counted, counted
from benches.stories.utilising.memory import Line, Memory
from benches.stories.utilising.served import Held
from benches.stories.utilising.worker import Worker

MIB = 2**20


@pytest.fixture
def doubling(tmp_path: Path) -> Path:
    """y = relu(x + x)."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy")
    nodes = [helper.make_node("Add", ["x", "x"], ["sum"]), helper.make_node("Relu", ["sum"], ["y"])]
    graph = helper.make_graph(nodes, "doubling", [x], [y])
    path = tmp_path / "doubling.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


# ---- memory and batches ----


def test_memory_of_a_batch_is_a_line_and_the_rule_is_eight_tenths_over_its_slope() -> None:
    line = memory.fitted({batch: 100 * MIB + batch * 5 * MIB for batch in (1, 4, 16)})
    assert line.base == pytest.approx(100 * MIB)
    assert line.each == pytest.approx(5 * MIB)
    assert line.at(2) == pytest.approx(110 * MIB)
    assert memory.suggested(1000 * MIB, Line(100 * MIB, 5 * MIB)) == 160
    assert memory.suggested(1, line) == 1


def test_a_rule_without_memory_to_divide_by_is_refused() -> None:
    with pytest.raises(ValueError, match="two batches or more"):
        memory.fitted({1: 3.0})
    with pytest.raises(ValueError, match="can't be applied"):
        memory.suggested(MIB, Line(3.0, 0.0))


def test_the_best_batch_and_the_smallest_that_is_near_it() -> None:
    rates = {1: 50.0, 4: 98.0, 8: 96.0, 16: 100.0}
    assert memory.best(rates) == 16
    assert memory.enough(rates) == 4


def test_a_process_holds_memory_and_the_machine_has_some() -> None:
    held = memory.of_process(os.getpid())
    assert MIB < held.now <= held.peak
    assert memory.available() > MIB


@pytest.mark.parametrize(("peak", "said"), [(90 * MIB, "fits"), (200 * MIB, "does NOT fit: it forgets the 100 MiB")])
def test_the_rule_is_told_by_what_its_batch_really_took(peak: int, said: str) -> None:
    sweep = batches.Sweep("onnxruntime", {1: 10.0, 4: 30.0, 8: 29.5}, {n: (100 + n) * MIB for n in (1, 4, 8)})
    sweep.tried = batches.Tried(150 * MIB, 4, peak, 30.0)
    told = findings.of_batches([sweep], 1001 * MIB)
    assert "the best batch is 800; measured, it is 4" in told[0]
    assert said in told[1]


def test_the_limit_that_is_tried_makes_the_rule_say_half_of_the_largest_batch() -> None:
    line = Line(50 * MIB, 7 * MIB)
    assert memory.suggested(batches.limit_for(line, 64), line) in (31, 32)


# ---- layers, bits and shapes ----


def test_layers_are_counted_as_the_command_counts_them(doubling: Path) -> None:
    (found,) = counted([doubling])
    assert (found.model, found.nodes, found.layers, found.regions, found.fewer) == ("doubling", 2, 2, 1, 2.0)


@pytest.mark.parametrize(("regions", "said"), [(38, "kept"), (61, "MISSED")])
def test_the_bar_of_regions_is_told_either_way(regions: int, said: str) -> None:
    assert said in findings.of_layers([Counted("resnet34", 125, 125, regions)])[0]


def test_what_became_of_a_precision_is_read_from_the_evidence() -> None:
    tactic = {"precision": "int8"}
    evidence: dict[str, Any] = {"chosen": [], "refused": [], "timings": [], "lost": [], "skipped": []}
    assert fate("int8", evidence) == "not tried"
    evidence["skipped"] = [{"tactic": tactic, "reason": "no time was left"}]
    assert fate("int8", evidence) == "not timed: no time was left"
    evidence["timings"] = [{"tactic": tactic}]
    assert fate("int8", evidence) == "timed, and not faster"
    evidence["refused"] = [{"tactic": tactic, "reason": "cosine 0.9; loosen it"}]
    assert fate("int8", evidence) == "not accurate enough: cosine 0.9"
    evidence["chosen"] = [tactic]
    assert fate("int8", evidence) == "chosen"


def bits(after_mib: int) -> eight_bits.Found:
    def contender(name: str, milliseconds: float, mib: int) -> eight_bits.Contender:
        held = Held(Memory(mib * MIB, mib * MIB), Memory(mib * MIB, mib * MIB))
        times = {batch: [9 * milliseconds, milliseconds, milliseconds] for batch in eight_bits.BATCHES}
        return eight_bits.Contender(name, Path("x.engine"), "int8", times, 0.99, held)

    built = Built(Path("x.engine"), 1.0, "int8", (), 5, "chosen", "", ())
    pair = (contender(eight_bits.FP32, 80.0, 400), contender(eight_bits.AUTO, 20.0, after_mib))
    return eight_bits.Found(pair, 0.001, 0.004, 136, {eight_bits.AUTO: built})


@pytest.mark.parametrize(("after", "said"), [(200, "less by 50%"), (600, "MORE by 50%")])
def test_narrow_numbers_are_told_with_what_they_lose_and_what_they_hold(after: int, said: str) -> None:
    speed, held = findings.of_eight_bits(bits(after))
    assert "INT8: 4.0 x" in speed
    assert "0.10 % of accuracy (at most 0.40 %" in speed
    assert said in held


def test_shapes_are_told_by_the_least_cosine_and_the_dearest_shape() -> None:
    def size(name: str, cosine: float, spent: float) -> sizes.Size:
        times = {sizes.PLAIN: [40.0], sizes.DYNAMIC: [spent], sizes.ALONE: [10.0]}
        return sizes.Size(name, 32, 64, times, {sizes.DYNAMIC: cosine})

    built = Built(Path("x.engine"), 1.0, "bf16", (), 5, "not tried", "", ())
    found = sizes.Found((size("720p", 0.9999, 10.0), size("4K", 0.9995, 12.0)), built, {})
    kept, cost = findings.of_sizes(found)
    assert "0.99950: kept" in kept
    assert "1.00 to 1.20 times" in cost
    assert "3.3 to 4.0 times as fast" in cost
    worse = replace(found, sizes=(size("720p", 0.99, 10.0),))
    assert "MISSED" in findings.of_sizes(worse)[0]


def test_figures_of_a_gpu_are_told_and_drawn() -> None:
    pytest.importorskip("plotly")
    from benches.stories.utilising.gpu_drawing import story

    def row(batch: int, compute: float, tuned: float = 1.0) -> dict[str, float]:
        held = {"weights": MIB, "program": 0, "context": batch * MIB}
        return {"milliseconds": 2 * compute, "compute": compute, "tuned": tuned, **held}

    def contender(precision: str, compute: float) -> dict[str, Any]:
        rows = {str(batch): row(batch, compute) for batch in eight_bits.BATCHES}
        return {"precision": precision, "accuracy": 1.0, "build_seconds": 3.0, "int8": "chosen", "by_batch": rows}

    pair = {"fp32": contender("fp32", 6.0), "auto": contender("int8", 1.0)}
    both = {"one engine": row(1, 3.0), "alone": row(1, 2.0)}
    found = {
        "device": "cuda:0",
        "bits": {"contenders": pair, "drop": 0.0, "drop_at_most": 0.001, "lines": 136},
        "shapes": {
            "engine": {"precision": "fp16"},
            "sizes": [{"name": "4K", "shape": "1x3x32x32", "cosine": 0.99, **both}],
        },
        "batches": {
            "by_batch": {"1": row(1, 1.0), "8": row(8, 2.0), "16": row(16, 1.0, 0.0)},
            "available_bytes": 101 * MIB,
        },
    }
    told = "\n".join(gpu_findings(found))
    for said in ("6.0 times less", "0.990000: MISSED", "1.50 times", "batch 8 is best", "before batch 16 was tuned"):
        assert said in told
    assert "the rule says 80" in told
    drawn = story(found)
    assert len(drawn.tables) == len(drawn.figures) == 3


# ---- the process ----


def test_a_worker_computes_what_it_is_told_and_says_what_failed(doubling: Path) -> None:
    x = np.array([[1.0, -2.0, 3.0, 0.5]], np.float32)
    with Worker() as worker:
        assert worker.load(doubling) > 0
        assert np.array_equal(worker.answer({"x": x})["y"], np.maximum(2 * x, 0))
        assert 0 < worker.time({"x": x}, seconds=0.01) < 1000
        assert worker.memory().peak > MIB
        with pytest.raises(RuntimeError, match="answer: InvalidArgument"):
            worker.answer({"x": x[:, :2]})
        assert np.array_equal(worker.answer({"x": x})["y"], np.maximum(2 * x, 0))


def test_frames_differ_by_side_and_have_the_shape_asked_for() -> None:
    pytest.importorskip("skimage")
    from benches.models.pictures import Side

    judged, learnt = (sizes.frame(736, 1280, side) for side in (Side.HELD_OUT, Side.CALIBRATION))
    assert judged.shape == learnt.shape == (1, 3, 736, 1280)
    assert judged.dtype == np.float32
    assert -1 <= judged.min() < judged.max() <= 1
    assert not np.array_equal(judged, learnt)
