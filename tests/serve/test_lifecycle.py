"""The life of a `Server`: arguments, adding, starting, stopping with requests in flight, and starting again."""

import contextlib
import errno
import http.client
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import penstock as ps
from penstock.errors import ConfigError, InvalidArgument, ListenError, NotFound, PenstockError, UsageError
from tests.serve.calls import SECONDS, Array, Client, eventually, infer, serving
from tests.servers.onnx_files import write_scale

X = np.arange(4, dtype=np.float32)[None]


def echo(name: str = "m", **settings: Any) -> ps.ModelFunction:
    return ps.model(name=name, inputs={"x": ps.F32[4]}, outputs={"y": ps.F32[4]}, **settings)(lambda x: x)


def quiet_server(**options: Any) -> ps.Server:
    return ps.Server(**{"http_port": 0, "grpc_port": None, "metrics_port": None, **options})


# ---- arguments ----


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"http_port": 65536}, ("http_port", "65536", "0 to 65535")),
        ({"grpc_port": -1}, ("grpc_port", "-1")),
        ({"http_address": "localhost:80"}, ("http_address", "IP address", "localhost:80")),
        ({"http_address": "example.invalid"}, ("http_address", "IP address")),
        ({"model_control_mode": "manual"}, ("model_control_mode", "'manual'", "none, poll or explicit")),
        ({"batching": "none"}, ("batching", "'none'", "auto or triton")),
        ({"load_models": ["a"]}, ("load_models", "control mode none", "explicit")),
        ({"repository_poll_seconds": 0}, ("repository_poll_seconds", "0")),
        ({"exit_timeout_seconds": float("nan")}, ("exit_timeout_seconds", "nan")),
        ({"http_header_timeout_seconds": -1}, ("http_header_timeout_seconds", "-1")),
        ({"write_timeout_seconds": float("inf")}, ("write_timeout_seconds", "inf")),
        ({"max_body_bytes": 0}, ("max_body_bytes", "0")),
        ({"io_threads": 0}, ("io_threads", "0")),
        ({"io_threads": 10**20}, ("io_threads", "1 to 256")),
        ({"max_body_bytes": 10**30}, ("max_body_bytes", "to 1099511627776")),
        ({"exit_timeout_seconds": 1e30}, ("exit_timeout_seconds", "1e+30", "at most 31536000")),
        ({"exit_timeout_seconds": float("inf")}, ("exit_timeout_seconds", "inf", "at most")),
        ({"exit_timeout_seconds": "30"}, ("exit_timeout_seconds", "'30'")),
        ({"http_port": "a"}, ("http_port", "'a'", "an integer")),
        ({"http_port": 1.5}, ("http_port", "1.5", "an integer")),
        ({"http_port": True}, ("http_port", "True", "an integer")),
        ({"log_verbose": 3}, ("log_verbose", "0 to 2", "None")),
        ({"model_repository": "/nowhere/at/all"}, ("'all'", "not a directory")),
    ],
    ids=lambda each: str(each)[1:-1].replace("'", "") if isinstance(each, dict) else "",
)
def test_a_wrong_option_is_named_before_anything_runs(options: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(PenstockError) as caught, quiet_server(**options):
        pass
    for word in words:
        assert word in str(caught.value)
    assert "/nowhere" not in str(caught.value)


def test_a_number_that_python_would_not_write_is_refused_like_others() -> None:
    with pytest.raises(UsageError, match="max_body_bytes is a number of thousands of digits, expected"):
        quiet_server(max_body_bytes=10**5000)


def test_what_can_not_be_added_is_refused(tmp_path: Path) -> None:
    write_scale(tmp_path / "scale.onnx", 2)
    runtime = ps.load(tmp_path / "scale.onnx", threads=1)
    server = quiet_server()
    server.add(echo())
    with pytest.raises(ConfigError, match="'m' was added already"):
        server.add(echo())
    with pytest.raises(ConfigError, match="'m' was added already"):
        server.add(runtime, name="m")
    with pytest.raises(ConfigError, match="own name"):
        server.add(echo("n"), name="other")
    with pytest.raises(ConfigError, match="under a name"):
        server.add(runtime)
    with pytest.raises(ConfigError, match=r"decorate it with @ps\.model"):
        server.add(lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"type int is nothing to serve: expected a @ps\.model"):
        server.add(3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="instances is 0, expected an integer from 1 to"):
        server.add(tmp_path / "scale.onnx", name="none", instances=0)
    server.add(tmp_path / "scale.onnx")
    with pytest.raises(ConfigError, match="'scale' was added already"):
        server.add(runtime, name="scale")


@pytest.mark.parametrize(
    ("file", "error", "words"),
    [
        ("absent.onnx", NotFound, "'absent.onnx' does not exist"),
        ("weights.pt", InvalidArgument, "'weights.pt' is not a model file"),
        ("a name.onnx", InvalidArgument, "model name 'a name'"),
    ],
)
def test_a_file_that_is_no_model_fails_the_start(
    tmp_path: Path, file: str, error: type[PenstockError], words: str
) -> None:
    server = quiet_server()
    server.add(tmp_path / file)
    with pytest.raises(error, match=words) as caught:
        server.start()
    assert str(tmp_path) not in str(caught.value)
    assert server.stop()


def test_a_name_that_the_repository_has_too_is_refused(tmp_path: Path) -> None:
    write_scale(tmp_path / "m/1/model.onnx", 2)
    with pytest.raises(PenstockError, match="'m'"), serving(echo(), model_repository=tmp_path):
        pass


# ---- adding while running ----


def test_a_model_added_to_a_running_server_is_served_at_once() -> None:
    with serving(echo()) as server:
        server.add(echo("late"))
        np.testing.assert_array_equal(infer(server, "late", x=X).arrays["y"], X)
        with pytest.raises(ConfigError, match="'late' was added already"):
            server.add(echo("late"))


def test_a_model_that_could_not_be_added_may_be_added_once_it_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "scale.onnx"
    path.write_bytes(b"this is no ONNX file")
    with serving(echo()) as server, Client(server) as client:
        with pytest.raises(PenstockError, match="'scale'"):
            server.add(path)
        write_scale(path, 2)
        server.add(path)
        np.testing.assert_array_equal(client.infer("scale", x=X).arrays["y"], X * 2)
        assert client.get("/v2/health/ready").status == 200


# ---- starting and stopping ----


def test_a_server_is_started_once_at_a_time() -> None:
    with serving(echo()) as server:
        with pytest.raises(ConfigError, match="running already"):
            server.start()
        assert infer(server, "m", x=X).status == 200
    assert server.stop(), "a second stop has nothing to do"


def test_one_server_can_be_started_again() -> None:
    server = quiet_server()
    server.add(echo())
    for _ in range(3):
        with server:
            np.testing.assert_array_equal(infer(server, "m", x=X).arrays["y"], X)


@pytest.mark.parametrize("off", ["http_port", "grpc_port", "metrics_port"])
def test_a_port_of_none_is_not_listened_on(off: str) -> None:
    before = listening()
    with quiet_server(**{"http_port": 0, "grpc_port": 0, "metrics_port": 0, off: None}) as server:
        ports = {name: getattr(server, name) for name in ("http_port", "grpc_port", "metrics_port")}
        assert ports.pop(off) is None
        assert all(isinstance(port, int) and port > 0 for port in ports.values())
        assert len(listening()) == len(before) + 2
    assert listening() == before


def listening() -> set[str]:
    """Inodes of this process's listening TCP sockets."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
    sockets = {row[9] for row in rows if row[3] == "0A"}
    own = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except FileNotFoundError:
            continue  # the one that listed the directory
        if target.startswith("socket:[") and target[8:-1] in sockets:
            own.add(target[8:-1])
    return own


def test_a_busy_port_fails_the_start_and_leaves_nothing_behind() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        before = listening()
        for _ in range(3):
            with pytest.raises(OSError, match=f"127.0.0.1:{port}"), quiet_server(metrics_port=port):
                pass
        assert listening() == before


@pytest.mark.parametrize(("address", "number"), [("127.0.0.1", errno.EADDRINUSE), ("192.0.2.1", errno.EADDRNOTAVAIL)])
def test_what_can_not_be_listened_on_is_an_error_of_ours_without_flags(address: str, number: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ListenError) as caught, quiet_server(http_address=address, http_port=port):
            pass
    assert (caught.value.listener, caught.value.errno) == ("http", number)
    assert f"{address}:{port}" in caught.value.message
    assert "--" not in caught.value.message


def test_stop_answers_what_is_in_flight_and_refuses_what_comes_after() -> None:
    """Four run or wait when `stop` is called; a kept connection that asks then is told that the server is going."""
    entered, opened = threading.Event(), threading.Event()

    def function(x: Array) -> Array:
        entered.set()
        assert opened.wait(SECONDS)
        return x + 1

    model = ps.model(name="m", max_batch_size=1, inputs={"x": ps.F32[4]}, outputs={"y": ps.F32[4]})
    server = quiet_server()
    server.add(model(function))
    server.start()
    with Client(server) as kept, ThreadPoolExecutor(5) as pool:
        assert kept.get("/v2/health/ready").status == 200
        clients = [Client(server) for _ in range(4)]
        for client in clients:
            client.send("m", {"x": X})
        assert entered.wait(SECONDS)
        eventually("all four are counted", lambda: server._front is not None and server._front.in_flight == 4)
        stopped = pool.submit(server.stop)
        eventually("the server is not ready", lambda: kept.get("/v2/health/ready").status != 200)
        assert kept.get("/v2/health/live").status == 200
        refused = kept.infer("m", x=X)
        assert refused.status == 503
        assert "shutting down" in refused.error
        assert not stopped.done()
        opened.set()
        for client in clients:
            np.testing.assert_array_equal(client.answer().arrays["y"], X + 1)
            client.connection.close()
        assert stopped.result(SECONDS) is True
    with pytest.raises(OSError, match=r"refused|reset"):
        infer(server, "m", x=X)


def test_stop_gives_up_when_a_model_hangs_and_says_so() -> None:
    """In the exit timeout and a little grace, whatever the number of instances that hang; nobody is left waiting."""
    instances = 8
    entered, opened = threading.Semaphore(0), threading.Event()

    def function(x: Array) -> Array:
        entered.release()
        assert opened.wait(SECONDS)
        return x

    model = ps.model(name="m", max_batch_size=1, instances=instances, inputs={"x": ps.F32[4]}, outputs={"y": ps.F32[4]})
    server = quiet_server(exit_timeout_seconds=0.2)
    server.add(model(function))
    server.start()
    clients = [Client(server) for _ in range(instances + 1)]
    try:
        for client in clients:
            client.send("m", {"x": X})
        for _ in range(instances):
            assert entered.acquire(timeout=SECONDS)
        start = time.monotonic()
        assert server.stop() is False
        assert time.monotonic() - start < 5
        for client in clients:
            # Or closed without an answer, which tells the client as much.
            with contextlib.suppress(http.client.HTTPException, OSError):
                assert client.answer().status == 503
    finally:
        opened.set()
        for client in clients:
            client.connection.close()


def test_twenty_lives_leave_no_descriptor_and_no_thread_behind() -> None:
    def live() -> None:
        server = quiet_server(grpc_port=0, metrics_port=0)
        server.add(echo(instances=3))
        with server, Client(server) as client:
            np.testing.assert_array_equal(client.infer("m", x=X).arrays["y"], X)

    def held() -> tuple[int, int]:
        descriptors, threads = (sum(1 for _ in Path("/proc/self", each).iterdir()) for each in ("fd", "task"))
        return descriptors, threads

    live()  # libraries start threads of their own on first use
    before = held()
    for _ in range(20):
        live()
    eventually(f"descriptors and threads are {before} again", lambda: held() <= before, seconds=2)
