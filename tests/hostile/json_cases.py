"""JSON requests that must be refused with 400, and a few that look odd and are right."""

import json
from collections.abc import Callable
from typing import Any

from tests.servers.cases import INFER, HttpCase
from tests.servers.raw import dumps

X: dict[str, Any] = {"name": "x", "shape": [1, 16], "datatype": "FP32", "data": [1] * 16}
GOOD = dumps(inputs=[X])


def x(**changes: Any) -> dict[str, Any]:
    """The good input with changes; None removes the key."""
    return {key: value for key, value in (X | changes).items() if value is not None}


def case(name: str, body: bytes | Callable[[], bytes], *names: str, model: str = "double_fp32") -> HttpCase:
    return HttpCase(f"json/{name}", 400, INFER.replace("double_fp32", model), body=body, names=names)


def one(name: str, /, *names: str, model: str = "double_fp32", **changes: Any) -> HttpCase:
    return case(name, dumps(inputs=[x(**changes)]), *names, model=model)


def with_parameters(**parameters: Any) -> bytes:
    return dumps(inputs=[X], parameters=parameters)


def data_text(text: str) -> bytes:
    """One value of the data as given: for numbers that no JSON library writes."""
    return json.dumps({"inputs": [x(data=["@"] * 16)]}).replace('"@"', text, 1).replace('"@"', "0").encode()


SYNTAX = (
    case("bad-utf8-in-a-key", b'{"inputs\xff": []}'),
    case("bad-utf8-in-the-id", GOOD.replace(b"{", b'{"id": "\xc3\x28", ', 1)),
    case(
        "bad-utf8-in-a-string-element",
        b'{"inputs": [{"name":"x","shape":[1,4],"datatype":"BYTES","data":["a","\xff","c","d"]}]}',
        model="reverse",
    ),
    case("utf8-surrogate", GOOD.replace(b'"x"', b'"\xed\xa0\x80"', 1)),
    case("lone-surrogate-escape", GOOD.replace(b'"x"', b'"\\ud800"', 1)),
    case("bad-escape", GOOD.replace(b'"x"', b'"\\q"', 1)),
    case("control-character-in-a-string", GOOD.replace(b'"x"', b'"x\x00"', 1)),
    case("top-level-array", b"[1, 2]"),
    case("top-level-string", b'"inputs"'),
    case("top-level-null", b"null"),
    case("empty-object", b"{}", "inputs"),
    case("only-whitespace", b"   "),
    case("cut", GOOD[:-3]),
    case("cut-in-a-number", GOOD[: GOOD.index(b"[1, 1") + 6]),
    case("trailing-text", GOOD + b"x"),
    case("two-documents", GOOD + GOOD),
    case("trailing-comma", GOOD.replace(b"]}]}", b",]}]}")),
    case("comment", b"/* */" + GOOD),
    case("utf-16", GOOD.decode().encode("utf-16")),
    case("250000-open-brackets", b"[" * 250_000),
    case("250000-open-objects", b'{"a":' * 250_000),
    case("brackets-as-data", b'{"inputs":[{"name":"x","shape":[1,16],"datatype":"FP32","data":' + b"[" * 250_000),
    case("nesting-120", dumps(inputs=[x(data=json.loads("[" * 120 + "1" + "]" * 120))])),
    case("nesting-120-in-an-unknown-key", b'{"z":' + b"[" * 120 + b"]" * 120 + b"," + GOOD[1:]),
    case("key-twice", GOOD[:-1] + b", " + GOOD[1:], "inputs"),
    case("key-twice-in-an-input", GOOD.replace(b'"shape": [1, 16]', b'"shape": [1, 16], "shape": [1, 16]'), "shape"),
    case("key-twice-in-parameters", GOOD[:-1] + b', "parameters": {"a": 1, "a": 2}}', "a"),
)

