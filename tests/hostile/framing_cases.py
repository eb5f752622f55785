"""Bytes on an HTTP/1 connection that no client sends: the message's own boundaries lie.

Whatever can be read in two ways is refused and the connection closed, so that nothing behind the server sees another
request than the server did (request smuggling).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tests.hostile.json_cases import GOOD
from tests.servers.cases import INFER

# What a smuggler hides; an answer to it is a second response.
HIDDEN = b"GET /v2/health/ready HTTP/1.1\r\nHost: hidden\r\n\r\n"


@dataclass(frozen=True)
class RawCase:
    """`statuses`: what the one response may be; 0 stands for a connection closed without a response."""

    name: str
    sent: bytes
    statuses: Sequence[int] = (400,)
    half_close: bool = False


def post(*headers: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    lines = [b"POST " + INFER.encode() + b" HTTP/" + version, b"Host: a", *headers, b"", b""]
    return b"\r\n".join(lines) + body


def length(value: str) -> bytes:
    return f"Content-Length: {value}".encode()


CHUNKED = b"Transfer-Encoding: chunked"
SIZE = str(len(GOOD))
HEX = f"{len(GOOD):x}".encode()
WHOLE = HEX + b"\r\n" + GOOD + b"\r\n0\r\n\r\n"

CASES = (
    RawCase("length-plus-5", post(length("+5"), body=b"12345" + HIDDEN)),
    RawCase("length-minus-5", post(length("-5"), body=HIDDEN)),
    RawCase("length-hexadecimal", post(length("0x10"), body=GOOD + HIDDEN)),
    RawCase("length-with-a-space", post(length("1 0"), body=GOOD + HIDDEN)),
    RawCase("length-not-a-number", post(length("many"), body=GOOD + HIDDEN)),
    RawCase("length-past-2^64", post(length("99999999999999999999999"), body=HIDDEN), (400, 413)),
    RawCase("length-empty", post(length(""), body=GOOD + HIDDEN)),
    RawCase("two-lengths-that-differ", post(length("0"), length(SIZE), body=GOOD + HIDDEN)),
    RawCase("two-lengths-in-one-header", post(length(f"0, {SIZE}"), body=GOOD + HIDDEN)),
    RawCase("coding-gzip-only", post(b"Transfer-Encoding: gzip", body=WHOLE + HIDDEN), (400, 501)),
    RawCase("coding-chunked-not-last", post(b"Transfer-Encoding: chunked, gzip", body=WHOLE + HIDDEN), (400, 501)),
    RawCase("coding-identity", post(b"Transfer-Encoding: identity", body=GOOD + HIDDEN), (400, 501)),
    RawCase("coding-misspelt", post(b"Transfer-Encoding: xchunked", body=WHOLE + HIDDEN), (400, 501)),
    RawCase("coding-on-http-1.0", post(CHUNKED, body=WHOLE + HIDDEN, version=b"1.0")),
    RawCase("chunk-size-past-2^64", post(CHUNKED, body=b"f0000000000000003\r\nabc\r\n0\r\n\r\n" + HIDDEN)),
    RawCase("chunk-size-negative", post(CHUNKED, body=b"-1\r\n" + HIDDEN)),
    RawCase("chunk-size-no-digits", post(CHUNKED, body=b"\r\n" + GOOD + b"\r\n0\r\n\r\n" + HIDDEN)),
    RawCase("chunk-size-not-hexadecimal", post(CHUNKED, body=b"zz\r\n" + HIDDEN)),
    RawCase("chunk-without-its-last-digit", post(CHUNKED, body=HEX[:-1] + b"\r\n" + GOOD + b"\r\n0\r\n\r\n" + HIDDEN)),
    RawCase("chunk-longer-than-its-size", post(CHUNKED, body=b"3\r\nabcd\r\n0\r\n\r\n" + HIDDEN)),
    RawCase("chunk-extension-of-100-KB", post(CHUNKED, body=b"3;a=" + b"b" * 100_000 + b"\r\nabc\r\n0\r\n\r\n")),
    RawCase("chunks-cut-then-closed", post(CHUNKED, body=HEX + b"\r\n" + GOOD[:10]), half_close=True),
    RawCase("chunks-without-an-end-then-closed", post(CHUNKED, body=WHOLE[:-5]), half_close=True),
    RawCase("body-shorter-than-declared-then-closed", post(length("1000"), body=GOOD), half_close=True),
    RawCase("no-body-then-closed", post(length(SIZE)), half_close=True),
    RawCase("nul-in-a-header-name", post(b"X\0Y: 1", length(SIZE), body=GOOD + HIDDEN)),
    RawCase("space-in-a-header-name", post(b"X Y: 1", length(SIZE), body=GOOD + HIDDEN)),
    RawCase("space-before-the-colon", post(b"Content-Length : " + SIZE.encode(), body=GOOD + HIDDEN)),
    RawCase("nul-in-a-header-value", post(b"X: a\0b", length(SIZE), body=GOOD + HIDDEN)),
    RawCase("bare-cr-in-a-header-value", post(b"X: a\rb", length(SIZE), body=GOOD + HIDDEN)),
    RawCase("header-without-a-colon", post(b"nothing", length(SIZE), body=GOOD + HIDDEN)),
    RawCase("folded-header", post(b"X: a", b" b", length(SIZE), body=GOOD + HIDDEN)),
    RawCase("header-line-empty-name", post(b": a", length(SIZE), body=GOOD + HIDDEN)),
    RawCase("request-line-of-one-word", b"GARBAGE\r\n\r\n" + HIDDEN, (400, 0)),
    RawCase("request-line-with-a-nul", b"GET /v2\0 HTTP/1.1\r\nHost: a\r\n\r\n" + HIDDEN),
    RawCase("request-line-with-two-targets", b"GET /v2 /v2 HTTP/1.1\r\nHost: a\r\n\r\n" + HIDDEN),
    RawCase("no-host", b"GET /v2 HTTP/1.1\r\n\r\n" + HIDDEN),
    RawCase("no-host-of-a-request-with-a-body", post(length(SIZE), body=GOOD).replace(b"Host: a\r\n", b"") + HIDDEN),
    RawCase("two-hosts", post(b"Host: b", length(SIZE), body=GOOD + HIDDEN)),
    RawCase("the-same-host-twice", b"GET /v2 HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n" + HIDDEN),
    RawCase("two-hosts-on-http-1.0", b"GET /v2 HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n" + HIDDEN),
    RawCase("version-9.9", b"GET /v2 HTTP/9.9\r\nHost: a\r\n\r\n" + HIDDEN, (400, 505, 0)),
    RawCase("preface-of-http-2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 9, (400, 505, 0)),
    RawCase("greeting-of-tls", bytes.fromhex("16030100c8010000c40303") + b"\x55" * 190, (400, 0)),
    RawCase("binary-noise", bytes(range(256)) * 4, (400, 0)),
)

# HTTP/1.0 names no host.
NO_HOST_1_0 = RawCase("no-host-on-http-1.0", b"GET /v2 HTTP/1.0\r\n\r\n", (200,))

# Framings that are ambiguous and answered all the same: one response, then closed.
ONE_RESPONSE = (
    RawCase("length-and-coding-together", post(length(SIZE), CHUNKED, body=WHOLE + HIDDEN), (200, 400)),
    RawCase("length-zero-and-coding", post(length("0"), CHUNKED, body=WHOLE + HIDDEN), (200, 400)),
    RawCase("coding-before-length", post(CHUNKED, length(SIZE), body=WHOLE + HIDDEN), (200, 400)),
)
