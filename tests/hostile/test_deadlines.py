"""Time limits that a client sets or runs into: bodies that never come, deadlines that pass in whatever a call is doing.

On `strict_server` a body may take PATIENCE_SECONDS; a deadline of a gRPC call is kept to some hundred milliseconds.
"""

import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from tests.conformance.inside import Gate, serving
from tests.hostile.framing_cases import CHUNKED, length, post
from tests.hostile.grpc_cases import DEADLINE, GOOD, request
from tests.servers.cases import INFER, LEAKS, assert_clean_error
from tests.servers.http2 import INFER_METHOD, CallResult, Headers, Http2, framed, grpc_headers
from tests.servers.plugin import PATIENCE_SECONDS
from tests.servers.process import RunningServer
from tests.servers.raw import exchange

pytestmark = pytest.mark.penstock_only

SERVICE = "/inference.GRPCInferenceService/"
# The coarse clock's tick and a loaded machine.
SLACK_SECONDS = 1.0
GRPC_TIMEOUT, DEADLINE_SECONDS = "500m", 0.5
# Of a request's own `timeout`: far beyond the deadline, in microseconds.
LATER_US = 3_000_000


@pytest.mark.parametrize("headers", [(length("100"),), (CHUNKED,)], ids=["length", "chunked"])
@pytest.mark.parametrize("path", [INFER, "/v2/repository/index"])
def test_a_body_that_never_begins_is_a_time_out(
    strict_server: RunningServer, path: str, headers: Sequence[bytes]
) -> None:
    sent = post(*headers).replace(INFER.encode(), path.encode())
    done = exchange(strict_server, sent)
    assert [reply.status for reply in done.replies] == [408]
    assert_clean_error(done.replies[0])
    assert done.closed
    assert 0.9 * PATIENCE_SECONDS < done.seconds < PATIENCE_SECONDS + SLACK_SECONDS


@dataclass(frozen=True)
class Stalled:
    """A call that sends `sent` and then nothing, without ending."""

    name: str
    path: str
    sent: bytes = b""


STALLED = (
    Stalled("infer-without-data", INFER_METHOD),
    Stalled("infer-within-the-prefix", INFER_METHOD, framed(GOOD)[:3]),
    Stalled("infer-within-the-message", INFER_METHOD, framed(GOOD)[:-1]),
    Stalled("infer-whole-but-not-ended", INFER_METHOD, framed(GOOD)),
    Stalled("live-without-data", SERVICE + "ServerLive"),
    Stalled("health-without-data", "/grpc.health.v1.Health/Check"),
)
STREAMS = (
    Stalled("stream-without-data", SERVICE + "ModelStreamInfer"),
    Stalled("stream-within-a-message", SERVICE + "ModelStreamInfer", framed(GOOD)[:-1]),
    Stalled("stream-after-an-answer", SERVICE + "ModelStreamInfer", framed(GOOD)),
    Stalled("reflection-without-data", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"),
)


def timed(server: RunningServer, headers: Headers, sent: bytes, *, end: bool = False) -> tuple[CallResult, float]:
    with Http2(server) as connection:
        start = time.monotonic()
        result = connection.wait(connection.begin(headers, sent, end=end))
        return result, time.monotonic() - start


def assert_deadline(result: CallResult, seconds: float) -> None:
    assert result.status == DEADLINE, result
    assert not LEAKS.search(result.headers.get("grpc-message", ""))
    # Not sooner than asked for, but for the time that the headers took.
    assert 0.9 * DEADLINE_SECONDS < seconds < DEADLINE_SECONDS + 0.4, f"after {seconds:.3f} s"


@pytest.mark.parametrize("case", STALLED, ids=lambda case: case.name)
def test_a_call_that_never_sends_its_message_is_ended(strict_server: RunningServer, case: Stalled) -> None:
    result, seconds = timed(strict_server, grpc_headers(case.path), case.sent)
    assert result.ended, "it is kept for ever"
    assert result.status == DEADLINE, result
    assert 0.9 * PATIENCE_SECONDS < seconds < PATIENCE_SECONDS + SLACK_SECONDS


@pytest.mark.parametrize("case", [*STALLED, *STREAMS], ids=lambda case: case.name)
def test_a_deadline_is_kept_while_the_message_is_awaited(strict_server: RunningServer, case: Stalled) -> None:
    result, seconds = timed(strict_server, grpc_headers(case.path, grpc_timeout=GRPC_TIMEOUT), case.sent)
    assert_deadline(result, seconds)
    assert bool(result.body) == (case.name == "stream-after-an-answer")


def gated(**parameters: int) -> bytes:
    message = request(struct.pack("<4f", *range(4)), model="gate", shape=[1, 4])
    for key, value in parameters.items():
        message.parameters[key].int64_param = value
    return framed(message.SerializeToString())


@pytest.mark.parametrize("method", ["ModelInfer", "ModelStreamInfer"])
@pytest.mark.parametrize("parameters", [{}, {"timeout": LATER_US}], ids=["no-timeout", "later-timeout"])
@pytest.mark.parametrize("busy", [True, False], ids=["queued", "running"])
def test_a_deadline_is_kept_while_the_model_works(method: str, parameters: dict[str, int], busy: bool) -> None:
    """Queued behind a call that runs, or running itself; the request's own `timeout`, a longer one, changes nothing."""
    with Gate() as gate, serving(gate.model()) as server, Http2(server) as other:
        if busy:
            first = other.begin(grpc_headers(), gated())
            assert gate.entered.acquire(timeout=DEADLINE_SECONDS * 10)
        headers = grpc_headers(SERVICE + method, grpc_timeout=GRPC_TIMEOUT)
        result, seconds = timed(server, headers, gated(**parameters), end=True)
        assert_deadline(result, seconds)
        assert not result.body
        gate.open()
        if busy:
            assert other.wait(first).status == 0
        # Through the same queue, after which nothing of the late call is left to be run.
        assert other.wait(other.begin(grpc_headers(), gated())).status == 0
    assert gate.calls == 2


def test_the_sooner_of_two_limits_is_the_one_that_ends_a_call() -> None:
    """A request's own `timeout` that passes before the deadline is a refusal of the queue."""
    with Gate() as gate, serving(gate.model()) as server, Http2(server) as other:
        other.begin(grpc_headers(), gated())
        assert gate.entered.acquire(timeout=DEADLINE_SECONDS * 10)
        result, seconds = timed(server, grpc_headers(grpc_timeout="5S"), gated(timeout=500_000), end=True)
        gate.open()
    assert result.headers["grpc-message"] == "Request timeout expired"
    assert result.status == 14
    assert 0.45 < seconds < 0.9
