"""The section on custom operators is true: its module, its commands and its refusal, on a model with that operator."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests import onnx_models
from tests.cli.processes import run

GUIDE = (Path(__file__).resolve().parents[2] / "docs/building.md").read_text(encoding="utf-8")
CALL = "\nimport numpy as np\nprint(engine(x=np.array([[0, 1]], np.float32))['y'].tolist())\n"


@pytest.mark.slow
def test_the_example_builds_and_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = re.search(r"^## Custom operators\n(.*?)(?=^## )", GUIDE, re.MULTILINE | re.DOTALL)
    assert section is not None
    module, load = re.findall(r"```python\n(.*?)```", section[1], re.DOTALL)
    build = re.search(r"^penstock (build .*)$", section[1], re.MULTILINE)
    refusal = re.search(r"\$ penstock (check .*)\n((?:.*\n)*?)```", section[1])
    assert build is not None
    assert refusal is not None
    graph = helper.make_graph(
        [
            helper.make_node("Neg", ["x"], ["a"], name="before"),
            helper.make_node("Soften", ["a", "floor"], ["b"], name="soften", domain="my.domain", alpha=2.0),
            helper.make_node("Neg", ["b"], ["y"], name="behind"),
        ],
        "model",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(np.array(0.5, np.float32), "floor")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my.domain", 1)]
    onnx_models.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "model.onnx")
    (tmp_path / "my_ops.py").write_text(module)
    monkeypatch.chdir(tmp_path)
    built = run(*build[1].split(), "--budget", "5s", "--shapes", "x:1x2")
    assert built.returncode == 0, built.stderr
    assert run(*refusal[1].split()).stdout == refusal[2]
    ended = subprocess.run([sys.executable, "-c", load + CALL], capture_output=True, text=True, check=True, timeout=60)
    ((first, second),) = ast.literal_eval(ended.stdout)
    assert first == pytest.approx(-np.log(2), rel=1e-2)
    assert second == pytest.approx(-0.5)
