"""gRPC calls that must be refused: messages that contradict themselves, frames that lie. Statuses are gRPC names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tritonclient.grpc import service_pb2

from tests.hostile.binary_cases import SIXTEEN, element
from tests.servers.http2 import INFER_METHOD, Headers, framed, grpc_headers


@dataclass(frozen=True)
class MessageCase:
    """A ModelInferRequest and the status it must get; `names`: words of the message."""

    name: str
    build: Callable[[], service_pb2.ModelInferRequest]
    status: str = "INVALID_ARGUMENT"
    names: Sequence[str] = ()


def request(
    *raw: bytes,
    name: str = "x",
    model: str = "double_fp32",
    datatype: str = "FP32",
    shape: Sequence[int] = (1, 16),
    inputs: int = 1,
    **more: object,
) -> service_pb2.ModelInferRequest:
    message = service_pb2.ModelInferRequest(model_name=model, raw_input_contents=raw, **more)
    for _ in range(inputs):
        message.inputs.add(name=name, datatype=datatype, shape=shape)
    return message


def typed(values: int, *raw: bytes) -> service_pb2.ModelInferRequest:
    message = request(*raw)
    message.inputs[0].contents.fp32_contents.extend([1.0] * values)
    return message


def other_contents() -> service_pb2.ModelInferRequest:
    message = request()
    message.inputs[0].contents.int_contents.extend([1] * 16)
    return message


def uint8_of_300() -> service_pb2.ModelInferRequest:
    message = request(model="double_uint8", datatype="UINT8")
    message.inputs[0].contents.uint_contents.extend([300] * 16)
    return message


def outputs(*names: str) -> service_pb2.ModelInferRequest:
    message = request(SIXTEEN)
    for name in names:
        message.outputs.add(name=name)
    return message


def parameter(key: str, **value: object) -> service_pb2.ModelInferRequest:
    message = request(SIXTEEN)
    message.parameters[key].CopyFrom(service_pb2.InferParameter(**value))
    return message


def pair(*raw: bytes) -> service_pb2.ModelInferRequest:
    message = request(*raw, name="INPUT0", model="addsub")
    message.inputs.add(name="INPUT1", datatype="FP32", shape=[1, 16])
    return message


def message(name: str, build: Callable[[], service_pb2.ModelInferRequest], *names: str, **more: str) -> MessageCase:
    return MessageCase(f"grpc/{name}", build, names=names, **more)


MESSAGES: tuple[MessageCase, ...] = (
    message("typed-and-raw-together", lambda: typed(16, SIXTEEN), "x"),
    message("fewer-raw-than-inputs", lambda: pair(SIXTEEN)),
    message("more-raw-than-inputs", lambda: request(SIXTEEN, SIXTEEN)),
    message("raw-without-inputs", lambda: request(SIXTEEN, inputs=0)),
    message("no-contents", request, "x"),
    message("raw-too-short", lambda: request(SIXTEEN[:-1]), "x"),
    message("raw-too-long", lambda: request(SIXTEEN + b"\0"), "x"),
    message("typed-too-few", lambda: typed(15), "x"),
    message("typed-too-many", lambda: typed(17), "x"),
    message("typed-of-another-kind", other_contents, "x"),
    message("typed-300-as-uint8", uint8_of_300, "x"),
    message("negative-dimension", lambda: request(SIXTEEN, shape=[1, -16]), "x"),
    message("shape-that-overflows", lambda: request(SIXTEEN, shape=[2**4, 2**60 + 2]), "x"),
    message("10000-dimensions", lambda: request(SIXTEEN, shape=[1] * 10_000), "x"),
    message("empty-shape", lambda: request(SIXTEEN, shape=[]), "x"),
    message("no-batch-dimension", lambda: request(SIXTEEN, shape=[16]), "x"),
    message("zero-rows", lambda: request(b"", shape=[0, 16]), "x"),
    message("more-rows-than-max-batch", lambda: request(SIXTEEN * 9, shape=[9, 16])),
    message("datatype-fp99", lambda: request(SIXTEEN, datatype="FP99"), "FP99"),
    message("other-datatype-than-the-model", lambda: request(SIXTEEN * 2, datatype="FP64"), "FP64", "FP32"),
    message("unknown-input", lambda: request(SIXTEEN, name="z"), "z"),
    message("input-twice", lambda: request(SIXTEEN, SIXTEEN, inputs=2), "x"),
    message("missing-input", lambda: request(SIXTEEN, name="INPUT0", model="addsub"), "INPUT1"),
    message("unknown-output", lambda: outputs("q"), "q"),
    message("output-twice", lambda: outputs("y", "y"), "y"),
    message("10000-outputs", lambda: outputs(*(f"o{n}" for n in range(10_000)))),
    message("timeout-negative", lambda: parameter("timeout", int64_param=-1), "timeout"),
    message("timeout-text", lambda: parameter("timeout", string_param="5"), "timeout"),
    message("priority-negative", lambda: parameter("priority", int64_param=-1), "priority"),
    message("reserved-key", lambda: parameter("triton_x", int64_param=1), "triton_"),
    message("id-of-a-megabyte", lambda: request(SIXTEEN, id="a" * (1 << 20)), "id"),
    message("id-with-line-break", lambda: request(SIXTEEN, id="a\r\nb"), "id"),
    message(
        "bytes-prefix-past-the-end",
        lambda: request(element(b"ab", 99) * 4, model="reverse", datatype="BYTES", shape=[1, 4]),
        "x",
    ),
    message(
        "bytes-one-element-too-few",
        lambda: request(element(b"ab") * 3, model="reverse", datatype="BYTES", shape=[1, 4]),
        "x",
    ),
    message("unknown-model", lambda: request(SIXTEEN, model="absent"), "absent", status="NOT_FOUND"),
    message("version-x", lambda: request(SIXTEEN, model_version="x"), status="NOT_FOUND"),
    message("version-minus-1", lambda: request(SIXTEEN, model_version="-1"), status="NOT_FOUND"),
)

GOOD = request(SIXTEEN).SerializeToString()


@dataclass(frozen=True)
class CallCase:
    """A call below the level of messages: `statuses` are the grpc-status numbers allowed, `http` HTTP statuses."""

    name: str
    headers: Headers
    body: bytes
    statuses: Sequence[int] = ()
    http: Sequence[int] = ()


INVALID, DEADLINE, EXHAUSTED, UNIMPLEMENTED, INTERNAL = 3, 4, 8, 12, 13

CALLS: tuple[CallCase, ...] = (
    CallCase("cut-protobuf", grpc_headers(), framed(GOOD[:-3]), (INVALID, INTERNAL)),
    CallCase("no-protobuf", grpc_headers(), framed(b"\xff" * 50), (INVALID, INTERNAL)),
    CallCase("bad-utf8-in-a-name", grpc_headers(), framed(b"\x0a\x02\xc3\x28"), (INVALID, INTERNAL)),
    CallCase("nested-groups", grpc_headers(), framed(b"\x0b" * 16_000), (INVALID, INTERNAL)),
    CallCase(
        "length-that-overflows",
        grpc_headers(),
        framed(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
        (INVALID, INTERNAL),
    ),
    CallCase("no-message", grpc_headers(), b"", (INVALID, UNIMPLEMENTED, INTERNAL)),
    CallCase("two-messages", grpc_headers(), framed(GOOD) * 2, (INVALID, UNIMPLEMENTED, INTERNAL)),
    CallCase("cut-prefix", grpc_headers(), b"\0\0\0", (INVALID, INTERNAL)),
    CallCase("message-shorter-than-declared", grpc_headers(), framed(GOOD, length=len(GOOD) + 1), (INVALID, INTERNAL)),
    CallCase("message-of-4-GiB-declared", grpc_headers(), framed(GOOD, length=2**32 - 1), (EXHAUSTED,)),
    CallCase("compressed-flag-without-encoding", grpc_headers(), framed(GOOD, 1), (INVALID, UNIMPLEMENTED, INTERNAL)),
    CallCase("flag-of-7", grpc_headers(), framed(GOOD, 7), (INVALID, UNIMPLEMENTED, INTERNAL)),
    CallCase("unknown-encoding", grpc_headers(grpc_encoding="lzma"), framed(GOOD, 1), (UNIMPLEMENTED,)),
    CallCase("gzip-that-is-plain", grpc_headers(grpc_encoding="gzip"), framed(GOOD, 1), (INVALID, INTERNAL)),
    CallCase("unknown-method", grpc_headers("/inference.GRPCInferenceService/Nothing"), framed(GOOD), (UNIMPLEMENTED,)),
    CallCase("unknown-service", grpc_headers("/a.B/C"), framed(GOOD), (UNIMPLEMENTED,)),
    CallCase("path-without-a-method", grpc_headers("/"), framed(GOOD), (UNIMPLEMENTED,)),
    CallCase("bad-timeout", grpc_headers(grpc_timeout="soon"), framed(GOOD), (INVALID, INTERNAL)),
    CallCase("timeout-without-unit", grpc_headers(grpc_timeout="5"), framed(GOOD), (INVALID, INTERNAL)),
    CallCase("timeout-of-9-digits", grpc_headers(grpc_timeout="999999999S"), framed(GOOD), (INVALID, INTERNAL)),
    CallCase("other-content-type", grpc_headers(content_type="application/json"), framed(GOOD), (), (415,)),
    CallCase("no-content-type", grpc_headers(content_type=""), framed(GOOD), (), (415,)),
    CallCase("get", grpc_headers(INFER_METHOD, method="GET"), b"", (UNIMPLEMENTED, INTERNAL), (405, 415)),
)
