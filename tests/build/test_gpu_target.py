"""Builds for a GPU that can't be used: by name an error, with `auto` an engine for the CPU that says why."""

import importlib.util
from pathlib import Path

import pytest

import penstock as ps
from penstock import graph
from penstock.engine import gpus
from penstock.engine.gpus import Gpu
from penstock.errors import AccuracyError, Unsupported
from tests.quantize import networks

_FIND = importlib.util.find_spec
H200 = Gpu(0, "NVIDIA H200", 90, 132, 150 << 30, "13.0")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, and a driver that says there is a GPU, which no program will find."""
    if gpus.gpus():
        pytest.skip("there is an NVIDIA GPU")
    monkeypatch.setattr(gpus, "gpus", lambda: (H200,))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: _FIND(name) or object())
    graph.save(networks.residual(), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_auto_takes_the_cpu_with_all_its_libraries_and_says_why(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(gpus.DEVICE, raising=False)
    engine = ps.build(model, shapes="x:2x3x64x64", budget_seconds=20)
    assert engine.manifest.fingerprint.device == "cpu"
    assert any(note.startswith("built for the CPU: no program for the GPU passes") for note in engine.evidence["notes"])
    raced = {each["tactic"]["runtime"] for each in engine.evidence["timings"]}
    assert {"onnxruntime", "openvino"} <= raced
    assert gpus.chosen() == "cuda:0"  # the environment is as it was


def test_a_gpu_asked_for_by_name_is_not_replaced(model: Path) -> None:
    with pytest.raises(AccuracyError, match="no program for the GPU passes"):
        ps.build(model, device="cuda:0", shapes="x:2x3x64x64", budget_seconds=8)
    with pytest.raises(Unsupported, match="device cuda:3"):
        ps.build(model, device="cuda:3", shapes="x:2x3x64x64")
