"""Requests carry real numbers on every wire, and only the right answer passes verification."""

import json
import struct

import pytest

from harness import protobuf
from harness.dialects import V2, Answer, Dialect, Echo, MosecRoutes
from harness.workload import Wire, Workload

DOUBLED = Workload.DOUBLE.question.expected


def raw(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


def v2_binary(*numbers: float) -> Answer:
    content = raw(*numbers)
    head = json.dumps({"outputs": [{"name": "y", "parameters": {"binary_data_size": len(content)}}]}).encode()
    return Answer(head + content, len(head))


def v2_json(*numbers: float) -> Answer:
    return Answer(json.dumps({"outputs": [{"name": "y", "data": numbers}]}).encode())


def v2_grpc(*numbers: float) -> Answer:
    named = protobuf.field(1, b"ident") + protobuf.field(2, b"1")
    return Answer(protobuf.frame(named + protobuf.field(protobuf.RESPONSE_RAW, raw(*numbers))))


RIGHT = [
    pytest.param(V2(), Wire.BINARY, v2_binary(*DOUBLED), id="v2 binary"),
    pytest.param(V2(), Wire.JSON, v2_json(*DOUBLED), id="v2 json"),
    pytest.param(V2(), Wire.GRPC, v2_grpc(*DOUBLED), id="v2 grpc"),
    pytest.param(MosecRoutes(), Wire.BINARY, Answer(raw(*DOUBLED)), id="mosec raw"),
    pytest.param(MosecRoutes(), Wire.JSON, Answer(json.dumps({"output": DOUBLED}).encode()), id="mosec json"),
    pytest.param(Echo(None), Wire.BINARY, Answer(V2().post(Workload.DOUBLE, Wire.BINARY).body), id="floor"),
]

ZEROS = [0.0] * 16
INPUT = Workload.DOUBLE.question.values
WRONG = [
    pytest.param(V2(), Wire.BINARY, v2_binary(*ZEROS), id="v2 binary zeros"),
    pytest.param(V2(), Wire.BINARY, v2_binary(*INPUT), id="v2 binary echo"),
    pytest.param(V2(), Wire.BINARY, v2_binary(*DOUBLED[:-1]), id="v2 binary short"),
    pytest.param(V2(), Wire.JSON, v2_json(*INPUT), id="v2 json echo"),
    pytest.param(V2(), Wire.GRPC, v2_grpc(*DOUBLED[::-1]), id="v2 grpc reversed"),
    pytest.param(MosecRoutes(), Wire.BINARY, Answer(raw(*INPUT)), id="mosec echo"),
    pytest.param(Echo(None), Wire.BINARY, Answer(b"short"), id="floor short"),
    pytest.param(Echo(12), Wire.BINARY, Answer(V2().post(Workload.DOUBLE, Wire.BINARY).body), id="floor not cut"),
]

FOREIGN = [
    pytest.param(Wire.BINARY, Answer(b'{"outputs":[]}', None), id="json where binary was asked"),
    pytest.param(Wire.BINARY, Answer(v2_binary(*DOUBLED).body[:-4], v2_binary(*DOUBLED).json_length), id="cut tensor"),
    pytest.param(Wire.JSON, Answer(b"<html>"), id="no json"),
    pytest.param(Wire.GRPC, Answer(b""), id="no message"),
    pytest.param(Wire.GRPC, Answer(v2_grpc(*DOUBLED).body[:-1]), id="cut message"),
    pytest.param(Wire.GRPC, Answer(protobuf.frame(protobuf.field(1, b"ident"))), id="no raw output"),
    pytest.param(Wire.GRPC, Answer(protobuf.frame(b"\x32\xff\x01")), id="length past the end"),
]


@pytest.mark.parametrize(("dialect", "wire", "answer"), RIGHT)
def test_the_right_answer_passes(dialect: Dialect, wire: Wire, answer: Answer) -> None:
    assert dialect.complaint(Workload.DOUBLE, wire, answer) is None


@pytest.mark.parametrize(("dialect", "wire", "answer"), WRONG)
def test_wrong_numbers_are_named(dialect: Dialect, wire: Wire, answer: Answer) -> None:
    assert "wrong" in str(dialect.complaint(Workload.DOUBLE, wire, answer))


@pytest.mark.parametrize(("wire", "answer"), FOREIGN)
def test_a_foreign_or_cut_answer_is_refused(wire: Wire, answer: Answer) -> None:
    with pytest.raises((ValueError, KeyError, IndexError)):
        V2().complaint(Workload.DOUBLE, wire, answer)


@pytest.mark.parametrize("workload", list(Workload))
def test_no_input_or_expected_number_is_zero_and_none_answers_itself(workload: Workload) -> None:
    question = workload.question
    assert all(question.values)
    assert all(question.expected)
    assert question.values[: len(question.expected)] != question.expected
    assert question.raw == raw(*question.values)


def test_the_image_is_602_kb_and_asks_for_each_plane_s_corner() -> None:
    question = Workload.IMAGE.question
    assert len(question.raw) == 602_112
    assert question.expected == tuple(question.values[channel * 224 * 224] for channel in range(3))


def test_binary_post_announces_its_json_part() -> None:
    post = V2().post(Workload.DOUBLE, Wire.BINARY)
    assert post.json_length is not None
    head = json.loads(post.body[: post.json_length])
    tensor = post.body[post.json_length :]
    assert head["inputs"][0]["parameters"]["binary_data_size"] == len(tensor) == 64
    assert tensor == Workload.DOUBLE.question.raw


def test_grpc_post_holds_name_shape_and_tensor() -> None:
    message = protobuf.unframe(V2().post(Workload.IMAGE, Wire.GRPC).body)
    found = dict(protobuf.fields(message))
    assert found[protobuf.REQUEST_MODEL_NAME] == b"ident"
    assert found[protobuf.REQUEST_RAW] == Workload.IMAGE.question.raw
    tensor = dict(protobuf.fields(found[protobuf.REQUEST_INPUTS]))
    assert tensor[protobuf.INPUT_DATATYPE] == b"FP32"
    assert tensor[protobuf.INPUT_SHAPE] == bytes([1, 3, 0xE0, 0x01, 0xE0, 0x01])


@pytest.mark.parametrize(("value", "encoded"), [(0, b"\0"), (127, b"\x7f"), (128, b"\x80\x01"), (300, b"\xac\x02")])
def test_varints_are_the_published_ones(value: int, encoded: bytes) -> None:
    assert protobuf.varint(value) == encoded


def test_v2_statistics_give_requests_and_executions() -> None:
    counts = V2().batches('{"model_stats": [{"name": "ident", "inference_count": 64, "execution_count": 2}]}')
    assert counts is not None
    assert (counts.requests, counts.batches) == (64.0, 2.0)
