"""HTTP/2 frame by frame, for calls that no gRPC library sends: bad messages, tiny deadlines, floods.

`Http2` is a connection on which frames are written as given; `call` does one unary call with any bytes as its body.
"""

import socket
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from tests.servers.process import RunningServer
from tests.servers.raw import ANSWER_SECONDS

INFER_METHOD = "/inference.GRPCInferenceService/ModelInfer"
Headers = Sequence[tuple[str, str]]


def grpc_headers(path: str = INFER_METHOD, **changes: str) -> Headers:
    """The headers of a unary call; keyword `te="x"` replaces one, with `_` for `-`; an empty value leaves it out."""
    plain = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "a",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    named = {name.replace("_", "-"): value for name, value in changes.items()}
    if "method" in named:
        named[":method"] = named.pop("method")
    return [(name, value) for name, value in (plain | named).items() if value]


def framed(message: bytes, compressed: int = 0, length: int | None = None) -> bytes:
    """gRPC's prefix: a flag, the length, the message."""
    return struct.pack(">BI", compressed, len(message) if length is None else length) + message


@dataclass
class CallResult:
    """What came back on one stream; `ended` False means that nothing ended it in time."""

    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    reset: int | None = None
    ended: bool = False

    @property
    def status(self) -> int | None:
        """grpc-status, from the trailers or a trailers-only answer."""
        value = self.headers.get("grpc-status")
        return None if value is None else int(value)


class Http2:
    """One connection; closed is True once the peer said GOAWAY or closed the socket."""

    def __init__(self, server: RunningServer) -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.grpc_port), timeout=ANSWER_SECONDS)
        # The library must let wrong headers pass: they are what is tested.
        config = h2.config.H2Configuration(
            client_side=True, validate_outbound_headers=False, normalize_outbound_headers=False
        )
        self.state = h2.connection.H2Connection(config)
        self.state.initiate_connection()
        self.flush()
        self.goaway: int | None = None
        self.closed = False
        self.results: dict[int, CallResult] = {}

    def __enter__(self) -> "Http2":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def flush(self) -> None:
        self.socket.sendall(self.state.data_to_send())

    def begin(self, headers: Headers, body: bytes = b"", *, end: bool = True) -> int:
        """Opens a stream with the headers and, as one DATA frame, the body."""
        stream = self.state.get_next_available_stream_id()
        self.results[stream] = CallResult()
        self.state.send_headers(stream, headers, end_stream=end and not body)
        if body:
            self.state.send_data(stream, body, end_stream=end)
        self.flush()
        return stream

    def receive(self, seconds: float = 1.0) -> bool:
        """Handles what comes within the time; False when nothing came or the connection is over."""
        self.socket.settimeout(max(0.001, seconds))
        try:
            data = self.socket.recv(1 << 16)
        except TimeoutError:
            return False
        except OSError:
            data = b""
        if not data:
            self.closed = True
            return False
        try:
            events = self.state.receive_data(self._taken(data))
        except h2.exceptions.ProtocolError:
            self.closed = True
            return False
        for event in events:
            self._handle(event)
        try:
            self.flush()
        except OSError:
            self.closed = True
        return True

    def _taken(self, data: bytes) -> bytes:
        """What of the received bytes the library gets to see."""
        return data

    def _handle(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ConnectionTerminated):
            self.goaway = int(event.error_code or 0)
            self.closed = True
        stream = getattr(event, "stream_id", None)
        result = self.results.get(stream) if stream is not None else None
        if result is None:
            return
        if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
            pairs = [(_text(name), _text(value)) for name, value in event.headers or []]
            result.headers = {**result.headers, **dict(pairs)}
        elif isinstance(event, h2.events.DataReceived):
            result.body += event.data or b""
            self.state.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id or 0)
        elif isinstance(event, h2.events.StreamReset):
            result.reset = int(event.error_code or 0)
            result.ended = True
        elif isinstance(event, h2.events.StreamEnded):
            result.ended = True

    def wait(self, stream: int, seconds: float = ANSWER_SECONDS) -> CallResult:
        """Until the stream or the connection has ended."""
        deadline = time.monotonic() + seconds
        while not self.results[stream].ended and not self.closed and time.monotonic() < deadline:
            self.receive(deadline - time.monotonic())
        return self.results[stream]

    def wait_closed(self, seconds: float = ANSWER_SECONDS) -> bool:
        deadline = time.monotonic() + seconds
        while not self.closed and time.monotonic() < deadline:
            self.receive(deadline - time.monotonic())
        return self.closed


class StayingHttp2(Http2):
    """Goes on after GOAWAY, as a client may with the streams it has: the library would end everything there."""

    _GOAWAY = 7
    _HEAD_BYTES = 9

    def __init__(self, server: RunningServer) -> None:
        super().__init__(server)
        self._unread = b""

    def _taken(self, data: bytes) -> bytes:
        self._unread += data
        taken = []
        while len(self._unread) >= self._HEAD_BYTES:
            size = self._HEAD_BYTES + int.from_bytes(self._unread[:3], "big")
            if len(self._unread) < size:
                break
            if self._unread[3] == self._GOAWAY:
                self.goaway = int.from_bytes(self._unread[13:17], "big")
            else:
                taken.append(self._unread[:size])
            self._unread = self._unread[size:]
        return b"".join(taken)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def call(server: RunningServer, headers: Headers, body: bytes) -> CallResult:
    with Http2(server) as connection:
        return connection.wait(connection.begin(headers, body))
