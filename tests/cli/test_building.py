"""The verbs about engines, as processes: build, inspect, check, time, compare. One small engine serves all of them."""

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from penstock import cli
from penstock.engine import sealed
from tests import onnx_models
from tests.cli.processes import run
from tests.docs.documented import unexplained

pytestmark = pytest.mark.slow

ROWS = 16


def write_net(path: Path) -> Path:
    """Two layers, [batch, 8] -> [batch, 4]: something to fuse and something to compute in fewer bits."""
    rng = np.random.default_rng(5)
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="first"),
        helper.make_node("Add", ["a", "b1"], ["b"], name="bias"),
        helper.make_node("Relu", ["b"], ["c"], name="relu"),
        helper.make_node("MatMul", ["c", "w2"], ["y"], name="second"),
    ]
    weights = {"w1": (8, 32), "b1": (32,), "w2": (32, 4)}
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(rng.standard_normal(shape, np.float32), name) for name, shape in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return onnx_models.save(model, path)


def document(ended: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """All of standard output is one document, without what JSON does not have, and docs/json.md explains its keys."""

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    found: dict[str, Any] = json.loads(ended.stdout, parse_constant=refuse)
    verb = ended.args[ended.args.index("-c") + 2]
    assert unexplained(verb, found) == set()
    return found


def error_line(ended: subprocess.CompletedProcess[str]) -> str:
    """Errors are one line, the last; progress may stand before it."""
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    return ended.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("engines")
    write_net(made / "net.onnx")
    np.savez(made / "data.npz", x=np.random.default_rng(1).standard_normal((ROWS, 8)).astype(np.float32))
    return made


@pytest.fixture(scope="module")
def built(folder: Path) -> subprocess.CompletedProcess[str]:
    ended = run(
        "build", str(folder / "net.onnx"), "-o", str(folder / "net.engine"), "--shapes", "x:1x8,4x8,16x8",
        "--budget", "10s", "--json",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended


@pytest.fixture(scope="module")
def engine(folder: Path, built: subprocess.CompletedProcess[str]) -> Path:
    assert built.returncode == 0
    return folder / "net.engine"


# ---- build ----


def test_a_build_says_what_won_and_why(built: subprocess.CompletedProcess[str]) -> None:
    found = document(built)
    assert sorted(each["shapes"]["x"] for each in found["buckets"]) == [[1, 8], [4, 8], [16, 8]]
    chosen = {each["tactic"] for each in found["candidates"] if each["chosen"]}
    assert {each["tactic"] for each in found["buckets"]} == chosen
    assert found["accuracy"]["passed"] is True
    assert found["accuracy"]["gate"] == "cosine>=0.999"
    assert len(found["reasons"]) == 3
    assert all(each["time_us"] > 0 for each in found["buckets"])


def test_progress_is_on_standard_error(built: subprocess.CompletedProcess[str]) -> None:
    stages = [match[1] for line in built.stderr.splitlines() if (match := re.match(r" *[\d.]+ s  (\w+)", line))]
    assert stages[0] == "optimize"
    assert "race" in stages
    assert stages[-1] == "seal"


def test_without_json_there_is_a_table(folder: Path) -> None:
    ended = run(
        "build", str(folder / "net.onnx"), "-o", str(folder / "table.engine"), "--optShapes", "x:4x8",
        "--precision", "fp32", "--budget", "5s",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert re.match(r"candidate +4x8 ms +verdict", lines[0])
    assert any(line.rstrip().endswith("chosen") for line in lines)
    assert any(line.startswith("accuracy on noise: cosine") for line in lines)
    assert "no calibration data, so INT8 was not tried" in lines
    assert not re.search(r"bf16|fp16|int8 ", ended.stdout)
    assert ended.stderr.splitlines()[-1].startswith("penstock: table.engine is built: fp32")


def test_an_engine_that_fails_its_gate_is_not_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "never_good.py").write_text("def score(run):\n    return 0.5\n")
    monkeypatch.chdir(folder)
    ended = run(
        "build", "net.onnx", "-o", "bad.engine", "--accuracy", "never_good:score drop<=-1", "--shapes", "x:4x8",
        "--budget", "5s",
    )  # fmt: skip
    line = error_line(ended)
    assert line.startswith("penstock: ")
    assert "never_good:score" in line
    assert not (folder / "bad.engine").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent.onnx", "-o", "a.engine"], ("absent.onnx",)),
        (["broken.onnx", "-o", "a.engine"], ("broken.onnx", "not an ONNX model")),
        (["net.onnx", "-o", "nowhere/a.engine"], ("'nowhere'", "does not exist")),
        (["net.onnx", "-o", "folder.engine"], ("folder.engine is a directory",)),
        (["folder.engine", "-o", "a.engine"], ("'folder.engine' is a directory",)),
        (["net.onnx", "-o", "a.engine", "--shapes", "x:99999999999x8"], ("3199999999968 bytes", "are available here")),
        (["net.onnx", "-o", "a.engine", "--calibration", "net.onnx"], ("net.onnx is no readable .npz", "of numbers")),
        (["net.onnx", "-o", "a.engine", "--shapes", "z:1x8"], ("'z'", "x FP32[-1, 8]")),
        (["net.onnx", "-o", "a.engine", "--shapes", "x:1x9"], ("'x'", "[-1, 8]", "1x9")),
        (["open.onnx", "-o", "a.engine"], ("'x'", "[n, m]", "--shapes x:<n>x<m>")),
        (["net.onnx", "-o", "a.engine", "--shapes", "x:4x8", "--buckets", "5"], ("buckets 5", "x:4x8")),
        (["net.onnx", "-o", "a.engine", "--calibration", "absent.npz"], ("absent.npz",)),
        (["net.onnx", "-o", "a.engine", "--device", "cuda:0"], ("cuda:0",)),
        (["net.onnx", "-o", "a.engine", "--reduce", "z:argmax@1"], ("z",)),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_what_can_not_be_built_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(folder)
    (folder / "folder.engine").mkdir(exist_ok=True)
    (folder / "broken.onnx").write_bytes(b"this is no ONNX file")
    onnx_models.identity(folder / "open.onnx", shape=("n", "m"))
    ended = run("build", *arguments)
    line = error_line(ended)
    assert ended.stdout == ""
    assert str(folder) not in line
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["build"],
        ["build", "net.onnx"],
        ["build", "net.onnx", "-o", "net.plan"],
        ["build", "net.onnx", "-o", "a.engine", "--budget", "5"],
        ["build", "net.onnx", "-o", "a.engine", "--workspace", "1"],
        ["build", "net.onnx", "-o", "a.engine", "--precision", "fp4"],
        ["build", "net.onnx", "-o", "a.engine", "--device", "tpu"],
        ["build", "net.onnx", "-o", "a.engine", "--shapes", "1x8"],
        ["build", "net.onnx", "-o", "a.engine", "--minShapes", "x:1x8"],
        ["build", "net.onnx", "-o", "a.engine", "--buckets", "0"],
        ["build", "net.onnx", "-o", "a.engine", "--accuracy", "good"],
        ["build", "net.onnx", "-o", "a.engine", "--no-such-flag"],
        ["time", "net.onnx", "--streams", "0"],
        ["time", "net.onnx", "--percentile", "101"],
        ["time", "net.onnx", "--shapes", "x"],
        ["compare", "net.onnx"],
        ["compare", "net.onnx", "net.onnx", "--accuracy", "good"],
        ["inspect"],
        ["check"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["penstock", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert "Usage: " in err


# ---- inspect ----


def test_inspect_shows_an_engine(engine: Path) -> None:
    found = document(run("inspect", str(engine), "--json"))
    assert (found["kind"], found["name"], found["file"]) == ("engine", "net", "net.engine")
    assert found["file_bytes"] == engine.stat().st_size
    assert found["profiles"] == [{"min": {"x": [1, 8]}, "opt": {"x": [4, 8]}, "max": {"x": [16, 8]}}]
    assert len(found["buckets"]) == 3
    assert found["regions"]
    assert {name for region in found["regions"] for name in region["nodes"]} <= {"first", "bias", "relu", "second"}
    assert found["evidence"]["accuracy"]["passed"] is True
    assert found["memory_bytes"] > 0


def test_inspect_shows_an_engine_to_people(engine: Path) -> None:
    ended = run("inspect", str(engine))
    assert ended.returncode == 0, ended.stderr
    for word in (
        "net.engine: net, ",
        "profile: x:1x8 to x:16x8, best at x:4x8",
        "bucket",
        "candidate",
        "region",
        "chosen",
    ):
        assert word in ended.stdout


def test_inspect_shows_what_layers_become(folder: Path) -> None:
    found = document(run("inspect", str(folder / "net.onnx"), "--json"))
    assert (found["kind"], found["nodes"], found["layers"]) == ("onnx", 4, 4)
    assert len(found["regions"]) == 2
    assert {name for region in found["regions"] for name in region["nodes"]} == {"first", "bias", "relu", "second"}
    ended = run("inspect", str(folder / "net.onnx"))
    assert "net.onnx: 4 nodes, 4 layers -> 2 regions" in ended.stdout


@pytest.mark.parametrize("name", ["absent.engine", "absent.onnx", "data.npz", "cut.engine"])
def test_what_can_not_be_inspected_is_one_line(folder: Path, engine: Path, name: str) -> None:
    (folder / "cut.engine").write_bytes(engine.read_bytes()[:-100])
    ended = run("inspect", str(folder / name))
    assert name in error_line(ended)
    assert ended.stdout == ""


# ---- check ----


def elsewhere(engine: Path, copy: Path, changes: Mapping[str, Any]) -> Path:
    """The same engine as another machine would have sealed it."""
    found = sealed.read(engine)
    manifest = replace(found.manifest, fingerprint=replace(found.manifest.fingerprint, **changes))
    members = {
        name: bytes(data) for name, data in found.members.items() if name not in (sealed.MANIFEST, sealed.EVIDENCE)
    }
    sealed.write(copy, manifest, members, found.evidence)
    return copy


@pytest.mark.parametrize(
    ("changes", "action", "status"),
    [
        ({}, "run", 0),
        ({"model": "another processor", "features": ("abacus",)}, "retune", 3),
        ({"device": "cuda:another"}, "refuse", 4),
    ],
)
def test_check_tells_by_its_exit_status(
    engine: Path, tmp_path: Path, changes: dict[str, Any], action: str, status: int
) -> None:
    copy = elsewhere(engine, tmp_path / "copy.engine", changes)
    ended = run("check", str(copy), "--json")
    found = document(ended)
    assert (ended.returncode, found["action"], found["exit_status"]) == (status, action, status)
    assert bool(found["reasons"]) == (action != "run")
    ended = run("check", str(copy))
    assert (ended.returncode, ended.stdout.splitlines()[0]) == (status, action)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign"])
def test_check_refuses_what_is_damaged(engine: Path, tmp_path: Path, damage: str) -> None:
    data = bytearray(engine.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
    elif damage == "empty":
        data.clear()
    else:
        data = bytearray(b"this is no engine")
    path = tmp_path / "damaged.engine"
    path.write_bytes(data)
    ended = run("check", str(path), "--json")
    found = document(ended)
    assert (ended.returncode, found["action"], found["built_on"]) == (4, "refuse", None)
    assert "damaged.engine" in found["reasons"][0]
    assert str(tmp_path) not in ended.stdout + ended.stderr


def test_check_of_nothing_is_an_error(tmp_path: Path) -> None:
    assert "'absent.engine' does not exist" in error_line(run("check", str(tmp_path / "absent.engine")))


# ---- time ----


def test_time_reports_as_trtexec_does(engine: Path) -> None:
    ended = run(
        "time", str(engine), "--duration=0", "--iterations=20", "--warmUp=0", "--percentile=50,99", "--dumpProfile"
    )
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[0] == "=== Performance summary ==="
    assert re.match(r"Throughput: [\d.e+]+ qps \([\d.e+]+ rows/s\)$", lines[1])
    names = ("min", "max", "mean", "median", r"percentile\(50%\)", r"percentile\(99%\)")
    numbers = ", ".join(rf"{name} = \S+ ms" for name in names) + "$"
    for name, line in zip(("Latency", "Enqueue Time", "", "Compute Time"), lines[2:], strict=False):
        assert not name or re.match(f"{name}: {numbers}", line)
    assert lines[4].startswith("H2D Latency: 0 ms")
    assert lines[6].startswith("D2H Latency: 0 ms")
    assert "=== Profile ===" in lines
    assert any(line.startswith("total ") for line in lines)


@pytest.mark.parametrize("name", ["net.engine", "net.onnx"])
def test_time_in_json(folder: Path, engine: Path, name: str) -> None:
    assert engine.exists()
    ended = run(
        "time", str(folder / name), "--shapes", "x:2x8", "--duration=0", "--iterations=7", "--streams=2",
        "--threads=1", "--warmUp=0", "--json", "--inputs", str(folder / "data.npz"),
    )  # fmt: skip
    found = document(ended)
    assert (found["calls"], found["streams"], found["shapes"]) == (14, 2, {"x": [2, 8]})
    assert found["throughput_rows_per_s"] == pytest.approx(2 * found["throughput_calls_per_s"])
    assert found["latency_ms"]["min"] <= found["latency_ms"]["percentile_90"] <= found["latency_ms"]["max"]
    assert found["host_to_device_ms"]["max"] == 0
    assert (found["enqueue_time_ms"] is None) == (name == "net.onnx")
    assert found["regions"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent.engine"], "absent.engine"),
        (["net.engine", "--shapes", "x:17x9"], "'x'"),
        (["net.engine", "--runtime", "openvino"], "brings its own libraries"),
        (["net.onnx", "--inputs", "absent.npz"], "absent.npz"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_what_can_not_be_timed_is_one_line(
    folder: Path, engine: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    assert engine.exists()
    monkeypatch.chdir(folder)
    assert words in error_line(run("time", *arguments))


# ---- compare ----


def test_compare_puts_the_same_inputs_through_both(folder: Path, engine: Path) -> None:
    ended = run("compare", str(folder / "net.onnx"), str(engine), "--accuracy", "cosine>=0.99", "--samples=3", "--json")
    found = document(ended)
    assert ended.returncode == 0
    (output,) = found["outputs"]
    assert (output["name"], found["samples"], found["inputs"]) == ("y", 3, "noise")
    assert output["cosine"] > 0.99
    assert found["accuracy"]["passed"] is True


def test_compare_fails_when_the_gate_does(folder: Path) -> None:
    onnx_models.scale(folder / "one.onnx", 1)
    onnx_models.scale(folder / "minus.onnx", -1)
    ended = run("compare", str(folder / "one.onnx"), str(folder / "minus.onnx"), "--accuracy", "cosine>=0.9")
    assert "output 'y': cosine -1, expected at least 0.9" in error_line(ended)
    assert re.search(r"^y +-1.000000", ended.stdout, re.MULTILINE)
    assert run("compare", str(folder / "one.onnx"), str(folder / "minus.onnx")).returncode == 0, "told no limit"


def test_compare_reads_inputs_and_says_what_is_equal(folder: Path) -> None:
    shutil.copy(folder / "net.onnx", folder / "copy.onnx")
    data = str(folder / "data.npz")
    found = document(run("compare", str(folder / "net.onnx"), str(folder / "copy.onnx"), "--inputs", data, "--json"))
    assert (found["inputs"], found["samples"], found["outputs"][0]["identical"]) == ("data.npz", 8, True)
    assert found["outputs"][0]["snr_db"] is None  # infinite


def test_models_that_take_other_inputs_are_not_compared(folder: Path) -> None:
    onnx_models.add_and_subtract(folder / "two.onnx")
    assert "expected the same inputs" in error_line(run("compare", str(folder / "net.onnx"), str(folder / "two.onnx")))
