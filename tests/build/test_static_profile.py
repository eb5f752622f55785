"""A profile of one shape: the optimized form may be bound to it, and calls may still bring fewer or more rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import penstock as ps
from penstock import graph, tactics
from penstock.engine.plan import Tactic
from penstock.tactics import candidates
from tests.quantize import networks


@pytest.mark.parametrize("rows", [1, 3, 4, 9])
def test_any_number_of_rows_is_answered(rows: int, engine: ps.Engine) -> None:
    x = np.random.default_rng(rows).standard_normal((rows, 3, 64, 64)).astype(np.float32)
    together = engine(x=x)
    apart = [engine(x=x[row : row + 1]) for row in range(rows)]
    for name, found in together.items():
        assert found.shape[0] == rows
        np.testing.assert_allclose(found, np.concatenate([each[name] for each in apart]), rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ps.Engine:
    """Built so that each library's program is the one that is sealed."""
    folder: Path = tmp_path_factory.mktemp("static")
    graph.save(networks.residual(), folder / "m.onnx")
    wanted = request.param

    def only(*arguments: Any) -> list[Tactic]:
        return [each for each in candidates(*arguments) if each.runtime == wanted]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tactics, "candidates", only)
        made = ps.build(folder / "m.onnx", shapes="x:4x3x64x64", precision="fp32", budget_seconds=6)
    assert {program.tactic.runtime for program in made.manifest.programs} == {wanted}
    return made
