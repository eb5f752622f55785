"""A model that returns one and the same large buffer from every call: an answer under way is never another's.

Large outputs are sent from where they lie when nobody else can change them; here the model changes them with each call.
"""

import socket
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

import penstock as ps
from tests.conformance.inside import serving
from tests.hostile.framing_cases import length, post
from tests.hostile.grpc_cases import request
from tests.servers.http2 import Http2, framed, grpc_headers
from tests.servers.process import RunningServer
from tests.servers.raw import ANSWER_SECONDS, dumps
from tests.servers.zoo import Array

BYTES = 8 << 20
ELEMENTS = BYTES // 4
# Small, so that most of an answer that nobody reads is still in the server.
RECEIVE_BYTES = 64 << 10


def shared_memory_model() -> ps.ModelFunction:
    """Fills its one buffer with the request's number and returns it."""
    kept = np.zeros((1, ELEMENTS), np.float32)

    def function(x: Array) -> Array:
        kept[:] = x[0, 0]
        return kept

    made = ps.model(name="kept", max_batch_size=1, inputs={"x": ps.F32[1]}, outputs={"y": ps.F32[-1]})
    return made(lambda x: function(x))  # noqa: PLW0108  (the signature is read: one argument x)


class SlowHttp:
    """One inference whose answer is read only when `read` is called; its head has come when this is made."""

    def __init__(self, server: RunningServer, number: int) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        self.socket.settimeout(ANSWER_SECONDS)
        self.socket.connect(("127.0.0.1", server.http_port))
        x = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [number]}
        body = dumps(inputs=[x], parameters={"binary_data_output": True})
        sent = post(length(str(len(body))), body=body).replace(b"/double_fp32/", b"/kept/")
        self.socket.sendall(sent)
        self.received = self.socket.recv(1000)
        assert self.received.startswith(b"HTTP/1.1 200 "), self.received

    def read(self) -> Array:
        with self.socket:
            while True:
                head, _, rest = self.received.partition(b"\r\n\r\n")
                size = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                if len(rest) == int(size.partition(b":")[2]):
                    return np.frombuffer(rest[-BYTES:], np.float32)
                data = self.socket.recv(1 << 20)
                assert data, f"cut after {len(rest)} bytes"
                self.received += data


class SlowGrpc:
    """As `SlowHttp`; HTTP/2's window of 64 KiB keeps the rest in the server."""

    def __init__(self, server: RunningServer, number: int) -> None:
        self.connection = Http2(server)
        message = request(struct.pack("<f", number), model="kept", shape=[1, 1])
        self.stream = self.connection.begin(grpc_headers(), framed(message.SerializeToString()))
        while ":status" not in self.connection.results[self.stream].headers:
            assert self.connection.receive(ANSWER_SECONDS)

    def read(self) -> Array:
        with self.connection:
            result = self.connection.wait(self.stream)
        assert result.status == 0, result.headers
        message = service_pb2.ModelInferResponse.FromString(result.body[5:])
        return np.frombuffer(message.raw_output_contents[0], np.float32)


CLIENTS: dict[str, type[SlowHttp | SlowGrpc]] = {"http": SlowHttp, "grpc": SlowGrpc}


def assert_own(y: Array, number: int) -> None:
    assert y.shape == (ELEMENTS,)
    assert (y == number).all(), f"{np.count_nonzero(y != number)} of {ELEMENTS} elements belong to another answer"


@pytest.mark.parametrize("others", CLIENTS)
@pytest.mark.parametrize("slow", CLIENTS)
def test_an_answer_that_is_read_slowly_is_all_its_own(slow: str, others: str) -> None:
    with serving(shared_memory_model()) as server:
        first = CLIENTS[slow](server, 1)
        for number in (2, 3):
            assert_own(CLIENTS[others](server, number).read(), number)
        assert_own(first.read(), 1)


def test_many_slow_readers_at_once_each_get_their_own() -> None:
    """All answers are under way before the first is read."""
    with serving(shared_memory_model()) as server, ThreadPoolExecutor(4) as pool:
        kinds = [*CLIENTS.values()] * 3
        clients = list(pool.map(lambda pair: pair[1](server, pair[0]), enumerate(kinds)))
        for number, client in enumerate(clients):
            assert_own(client.read(), number)
