"""`penstock serve --trace` and `penstock inspect` of what it wrote, as processes."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import InvalidArgument
from penstock.pipeline.waterfall import records, render
from tests.cli.processes import Serve, run
from tests.cli.test_building import document, error_line
from tests.cli.test_serve import ask
from tests.serve.calls import eventually
from tests.servers.raw import dumps

PROGRAM = """
import penstock as ps


@ps.model(name="double", max_batch_size=8)
def double(x: ps.F32[4]) -> ps.F32[4]:
    return x * 2


def halved(x):
    if x[0] < 0:
        raise ValueError("no such picture")
    return x / 2


@ps.pipeline
async def there_and_back(x: ps.F32[4]) -> ps.F32[4]:
    return await ps.cpu(halved, await ps.use(double)(x))


def made():
    server = ps.Server()
    server.add(double)
    server.add(there_and_back)
    return server
"""
ROUNDING_MS = 0.002
"""Of two times to a microsecond."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "app.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def send(serve: Serve, first: float, name: str) -> int:
    tensor = {"name": "x", "shape": [4], "datatype": "FP32", "data": [first, 2, 3, 4]}
    body = dumps(id=name, inputs=[tensor])
    return ask(serve.port("http"), "POST", "/v2/models/there_and_back/infer", body)[0]


def lines(trace: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in trace.read_text().splitlines()]


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of seven good requests and a bad one; for reading."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "app.py").write_text(PROGRAM)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        serve = Serve("app:made", "--trace", "trace.jsonl")
    with serve:
        for number in range(7):
            assert send(serve, 1.0, f"page {number}") == 200
        # As soon as they are done, and not when the server stops.
        eventually("the lines are there", lambda: len(lines(folder / "trace.jsonl")) == 7)
        assert send(serve, -1.0, "bad") == 500
        serve.process.send_signal(signal.SIGTERM)
        assert serve.exit_code() == 0
        assert not any("WARNING" in line for line in serve.lines)
    return folder / "trace.jsonl"


def test_every_request_has_a_line_whose_steps_add_up(trace: Path) -> None:
    found = lines(trace)
    assert [(each["pipeline"], each["request"]) for each in found] == [
        *(("there_and_back", f"page {number}") for number in range(7)),
        ("there_and_back", "bad"),
    ]
    assert [each["status"] for each in found] == ["ok"] * 7 + ["failed"]
    assert [step["status"] for step in found[-1]["steps"]] == ["ok", "failed"]
    for each in found:
        steps = each["steps"]
        assert [(step["step"], step["kind"]) for step in steps] == [("double", "call"), ("halved", "cpu")]
        total, before, taken = each["total_ms"], 0.0, 0.0
        for step in steps:
            duration = step["end_ms"] - step["start_ms"]
            assert before <= step["start_ms"] < step["end_ms"] <= total
            assert 0 < step["queue_ms"] <= duration + ROUNDING_MS
            before, taken = step["end_ms"], taken + duration
        assert 0 < taken <= total + ROUNDING_MS


def test_inspect_counts_steps_and_draws_the_slowest(trace: Path) -> None:
    ended = run("inspect", str(trace))
    assert (ended.returncode, ended.stderr) == (0, "")
    shown = ended.stdout.splitlines()
    assert shown[0] == "trace.jsonl: 8 requests"
    table = [line.split()[:6] for line in shown[2:5]]
    assert table == [
        ["there_and_back", "request", "request", "7", "1", "0"],
        ["there_and_back", "double", "call", "8", "0", "0"],
        ["there_and_back", "halved", "cpu", "7", "1", "0"],
    ]
    assert "the slowest 5:" in shown
    drawn = [line for line in shown if line.startswith("there_and_back ") and "in the queue" in line]
    totals = [float(line.partition(" ms")[0].split()[-1]) for line in drawn]
    assert len(totals) == 5
    assert totals == sorted(totals, reverse=True)
    assert sum("|" in line and "█" in line for line in shown) == 10
    everything = run("inspect", str(trace), "--all").stdout
    assert everything.count("in the queue") == 8
    assert "there_and_back bad  failed" in everything


