"""`penstock serve MODULE:NAME` as a process: what a program made is served, under the flags, until a signal."""

import contextlib
import http.client
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

import penstock as ps
from penstock.cli import app
from tests.cli.processes import Serve, run
from tests.cli.test_serve import SECONDS, ask, values
from tests.serve.calls import eventually
from tests.servers.raw import dumps

# As the installed command has it: the working directory is not on the path unless penstock puts it there.
INSTALLED = {"PYTHONSAFEPATH": "1"}

PROGRAM = """
import numpy as np

import penstock as ps
from helpers import halved, opened


@ps.model(name="double", max_batch_size=8)
def double(x: ps.F32[4]) -> ps.F32[4]:
    return x * 2


@ps.pipeline
async def halve(x: ps.F32[4]) -> ps.F32[4]:
    return await ps.cpu(halved, x)


@ps.pipeline
async def there_and_back(x: ps.F32[4]) -> ps.F32[4]:
    return await ps.cpu(halved, await ps.use(double)(x))


@ps.pipeline
async def wait(x: ps.F32[4]) -> ps.F32[4]:
    await ps.cpu(opened)
    return await ps.use(double)(x)


server = ps.Server(
    http_port=0,
    grpc_port=None,
    metrics_port=0,
    max_body_bytes=300,
    exit_timeout_seconds=20,
    server_name="the program's",
    admin_token="of the program",
    model_control_mode="explicit",
)
for each in (double, there_and_back, wait):
    server.add(each)


def made():
    return server


class Made:
    def of_a_class():
        return server


if __name__ == "__main__":
    server.run()
"""
HELPERS = """
from pathlib import Path


def halved(x):
    return x / 2


def opened():
    return Path("gate").read_text()  # a named pipe: until somebody has opened it to write
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of the program, and the working directory."""
    (tmp_path / "app.py").write_text(PROGRAM)
    (tmp_path / "helpers.py").write_text(HELPERS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def request(shape: list[int], **more: Any) -> bytes:
    tensor = {"name": "x", "shape": shape, "datatype": "FP32", "data": [1, 2, 3, 4]}
    return dumps(inputs=[tensor], **more)


def infer(serve: Serve, model: str, shape: list[int]) -> list[float]:
    status, body = ask(serve.port("http"), "POST", f"/v2/models/{model}/infer", request(shape))
    assert status == 200, body
    return values(body)


# ---- what is served ----


@pytest.mark.parametrize(
    ("name", "model", "shape", "answer"),
    [
        ("server", "there_and_back", [4], [1, 2, 3, 4]),
        ("made", "there_and_back", [4], [1, 2, 3, 4]),
        ("Made.of_a_class", "double", [1, 4], [2, 4, 6, 8]),
        ("double", "double", [1, 4], [2, 4, 6, 8]),
        ("halve", "halve", [4], [0.5, 1, 1.5, 2]),
    ],
)
def test_what_a_program_made_is_served(name: str, model: str, shape: list[int], answer: list[float]) -> None:
    with Serve(f"app:{name}", environment=INSTALLED) as serve:
        assert infer(serve, model, shape) == answer
        serve.process.send_signal(signal.SIGTERM)
        assert serve.exit_code() == 0
        assert serve.lines[-1] == "penstock: stopping"


# ---- whose settings count ----


def test_without_flags_the_program_s_settings_count() -> None:
    with Serve("app:server", free_ports=(), environment=INSTALLED) as serve:
        assert not any("grpc on" in line for line in serve.lines)
        port = serve.port("http")
        assert json.loads(ask(port, "GET", "/v2")[1])["name"] == "the program's"
        assert ask(port, "POST", "/v2/models/double/infer", request([1, 4], id="x" * 300))[0] == 413
        unload = "/v2/repository/models/double/unload"
        assert ask(port, "POST", unload, b"{}")[0] == 401
        assert ask(port, "POST", unload, b"{}", {"Authorization": "Bearer of the program"})[0] == 200


def test_flags_that_were_given_count_and_leave_the_others() -> None:
    environment = {**INSTALLED, "PENSTOCK_ADMIN_TOKEN": "of the user"}
    with Serve(
        "app:server", "--max-body-bytes=2000", "--allow-metrics=false", free_ports=["grpc"], environment=environment
    ) as serve:
        assert serve.port("grpc")
        assert not any("metrics on" in line for line in serve.lines)
        port = serve.port("http")
        assert json.loads(ask(port, "GET", "/v2")[1])["name"] == "the program's"
        assert ask(port, "POST", "/v2/models/double/infer", request([1, 4], id="x" * 300))[0] == 200
        unload = "/v2/repository/models/double/unload"
        for token, status in (("of the program", 401), ("of the user", 200)):
            assert ask(port, "POST", unload, b"{}", {"Authorization": f"Bearer {token}"})[0] == status


def test_defaults_of_flags_are_those_of_a_server() -> None:
    """A flag that was not given is left to `Server`, so `--help` must say what that does."""
    settings = ps.Server().settings
    found = {}
    for option in typer.main.get_group(app).commands["serve"].params:
        name = (option.name or "").replace("secs", "seconds").replace("load_model", "load_models")
        if hasattr(settings, name):
            found[name] = option.default
    assert len(found) > 15
    assert found.pop("load_models") is None
    assert settings.load_models == ()
    for name, default in found.items():
        told = getattr(settings, name)
        assert default == (str(told).lower() if isinstance(told, bool) else told), name


def test_settings_of_a_server_that_runs_stay() -> None:
    server = ps.Server(http_port=0, grpc_port=None, metrics_port=None)
    settings = server.settings
    with server, pytest.raises(ps.PenstockError, match="running already"):
        server.settings = settings
    server.settings = settings
    assert "secret" not in repr(ps.Server(admin_token="secret").settings)


# ---- the end ----


@contextlib.contextmanager
def waiting(serve: Serve) -> Iterator[http.client.HTTPConnection]:
    """A connection with a request that waits for the gate, once the server has it in flight."""
    connection = http.client.HTTPConnection("127.0.0.1", serve.port("http"), timeout=SECONDS)
    with contextlib.closing(connection):
        connection.request("POST", "/v2/models/wait/infer", request([4]))
        page = serve.port("metrics")
        eventually(
            "the request is in flight",
            lambda: "\npenstock_in_flight_requests 1\n" in ask(page, "GET", "/metrics")[1].decode(),
        )
        yield connection


def test_sigterm_finishes_what_is_in_flight_and_what_that_still_calls(folder: Path) -> None:
    os.mkfifo(folder / "gate")
    with Serve("app:server", free_ports=(), environment=INSTALLED) as serve, waiting(serve) as connection:
        serve.process.send_signal(signal.SIGTERM)
        serve.until("penstock: stopping")
        (folder / "gate").write_text("open")
        response = connection.getresponse()
        assert (response.status, values(response.read())) == (200, [2, 4, 6, 8])
        assert serve.exit_code() == 0


def test_the_exit_timeout_of_the_command_line_ends_a_program_that_hangs(folder: Path) -> None:
    os.mkfifo(folder / "gate")
    with Serve("app:server", "--exit-timeout-secs=0.5", free_ports=(), environment=INSTALLED) as serve, waiting(serve):
        serve.process.send_signal(signal.SIGTERM)
        assert serve.exit_code(seconds=10) == 1
        assert any("exit timeout" in line for line in serve.lines)
        assert not any("Traceback" in line or "Fatal" in line for line in serve.lines)


@pytest.mark.parametrize("sent", ["SIGTERM", "SIGINT"])
def test_a_signal_that_meets_another_thread_ends_the_server(folder: Path, sent: str) -> None:
    """The kernel chooses the thread; waiting for a lock, the main thread would not hear of it."""
    (folder / "app.py").write_text(
        f"""
import signal, threading

import penstock as ps


@ps.model(name="hit", max_batch_size=8)
def hit(x: ps.F32[4]) -> ps.F32[4]:
    assert threading.current_thread() is not threading.main_thread()
    signal.pthread_kill(threading.get_ident(), signal.{sent})
    return x


server = ps.Server(http_port=0, grpc_port=None, metrics_port=None)
server.add(hit)
"""
    )
    with Serve("app:server", free_ports=(), environment=INSTALLED) as serve:
        status, body = ask(serve.port("http"), "POST", "/v2/models/hit/infer", request([1, 4]))
        assert (status, values(body)) == (200, [1, 2, 3, 4])
        assert serve.exit_code(seconds=20) == 0


# ---- errors ----


@pytest.mark.parametrize(
    ("source", "program", "words"),
    [
        ("absent:server", "", ("there is no module 'absent'", "working directory")),
        ("broken:server", "import nothing_of_the_kind", ("no module 'nothing_of_the_kind', which it imports",)),
        ("broken:server", "x = 1", ("module 'broken' has no 'server'",)),
        ("broken:server", "def f(:", ("importing 'broken' raised SyntaxError", "broken.py, line 1")),
        ("broken:server", "\nraise ValueError('a\\nb')", ("raised ValueError: a b (broken.py, line 2)",)),
        ("broken:server", "raise SystemExit(3)", ("raised SystemExit: 3 (broken.py, line 1)",)),
        ("broken:server", "import penstock as ps\nps.Server(http_port=-1)", ("http_port is -1", "(broken.py, line 2)")),
        ("broken:server", "server = 3", ("broken:server: got a value of type int, expected a ps.Server",)),
        ("broken:server", "def server(): pass", ("got a value of type NoneType",)),
        ("broken:server", "async def server(): pass", ("got a value of type coroutine",)),
        ("broken:server", "def server(x): pass", ("can't be called without arguments", "'x'", "@ps.model")),
        ("broken:server", "def server():\n  raise KeyError(1)", ("calling it raised KeyError: 1 (broken.py, line 2)",)),
        ("broken.py:server", "x = 1", ("there is no module 'broken.py'", "such as app:server for `server` in app.py")),
        ("broken:", "", ("'broken:' is no name", "expected MODULE:NAME")),
        ("bro-ken:server", "", ("'bro-ken:server' is no name",)),
        (
            "broken:server",
            "import penstock as ps\nserver = ps.Server(http_port=0)\nserver.run()",
            ("broken:server: the program runs its server itself", '__name__ == "__main__"', "(broken.py, line 3)"),
        ),
        (
            "broken:server",
            "import penstock as ps\ndef server():\n  ps.Server(http_port=0).run()",
            ("the program runs its server itself", "return the server", "(broken.py, line 3)"),
        ),
        (
            "broken:server",
            "import penstock as ps\nserver = ps.Server(http_port=0, grpc_port=0, metrics_port=0)\nserver.start()",
            ("has started its server already",),
        ),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_what_is_no_program_to_serve_is_one_line(
    folder: Path, source: str, program: str, words: tuple[str, ...]
) -> None:
    (folder / "broken.py").write_text(program)
    ended = run("serve", source, environment=INSTALLED)
    assert (ended.returncode, ended.stdout) == (1, ""), ended.stderr
    (line,) = ended.stderr.splitlines()
    assert line.startswith("penstock: ")
    assert str(folder) not in line
    for word in words:
        assert word in line


def test_a_file_that_reads_as_a_program_is_asked_about(folder: Path) -> None:
    (folder / "app:server.onnx").write_bytes(b"this is no ONNX file")
    ended = run("serve", "app:server.onnx")
    (line,) = ended.stderr.splitlines()
    assert ended.returncode == 1
    assert "'app:server.onnx' is a file" in line
    assert "write ./app:server.onnx" in line
    # And so it is a file: one whose stem is no name of a model.
    assert "MODULE" not in run("serve", "./app:server.onnx").stderr


def test_the_traceback_of_a_program_is_in_the_log_of_everything(folder: Path) -> None:
    (folder / "broken.py").write_text("1 / 0")
    ended = run("serve", "broken:server", "--log-verbose=2", environment=INSTALLED)
    assert "Traceback" in ended.stderr
    assert "raised ZeroDivisionError: division by zero (broken.py, line 1)" in ended.stderr.splitlines()[-1]
