"""Stopping while clients hold on: an answer under way arrives whole, and no thread outlives `Server.stop`."""

import contextlib
import http.client
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

import penstock as ps
from tests.cli.processes import Serve
from tests.conformance.inside import Gate, address
from tests.hostile.framing_cases import length, post
from tests.hostile.grpc_cases import request
from tests.serve.calls import SECONDS, Array, eventually
from tests.servers.http2 import Http2, StayingHttp2, framed, grpc_headers
from tests.servers.onnx_files import write_wide
from tests.servers.process import RunningServer
from tests.servers.raw import ANSWER_SECONDS, dumps

BYTES = 8 << 20
ELEMENTS = BYTES // 4
# Small, so that nearly all of the answer is still in the server when it is told to stop.
RECEIVE_BYTES = 64 << 10
# The reader takes this much at a time, in all for longer than the server waits for connections it may cut at once.
PIECE_BYTES, PIECE_SECONDS = 128 << 10, 0.03
# Of the exit timeout: a server that waits for it has not noticed that there is nothing to wait for.
EXIT_SECONDS, AT_ONCE_SECONDS = 30.0, 15.0
# Silence that tells the server that a peer is not about to say anything, and a loaded machine.
PROMPT_SECONDS = 4.0


# ---- an answer that is being read ----


def receiving(port: int) -> socket.socket:
    """A connection whose kernel buffer holds little of an answer."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
    connection.settimeout(ANSWER_SECONDS)
    connection.connect(("127.0.0.1", port))
    return connection


def over_http(serve: Serve, stop: Callable[[], None]) -> Array:
    """Reads the head, stops the server, reads the rest slowly."""
    x = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [7]}
    body = dumps(inputs=[x], parameters={"binary_data_output": True})
    with receiving(serve.port("http")) as connection:
        connection.sendall(post(length(str(len(body))), body=body).replace(b"/double_fp32/", b"/wide/"))
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert response.status == 200
        stop()
        received = b""
        while piece := response.read(PIECE_BYTES):
            received += piece
            time.sleep(PIECE_SECONDS)
        assert response.isclosed()
    return np.frombuffer(received[-BYTES:], np.float32)


def over_grpc(serve: Serve, stop: Callable[[], None]) -> Array:
    """HTTP/2's window of 64 KiB keeps what is not read in the server, whatever the kernel would take."""
    nowhere = RunningServer("penstock", serve.process, serve.port("http"), serve.port("grpc"), 0, Path())
    with StayingHttp2(nowhere) as connection:
        message = request(struct.pack("<f", 7), model="wide", shape=[1, 1])
        stream = connection.begin(grpc_headers(), framed(message.SerializeToString()))
        result = connection.results[stream]
        while ":status" not in result.headers:
            assert connection.receive(ANSWER_SECONDS)
        stop()
        while not result.ended:
            assert connection.receive(ANSWER_SECONDS), f"cut after {len(result.body)} bytes"
            time.sleep(PIECE_SECONDS / 2)
        assert result.status == 0, result.headers
    return np.frombuffer(service_pb2.ModelInferResponse.FromString(result.body[5:]).raw_output_contents[0], np.float32)


@pytest.mark.parametrize("ask", [over_http, over_grpc])
def test_an_answer_that_is_read_slowly_arrives_whole_after_sigterm(
    tmp_path: Path, ask: Callable[[Serve, Callable[[], None]], Array]
) -> None:
    write_wide(tmp_path / "wide.onnx", ELEMENTS)
    with Serve(str(tmp_path / "wide.onnx")) as serve:

        def stop() -> None:
            serve.process.send_signal(signal.SIGTERM)
            serve.until("penstock: stopping")

        y = ask(serve, stop)
        assert y.shape == (ELEMENTS,)
        assert (y == 7).all()
        start = time.monotonic()
        assert serve.exit_code() == 0
        assert time.monotonic() - start < AT_ONCE_SECONDS, "it waited on although everything was read"
    assert serve.lines[-1] == "penstock: stopping"


# ---- clients that stay ----


def io_threads() -> list[str]:
    """Names of this process's threads that serve connections."""
    names = []
    for task in Path("/proc/self/task").iterdir():
        try:
            names.append((task / "comm").read_text(encoding="ascii").strip())
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended since the directory was listed
    return [name for name in names if name.startswith("penstock-io")]


GATED = framed(request(struct.pack("<4f", *range(4)), model="gate", shape=[1, 4]).SerializeToString())
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"


def connects(connection: Http2) -> None:
    """And has its settings acknowledged, which says that the server knows the connection."""
    assert connection.receive(SECONDS)


def has_called(connection: Http2) -> None:
    assert connection.wait(connection.begin(grpc_headers(), GATED)).status == 0


def keeps_a_stream_open(connection: Http2) -> None:
    stream = connection.begin(grpc_headers(STREAM), GATED, end=False)
    while not connection.results[stream].body:
        assert connection.receive(SECONDS)


def is_within_a_message(connection: Http2) -> None:
    has_called(connection)
    connection.begin(grpc_headers(), GATED[:-1], end=False)
    # Answered on the same connection, so the server has read what was sent before.
    has_called(connection)


def is_within_headers(connection: Http2) -> None:
    has_called(connection)
    connection.socket.sendall(b"\0\0\4")


CLIENTS = (connects, has_called, is_within_headers, keeps_a_stream_open, is_within_a_message)


@contextlib.contextmanager
def stopped_beside(client: Callable[[Http2], None], exit_seconds: float) -> Iterator[tuple[Http2, Future[bool]]]:
    """A connected client, and the `stop` of its server under way on another thread."""
    gate = Gate()
    gate.open()
    server = ps.Server(http_port=0, grpc_port=0, metrics_port=None, exit_timeout_seconds=exit_seconds)
    server.add(gate.model())
    assert io_threads() == []
    with server, ThreadPoolExecutor(1) as pool, StayingHttp2(address(server)) as connection:
        eventually("the threads have their names", lambda: io_threads() != [])
        client(connection)
        yield connection, pool.submit(server.stop)


@pytest.mark.parametrize("client", CLIENTS, ids=lambda each: each.__name__)
def test_an_http2_client_that_stays_and_says_nothing_is_not_waited_for(client: Callable[[Http2], None]) -> None:
    """It answers no ping either, as a process that hangs."""
    with stopped_beside(client, exit_seconds=EXIT_SECONDS) as (connection, stopped):
        assert stopped.result(PROMPT_SECONDS) is True
        # A thread that was joined may stand in /proc for a moment yet.
        eventually("the threads are gone", lambda: io_threads() == [], seconds=1)
        until_the_end(connection.socket)


@pytest.mark.parametrize("client", [connects, has_called], ids=lambda each: each.__name__)
def test_an_idle_http2_client_that_lives_is_not_waited_for(client: Callable[[Http2], None]) -> None:
    """It answers what the server asks and would stay for ever."""
    with stopped_beside(client, exit_seconds=EXIT_SECONDS) as (connection, stopped):
        by = time.monotonic() + AT_ONCE_SECONDS
        while not stopped.done():
            assert time.monotonic() < by, "it waits for its exit timeout"
            connection.receive(0.1)
        assert stopped.result() is True
        eventually("the threads are gone", lambda: io_threads() == [], seconds=1)
        until_the_end(connection.socket)


def until_the_end(connection: socket.socket) -> None:
    """Reads what is left; a connection that was left open is a time-out."""
    connection.settimeout(SECONDS)
    with contextlib.suppress(ConnectionResetError):
        while connection.recv(1 << 16):
            pass
