"""Clients for benches of the server: processes of threads that ask again once they are answered, over plain sockets.

Requests are made once and sent as they are, so that clients cost little of the machine that they share with the server:
binary HTTP, gRPC by hand (HTTP/2 frames and a message that is the same each time), and HTTP that names shared memory.
Called by `serve_gpu.py`.
"""

import json
import math
import socket
import struct
import threading
import time
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

Row = tuple[int, ...]
Kind = Literal["http", "grpc", "shm"]

_ANSWER_BYTES: Final = 1 << 18
# RFC 9113
_DATA, _HEADERS, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_MAX_FRAME_SIZE, _INITIAL_WINDOW_SIZE = 5, 4
_LARGEST_WINDOW: Final = (1 << 31) - 1
_DEFAULT_WINDOW: Final = 65535


@dataclass(frozen=True)
class Way:
    """How clients ask."""

    kind: Kind
    row: Row
    datatype: str
    rows: int
    clients: int
    answer_bytes: int
    """Of the tensor that comes back: less means that something failed."""

    model: str = "m"

    @property
    def bytes(self) -> int:
        """Of one request's tensor."""
        return np.dtype(self.numpy).itemsize * math.prod(self.row) * self.rows

    @property
    def numpy(self) -> Any:
        return {"UINT8": np.uint8, "FP32": np.float32}[self.datatype]


@dataclass(frozen=True)
class Ports:
    http: int
    grpc: int


def pictures(rows: int, row: Row, dtype: Any) -> Any:
    random = np.random.default_rng(rows)
    if np.dtype(dtype) == np.uint8:
        return random.integers(0, 256, (rows, *row), np.uint8)
    return random.standard_normal((rows, *row), np.float32)


def client(ports: Ports, way: Way, key: str, first: int, count: int, until: Any, results: Any) -> None:
    """A process with some of the clients. Answers when each reply had come, and how long it had taken."""
    found: list[list[tuple[float, float]]] = [[] for _ in range(count)]
    body = b"" if way.kind == "shm" else pictures(way.rows, way.row, way.numpy).tobytes()

    def ask(number: int) -> None:
        asking = (
            _Grpc(ports.grpc, way, body) if way.kind == "grpc" else _Http(ports.http, way, body, key, first + number)
        )
        while not until.is_set():
            begun = time.perf_counter()
            asking.once()
            now = time.perf_counter()
            found[number].append((now, now - begun))

    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.put([each for own in found for each in own])


class _Http:
    """One connection. Shared memory: the tensor of client `number` lies at its place in the region."""

    def __init__(self, port: int, way: Way, body: bytes, key: str, number: int) -> None:
        parameters: dict[str, Any] = {"binary_data_size": way.bytes}
        if way.kind == "shm":
            parameters = {
                "shared_memory_region": key, "shared_memory_byte_size": way.bytes,
                "shared_memory_offset": number * way.bytes,
            }  # fmt: skip
        tensor = {"name": "x", "shape": [way.rows, *way.row], "datatype": way.datatype, "parameters": parameters}
        text = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        self._head = (
            f"POST /v2/models/{way.model}/infer HTTP/1.1\r\nHost: a\r\nContent-Length: {len(text) + len(body)}\r\n"
            f"Inference-Header-Content-Length: {len(text)}\r\n\r\n"
        ).encode() + text
        self._body, self._least = body, way.answer_bytes
        self._connection = _connected(port)

    def once(self) -> None:
        self._connection.sendall(self._head)
        if self._body:
            self._connection.sendall(self._body)
        data = b""
        while b"\r\n\r\n" not in data:
            data += _some(self._connection)
        head, _, rest = data.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), data[:500]
        (line,) = (line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        length = int(line.split(b":")[1])
        assert length >= self._least, length
        left = length - len(rest)
        while left > 0:
            left -= len(_some(self._connection))


class _Grpc:
    """One HTTP/2 connection with one call at a time."""

    def __init__(self, port: int, way: Way, body: bytes) -> None:
        shape = b"".join(_varint(size) for size in (way.rows, *way.row))
        tensor = _field(1, b"x") + _field(2, way.datatype.encode()) + _field(3, shape)
        message = _field(1, way.model.encode()) + _field(5, tensor) + _field(7, body)
        self._message = memoryview(struct.pack(">BI", 0, len(message)) + message)
        self._least = way.answer_bytes
        self._stream, self._window, self._initial, self._frame = -1, _DEFAULT_WINDOW, _DEFAULT_WINDOW, 1 << 14
        self._unread = b""
        self._connection = _connected(port)
        settings = struct.pack(">HI", _INITIAL_WINDOW_SIZE, _LARGEST_WINDOW)
        self._connection.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0, settings)
            + _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _LARGEST_WINDOW - _DEFAULT_WINDOW))
        )  # fmt: skip
        headers = {
            ":method": "POST", ":scheme": "http", ":path": "/inference.GRPCInferenceService/ModelInfer",
            ":authority": "a", "content-type": "application/grpc", "te": "trailers",
        }  # fmt: skip
        # Literal fields without indexing (RFC 7541, 6.2.2), none of which is longer than a byte says.
        self._headers = b"".join(
            b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
            for name, value in headers.items()
        )
        while not self._settled:
            self._read()

    _settled = False

    def once(self) -> None:
        self._stream += 2
        self._room, self._got, self._ended = self._initial, 0, False
        self._connection.sendall(_frame(_HEADERS, _END_HEADERS, self._stream, self._headers))
        at = 0
        while at < len(self._message):
            size = min(self._frame, self._room, self._window, len(self._message) - at)
            if size <= 0:
                self._read()
                continue
            last = at + size == len(self._message)
            piece = self._message[at : at + size]
            self._connection.sendmsg([struct.pack(">I", size)[1:] + struct.pack(">BBI", _DATA, last, self._stream)])
            self._connection.sendall(piece)
            at, self._room, self._window = at + size, self._room - size, self._window - size
        while not self._ended:
            self._read()
        assert self._got >= self._least, self._got

    def _read(self) -> None:
        """One frame."""
        head = self._exactly(9)
        size, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
        (stream,) = struct.unpack(">I", head[5:])
        payload = self._exactly(size)
        if kind == _SETTINGS and not flags & _ACK:
            for name, value in struct.iter_unpack(">HI", payload):
                self._frame = value if name == _MAX_FRAME_SIZE else self._frame
                self._initial = value if name == _INITIAL_WINDOW_SIZE else self._initial
            self._settled = True
            self._connection.sendall(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            self._connection.sendall(_frame(_PING, _ACK, 0, payload))
        elif kind == _WINDOW_UPDATE:
            (more,) = struct.unpack(">I", payload)
            if stream == 0:
                self._window += more
            elif stream == self._stream:
                self._room += more
        elif kind == _DATA and stream == self._stream:
            self._got += size
        assert kind != _GOAWAY, payload
        if kind in (_DATA, _HEADERS) and stream == self._stream and flags & _END_STREAM:
            self._ended = True

    def _exactly(self, count: int) -> bytes:
        while len(self._unread) < count:
            self._unread += _some(self._connection)
        found, self._unread = self._unread[:count], self._unread[count:]
        return found


def _connected(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _some(connection: socket.socket) -> bytes:
    data = connection.recv(_ANSWER_BYTES)
    assert data, "the server closed the connection"
    return data


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _field(number: int, content: bytes) -> bytes:
    """Of a protobuf message, with a length in front."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content
