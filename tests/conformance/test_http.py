"""HTTP itself: paths, methods, statuses, texts, header lengths, compression, `Expect`, connections that are kept."""

import gzip
import http.client
import json
import socket
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from tests.conformance.http_cases import CASES
from tests.hostile.binary_cases import GOOD as BINARY_JSON
from tests.hostile.binary_cases import SIXTEEN
from tests.hostile.json_cases import GOOD
from tests.servers.cases import INFER, HttpCase, check
from tests.servers.process import RunningServer
from tests.servers.raw import ANSWER_SECONDS, HEADER_LENGTH, Reply, ask, dumps, exchange

DOUBLED = [2.0 * value for value in range(16)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_paths_methods_and_texts(server: RunningServer, case: HttpCase) -> None:
    reply = check(server, case)
    if server.kind == "penstock" and reply.status == 405:
        assert reply.headers["allow"], "405 without an Allow header"


def split(reply: Reply) -> tuple[dict[str, Any], bytes]:
    """JSON part and binary part of an answer."""
    length = int(reply.headers[HEADER_LENGTH.lower()])
    return json.loads(reply.body[:length]), reply.body[length:]


def test_a_json_answer_is_flat_and_typed(server: RunningServer) -> None:
    reply = ask(server, "POST", INFER, GOOD)
    assert reply.headers["content-type"] == "application/json"
    assert HEADER_LENGTH.lower() not in reply.headers
    document = reply.json()
    assert document["model_name"] == "double_fp32"
    assert document["model_version"] == "1"
    assert "id" not in document
    assert document["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [1, 16], "data": [2.0] * 16}]


@pytest.mark.parametrize(
    ("parameters", "output"),
    [
        ({"binary_data_output": True}, None),
        ({}, {"binary_data": True}),
        ({"binary_data_output": False}, {"binary_data": True}),
    ],
    ids=["request-level", "output-level", "output-level-wins"],
)
def test_a_binary_answer_says_where_it_starts(
    server: RunningServer, parameters: dict[str, Any], output: dict[str, Any] | None
) -> None:
    document = json.loads(BINARY_JSON) | {"parameters": parameters}
    if output is not None:
        document["outputs"] = [{"name": "y", "parameters": output}]
    body = dumps(**document)
    reply = ask(server, "POST", INFER, body + SIXTEEN, {HEADER_LENGTH: str(len(body))})
    assert reply.headers["content-type"] == "application/octet-stream"
    answer, binary = split(reply)
    assert answer["outputs"] == [
        {"name": "y", "datatype": "FP32", "shape": [1, 16], "parameters": {"binary_data_size": 64}}
    ]
    assert list(struct.unpack("<16f", binary)) == DOUBLED


def test_outputs_of_both_kinds_in_one_answer(server: RunningServer) -> None:
    values = [float(value) for value in range(16)]
    inputs = [{"name": name, "shape": [1, 16], "datatype": "FP32", "data": values} for name in ("INPUT0", "INPUT1")]
    outputs = [{"name": "OUTPUT0", "parameters": {"binary_data": True}}, {"name": "OUTPUT1"}]
    reply = ask(server, "POST", "/v2/models/addsub/infer", dumps(inputs=inputs, outputs=outputs))
    answer, binary = split(reply)
    by_name = {output["name"]: output for output in answer["outputs"]}
    assert by_name["OUTPUT0"]["parameters"]["binary_data_size"] == len(binary) == 64
    assert by_name["OUTPUT1"]["data"] == [0.0] * 16
    assert list(struct.unpack("<16f", binary)) == DOUBLED


def test_a_raw_request_needs_no_json(server: RunningServer) -> None:
    """Header value 0: the body is the one input's one row, and every output is answered in binary."""
    reply = ask(server, "POST", INFER, SIXTEEN, {HEADER_LENGTH: "0"})
    answer, binary = split(reply)
    assert reply.status == 200
    assert answer["outputs"][0]["shape"] == [1, 16]
    assert list(struct.unpack("<16f", binary)) == DOUBLED


def test_bytes_in_json_are_text(server: RunningServer) -> None:
    elements = ["ab", "", "123", "x y"]
    body = dumps(inputs=[{"name": "x", "shape": [1, 4], "datatype": "BYTES", "data": elements}])
    answer = ask(server, "POST", "/v2/models/reverse/infer", body).json()
    assert answer["outputs"][0]["data"] == [element[::-1] for element in elements]


def test_integers_come_back_as_integers(server: RunningServer) -> None:
    big = 2**62 - 1
    body = dumps(inputs=[{"name": "x", "shape": [1, 16], "datatype": "INT64", "data": [big, -big] * 8}])
    reply = ask(server, "POST", "/v2/models/double_int64/infer", body)
    assert str(2 * big).encode() in reply.body
    assert reply.json()["outputs"][0]["data"] == [2 * big, -2 * big] * 8


OPENED: Mapping[str, Callable[[bytes], bytes]] = {"gzip": gzip.decompress, "deflate": zlib.decompress}


@pytest.mark.parametrize(
    ("accepted", "used"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate", "gzip"),
        ("br", None),
        ("identity", None),
        ("", None),
        ("gzip;q=0", None),
        ("gzip;q=0.2, deflate;q=0.9", "deflate"),
    ],
)
def test_the_answer_is_compressed_as_accepted(server: RunningServer, accepted: str, used: str | None) -> None:
    reply = ask(server, "POST", INFER, GOOD, {"Accept-Encoding": accepted})
    assert reply.headers.get("content-encoding") == used
    content = OPENED[used](reply.body) if used else reply.body
    assert json.loads(content)["outputs"][0]["data"] == [2.0] * 16


def test_header_lengths_count_uncompressed_bytes(server: RunningServer) -> None:
    document = json.loads(BINARY_JSON) | {"parameters": {"binary_data_output": True}}
    body = dumps(**document)
    headers = {HEADER_LENGTH: str(len(body)), "Content-Encoding": "gzip", "Accept-Encoding": "gzip"}
    reply = ask(server, "POST", INFER, gzip.compress(body + SIXTEEN), headers)
    opened = Reply(reply.status, reply.headers, gzip.decompress(reply.body))
    answer, binary = split(opened)
    assert answer["outputs"][0]["parameters"]["binary_data_size"] == 64
    assert list(struct.unpack("<16f", binary)) == DOUBLED


def test_expect_continue_is_answered_before_the_body(server: RunningServer) -> None:
    head = f"POST {INFER} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(GOOD)}\r\nExpect: 100-continue\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=ANSWER_SECONDS) as connection:
        connection.sendall(head.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
        connection.sendall(GOOD)
        response = http.client.HTTPResponse(connection, method="POST")
        response.begin()
        assert response.status == 200
        assert json.loads(response.read())["outputs"][0]["data"] == [2.0] * 16


@pytest.mark.parametrize("sizes", [1, 7, 1000])
def test_a_chunked_body_is_a_body(server: RunningServer, sizes: int) -> None:
    pieces = (GOOD[start : start + sizes] for start in range(0, len(GOOD), sizes))
    assert ask(server, "POST", INFER, pieces).json()["outputs"][0]["data"] == [2.0] * 16


def test_a_connection_serves_many_requests(server: RunningServer) -> None:
    request = f"POST {INFER} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(GOOD)}\r\n\r\n".encode() + GOOD
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=ANSWER_SECONDS)
    for _ in range(50):
        connection.request("POST", INFER, GOOD)
        assert connection.getresponse().read()
    connection.close()
    # Sent at once, answered in order.
    pipelined = exchange(server, request * 5)
    assert [reply.status for reply in pipelined.replies] == [200] * 5
    assert not pipelined.closed


def test_connection_close_is_honoured(server: RunningServer) -> None:
    done = exchange(server, b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert [reply.status for reply in done.replies] == [200]
    assert done.closed


def test_http_1_0_is_answered_and_closed(server: RunningServer) -> None:
    done = exchange(server, b"GET /v2/health/live HTTP/1.0\r\n\r\n")
    assert [reply.status for reply in done.replies] == [200]
    assert done.closed


def test_values_do_not_depend_on_the_encoding(server: RunningServer, rng: np.random.Generator) -> None:
    """One input as JSON and as binary gives one output, bit for bit, in all four combinations."""
    x = rng.standard_normal((1, 16)).astype(np.float32)
    seen = set()
    for binary_in in (False, True):
        for binary_out in (False, True):
            tensor: dict[str, Any] = {"name": "x", "shape": [1, 16], "datatype": "FP32"}
            tensor |= {"parameters": {"binary_data_size": 64}} if binary_in else {"data": [float(v) for v in x[0]]}
            body = dumps(inputs=[tensor], parameters={"binary_data_output": binary_out})
            headers = {HEADER_LENGTH: str(len(body))} if binary_in else {}
            reply = ask(server, "POST", INFER, body + (x.tobytes() if binary_in else b""), headers)
            data = split(reply)[1] if binary_out else np.float32(reply.json()["outputs"][0]["data"]).tobytes()
            seen.add(data)
    assert seen == {(x * np.float32(2)).tobytes()}
