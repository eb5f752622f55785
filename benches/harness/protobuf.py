"""As much protobuf and gRPC framing as one ModelInferRequest needs, so that the benches need no generated code.

It promises to write the fields of the public KServe v2 messages and to read `raw_output_contents` back; anything cut or
foreign raises ValueError. Called by `dialects.py`.
"""

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

# Field numbers of ModelInferRequest, its InferInputTensor, and ModelInferResponse (KServe v2, public).
REQUEST_MODEL_NAME, REQUEST_INPUTS, REQUEST_RAW = 1, 5, 7
INPUT_NAME, INPUT_DATATYPE, INPUT_SHAPE = 1, 2, 3
RESPONSE_RAW = 6


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | BYTES) + varint(len(content)) + content


def infer_request(model: str, name: str, datatype: str, shape: tuple[int, ...], raw: bytes) -> bytes:
    """A ModelInferRequest with one input whose content is raw."""
    packed_shape = b"".join(varint(extent) for extent in shape)
    tensor = field(INPUT_NAME, name.encode()) + field(INPUT_DATATYPE, datatype.encode())
    tensor += field(INPUT_SHAPE, packed_shape)
    return field(REQUEST_MODEL_NAME, model.encode()) + field(REQUEST_INPUTS, tensor) + field(REQUEST_RAW, raw)


def frame(message: bytes) -> bytes:
    """gRPC's prefix: not compressed, length, message."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def unframe(body: bytes) -> bytes:
    """The one message in a gRPC body."""
    if len(body) < 5 or body[0] != 0 or int.from_bytes(body[1:5], "big") != len(body) - 5:
        raise ValueError(f"not one uncompressed gRPC message: {len(body)} bytes, beginning {body[:16]!r}")
    return body[5:]


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise ValueError(f"varint cut or too long at byte {at}")
        value |= (message[at] & 0x7F) << shift
        shift += 7
        at += 1
        if message[at - 1] < 0x80:
            return value, at


def fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Every length-delimited field as (number, content); the other kinds are skipped."""
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        kind = tag & 7
        if kind == VARINT:
            _, at = _read_varint(message, at)
            continue
        if kind == BYTES:
            size, at = _read_varint(message, at)
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {at}")
        if at + size > len(message):
            raise ValueError(f"field {tag >> 3} wants {size} bytes at {at}, the message has {len(message)}")
        if kind == BYTES:
            yield tag >> 3, message[at : at + size]
        at += size


def raw_outputs(message: bytes) -> list[bytes]:
    """`raw_output_contents` of a ModelInferResponse."""
    return [content for number, content in fields(message) if number == RESPONSE_RAW]