NUMBERS = (
    case("nan", data_text("NaN")),
    case("infinity", data_text("Infinity")),
    case("minus-infinity", data_text("-Infinity")),
    case("1e999", data_text("1e999")),
    case("leading-zero", data_text("01")),
    case("plus-sign", data_text("+1")),
    case("hexadecimal", data_text("0x10")),
    case("bare-point", data_text("1.")),
    one("1e39-as-fp32", "x", data=[1e39] * 16),
    one("text-as-fp32", "x", data=["1"] * 16),
    one("bool-as-fp32", "x", data=[True] * 16),
    one("null-as-fp32", "x", data=[None] * 16),
    one("object-as-fp32", "x", data=[{}] * 16),
    one("300-as-uint8", "x", model="double_uint8", datatype="UINT8", data=[300] * 16),
    one("minus-1-as-uint8", "x", model="double_uint8", datatype="UINT8", data=[-1] * 16),
    one("1.5-as-int64", "x", model="double_int64", datatype="INT64", data=[1.5] * 16),
    one("2^63-as-int64", "x", model="double_int64", datatype="INT64", data=[2**63] * 16),
    one("2^64-as-int64", "x", model="double_int64", datatype="INT64", data=[2**64] * 16),
    one("number-as-bool", "x", model="negate", datatype="BOOL", data=[1] * 16),
    one("number-as-bytes", "x", model="reverse", datatype="BYTES", shape=[1, 4], data=[1, 2, 3, 4]),
)

SHAPES = (
    one("negative-dimension", "x", shape=[2, -5]),
    one("minus-one-dimension", "x", shape=[-1, 16]),
    one("fractional-dimension", "x", shape=[1, 16.5]),
    one("text-dimension", "x", shape=["1", "16"]),
    one("dimension-past-2^63", "x", shape=[1, 2**64]),
    one("shape-that-overflows", "x", shape=[2**4, 2**60 + 2], data=[1] * 32),
    one("shape-of-2^31-rows", "x", shape=[2**31, 16]),
    one("10000-dimensions", "x", shape=[1] * 10_000),
    one("zero-dimension-with-data", "x", model="variable", shape=[1, 0]),
    one("zero-rows-with-data", "x", shape=[0, 16]),
    one("zero-rows", "x", shape=[0, 16], data=[]),
    one("empty-shape", "x", shape=[], data=[1]),
    one("shape-is-a-number", "x", shape=16),
    one("no-shape", "shape", shape=None),
    one("fewer-values-than-the-shape", "x", data=[1] * 15),
    one("more-values-than-the-shape", "x", data=[1] * 17),
    one("no-values", "x", data=[]),
    one("wrong-size", "x", "16", "15", shape=[1, 15], data=[1] * 15),
    one("wrong-rank", "x", shape=[1, 4, 4]),
    one("no-batch-dimension", "x", shape=[16]),
    one("more-rows-than-max-batch", "8", "9", shape=[9, 16], data=[1] * 144),
    one("batch-for-an-unbatched-model", "x", model="unbatched", shape=[1, 2, 3], data=[1] * 6),
    case(
        "inputs-whose-rows-differ",
        dumps(inputs=[x(name="INPUT0"), x(name="INPUT1", shape=[2, 16], data=[1] * 32)]),
        "INPUT1",
        model="addsub",
    ),
)

DATATYPES = (
    one("datatype-fp99", "FP99", datatype="FP99"),
    one("datatype-in-lower-case", "fp32", datatype="fp32"),
    one("datatype-is-a-number", datatype=32),
    one("datatype-empty", datatype=""),
    one("no-datatype", "datatype", datatype=None),
    one("other-datatype-than-the-model", "x", "FP64", "FP32", datatype="FP64"),
    one("fp16-as-json", "FP16", model="double_fp16", datatype="FP16"),
    one("bf16-as-json", "BF16", datatype="BF16"),
)