def test_the_document_of_a_trace_is_explained_and_agrees_with_the_lines(trace: Path) -> None:
    found = document(run("inspect", str(trace), "--json"))
    assert (found["kind"], found["file"], found["requests"]) == ("trace", "trace.jsonl", 8)
    told = {each["request"]: each for each in lines(trace)}
    assert [told[each["request"]] for each in found["shown"]] == found["shown"]
    good = [each["total_ms"] for each in told.values() if each["status"] == "ok"]
    whole = found["steps"][0]
    assert whole["mean_ms"] == pytest.approx(sum(good) / 7, abs=0.001)
    assert (whole["max_ms"], whole["median_ms"]) == (max(good), sorted(good)[3])


def test_a_trace_goes_on_where_it_was(trace: Path, folder: Path) -> None:
    shutil.copy(trace, folder / "again.jsonl")
    with Serve("app:made", "--trace=again.jsonl") as serve:
        assert send(serve, 1.0, "again") == 200
        serve.process.send_signal(signal.SIGTERM)
        assert serve.exit_code() == 0
    assert [each["request"] for each in lines(folder / "again.jsonl")][7:] == ["bad", "again"]


@pytest.mark.parametrize(
    ("path", "words"),
    [("absent/trace.jsonl", "No such file or directory"), (".", "Is a directory"), ("app.py/t.jsonl", "Not a dir")],
)
def test_a_trace_that_can_not_be_opened_is_one_line(path: str, words: str) -> None:
    ended = run("serve", "app:made", "--trace", path, "--http-port=0", "--grpc-port=0", "--metrics-port=0")
    (line,) = ended.stderr.splitlines()
    assert ended.returncode == 1
    assert words in line
    assert "can't be opened" in line


def test_a_trace_of_a_model_is_warned_of() -> None:
    with Serve("app:double", "--trace", "trace.jsonl") as serve:
        assert any("a trace is of pipelines" in line for line in serve.lines)


def test_what_is_no_trace_is_one_line(folder: Path) -> None:
    (folder / "odd.jsonl").write_text('{"seconds": 1}\n')
    assert "odd.jsonl: line 1 is no request of a trace: it has no pipeline" in error_line(run("inspect", "odd.jsonl"))
    assert "'absent.jsonl' does not exist" in error_line(run("inspect", "absent.jsonl"))
    assert "a trace (.jsonl)" in error_line(run("inspect", "app.py"))
    assert "'absent.py' does not exist" in error_line(run("inspect", "absent.py"))
    (folder / "folder.jsonl").mkdir()
    assert "folder.jsonl is a directory" in error_line(run("inspect", "folder.jsonl"))
    (folder / "empty.jsonl").write_text("")
    assert run("inspect", "empty.jsonl").stdout == "empty.jsonl: 0 requests\n"


STEP = {"step": "s", "kind": "call", "status": "ok", "start_ms": 0, "end_ms": 1.5, "queue_ms": None}
RECORD = {"pipeline": "p", "request": "1", "status": "ok", "queue_ms": 0.5, "total_ms": 2.0, "steps": [STEP]}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"\xff", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (json.dumps(RECORD | {"total_ms": "x"}).encode(), 'total_ms is "x", expected milliseconds'),
        (json.dumps(RECORD | {"total_ms": float("nan")}).encode(), "total_ms is NaN, expected milliseconds"),
        (json.dumps(RECORD | {"queue_ms": True}).encode(), "queue_ms is true, expected milliseconds"),
        (json.dumps(RECORD | {"pipeline": ["p"]}).encode(), 'pipeline is ["p"], expected text'),
        (json.dumps(RECORD | {"steps": {}}).encode(), "steps is {}, expected a list"),
        (
            json.dumps(RECORD | {"steps": [STEP | {"end_ms": 1e300}]}).encode(),
            "end_ms is 1e+300, expected milliseconds",
        ),
        (json.dumps(RECORD | {"steps": [3]}).encode(), "it has no end_ms"),
        (b'{"pipeline": 1' + b"0" * 400 + b"}", "it has no queue_ms"),
    ],
)
def test_a_line_that_no_server_wrote_is_named(line: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(json.dumps(RECORD).encode() + b"\n" + line + b"\n")
    with pytest.raises(InvalidArgument, match=r"t\.jsonl: line 2 ") as caught:
        list(records(tmp_path / "t.jsonl"))
    assert words in caught.value.message


def test_times_that_do_not_fit_together_are_drawn_within_the_line() -> None:
    drawn = render(RECORD | {"total_ms": 1e-9, "steps": [STEP | {"start_ms": -1e9, "end_ms": 1e9}]})
    assert max(map(len, drawn.splitlines())) < 200
