"""What `Server.stop` waits for: requests that have arrived, and answers on their way; not for peers that are silent."""

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import h2.settings
import pytest

import penstock as ps
from tests.conformance.inside import Gate, address
from tests.hostile.grpc_cases import request
from tests.serve.calls import SECONDS, eventually
from tests.servers.http2 import StayingHttp2, framed, grpc_headers
from tests.servers.raw import dumps

EXIT_SECONDS = 30.0
# Silence that tells the server that a peer is not about to say anything, and a loaded machine. Less than the two
# seconds for which a closed connection may linger otherwise.
PROMPT_SECONDS = 1.8
UNAVAILABLE = 14

X = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
BODY = dumps(inputs=[X])
HEAD = f"POST /v2/models/gate/infer HTTP/1.1\r\nHost: a\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()
GATED = framed(request(b"\0" * 16, model="gate", shape=[1, 4]).SerializeToString())
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"


@pytest.fixture
def gate() -> Iterator[Gate]:
    with Gate() as gate:
        yield gate


@contextlib.contextmanager
def running(gate: Gate, exit_seconds: float = EXIT_SECONDS) -> Iterator[tuple[ps.Server, Callable[[], Future[bool]]]]:
    """A server of the gate, and what stops it on another thread. The gate is opened before the end is waited for."""
    server = ps.Server(http_port=0, grpc_port=0, metrics_port=None, exit_timeout_seconds=exit_seconds)
    server.add(gate.model())
    with server, ThreadPoolExecutor(1) as pool, gate:
        yield server, lambda: pool.submit(server.stop)


def connected(server: ps.Server, sent: bytes = b"") -> socket.socket:
    assert server.http_port is not None
    connection = socket.create_connection(("127.0.0.1", server.http_port), timeout=SECONDS)
    connection.sendall(sent)
    return connection


def answer(connection: socket.socket) -> tuple[int, bytes]:
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, response.read()


def assert_closed(connection: socket.socket) -> None:
    with contextlib.suppress(ConnectionResetError):
        assert connection.recv(1) == b""


def in_flight(server: ps.Server, count: int) -> None:
    front = server._front
    assert front is not None
    eventually(f"{count} in flight", lambda: front.in_flight == count)


# ---- peers that say nothing ----


