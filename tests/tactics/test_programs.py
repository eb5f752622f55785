"""Programs outside a race: run, profiled and exported in a process of their own."""

from pathlib import Path

import numpy as np
import pytest

import penstock as ps
from penstock.engine.plan import Tactic
from penstock.tactics import CandidateLost, Form, Limits, Lost, compiled, export, profile
from tests.tactics.helpers import fault

SHAPES = {"x": (2, 3, 32, 32)}
X = np.random.default_rng(8).standard_normal(SHAPES["x"]).astype(np.float32)
TACTICS = [
    Tactic("onnxruntime", "fp32"),
    Tactic("openvino", "fp32"),
    Tactic("openvino", "fp32", shapes="static"),
    Tactic("openvino", "fp32", threads=1),
]
EACH = pytest.mark.parametrize("tactic", TACTICS, ids=lambda tactic: tactic.name)


@EACH
def test_a_program_computes_what_the_model_does(tactic: Tactic, network: Path) -> None:
    expected = ps.load(network)(x=X)["y"]
    with compiled(tactic, Form(network, "fp32", False), SHAPES) as child:
        for _ in range(2):
            np.testing.assert_allclose(child.run({"x": X})["y"], expected, rtol=1e-3, atol=1e-5)


@EACH
def test_a_profile_names_what_is_executed(tactic: Tactic, network: Path) -> None:
    regions = profile(tactic, Form(network, "fp32", False), SHAPES, {"x": X}, repeats=3)
    assert not isinstance(regions, Lost)
    assert {"first", "second"} <= {node for region in regions for node in region.nodes}
    assert sum(region.microseconds for region in regions) > 0


@EACH
def test_an_artifact_is_written(tactic: Tactic, network: Path, tmp_path: Path) -> None:
    exported = export(tactic, Form(network, "fp32", False), SHAPES, tmp_path / "artifact")
    assert not isinstance(exported, Lost)
    assert exported.path.stat().st_size == exported.bytes > 1000


def test_a_broken_program_is_lost(network: Path, faulty: Limits, tmp_path: Path) -> None:
    form = Form(network, "fp32", False)
    with pytest.raises(CandidateLost), compiled(fault("crash"), form, limits=faulty):
        pytest.fail("it can't be compiled")
    assert isinstance(profile(fault("fail"), form, SHAPES, {"x": X}, limits=faulty), Lost)
    assert isinstance(export(fault("leave"), form, None, tmp_path / "artifact", limits=faulty), Lost)
    assert not (tmp_path / "artifact").exists()