TENSORS = (
    case("no-inputs", b'{"id": "1"}', "inputs"),
    case("inputs-empty", dumps(inputs=[]), "x"),
    case("inputs-is-an-object", dumps(inputs=X), "inputs"),
    case("input-is-a-number", dumps(inputs=[1])),
    case("missing-input", dumps(inputs=[x(name="INPUT0")]), "INPUT1", model="addsub"),
    case("extra-input", dumps(inputs=[X, x(name="z")]), "z"),
    case("unknown-input", dumps(inputs=[x(name="z")]), "z"),
    case("input-twice", dumps(inputs=[X, X]), "x"),
    one("input-name-empty", name=""),
    one("input-name-is-a-number", name=1),
    one("no-input-name", "name", name=None),
    one("no-data", "x", data=None),
    one("data-is-a-number", data=1),
    one("data-is-text", data="1111111111111111"),
    case("unknown-output", dumps(inputs=[X], outputs=[{"name": "q"}]), "q"),
    case("output-twice", dumps(inputs=[X], outputs=[{"name": "y"}, {"name": "y"}]), "y"),
    case("output-without-name", dumps(inputs=[X], outputs=[{}]), "name"),
    case("outputs-is-text", dumps(inputs=[X], outputs="y"), "outputs"),
    case("100000-outputs", lambda: dumps(inputs=[X], outputs=[{"name": f"o{n}"} for n in range(100_000)])),
    case("100000-inputs", lambda: dumps(inputs=[x(name=f"i{n}", shape=[1], data=[1]) for n in range(100_000)])),
)

PARAMETERS = (
    case("timeout-negative", with_parameters(timeout=-1), "timeout"),
    case("timeout-fractional", with_parameters(timeout=1.5), "timeout"),
    case("timeout-text", with_parameters(timeout="5"), "timeout"),
    case("timeout-past-2^64", with_parameters(timeout=2**64), "timeout"),
    case("priority-negative", with_parameters(priority=-1), "priority"),
    case("priority-fractional", with_parameters(priority=0.5), "priority"),
    case("priority-past-2^64", with_parameters(priority=2**64), "priority"),
    case("reserved-key", with_parameters(triton_x=1), "triton_"),
    case("reserved-key-final", with_parameters(triton_enable_empty_final_response=True), "triton_"),
    case("parameter-is-an-array", with_parameters(a=[1]), "a"),
    case("parameters-is-an-array", dumps(inputs=[X], parameters=[1]), "parameters"),
    case("sequence-start-is-text", with_parameters(sequence_id=1, sequence_start="yes"), "sequence_start"),
    case("binary-data-output-is-text", with_parameters(binary_data_output="yes"), "binary_data_output"),
    case("100000-parameters", lambda: with_parameters(**{f"p{n}": n for n in range(100_000)})),
    case("id-with-line-break", dumps(id="a\r\nSet-Cookie: b", inputs=[X]), "id"),
    case("id-of-a-megabyte", lambda: dumps(id="a" * (1 << 20), inputs=[X]), "id"),
    case("id-is-a-number", dumps(id=5, inputs=[X]), "id"),
)

REFUSED: tuple[HttpCase, ...] = (*SYNTAX, *NUMBERS, *SHAPES, *DATATYPES, *TENSORS, *PARAMETERS)


def accepted(name: str, body: bytes) -> HttpCase:
    return HttpCase(f"json/accepted/{name}", 200, body=body)


# The other side of the rules above: a server that refuses everything would pass them.
ACCEPTED = (
    accepted("plain", GOOD),
    accepted("nested-data", dumps(inputs=[x(data=[[1] * 16])])),
    accepted("integers-and-fractions", dumps(inputs=[x(data=[1, 0.5, -0.0, 1e-3, 2e5, 1.5, 7, 8] * 2)])),
    accepted("whitespace-around", b" \r\n\t" + GOOD + b" \n"),
    accepted("keys-in-another-order", dumps(inputs=[dict(reversed(X.items()))])),
    accepted("unknown-keys", dumps(inputs=[x(colour="blue")], extra={"a": [1, {"b": None}]})),
    accepted("escaped-name", GOOD.replace(b'"x"', b'"\\u0078"', 1)),
    accepted("eight-rows", dumps(inputs=[x(shape=[8, 16], data=[1] * 128)])),
    accepted("id-of-1000-bytes", dumps(id="a" * 1000, inputs=[X])),
    accepted("no-outputs-named", dumps(inputs=[X], outputs=[])),
)
