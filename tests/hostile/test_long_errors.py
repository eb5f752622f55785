"""The text of a model's exception is as long as the model likes; what reaches a client over gRPC is not."""

import struct
import urllib.parse

import pytest
from tritonclient.grpc import service_pb2

import penstock as ps
from tests.conformance.inside import serving
from tests.hostile.grpc_cases import request
from tests.servers.http2 import Http2, framed, grpc_headers
from tests.servers.zoo import Array

CHARACTERS = 20_000
# Of the message as text, and of the header that carries it: clients take 8 KiB of trailers, some less.
LONGEST, LONGEST_HEADER = 2000, 8000
INTERNAL = 13
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
# One to four bytes a character; three on the wire for each that is not plain.
LETTERS = {
    "ascii": "a",
    "percent": "%",
    "two-bytes": "ö",
    "three-bytes": "本",
    "four-bytes": "\U0001f600",
    "control": "\n",
}


def message() -> bytes:
    return framed(request(struct.pack("<4f", *range(4)), model="m", shape=[1, 4]).SerializeToString())


def failing_with(text: str) -> ps.ModelFunction:
    def fail(x: Array) -> Array:
        raise ValueError(text)

    return ps.model(name="m", inputs={"x": ps.F32[4]}, outputs={"y": ps.F32[4]})(fail)


@pytest.mark.parametrize("letter", LETTERS)
def test_a_long_exception_is_a_bounded_message(letter: str) -> None:
    with serving(failing_with("begin " + LETTERS[letter] * CHARACTERS)) as server, Http2(server) as connection:
        result = connection.wait(connection.begin(grpc_headers(), message()))
        assert result.status == INTERNAL, result
        header = result.headers["grpc-message"]
        assert header.isascii()
        assert header.isprintable()
        assert len(header) <= LONGEST_HEADER
        # Cut between characters, never within one.
        text = urllib.parse.unquote(header, errors="strict")
        assert "ValueError: begin " in text
        assert len(text) <= LONGEST
        # The connection is as good as before.
        assert connection.wait(connection.begin(grpc_headers(), message())).status == INTERNAL


def test_a_long_exception_in_a_stream_is_a_bounded_message() -> None:
    with serving(failing_with("begin " + "ö" * CHARACTERS)) as server, Http2(server) as connection:
        result = connection.wait(connection.begin(grpc_headers(STREAM), message() * 2))
    assert result.status == 0
    frames, body = [], result.body
    while body:
        size = 5 + int.from_bytes(body[1:5], "big")
        frames.append(service_pb2.ModelStreamInferResponse.FromString(body[5:size]))
        body = body[size:]
    assert len(frames) == 2
    for frame in frames:
        assert "ValueError: begin ö" in frame.error_message
        assert len(frame.error_message) <= LONGEST
