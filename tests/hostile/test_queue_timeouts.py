"""Thousands of time limits that pass in the queue, in another order than the requests came: one answer for each."""

import contextlib
import random

import pytest
from tritonclient.grpc import service_pb2

from tests.conformance.inside import Gate, serving
from tests.hostile.grpc_cases import request
from tests.serve.calls import SECONDS
from tests.servers.http2 import Http2, framed, grpc_headers
from tests.servers.process import RunningServer
from tests.servers.raw import ask

REQUESTS = 3000
# Below the server's bound on streams of one connection, and within HTTP/2's first window of 65535 bytes.
PER_CONNECTION = 600
# The limits of all requests lie evenly between these, so that they pass one after another.
SOONEST_US, LATEST_US = 200_000, 3_200_000
UNAVAILABLE = 14
EXPIRED = "Request timeout expired"


def gated(number: int, timeout_us: int = 0) -> bytes:
    message = request(bytes(16), model="gate", shape=[1, 4], id=str(number))
    if timeout_us:
        message.parameters["timeout"].int64_param = timeout_us
    return framed(message.SerializeToString())


def counted(server: RunningServer) -> tuple[int, int]:
    """Successes and failures as the statistics have them."""
    (found,) = ask(server, "GET", "/v2/models/gate/stats").json()["model_stats"]
    return tuple(int(found["inference_stats"][each]["count"]) for each in ("success", "fail"))  # type: ignore[return-value]


@pytest.mark.parametrize("order", ["rising", "falling", "shuffled"])
def test_each_of_three_thousand_timeouts_is_answered_once(order: str, dice: random.Random) -> None:
    step = (LATEST_US - SOONEST_US) / REQUESTS
    timeouts = [round(SOONEST_US + step * number) for number in range(REQUESTS)]
    if order == "falling":
        timeouts.reverse()
    elif order == "shuffled":
        dice.shuffle(timeouts)
    with contextlib.ExitStack() as stack:
        gate = stack.enter_context(Gate())
        server = stack.enter_context(serving(gate.model()))
        other = stack.enter_context(Http2(server))
        running = other.begin(grpc_headers(), gated(REQUESTS))
        assert gate.entered.acquire(timeout=SECONDS)
        connections = [stack.enter_context(Http2(server)) for _ in range(REQUESTS // PER_CONNECTION)]
        streams = [
            (connection, connection.begin(grpc_headers(), gated(number, timeouts[number])))
            for connection, first in zip(connections, range(0, REQUESTS, PER_CONNECTION), strict=True)
            for number in range(first, first + PER_CONNECTION)
        ]
        # A second answer on a stream that has ended is an error of the protocol: the connection would be closed.
        results = [connection.wait(stream) for connection, stream in streams]
        assert {(each.status, each.headers.get("grpc-message"), each.reset) for each in results} == {
            (UNAVAILABLE, EXPIRED, None)
        }
        assert not any(result.body for result in results)
        gate.open()
        assert other.wait(running).status == 0
        for connection in connections:
            answer = connection.wait(connection.begin(grpc_headers(), gated(0)))
            assert not connection.closed
            assert service_pb2.ModelInferResponse.FromString(answer.body[5:]).id == "0"
            connection.socket.close()
        assert counted(server) == (1 + len(connections), REQUESTS)
    # Nobody's request was run after its time.
    assert gate.calls == 1 + len(connections)
