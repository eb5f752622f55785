"""`penstock serve` as a process: what it prints, how it ends, and that its flags are Triton's."""

import contextlib
import http.client
import itertools
import json
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cli.processes import Serve, run, write_counter
from tests.serve.calls import eventually
from tests.servers.onnx_files import write_scale
from tests.servers.raw import dumps

SECONDS = 20.0
# Some tenths of a second, and longer than any test.
LONG, FOR_EVER = 300_000, 10**12


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_scale(tmp_path / "scale.onnx", 2)
    return tmp_path / "scale.onnx"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_scale(tmp_path / "models/scale/1/model.onnx", 2)
    write_counter(tmp_path / "models/counter/1/model.onnx")
    return tmp_path / "models"


def ask(
    port: int, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def scale_request(value: float) -> bytes:
    return dumps(inputs=[{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [value] * 4}])


def counter_request(turns: int) -> bytes:
    return dumps(inputs=[{"name": "turns", "shape": [1], "datatype": "INT64", "data": [turns]}])


def values(body: bytes) -> list[float]:
    found: list[float] = json.loads(body)["outputs"][0]["data"]
    return found


# ---- what it says ----


def test_a_file_is_served_under_its_stem(model: Path) -> None:
    with Serve(str(model)) as serve:
        names = [line.split(" on ")[0] for line in serve.lines]
        assert names == ["penstock: http", "penstock: grpc", "penstock: metrics", "penstock: ready"]
        status, body = ask(serve.port("http"), "POST", "/v2/models/scale/infer", scale_request(3))
        assert (status, values(body)) == (200, [6] * 4)
        assert ask(serve.port("metrics"), "GET", "/metrics")[0] == 200
        serve.process.send_signal(signal.SIGTERM)
        assert serve.exit_code() == 0
        assert serve.lines[4:] == ["penstock: stopping"]


def test_json_is_one_document_on_standard_output(model: Path) -> None:
    with Serve(str(model), "--json") as serve:
        serve.process.send_signal(signal.SIGINT)
        assert serve.exit_code() == 0
        assert serve.process.stdout is not None
        printed = serve.process.stdout.read()
        assert json.loads(printed) == {f"{each}_port": serve.port(each) for each in ("http", "grpc", "metrics")}
        assert printed.count("\n") == 1


def test_flags_are_named_as_in_triton(repository: Path) -> None:
    """All that Triton has of them at once, written as its manual writes them; values may stand apart."""
    with Serve(
        f"--model-store={repository}",
        "--http-address=127.0.0.1",
        "--grpc-address=127.0.0.1",
        "--metrics-address",
        "127.0.0.1",
        "--allow-http=true",
        "--allow-grpc=1",
        "--allow-metrics=false",
        "--model-control-mode=explicit",
        "--load-model=scale",
        "--load-model=counter",
        "--repository-poll-secs=5",
        "--exit-on-error=false",
        "--strict-readiness=true",
        "--exit-timeout-secs=7",
        "--log-verbose=1",
    ) as serve:
        port = serve.port("http")
        assert ask(port, "GET", "/v2/health/ready")[0] == 200
        assert {row["name"] for row in json.loads(ask(port, "POST", "/v2/repository/index")[1])} == {"scale", "counter"}
        assert not any("metrics on" in line for line in serve.lines)


# ---- errors ----


def test_a_busy_port_is_one_line(model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = run("serve", str(model), "--http-port", port, "--grpc-port", "0", "--metrics-port", "0")
    assert (ended.returncode, ended.stdout) == (1, "")
    (line,) = ended.stderr.splitlines()
    for word in ("penstock: ", "http", f"127.0.0.1:{port}", "Address already in use", "--http-port"):
        assert word in line


def test_an_address_of_another_machine_is_one_line_with_the_flag_of_addresses(model: Path) -> None:
    ports = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
    ended = run("serve", str(model), "--http-address", "192.0.2.1", *ports)
    (line,) = ended.stderr.splitlines()
    assert ended.returncode == 1
    assert line.endswith("choose another with --http-address")


def test_an_ipv6_address_is_printed_in_brackets(model: Path) -> None:
    with Serve(str(model), "--http-address", "::1") as serve:
        assert any(line.startswith("penstock: http on [::1]:") for line in serve.lines)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent.onnx"], ("'absent.onnx'", "does not exist")),
        (["weights.pt"], ("'weights.pt'", "*.onnx")),
        (["broken.onnx"], ("broken",)),
        (["--model-repository", "absent"], ("'absent'", "not a directory")),
        (["--model-repository", "broken.onnx"], ("'broken.onnx'", "not a directory")),
        (["--model-repository", ".", "--model-control-mode", "explicit", "--load-model", "no"], ("'no'", "repository")),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_what_can_not_be_served_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: tuple[str, ...]
) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"this is no ONNX file")
    monkeypatch.chdir(tmp_path)
    ended = run("serve", *arguments, "--http-port=0", "--grpc-port=0", "--metrics-port=0")
    assert (ended.returncode, ended.stdout) == (1, ""), ended.stderr
    (line,) = ended.stderr.splitlines()
    assert line.startswith("penstock: ")
    assert str(tmp_path) not in line
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve"],
        ["serve", "model.onnx", "--model-repository", "models"],
        ["serve", "model.onnx", "other.onnx"],
        ["serve", "model.onnx", "--http-port", "65536"],
        ["serve", "model.onnx", "--http-port", "http"],
        ["serve", "model.onnx", "--allow-grpc=maybe"],
        ["serve", "model.onnx", "--runtime", "tensorflow"],
        ["serve", "model.onnx", "--no-such-flag"],
        ["serve", "model.onnx", "--trace", "trace.jsonl"],
        ["serve", "--model-repository", "models", "--trace", "trace.jsonl"],
        ["serve", "app:server", "--model-repository", "models"],
        ["serve", "app:server", "--runtime", "openvino"],
        ["serve", "app:server", "--instances", "2"],
        ["no-such-verb"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2(arguments: list[str]) -> None:
    ended = run(*arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "Usage: " in ended.stderr
    assert "Traceback" not in ended.stderr


# ---- signals ----


def executing(serve: Serve, turns: int) -> http.client.HTTPConnection:
    """A connection with a request that takes so many turns, once the server has it in flight."""
    connection = http.client.HTTPConnection("127.0.0.1", serve.port("http"), timeout=SECONDS)
    connection.request("POST", "/v2/models/counter/infer", counter_request(turns))
    page = serve.port("metrics")
    eventually(
        "the request is in flight",
        lambda: "\npenstock_in_flight_requests 1\n" in ask(page, "GET", "/metrics")[1].decode(),
    )
    return connection


def keep_asking(port: int, under_way: threading.Barrier) -> str:
    """Asks on a kept connection until it gets something else than the right answer, and says what that was."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        for turn in itertools.count():
            connection.request("POST", "/v2/models/scale/infer", scale_request(turn))
            response = connection.getresponse()
            status, body = response.status, response.read()
            if status != 200:
                return str(status)
            if values(body) != [2.0 * turn] * 4:
                return f"asked for {turn} and got {body!r}"
            if turn == 20:
                under_way.wait()
    except (OSError, http.client.HTTPException):
        return "closed"
    finally:
        connection.close()
    return "never ended"


def test_sigterm_under_load_finishes_what_is_in_flight(repository: Path) -> None:
    """Kept connections go on asking: each gets its right answer, or 503, or finds the connection closed."""
    clients = 4
    with (
        Serve("--model-repository", str(repository)) as serve,
        ThreadPoolExecutor(clients) as pool,
        contextlib.closing(executing(serve, LONG)) as slow,
    ):
        port = serve.port("http")
        under_way = threading.Barrier(clients + 1, timeout=SECONDS)
        asking = [pool.submit(keep_asking, port, under_way) for _ in range(clients)]
        under_way.wait()
        serve.process.send_signal(signal.SIGTERM)
        response = slow.getresponse()
        assert (response.status, values(response.read())) == (200, [LONG])
        assert serve.exit_code() == 0
        assert {each.result() for each in asking} <= {"503", "closed"}
        with pytest.raises(OSError, match="refused"):
            ask(port, "GET", "/v2/health/live")
    assert serve.lines[-1] == "penstock: stopping"


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_does_not_wait(repository: Path, first: signal.Signals) -> None:
    with Serve("--model-repository", str(repository), "--exit-timeout-secs=60") as serve:
        hanging = executing(serve, FOR_EVER)
        serve.process.send_signal(first)
        serve.until("penstock: stopping")
        serve.process.send_signal(signal.SIGTERM)
        start = time.monotonic()
        assert serve.exit_code(seconds=10) == 1
        assert time.monotonic() - start < 5
        hanging.close()


def test_the_exit_timeout_ends_a_server_whose_model_hangs(repository: Path) -> None:
    with Serve("--model-repository", str(repository), "--exit-timeout-secs=0.5") as serve:
        hanging = executing(serve, FOR_EVER)
        serve.process.send_signal(signal.SIGTERM)
        assert serve.exit_code(seconds=10) == 1
        assert "exit timeout" in serve.lines[-1]
        assert not any("Traceback" in line or "Fatal" in line for line in serve.lines)
        hanging.close()


# ---- the admin token ----


def test_loading_wants_the_token_that_the_environment_holds(repository: Path) -> None:
    token = "correct horse"
    with Serve(
        "--model-repository",
        str(repository),
        "--model-control-mode=explicit",
        environment={"PENSTOCK_ADMIN_TOKEN": token},
    ) as serve:
        port = serve.port("http")
        load, unload = (f"/v2/repository/models/scale/{each}" for each in ("load", "unload"))
        wrong: list[dict[str, str]] = [
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": f"Basic {token}"},
            {"Authorization": token},
            {"Authorization": f"Bearer {token[:-1]}"},
            {"Authorization": f"Bearer {token}x"},
        ]
        for headers in wrong:
            for path in (load, unload):
                assert ask(port, "POST", path, b"{}", headers)[0] == 401, headers
        right = {"Authorization": f"Bearer {token}"}
        assert ask(port, "POST", load, b"{}", right)[0] == 200
        assert ask(port, "POST", "/v2/models/scale/infer", scale_request(1))[0] == 200, "inference needs no token"
        assert ask(port, "POST", unload, b"{}", right)[0] == 200
        assert not any(token in line for line in serve.lines)
        command = Path(f"/proc/{serve.process.pid}/cmdline").read_bytes()
        assert token.encode() not in command
