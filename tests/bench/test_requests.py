"""Inputs as a server understands them: random ones that differ, files of perf_analyzer's form, and what is refused."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import penstock as ps
from penstock.bench import requests
from penstock.bench.load import GRPC, HTTP
from penstock.bench.requests import Wanted
from penstock.bench.subject import Subject, Tensor, messages
from penstock.errors import InvalidArgument, NotFound
from penstock.tensors import DATATYPES, numpy_dtype
from tests.bench.loads import served
from tests.serve.calls import Array

SUBJECT = Subject(
    "m", "", (Tensor("x", "FP32", (3, -1)), Tensor("t", "BYTES", (2,))), (Tensor("y", "FP32", (1,)),), 8, False, False
)  # fmt: skip
SHAPES = {"x": (3, 5)}


def arrays(body: bytes, json_bytes: int | None) -> dict[str, tuple[list[int], bytes]]:
    """Shape and bytes by input, of a request over HTTP."""
    head, rest = json.loads(body[:json_bytes]), body[json_bytes:]
    found = {}
    for each in head["inputs"]:
        size = each["parameters"]["binary_data_size"]
        found[each["name"]] = each["shape"], rest[:size]
        rest = rest[size:]
    assert not rest
    return found


def test_both_protocols_carry_the_same_bytes() -> None:
    wanted = Wanted(batch=2, shapes=SHAPES, seed=9)
    over_http = requests.requests(SUBJECT, wanted, HTTP)
    over_grpc = requests.requests(SUBJECT, wanted, GRPC)
    assert len(over_http) == len(over_grpc) == 16
    for one, other in zip(over_http, over_grpc, strict=True):
        message = messages()["inference.ModelInferRequest"].FromString(other.body)
        raw = dict(zip((each.name for each in message.inputs), message.raw_input_contents, strict=True))
        shapes = {each.name: list(each.shape) for each in message.inputs}
        found = arrays(one.body, one.json_bytes)
        assert {name: (shapes[name], raw[name]) for name in raw} == found
        assert shapes == {"x": [2, 3, 5], "t": [2, 2]}
    assert len({each.body for each in over_http}) == 16


def test_nothing_is_zero_unless_asked() -> None:
    floats = arrays(*_first(Wanted(shapes=SHAPES)))["x"][1]
    zeros = arrays(*_first(Wanted("zero", shapes=SHAPES)))["x"][1]
    assert np.all(np.frombuffer(floats, np.float32) != 0)
    assert not any(zeros)


def _first(wanted: Wanted) -> tuple[bytes, int | None]:
    found = requests.requests(SUBJECT, wanted, HTTP)[0]
    return found.body, found.json_bytes


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_can_be_made(datatype: str) -> None:
    subject = Subject("m", "", (Tensor("x", datatype, (4,)),), (), 0, False, False)
    (_, data) = arrays(*_of(requests.requests(subject, Wanted(string_length=3), HTTP)[0]))["x"]
    assert len(data) == (4 * 7 if datatype == "BYTES" else 4 * numpy_dtype(datatype).itemsize)


def _of(request: requests.Request) -> tuple[bytes, int | None]:
    return request.body, request.json_bytes


def test_a_file_of_inputs_is_sent_row_by_row(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    row = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    steps: list[Any] = [
        {"x": row, "t": ["a", "bc"]},
        {"x": {"content": [1, 2, 3, 4, 5, 6], "shape": [3, 2]}, "t": ["d", ""]},
        {
            "x": {"b64": base64.b64encode(np.arange(6, dtype=np.float32).tobytes()).decode(), "shape": [3, 2]},
            "t": ["", ""],
        },
    ]
    path.write_text(json.dumps({"data": steps, "validation_data": [{"y": [1]}, {"y": [2]}, {"y": [3]}]}))
    found = requests.requests(SUBJECT, Wanted(str(path)), HTTP)
    xs = [np.frombuffer(arrays(*_of(each))["x"][1], np.float32).tolist() for each in found]
    assert xs == [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5]]
    assert arrays(*_of(found[0]))["t"] == ([1, 2], b"\x01\0\0\0a\x02\0\0\0bc")
    assert [np.frombuffer(each.expected or b"", np.float32).tolist() for each in found] == [[1], [2], [3]]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("", "no JSON file of inputs"),
        ("[]", "expected"),
        ('{"data": []}', "expected"),
        ('{"data": [{"x": [1]}]}', r"data\[0\].x: expected FP32|is missing|say which"),
        ('{"data": [{"x": [[1],[2],[3]]}]}', r"data\[0\].t is missing"),
        ('{"data": [{"x": [[1],[2],["a"]], "t": ["", ""]}]}', r"data\[0\].x: expected FP32"),
        ('{"data": [{"x": [[1],[2],[3]], "t": ["", ""]}], "validation_data": [{"y": [1]}, {"y": [1]}]}', "2 entries"),
    ],
)
def test_files_that_are_no_inputs_are_refused(document: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(document)
    with pytest.raises(InvalidArgument, match=expected):
        requests.requests(SUBJECT, Wanted(str(tmp_path / "data.json")), HTTP)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Wanted(), r"input 'x' has the shape \[3, -1\]: say which, as in --shape x:3,224"),
        (Wanted(shapes={"x": (4, 5)}), r"the model's is \[3, -1\]"),
        (Wanted(shapes={"z": (1,)}), "model m has inputs x, t"),
        (Wanted(shapes={"x": (3, 99999999999)}), "takes 1199999999988 bytes in a request of 1 rows, expected at most"),
        (Wanted(shapes=SHAPES, batch=9), "takes up to 8 rows"),
    ],
)
def test_what_the_model_cant_be_asked_with_is_refused(wanted: Wanted, expected: str) -> None:
    with pytest.raises(InvalidArgument, match=expected):
        requests.requests(SUBJECT, wanted, HTTP)


def test_a_file_that_is_not_there_is_said_so() -> None:
    with pytest.raises(NotFound, match="no such file of inputs"):
        requests.requests(SUBJECT, Wanted("absent.json"), HTTP)


@pytest.mark.parametrize("protocol", [HTTP, GRPC])
def test_a_server_says_what_its_model_takes(protocol: str) -> None:
    @ps.model(name="many", max_batch_size=4, outputs={"y": ps.F32[-1], "z": ps.Bytes[1]})
    def many(x: ps.F32[-1], t: ps.Bytes[2]) -> dict[str, Array]:
        return {"y": x, "z": t[:, :1]}

    with served(many) as target:
        found = target.client(protocol).subject("many", "")
        with pytest.raises(NotFound):
            target.client(protocol).subject("absent", "")
    assert found.inputs == (Tensor("x", "FP32", (-1,)), Tensor("t", "BYTES", (2,)))
    assert found.outputs == (Tensor("y", "FP32", (-1,)), Tensor("z", "BYTES", (1,)))
    assert (found.max_batch_size, found.sequences, found.decoupled) == (4, False, False)
