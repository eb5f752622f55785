"""Sizes and times are bounded: refused as early as it can be known, without holding what was sent."""

import gzip
import itertools
import socket
import threading
import time
import zlib
from collections.abc import Iterable, Iterator

import pytest

from tests.hostile.framing_cases import CHUNKED, length, post
from tests.hostile.json_cases import GOOD
from tests.servers.cases import INFER, assert_clean_error
from tests.servers.plugin import PATIENCE_SECONDS, SMALL_BODY_BYTES
from tests.servers.process import RunningServer
from tests.servers.raw import Exchange, ask, exchange

pytestmark = pytest.mark.penstock_only

MIB = 1 << 20


def one_status(done: Exchange) -> int:
    assert len(done.replies) == 1, [reply.status for reply in done.replies]
    if done.replies[0].body:
        assert_clean_error(done.replies[0])
    return done.replies[0].status


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (post(*(f"X-{n}: 1".encode() for n in range(101))), 431),
        (post(b"X: " + b"a" * 500_000), 431),
        (post(b"a" * 500_000 + b": 1"), 431),
        (b"GET /v2/" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"GET /v2/?" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
    ],
    ids=["101-headers", "500-KB-header", "500-KB-header-name", "70-KB-target", "70-KB-query"],
)
def test_heads_are_bounded(server: RunningServer, sent: bytes, status: int) -> None:
    done = exchange(server, sent)
    assert one_status(done) == status
    assert done.closed


def test_ordinary_heads_pass(server: RunningServer) -> None:
    headers = {f"X-{n}": "a" * 100 for n in range(80)}
    assert ask(server, "POST", INFER, GOOD, headers).status == 200
    assert ask(server, "GET", "/v2?" + "a" * 4000).status == 200


@pytest.mark.parametrize("declared", [SMALL_BODY_BYTES + 1, 2**40, 2**63 - 1])
def test_a_body_that_is_declared_too_long_is_refused_unread(strict_server: RunningServer, declared: int) -> None:
    done = exchange(strict_server, post(length(str(declared))))
    assert one_status(done) == 413
    assert done.closed
    assert done.seconds < PATIENCE_SECONDS, "it waited for the body"


def test_a_body_that_is_declared_too_long_is_refused_by_default_too(server: RunningServer) -> None:
    assert one_status(exchange(server, post(length(str(64 * MIB + 1))))) == 413


def test_expect_with_a_long_body_is_refused_before_it_is_sent(strict_server: RunningServer) -> None:
    done = exchange(strict_server, post(length(str(2**40)), b"Expect: 100-continue"))
    assert one_status(done) == 413


def test_a_body_of_the_limit_passes(strict_server: RunningServer) -> None:
    body = GOOD + b" " * (SMALL_BODY_BYTES - len(GOOD))
    assert ask(strict_server, "POST", INFER, body).status == 200


def chunks(size: int, count: int) -> Iterator[bytes]:
    piece = f"{size:x}\r\n".encode() + b" " * size + b"\r\n"
    yield post(CHUNKED)
    yield from itertools.repeat(piece, count)
    yield b"0\r\n\r\n"


def test_a_chunked_body_over_the_limit_is_refused(strict_server: RunningServer) -> None:
    before = strict_server.resident_bytes()
    done = exchange(strict_server, chunks(65536, 1000))
    assert one_status(done) == 413
    assert done.closed
    assert strict_server.resident_bytes() - before < 16 * MIB


def groups(pieces: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Joined by `size`: one system call for a thousand chunks."""
    rest = iter(pieces)
    while group := b"".join(itertools.islice(rest, size)):
        yield group


def test_too_many_chunks_are_refused(server: RunningServer) -> None:
    assert one_status(exchange(server, groups(chunks(1, 65_537), 1000))) == 413


def bomb(encoding: str) -> bytes:
    """1 GB of zeros in about 1 MB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31 if encoding == "gzip" else 15)
    zeros = bytes(1 << 24)
    return b"".join([*(packer.compress(zeros) for _ in range(60)), packer.flush()])


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_compression_bomb_is_noticed_while_it_inflates(server: RunningServer, encoding: str) -> None:
    body, peak, done = bomb(encoding), [0], threading.Event()
    before = server.resident_bytes()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], server.resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    reply = ask(server, "POST", INFER, body, {"Content-Encoding": encoding})
    done.set()
    watcher.join()
    assert reply.status == 413
    assert_clean_error(reply)
    # The limit of 64 MiB, once more while a buffer grows, and what the allocator keeps.
    assert peak[0] - before < 256 * MIB, f"{(peak[0] - before) / MIB:.0f} MiB"


def test_a_small_limit_bounds_inflated_bodies_too(strict_server: RunningServer) -> None:
    body = gzip.compress(GOOD + b" " * SMALL_BODY_BYTES)
    assert ask(strict_server, "POST", INFER, body, {"Content-Encoding": "gzip"}).status == 413


def drip(data: bytes, start: bytes = b"") -> Iterable[bytes]:
    yield start
    yield from (bytes([byte]) for byte in data)


def test_a_body_of_one_byte_a_second_is_ended(strict_server: RunningServer) -> None:
    done = exchange(strict_server, drip(GOOD, post(length(str(len(GOOD))))), pause=0.9)
    assert one_status(done) == 408
    assert done.closed
    assert done.seconds < 4 * PATIENCE_SECONDS


def test_a_chunked_body_of_one_byte_a_second_is_ended(strict_server: RunningServer) -> None:
    pieces = itertools.chain([post(CHUNKED)], itertools.repeat(b"1\r\n \r\n", 100))
    done = exchange(strict_server, pieces, pause=0.9)
    assert one_status(done) == 408
    assert done.closed


def test_a_head_of_one_byte_a_second_is_ended(strict_server: RunningServer) -> None:
    done = exchange(strict_server, drip(post(b"X: " + b"a" * 100)), pause=0.9)
    assert done.closed
    assert [reply.status for reply in done.replies] in ([], [408])
    assert done.seconds < 4 * PATIENCE_SECONDS


def test_a_connection_that_says_nothing_costs_nobody(strict_server: RunningServer) -> None:
    """Two hundred silent connections; the others are served meanwhile, and the silent ones end."""
    address = ("127.0.0.1", strict_server.http_port)
    silent = [socket.create_connection(address) for _ in range(200)]
    try:
        for connection in silent[:100]:
            connection.sendall(b"POST ")
        start = time.monotonic()
        assert ask(strict_server, "POST", INFER, GOOD).status == 200
        assert time.monotonic() - start < PATIENCE_SECONDS
        silent[0].settimeout(5 * PATIENCE_SECONDS)
        while silent[0].recv(1000):
            pass
    finally:
        for connection in silent:
            connection.close()
