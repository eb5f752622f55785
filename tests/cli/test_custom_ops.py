"""`--custom-ops` of every verb, as processes: an engine with a Python function in it is built, timed, served."""

import json
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests import onnx_models
from tests.cli.processes import Serve, run
from tests.cli.test_building import document, error_line

pytestmark = pytest.mark.slow

OPERATORS = """
import numpy as np
import penstock as ps

@ps.custom_op("tests.cli", "Triple")
def triple(x):
    return x * np.float32(3)

def more():
    ps.custom_op("tests.cli", "Other")(lambda x: x)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("operators")
    (made / "cli_operators.py").write_text(OPERATORS)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
            helper.make_node("Triple", ["a"], ["b"], name="triple", domain="tests.cli"),
            helper.make_node("Relu", ["b"], ["y"], name="last"),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("tests.cli", 1)]
    onnx_models.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), made / "net.onnx")
    return made


@pytest.fixture(scope="module")
def engine(folder: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ended = run(
            "build", "net.onnx", "-o", "net.engine", "--shapes", "x:1x4,2x4,4x4", "--budget", "5s",
            "--custom-ops", "cli_operators", "--json",
        )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert document(ended)["accuracy"]["passed"] is True
    return folder / "net.engine"


def test_a_build_without_the_module_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    line = error_line(run("build", "net.onnx", "-o", "lost.engine", "--budget", "5s"))
    assert "no library knows operator tests.cli::Triple (node 'triple')" in line
    assert "--custom-ops" in line
    assert not (folder / "lost.engine").exists()


@pytest.mark.parametrize(
    ("module", "words"),
    [("absent_operators", "there is no module 'absent_operators'"), ("cli_operators:less", "has no attribute 'less'")],
)
def test_a_module_that_is_not_there_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, module: str, words: str
) -> None:
    monkeypatch.chdir(folder)
    for verb in (["build", "net.onnx", "-o", "a.engine"], ["check", "net.onnx"]):
        assert words in error_line(run(*verb, "--custom-ops", module))


def test_inspect_lists_the_function_with_its_time(engine: Path) -> None:
    ended = run("inspect", str(engine), "--json")
    (region,) = [each for each in document(ended)["regions"] if each["tactic"] == "python"]
    assert (region["name"], region["kind"]) == ("triple", "tests.cli::Triple")
    assert region["time_us"] > 0


def test_check_refuses_until_it_is_given_the_module(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(engine.parent)
    refused = run("check", "net.engine")
    assert refused.returncode == 4
    assert "tests.cli::Triple (of cli_operators)" in refused.stdout
    assert run("check", "net.engine", "--custom-ops", "cli_operators").returncode == 0
    assert run("check", "net.engine", "--custom-ops", "cli_operators:more").returncode == 0


def test_time_and_compare_take_it(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(engine.parent)
    ended = run("time", "net.engine", "--duration", "0.1", "--json", "--custom-ops", "cli_operators", "--dumpProfile")
    found = document(ended)
    assert found["latency_ms"]["median"] > 0
    assert any(each["kind"] == "tests.cli::Triple" for each in found["regions"])
    same = run("compare", "net.engine", "net.engine", "--json", "--custom-ops", "cli_operators")
    assert [each["identical"] for each in document(same)["outputs"]] == [True]


def test_the_server_runs_it(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(engine.parent)
    body = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, -1, 2, 0]}]}
    with Serve("net.engine", "--custom-ops", "cli_operators") as server:
        url = f"http://127.0.0.1:{server.port('http')}/v2/models/net/infer"
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=20) as answer:
            assert json.loads(answer.read())["outputs"][0]["data"] == [3, 0, 6, 0]
