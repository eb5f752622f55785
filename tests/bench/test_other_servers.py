"""What HTTP/1.1 servers other than ours do: chunks, answers without a length, connections that end, early refusals."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np
import pytest

from penstock.bench.load import ANSWERED, HTTP, LOST, REFUSED, Load, Plan, Request
from tests.bench.test_loads import until

BODY = b'{"inputs":[]}'


@contextmanager
def answering(handle: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that gives each connection to `handle` and closes it after."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection:
            connection.settimeout(10)
            with suppress(OSError):  # the client went
                handle(connection)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def taken(connection: socket.socket) -> bytes:
    """One request, head and body; empty where the client closed."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            return b""
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    lines = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
    while len(body) < int(lines[b"content-length"]):
        body += connection.recv(65536)
    assert body == BODY
    return head


def test_answers_in_chunks_and_pieces() -> None:
    """Sent byte by byte, with an extension, a trailer and what comes before an answer."""
    answer = (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3;x=y\r\nabc\r\n4\r\ndone\r\n0\r\nchecksum: 1\r\n\r\n"
    )

    def handle(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while taken(connection):
            for at in range(len(answer)):
                connection.sendall(answer[at : at + 1])

    with answering(handle) as address:
        plan = Plan(HTTP, address, "/x", [Request(BODY, None, b"abcdone")], concurrency=2, answer_within_seconds=10)
        with Load(plan) as load:
            until(load, 20)
    assert set(load.records["outcome"]) == {ANSWERED}, load.messages


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\n\r\nok",
    ],
    ids=["said so", "version 1.0", "without a length"],
)
def test_a_connection_that_ends_with_its_answer_is_no_loss(answer: bytes) -> None:
    count = 0

    def handle(connection: socket.socket) -> None:
        nonlocal count
        taken(connection)
        count += 1
        connection.sendall(answer)

    with answering(handle) as address:
        plan = Plan(HTTP, address, "/", [Request(BODY, None, b"ok")], concurrency=2, answer_within_seconds=10)
        with Load(plan) as load:
            until(load, 20)
    assert set(load.records["outcome"]) == {ANSWERED}, load.messages
    assert count >= 20


def test_a_connection_that_was_closed_while_it_waited_is_opened_again() -> None:
    def handle(connection: socket.socket) -> None:
        taken(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        time.sleep(0.02)

    with answering(handle) as address:
        plan = Plan(HTTP, address, "/", [Request(BODY)], schedule_ns=[100_000_000], answer_within_seconds=10)
        with Load(plan) as load:
            until(load, 5)
    assert set(load.records["outcome"]) == {ANSWERED}, load.messages
    assert np.all(np.diff(np.sort(load.records["sent"])) > 50_000_000)


def test_a_refusal_before_the_whole_request_was_read_is_a_refusal() -> None:
    def handle(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 413 Large\r\nContent-Length: 8\r\nConnection: close\r\n\r\ntoo much")
        connection.shutdown(socket.SHUT_WR)
        time.sleep(0.1)  # what was sent by then does not reset the connection before the answer is read

    with answering(handle) as address:
        plan = Plan(HTTP, address, "/", [Request(b"x" * 30_000_000)], concurrency=1, answer_within_seconds=10)
        with Load(plan) as load:
            until(load, 3)
    assert set(load.records["outcome"]) == {REFUSED}, load.messages
    assert any(message.startswith("413: too much") for message in load.messages)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "the connection was closed before an answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", "the connection was closed within an answer"),
        (b"220 mail ESMTP\r\n", "what came is no answer"),
    ],
)
def test_what_is_no_answer_is_a_loss_and_says_why(answer: bytes, message: str) -> None:
    def handle(connection: socket.socket) -> None:
        taken(connection)
        connection.sendall(answer)

    with answering(handle) as address:
        plan = Plan(HTTP, address, "/", [Request(BODY)], concurrency=1, answer_within_seconds=10)
        with Load(plan) as load:
            until(load, 3)
    assert set(load.records["outcome"]) == {LOST}, load.messages
    assert any(message in each for each in load.messages), load.messages
