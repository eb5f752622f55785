"""A good request right behind a bad one: answered as what it is, or the connection closes and it was never run.

Both are sent in one piece, so that the server has the second while it refuses the first.
"""

import gzip
import struct
from dataclasses import dataclass

import numpy as np
import pytest

import penstock as ps
from tests.conformance.inside import serving
from tests.hostile.framing_cases import CHUNKED, length, post
from tests.servers.cases import assert_clean_error
from tests.servers.raw import HEADER_LENGTH, dumps, exchange
from tests.servers.zoo import Array

BAD_NUMBER, GOOD_NUMBER = 13.0, 7.0


def document(number: float) -> bytes:
    return dumps(inputs=[{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [number]}])


BAD, SECOND = document(BAD_NUMBER), post(length(str(len(document(GOOD_NUMBER)))), body=document(GOOD_NUMBER))
SPLIT = HEADER_LENGTH.encode()
BINARY = dumps(
    inputs=[{"name": "x", "shape": [1, 1], "datatype": "FP32", "parameters": {"binary_data_size": 4}}],
)


@dataclass(frozen=True)
class Pipelined:
    """`kept`: the first request's bounds are plain, so the second must be answered; else it must not be."""

    name: str
    first: bytes
    status: int = 400
    kept: bool = True


def whole(body: bytes, *headers: bytes) -> bytes:
    return post(length(str(len(body))), *headers, body=body)


def chunked(*pieces: bytes) -> bytes:
    return post(CHUNKED, body=b"".join(f"{len(each):x}\r\n".encode() + each + b"\r\n" for each in (*pieces, b"")))


CASES = (
    Pipelined("json-cut", whole(BAD[:-1])),
    Pipelined("json-then-more", whole(BAD + b"}")),
    Pipelined("json-then-a-request", whole(BAD + SECOND)),
    Pipelined("not-json", whole(SECOND)),
    Pipelined("nothing", whole(b"")),
    Pipelined("header-length-past-the-body", whole(BAD, SPLIT + f": {len(BAD) + len(SECOND)}".encode())),
    Pipelined("header-length-of-nothing", whole(BAD, SPLIT + b": 0")),
    Pipelined("header-length-within-the-json", whole(BAD, SPLIT + b": 10")),
    Pipelined("too-few-binary-bytes", whole(BINARY + b"\0\0", SPLIT + f": {len(BINARY)}".encode())),
    Pipelined("too-many-binary-bytes", whole(BINARY + struct.pack("<2f", 1, 2), SPLIT + f": {len(BINARY)}".encode())),
    Pipelined("gzip-of-nothing", whole(BAD, b"Content-Encoding: gzip")),
    Pipelined("gzip-cut", whole(gzip.compress(BAD)[:-9], b"Content-Encoding: gzip")),
    Pipelined("gzip-then-a-request", whole(gzip.compress(BAD) + SECOND, b"Content-Encoding: gzip")),
    # Behind a chunked body the server reads nothing: intermediaries disagree on where one ends.
    Pipelined("chunks-of-json-that-is-cut", chunked(BAD[:10], BAD[10:-1]), kept=False),
    # Here the second request begins where the first one's bounds say, which is not where its sender meant.
    Pipelined("length-too-short", post(length(str(len(BAD) - 5)), body=BAD), kept=False),
    Pipelined("chunk-size-too-short", chunked(BAD).replace(f"{len(BAD):x}".encode(), b"5", 1), kept=False),
    Pipelined("body-over-the-limit", post(length(str(1 << 40)), body=BAD), status=413, kept=False),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_stands_behind_a_bad_body_is_never_taken_for_something_else(case: Pipelined) -> None:
    seen: list[float] = []

    @ps.model(name="double_fp32", inputs={"x": ps.F32[1]}, outputs={"y": ps.F32[1]})
    def model(x: Array) -> Array:
        seen.extend(x.ravel().tolist())
        return np.asarray(x * 2)

    with serving(model) as server:
        done = exchange(server, case.first + SECOND)
    assert not done.rest
    assert done.replies[0].status == case.status
    if done.replies[0].body:
        assert_clean_error(done.replies[0])
    if case.kept:
        (_, second) = done.replies
        assert second.status == 200
        assert second.json()["outputs"][0]["data"] == [2 * GOOD_NUMBER]
        assert seen == [GOOD_NUMBER]
    else:
        assert all(reply.status >= 400 for reply in done.replies)
        assert done.closed, "the connection was kept"
        assert seen == []