def after_a_request(server: ps.Server) -> socket.socket:
    connection = connected(server, b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert answer(connection)[0] == 200
    return connection


def within_a_second_head(server: ps.Server) -> socket.socket:
    connection = after_a_request(server)
    connection.sendall(b"GET /v2 HT")
    return connection


SILENT: dict[str, Callable[[ps.Server], socket.socket]] = {
    "just connected": connected,
    "after a request": after_a_request,
    "within a head": lambda server: connected(server, b"GET /v2 HT"),
    "within the head of a second request": within_a_second_head,
}


@pytest.mark.parametrize("peer", SILENT)
def test_a_connection_without_a_request_is_closed_at_once(gate: Gate, peer: str) -> None:
    with running(gate) as (server, stop), SILENT[peer](server) as connection:
        time.sleep(0.05)  # for what was sent to be read: nothing says that it was
        started = time.monotonic()
        assert stop().result(SECONDS) is True
        assert time.monotonic() - started < PROMPT_SECONDS
        assert_closed(connection)


@pytest.mark.parametrize("sent", [HEAD, HEAD + BODY[:-1]], ids=["no body", "a part of the body"])
def test_a_request_that_stopped_arriving_is_refused(gate: Gate, sent: bytes) -> None:
    with running(gate) as (server, stop), connected(server, sent) as connection:
        in_flight(server, 1)
        started = time.monotonic()
        stopped = stop()
        status, body = answer(connection)
        assert status == 503
        assert "shutting down" in json.loads(body)["error"]
        assert_closed(connection)
        assert stopped.result(SECONDS) is True
        assert time.monotonic() - started < PROMPT_SECONDS
        assert gate.calls == 0


def test_a_request_that_goes_on_arriving_is_answered(gate: Gate) -> None:
    gate.open()
    with running(gate) as (server, stop), connected(server, HEAD) as connection:
        in_flight(server, 1)
        stopped = stop()
        for at in range(0, len(BODY), 10):
            connection.sendall(BODY[at : at + 10])
            time.sleep(0.1)
        assert answer(connection)[0] == 200
        assert stopped.result(SECONDS) is True


def test_a_call_that_stopped_arriving_and_an_open_stream_are_refused(gate: Gate) -> None:
    gate.open()
    with running(gate) as (server, stop), StayingHttp2(address(server)) as connection:
        stream = connection.begin(grpc_headers(STREAM), GATED, end=False)
        while not connection.results[stream].body:
            assert connection.receive(SECONDS)
        call = connection.begin(grpc_headers(), GATED[:-1], end=False)
        in_flight(server, 1)
        started = time.monotonic()
        stopped = stop()
        for each in (call, stream):
            while not connection.results[each].ended:
                assert connection.receive(SECONDS)
            assert connection.results[each].status == UNAVAILABLE
        assert stopped.result(SECONDS) is True
        assert time.monotonic() - started < PROMPT_SECONDS


# ---- requests in flight ----


def test_requests_in_flight_are_answered_beside_peers_that_say_nothing(gate: Gate) -> None:
    with contextlib.ExitStack() as stack:
        server, stop = stack.enter_context(running(gate))
        for peer in SILENT.values():
            stack.enter_context(peer(server))
        asking = stack.enter_context(connected(server, HEAD + BODY))
        half = stack.enter_context(connected(server, HEAD))
        calling = stack.enter_context(StayingHttp2(address(server)))
        stream = calling.begin(grpc_headers(STREAM), GATED, end=False)
        in_flight(server, 3)
        stopped = stop()
        assert answer(half)[0] == 503
        assert not stopped.done()
        gate.open()
        assert answer(asking)[0] == 200
        while not calling.results[stream].ended:
            assert calling.receive(SECONDS)
        assert len(calling.results[stream].body) > len(GATED) // 2
        assert calling.results[stream].status == UNAVAILABLE
        assert stopped.result(SECONDS) is True


def test_an_answer_that_its_peer_has_no_window_for_is_waited_for(gate: Gate) -> None:
    """A small one, that fits every buffer; HTTP/2 keeps it until the peer takes it."""
    gate.open()
    with running(gate) as (server, stop), StayingHttp2(address(server)) as connection:
        connection.state.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
        stream = connection.begin(grpc_headers(), GATED)
        while ":status" not in connection.results[stream].headers:
            assert connection.receive(SECONDS)
        stopped = stop()
        time.sleep(1)  # longer than any silence that the server takes for an end
        assert not stopped.done()
        connection.state.increment_flow_control_window(1 << 16, stream)
        connection.flush()
        assert connection.wait(stream).status == 0
        assert connection.results[stream].body
        assert stopped.result(SECONDS) is True


def test_the_exit_timeout_bounds_the_wait_and_nobody_is_left_without_an_answer(gate: Gate) -> None:
    exit_seconds = 0.5
    with (
        running(gate, exit_seconds) as (server, stop),
        connected(server, HEAD + BODY) as asking,
        connected(server, HEAD + BODY) as queued,
        StayingHttp2(address(server)) as calling,
    ):
        call = calling.begin(grpc_headers(), GATED)
        stream = calling.begin(grpc_headers(STREAM), GATED, end=False)
        in_flight(server, 4)
        started = time.monotonic()
        stopped = stop()
        for connection in (asking, queued):
            status, body = answer(connection)
            assert status == 503
            assert "shutting down" in json.loads(body)["error"]
        assert calling.wait(call).status == UNAVAILABLE
        while not calling.results[stream].ended:
            assert calling.receive(SECONDS)
        assert b"shutting down" in calling.results[stream].body
        assert stopped.result(SECONDS) is False
        assert time.monotonic() - started < exit_seconds + PROMPT_SECONDS
