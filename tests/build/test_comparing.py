"""Two models on the same inputs: numbers, verdicts, and where the inputs come from."""

import math
from pathlib import Path

import numpy as np
import pytest

from penstock import engine
from penstock.build import comparing
from penstock.build.gate import Cosine
from penstock.engine import Runtime
from penstock.errors import InvalidArgument
from tests import onnx_models


def scaled(folder: Path, factor: float) -> Runtime:
    return engine.load(onnx_models.scale(folder / f"{factor}.onnx", factor))


def test_the_same_inputs_go_through_both(tmp_path: Path) -> None:
    first, second = scaled(tmp_path, 2), scaled(tmp_path, 3)
    samples = comparing.samples_of(first, {"x": (5, 4)}, None, 3)
    (found,) = comparing.compare(first, second, samples)
    assert len(samples) == 3
    assert found.cosine == pytest.approx(1)
    assert found.maximum_relative == pytest.approx(0.5)
    assert comparing.judge(Cosine(), first, second, samples).passed
    assert not comparing.judge(Cosine(), first, scaled(tmp_path, -2), samples).passed


def test_nan_is_a_fault(tmp_path: Path) -> None:
    first, second = scaled(tmp_path, 2), scaled(tmp_path, math.nan)
    samples = comparing.samples_of(first, {"x": (5, 4)}, None, 1)
    assert "NaN in 20 of 20" in comparing.compare(first, second, samples)[0].fault
    assert not comparing.judge(Cosine(-1), first, second, samples).passed


def test_noise_is_seeded(tmp_path: Path) -> None:
    model = scaled(tmp_path, 2)
    first, again = (comparing.samples_of(model, {"x": (5, 4)}, None, 2) for _ in range(2))
    assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0]["x"], first[1]["x"])


def test_inputs_of_a_file(tmp_path: Path) -> None:
    model = scaled(tmp_path, 2)
    rows = np.arange(24, dtype=np.float32).reshape(6, 4)
    np.savez(tmp_path / "data.npz", x=rows)
    samples = comparing.samples_of(model, {}, tmp_path / "data.npz", 4)
    assert np.array_equal(np.concatenate([each["x"] for each in samples]), rows[:4])


def test_models_with_other_inputs_are_refused(tmp_path: Path) -> None:
    first = scaled(tmp_path, 2)
    second = engine.load(onnx_models.add_and_subtract(tmp_path / "two.onnx"))
    with pytest.raises(InvalidArgument, match=r"A takes x FP32.* B takes a FP32"):
        comparing.same_inputs(first, second)


@pytest.mark.parametrize(("asked", "rows"), [([], 8), (["x:3x4"], 3), (["x:1x4,2x4,3x4"], 2)])
def test_shapes_are_the_optimum(tmp_path: Path, asked: list[str], rows: int) -> None:
    assert comparing.shapes_of([scaled(tmp_path, 2)], asked) == {"x": (rows, 4)}


def test_shapes_of_two_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="2 profiles: an input comes twice"):
        comparing.shapes_of([scaled(tmp_path, 2)], ["x:3x4", "x:1x4"])
