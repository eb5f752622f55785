"""HTTP without a client library's help: single requests, and bytes on a socket with whatever comes back.

`ask` is for well-formed requests whose answer a Triton client would hide; `exchange` is for bytes that no client sends.
"""

import http.client
import json
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.servers.process import RunningServer

HEADER_LENGTH = "Inference-Header-Content-Length"
# An answer later than this is a hang.
ANSWER_SECONDS = 20.0


@dataclass(frozen=True)
class Reply:
    """One HTTP response; header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def error(self) -> str:
        """The message of `{"error": "..."}`; a body of any other form is an assertion error."""
        document = self.json()
        assert isinstance(document, dict), f"not an object: {self.body[:300]!r}"
        assert list(document) == ["error"], f"not an error document: {self.body[:300]!r}"
        message = document["error"]
        assert isinstance(message, str), f"not a message: {self.body[:300]!r}"
        assert message, "an empty message"
        return message

    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    server: RunningServer,
    method: str,
    path: str,
    body: bytes | Iterable[bytes] | None = None,
    headers: Mapping[str, str] | None = None,
    port: int | None = None,
) -> Reply:
    connection = http.client.HTTPConnection("127.0.0.1", port or server.http_port, timeout=ANSWER_SECONDS)
    try:
        connection.request(method, path, body, dict(headers or {}))
        response = connection.getresponse()
        return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        connection.close()


@dataclass(frozen=True)
class Exchange:
    """What came back on a connection until it was closed, or until nothing more came."""

    replies: Sequence[Reply]
    closed: bool
    rest: bytes = b""
    seconds: float = 0.0


@dataclass
class _Reader:
    """Splits received bytes into responses; knows Content-Length bodies, which is all that the server sends here."""

    received: bytes = b""
    replies: list[Reply] = field(default_factory=list)

    def feed(self, data: bytes) -> None:
        self.received += data
        while (reply := self._next()) is not None:
            self.replies.append(reply)

    def _next(self) -> Reply | None:
        head, separator, rest = self.received.partition(b"\r\n\r\n")
        if not separator:
            return None
        status_line, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0"))
        if len(rest) < length:
            return None
        self.received = rest[length:]
        return Reply(int(status_line.split()[1]), headers, rest[:length])


def exchange(
    server: RunningServer,
    pieces: bytes | Iterable[bytes],
    *,
    half_close: bool = False,
    pause: float = 0.0,
    quiet_seconds: float = 1.0,
    port: int | None = None,
) -> Exchange:
    """Sends the pieces, `pause` seconds apart, and collects replies until the peer closes or has been quiet.

    Sending stops as soon as the server has closed or answered; a reset by the server counts as closed.
    """
    reader, closed, start = _Reader(), False, time.monotonic()
    with socket.create_connection(("127.0.0.1", port or server.http_port), timeout=ANSWER_SECONDS) as connection:
        try:
            for piece in [pieces] if isinstance(pieces, bytes) else pieces:
                connection.sendall(piece)
                if pause and _readable(connection, pause):
                    break
            if half_close:
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            closed = True
        # Answers may be read after a failed send: what came before the reset is still in the buffer.
        first_answer_by = time.monotonic() + ANSWER_SECONDS
        while True:
            left = quiet_seconds if reader.replies else first_answer_by - time.monotonic()
            connection.settimeout(max(0.01, left))
            try:
                data = connection.recv(1 << 16)
            except TimeoutError:
                break
            except OSError:
                closed = True
                break
            if not data:
                closed = True
                break
            reader.feed(data)
    return Exchange(reader.replies, closed, reader.received, time.monotonic() - start)


def _readable(connection: socket.socket, seconds: float) -> bool:
    connection.settimeout(seconds)
    try:
        connection.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return False
    finally:
        connection.settimeout(ANSWER_SECONDS)
    return True


def dumps(**document: Any) -> bytes:
    return json.dumps(document).encode()
