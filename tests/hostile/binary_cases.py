"""Requests with binary tensors whose lengths lie, and compressed bodies that do not open: 400, or what they say."""

import gzip
import struct
import zlib
from typing import Any

from tests.servers.cases import INFER, HttpCase
from tests.servers.raw import HEADER_LENGTH, dumps

SIXTEEN = struct.pack("<16f", *range(16))
JSON_BODY = dumps(inputs=[{"name": "x", "shape": [1, 16], "datatype": "FP32", "data": [1] * 16}])


def tensor(size: Any, **changes: Any) -> dict[str, Any]:
    plain = {"name": "x", "shape": [1, 16], "datatype": "FP32", "parameters": {"binary_data_size": size}}
    return {key: value for key, value in (plain | changes).items() if value is not None}


def case(
    name: str, json: bytes, binary: bytes, *names: str, header: str | None = None, model: str = "double_fp32"
) -> HttpCase:
    """A JSON part and a binary part; `header` replaces the true length of the JSON part."""
    return HttpCase(
        f"binary/{name}",
        400,
        INFER.replace("double_fp32", model),
        body=json + binary,
        headers={HEADER_LENGTH: str(len(json)) if header is None else header},
        names=names,
    )


def lying(name: str, header: str) -> HttpCase:
    return case(f"header-length-{name}", GOOD, SIXTEEN, header=header)


def sized(name: str, size: Any, binary: bytes = SIXTEEN) -> HttpCase:
    return case(f"size-{name}", dumps(inputs=[tensor(size)]), binary)


def strings(name: str, binary: bytes, shape: list[int] | None = None) -> HttpCase:
    json = dumps(inputs=[tensor(len(binary), datatype="BYTES", shape=shape or [1, 4])])
    return case(f"bytes-{name}", json, binary, "x", model="reverse")


def element(content: bytes, length: int | None = None) -> bytes:
    return struct.pack("<I", len(content) if length is None else length) + content


GOOD = dumps(inputs=[tensor(64)])

HEADER = (
    lying("99999999999", "99999999999"),
    lying("past-2^64", "99999999999999999999999"),
    lying("minus-1", "-1"),
    lying("abc", "abc"),
    lying("empty", ""),
    lying("plus-5", "+5"),
    lying("hexadecimal", "0x95"),
    lying("fraction", f"{len(GOOD)}.0"),
    lying("one-past-the-body", str(len(GOOD) + 65)),
    lying("one-short", str(len(GOOD) - 1)),
    lying("one-long", str(len(GOOD) + 1)),
)

SIZES = (
    sized("minus-1", -1),
    sized("2^31", 2**31),
    sized("2^63", 2**63),
    sized("2^64", 2**64),
    sized("2^64-minus-1", 2**64 - 1),
    sized("text", "64"),
    sized("fraction", 64.5),
    sized("bool", True),
    sized("null", None),
    sized("63", 63),
    sized("65", 65, SIXTEEN + b"\0"),
    sized("0", 0, b""),
    case("body-too-short", GOOD, SIXTEEN[:-1]),
    case("body-too-long", GOOD, SIXTEEN + b"\0"),
    case("nothing-after-the-json", GOOD, b""),
    case("binary-nobody-announced", JSON_BODY, SIXTEEN),
    HttpCase("binary/size-without-header", 400, body=GOOD + SIXTEEN),
    case("data-and-binary-both", dumps(inputs=[tensor(64, data=[1] * 16)]), SIXTEEN, "x"),
    case("size-that-disagrees-with-the-shape", dumps(inputs=[tensor(64, shape=[2, 16])]), SIXTEEN, "x"),
    case(
        "two-inputs-that-share-too-little",
        dumps(inputs=[tensor(64, name="INPUT0"), tensor(64, name="INPUT1")]),
        SIXTEEN + SIXTEEN[:-4],
        model="addsub",
    ),
)

STRINGS = (
    strings("prefix-past-the-end", element(b"ab") * 3 + element(b"cd", 1000)),
    strings("prefix-of-4-GiB", element(b"ab", 2**32 - 1) * 4),
    strings("cut-prefix", element(b"ab") * 3 + b"\x02\x00"),
    strings("one-element-too-few", element(b"ab") * 3),
    strings("one-element-too-many", element(b"ab") * 5),
    strings("nothing", b""),
    strings("2^31-elements", element(b"ab") * 4, [1, 2**31]),
)

RAW = (
    case("raw-for-two-inputs", b"", SIXTEEN * 2, "addsub", header="0", model="addsub"),
    case("raw-too-short", b"", SIXTEEN[:-1], "x", header="0"),
    case("raw-too-long", b"", SIXTEEN + b"\0", "x", header="0"),
    case("raw-two-rows", b"", SIXTEEN * 2, "x", header="0"),
    case("raw-empty", b"", b"", "x", header="0"),
)


def compressed(name: str, status: int, encoding: str, body: bytes) -> HttpCase:
    return HttpCase(f"compressed/{name}", status, body=body, headers={"Content-Encoding": encoding})


COMPRESSED = (
    compressed("gzip-cut", 400, "gzip", gzip.compress(JSON_BODY)[:-20]),
    compressed("gzip-without-its-trailer", 400, "gzip", gzip.compress(JSON_BODY)[:-8]),
    compressed("gzip-bad-checksum", 400, "gzip", gzip.compress(JSON_BODY)[:-8] + b"\0" * 8),
    compressed("gzip-that-is-plain", 400, "gzip", JSON_BODY),
    compressed("gzip-then-garbage", 400, "gzip", gzip.compress(JSON_BODY) + b"garbage"),
    compressed("gzip-empty", 400, "gzip", b""),
    compressed("gzip-that-is-deflate", 400, "gzip", zlib.compress(JSON_BODY)),
    compressed("deflate-cut", 400, "deflate", zlib.compress(JSON_BODY)[:-6]),
    compressed("deflate-bad-checksum", 400, "deflate", zlib.compress(JSON_BODY)[:-4] + b"\0" * 4),
    compressed("deflate-that-is-plain", 400, "deflate", JSON_BODY),
    compressed("brotli", 415, "br", JSON_BODY),
    compressed("unknown", 415, "lzma", JSON_BODY),
    compressed("gzip-twice-announced", 415, "gzip, gzip", gzip.compress(gzip.compress(JSON_BODY))),
)

REFUSED: tuple[HttpCase, ...] = (*HEADER, *SIZES, *STRINGS, *RAW, *COMPRESSED)

ACCEPTED = (
    HttpCase("binary/accepted/plain", 200, body=GOOD + SIXTEEN, headers={HEADER_LENGTH: str(len(GOOD))}),
    HttpCase("binary/accepted/raw", 200, body=SIXTEEN, headers={HEADER_LENGTH: "0"}),
    HttpCase("binary/accepted/all-json", 200, body=JSON_BODY, headers={HEADER_LENGTH: str(len(JSON_BODY))}),
    compressed("accepted/gzip", 200, "gzip", gzip.compress(JSON_BODY)),
    compressed("accepted/deflate", 200, "deflate", zlib.compress(JSON_BODY)),
    compressed("accepted/identity", 200, "identity", JSON_BODY),
)
