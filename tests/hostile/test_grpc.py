"""gRPC: bad messages get a status and a reason, the connection is kept; floods of frames get GOAWAY."""

import struct
import time

import grpc
import numpy as np
import pytest
from hpack import Encoder
from hyperframe.frame import ContinuationFrame, Frame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame
from tritonclient.grpc import service_pb2_grpc

from tests.conformance.clients import method
from tests.conformance.differences import NOT_SENT, expected
from tests.hostile.grpc_cases import CALLS, DEADLINE, GOOD, MESSAGES, CallCase, MessageCase, request
from tests.hostile.memory import measure
from tests.servers.cases import LEAKS
from tests.servers.http2 import Http2, framed, grpc_headers
from tests.servers.plugin import SMALL_BODY_BYTES
from tests.servers.process import RunningServer

SECONDS = 20.0


def assert_answers(connection: Http2) -> None:
    """A good call on the same connection."""
    result = connection.wait(connection.begin(grpc_headers(), framed(GOOD)))
    assert result.status == 0, result
    assert struct.pack("<16f", *(2.0 * value for value in range(16))) in result.body


@pytest.mark.parametrize("case", MESSAGES, ids=lambda case: case.name)
def test_a_bad_message_is_refused_with_a_reason(server: RunningServer, case: MessageCase) -> None:
    wanted = expected(case.name, server.kind, case.status)
    if wanted == NOT_SENT:
        pytest.skip("would end the server: recorded in tests/conformance/differences.py")
    with grpc.insecure_channel(server.grpc_address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            stub.ModelInfer(case.build(), timeout=SECONDS)
            status, details = "OK", ""
        except grpc.RpcError as error:
            if not isinstance(error, grpc.Call):
                raise
            status, details = error.code().name, error.details() or ""
        assert status == wanted, details
        if server.kind == "penstock":
            assert details
            assert not LEAKS.search(details), details
            assert len(details) < 2000
            for name in case.names:
                assert name.lower() in details.lower(), f"{name!r} is not named in: {details}"
        # The channel's one connection is kept.
        assert stub.ModelInfer(request(bytes(64)), timeout=SECONDS).raw_output_contents == [bytes(64)]


@pytest.mark.penstock_only
@pytest.mark.parametrize("case", CALLS, ids=lambda case: case.name)
def test_a_bad_call_fails_and_its_connection_is_kept(server: RunningServer, case: CallCase) -> None:
    with Http2(server) as connection:
        result = connection.wait(connection.begin(case.headers, case.body))
        if int(result.headers.get(":status", "0")) in case.http:
            assert result.status != 0
        else:
            assert result.status in case.statuses, result
            assert not LEAKS.search(result.headers.get("grpc-message", ""))
        assert_answers(connection)


@pytest.mark.penstock_only
def test_a_message_over_the_limit_is_exhausted(strict_server: RunningServer) -> None:
    big = np.zeros((1, SMALL_BODY_BYTES // 4), dtype=np.float32).tobytes()
    with grpc.insecure_channel(strict_server.grpc_address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as raised:
            stub.ModelInfer(request(big, model="variable", shape=[1, SMALL_BODY_BYTES // 4]), timeout=SECONDS)
        assert isinstance(raised.value, grpc.Call)
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert stub.ModelInfer(request(bytes(64)), timeout=SECONDS)


@pytest.mark.penstock_only
def test_a_compressed_message_is_bounded_after_it_is_inflated(strict_server: RunningServer) -> None:
    big = bytes(SMALL_BODY_BYTES * 50)
    with grpc.insecure_channel(strict_server.grpc_address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        message = request(big, model="variable", shape=[1, len(big) // 4])
        with pytest.raises(grpc.RpcError) as raised:
            stub.ModelInfer(message, timeout=SECONDS, compression=grpc.Compression.Gzip)
    assert isinstance(raised.value, grpc.Call)
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def executed(server: RunningServer, name: str) -> int:
    document = method("http", server, "get_inference_statistics", name)
    return int(document["model_stats"][0]["inference_count"])


@pytest.mark.penstock_only
@pytest.mark.parametrize("timeout", ["1n", "1u", "0S"])
def test_a_deadline_that_has_passed_is_never_run(server: RunningServer, timeout: str) -> None:
    """The model sleeps on behalf of another call, so that the deadline passes while this one waits."""
    sleep = framed(
        request(struct.pack("<i", 100), name="ms", model="late", datatype="INT32", shape=(1, 1)).SerializeToString()
    )
    before = executed(server, "late")
    with Http2(server) as connection:
        first = connection.begin(grpc_headers(), sleep)
        late = connection.wait(connection.begin(grpc_headers(grpc_timeout=timeout), sleep))
        assert late.status == DEADLINE, late
        assert connection.wait(first).status == 0
        # Through the same queue: had the late call been kept, it would have run before this one.
        assert connection.wait(connection.begin(grpc_headers(), sleep)).status == 0
    assert executed(server, "late") - before == 2


# HTTP/2 below calls.

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def headers_frame(stream: int, block: bytes, *flags: str) -> Frame:
    frame = HeadersFrame(stream, block)
    for flag in flags:
        frame.flags.add(flag)
    return frame


@pytest.mark.penstock_only
def test_ten_thousand_streams_opened_and_reset_end_the_connection(server: RunningServer) -> None:
    """The rapid reset attack: each costs the client two small frames."""
    encoder = Encoder()
    before = server.resident_bytes()
    with Http2(server) as connection:
        sent = 0
        try:
            for number in range(10_000):
                stream = 1 + 2 * number
                block = encoder.encode(list(grpc_headers()))
                reset = RstStreamFrame(stream, error_code=8)
                connection.socket.sendall(headers_frame(stream, block, "END_HEADERS").serialize() + reset.serialize())
                sent += 1
        except OSError:
            connection.closed = True
        assert connection.closed or connection.wait_closed(SECONDS), f"{sent} resets were taken"
    assert server.resident_bytes() - before < 32 << 20


@pytest.mark.penstock_only
def test_endless_continuation_ends_the_connection(server: RunningServer) -> None:
    """Header fragments without END_HEADERS: 64 MB of them, never decoded, never kept."""
    before = server.resident_bytes()
    with Http2(server) as connection:
        block = Encoder().encode(list(grpc_headers()))
        filler = Encoder().encode([("x", "a" * 8000)])
        try:
            connection.socket.sendall(headers_frame(1, block).serialize())
            for _ in range(8000):
                connection.socket.sendall(ContinuationFrame(1, filler).serialize())
        except OSError:
            connection.closed = True
        assert connection.closed or connection.wait_closed(SECONDS)
    assert server.resident_bytes() - before < 32 << 20


@pytest.mark.penstock_only
def test_metadata_over_the_limit_is_refused(server: RunningServer) -> None:
    with Http2(server) as connection:
        result = connection.wait(connection.begin([*grpc_headers(), ("x", "a" * 100_000)], framed(GOOD)))
        assert result.status != 0
        refused = result.reset is not None or result.headers.get(":status") == "431" or result.status == 8
        assert refused or connection.closed, result


def raw_frame(kind: int, flags: int, stream: int, payload: bytes, length: int | None = None) -> bytes:
    size = len(payload) if length is None else length
    return struct.pack(">I", size)[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


@pytest.mark.penstock_only
@pytest.mark.parametrize(
    "frames",
    [
        raw_frame(0, 0, 0, b"data"),
        headers_frame(2, Encoder().encode(list(grpc_headers())), "END_HEADERS").serialize(),
        headers_frame(1, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff", "END_HEADERS").serialize(),
        raw_frame(4, 0, 0, b"\0" * 5),
        raw_frame(4, 0, 1, b"\0" * 6),
        raw_frame(6, 0, 0, b"\0" * 7),
        raw_frame(8, 0, 0, b"\0\0\0\0"),
        raw_frame(8, 0, 0, b"\x7f\xff\xff\xff"),
        raw_frame(5, 4, 1, b"\0\0\0\2"),
        raw_frame(0, 0, 1, b"", length=0xFFFFFF),
        raw_frame(9, 4, 1, b""),
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
    ids=[
        *("data-on-stream-0", "even-stream", "bad-header-compression", "settings-of-5-bytes", "settings-on-a-stream"),
        *("ping-of-7-bytes", "window-of-0", "window-past-2^31", "push-from-a-client", "frame-of-16-MB"),
        *("continuation-of-nothing", "text"),
    ],
)
def test_a_frame_against_the_protocol_ends_the_connection(server: RunningServer, frames: bytes) -> None:
    with Http2(server) as connection:
        connection.socket.sendall(frames)
        assert connection.wait_closed(SECONDS)


@pytest.mark.penstock_only
@pytest.mark.parametrize("kind", ["ping", "settings"])
def test_a_flood_of_frames_that_want_answers_is_bounded(server: RunningServer, kind: str) -> None:
    """The client asks and never reads: answers must not pile up."""
    frame = (PingFrame(0, b"12345678") if kind == "ping" else SettingsFrame(0, {4: 65535})).serialize()
    before = server.resident_bytes()
    with Http2(server) as connection:
        connection.socket.settimeout(0.5)
        deadline = time.monotonic() + 3
        try:
            while time.monotonic() < deadline:
                connection.socket.sendall(frame * 1000)
        except OSError:
            pass
        assert server.resident_bytes() - before < 16 << 20


@pytest.mark.penstock_only
def test_a_stream_without_a_body_waits_alone(server: RunningServer) -> None:
    """A call that never sends its message holds up no other call of its connection."""
    with Http2(server) as connection:
        for _ in range(50):
            connection.begin(grpc_headers(), framed(GOOD)[:20], end=False)
        assert_answers(connection)


@pytest.mark.penstock_only
def test_refused_calls_leave_no_memory_behind(server: RunningServer) -> None:
    messages = [case.build() for case in MESSAGES]

    def work() -> int:
        with grpc.insecure_channel(server.grpc_address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            for message in messages * 3:
                assert stub.ModelInfer.future(message, timeout=SECONDS).exception() is not None
        with Http2(server) as connection:
            for case in CALLS:
                connection.wait(connection.begin(case.headers, case.body))
        return len(messages) * 3 + len(CALLS)

    growth = measure(server.resident_bytes, work)
    assert not growth.leaks, growth
