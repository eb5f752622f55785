"""Where Penstock answers something else than Triton 2.51, and why. The one record of it.

`docs/differences-from-triton.md` is rendered from here (`python -m tests.conformance.differences` writes it, a test
compares). Every entry belongs to a case of the tests, and a run with `--server triton` holds Triton to its column.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from penstock.repository.supported import table

# Triton's process ends, hangs or leaks on the case, so that it is not sent in a run against Triton.
NOT_SENT = "process ends"

PAGE = Path(__file__).resolve().parents[2] / "docs/differences-from-triton.md"


@dataclass(frozen=True)
class Difference:
    """Answers are an HTTP status or the name of a gRPC status; `why` is Penstock's reason."""

    case: str
    triton: str
    penstock: str
    why: str


INVALID = "The request is wrong and will stay wrong: an invalid argument, not a fault of the server."
STRICT_JSON = "No JSON by RFC 8259: read loosely, two readers of one document see two documents."
LOST_VALUE = "The value does not fit the datatype; answering would compute with another value than was sent."
DOUBLED = "Said twice with one meaning kept silently: which one counts is a guess."
BOUNDED = "Work and memory of a request are bounded before it is looked into."


def _each(prefix: str, triton: str, penstock: str, why: str, names: str) -> tuple["Difference", ...]:
    """The same difference for several cases: names separated by spaces, all below the prefix."""
    return tuple(Difference(f"{prefix}/{name}", triton, penstock, why) for name in names.split())


JSON = (
    *_each(
        "json",
        "500",
        "400",
        INVALID,
        "bad-utf8-in-a-key lone-surrogate-escape bad-escape control-character-in-a-string top-level-array "
        "top-level-string top-level-null empty-object only-whitespace cut cut-in-a-number trailing-text two-documents "
        "trailing-comma comment utf-16 nesting-120 1e999 leading-zero plus-sign hexadecimal bare-point text-as-fp32 "
        "bool-as-fp32 null-as-fp32 object-as-fp32 minus-1-as-uint8 1.5-as-int64 2^63-as-int64 2^64-as-int64 "
        "number-as-bool number-as-bytes negative-dimension minus-one-dimension fractional-dimension text-dimension "
        "dimension-past-2^63 10000-dimensions shape-is-a-number no-shape fewer-values-than-the-shape "
        "more-values-than-the-shape no-values datatype-is-a-number no-datatype no-inputs inputs-is-an-object "
        "input-name-is-a-number no-input-name data-is-a-number data-is-text output-without-name outputs-is-text "
        "timeout-negative timeout-fractional timeout-text timeout-past-2^64 priority-negative priority-fractional "
        "priority-past-2^64 parameters-is-an-array sequence-start-is-text binary-data-output-is-text id-is-a-number",
    ),
    *_each(
        "json",
        "200",
        "400",
        STRICT_JSON,
        "bad-utf8-in-the-id bad-utf8-in-a-string-element nan infinity minus-infinity",
    ),
    *_each("json", "200", "400", DOUBLED, "key-twice key-twice-in-an-input key-twice-in-parameters output-twice"),
    *_each("json", "200", "400", LOST_VALUE, "1e39-as-fp32 300-as-uint8 zero-dimension-with-data"),
    *_each("json", "200", "400", BOUNDED, "nesting-120-in-an-unknown-key id-of-a-megabyte"),
    *_each("json", NOT_SENT, "400", BOUNDED, "250000-open-brackets 250000-open-objects brackets-as-data"),
    *_each("json", NOT_SENT, "400", BOUNDED, "shape-of-2^31-rows 100000-parameters"),
    *_each("json", "200", "400", "An id goes into logs and traces: no control characters.", "id-with-line-break"),
)
BINARY = (
    *_each(
        "binary",
        "500",
        "400",
        INVALID,
        "header-length-plus-5 header-length-one-short size-minus-1 size-2^64 size-text size-fraction size-bool "
        "size-null",
    ),
    *_each("binary", "200", "400", "A length is a decimal number and nothing else.", "header-length-fraction"),
)
COMPRESSED = (
    *_each("compressed", "500", "400", INVALID, "gzip-cut deflate-cut"),
    *_each(
        "compressed",
        "200",
        "400",
        "The checksum or the format says that these are not the bytes that were compressed.",
        "gzip-without-its-trailer gzip-bad-checksum gzip-then-garbage gzip-that-is-deflate deflate-bad-checksum",
    ),
    *_each(
        "compressed",
        "501",
        "415",
        "415 is what RFC 9110 has for an unknown content coding.",
        "brotli unknown gzip-twice-announced",
    ),
)
MODELS = (
    *_each(
        "models",
        "400",
        "404",
        "A version number too long to exist is an unknown version like any other.",
        "version-99999999999999999999-metadata version-99999999999999999999-infer",
    ),
    *_each(
        "models",
        "500",
        "501",
        "Client shared memory is off unless the operator allows it.",
        "shared-memory-register-plain-while-off shared-memory-register-reserved-while-off "
        "shared-memory-register-overflow-while-off",
    ),
    *_each(
        "models",
        "400",
        "501",
        "Client shared memory is off unless the operator allows it.",
        "cuda-memory-register-while-off",
    ),
    *_each(
        "models",
        "404",
        "501",
        "Client shared memory is off unless the operator allows it.",
        "unregistered-region",
    ),
)
HTTP = (
    *_each("http", "200", "501", "Settings of traces and logs are not changed over the network.", "logging trace"),
    *_each("http", "405", "200", "Where GET is answered, RFC 9110 wants HEAD answered.", "head"),
    *_each("http", "400", "501", "The generate extension is not built.", "generate generate-stream"),
)
LOAD = (
    Difference("load-absent-http", "500", "404", "The model is not found; the server is well."),
    Difference("load-absent-grpc", "StatusCode.INTERNAL", "StatusCode.NOT_FOUND", "As over HTTP."),
)
GRPC = (
    Difference("grpc/reflection", "UNIMPLEMENTED", "OK", "grpcurl and other tools find the service without a .proto."),
    Difference(
        "grpc/shared-memory-register",
        "INTERNAL",
        "UNIMPLEMENTED",
        "Client shared memory is off unless the operator allows it.",
    ),
)
MESSAGES = (
    *_each("grpc", "OK", "INVALID_ARGUMENT", INVALID, "more-raw-than-inputs timeout-negative"),
    *_each("grpc", "OK", "INVALID_ARGUMENT", LOST_VALUE, "typed-300-as-uint8"),
    *_each("grpc", "OK", "INVALID_ARGUMENT", DOUBLED, "output-twice"),
    *_each("grpc", "OK", "INVALID_ARGUMENT", BOUNDED, "id-of-a-megabyte"),
    *_each(
        "grpc",
        "OK",
        "INVALID_ARGUMENT",
        "An id goes into logs and traces: no control characters.",
        "id-with-line-break",
    ),
    *_each(
        "grpc",
        "RESOURCE_EXHAUSTED",
        "INVALID_ARGUMENT",
        "An error that repeats the request grows past what a client takes for metadata.",
        "10000-dimensions",
    ),
    *_each(
        "grpc",
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "A version that cannot exist is an unknown version, over gRPC as over HTTP.",
        "version-x version-minus-1",
    ),
)
INFER = (
    Difference(
        "infer/order-of-outputs",
        "as the model made them",
        "as they were asked for",
        "The order of the request is the only one that the client knows.",
    ),
)
METRICS = (Difference("metrics/other-paths", "200", "404", "The metrics port serves metrics and nothing else."),)

DIFFERENCES: tuple[Difference, ...] = (
    *JSON,
    *BINARY,
    *COMPRESSED,
    *MODELS,
    *HTTP,
    *LOAD,
    *GRPC,
    *MESSAGES,
    *INFER,
    *METRICS,
)
BY_CASE: Mapping[str, Difference] = {difference.case: difference for difference in DIFFERENCES}


def expected(case: str, kind: Literal["penstock", "triton"], otherwise: str | None = None) -> str:
    """What the server answers to the case; `otherwise` is both servers' answer where they do not differ."""
    difference = BY_CASE.get(case)
    if difference is None:
        if otherwise is None:
            raise KeyError(f"no difference is recorded for {case!r}")
        return otherwise
    return difference.penstock if kind == "penstock" else difference.triton


HEADING = """# Where Penstock answers something else than Triton

Penstock speaks the interface of Triton Inference Server, and clients see the same names, numbers and errors, except for
the rows below and for what is not built, which is listed at the end. Each row is a test: it runs against Penstock, and
against a real Triton 2.51 where one is installed (`pytest tests/conformance tests/hostile --server triton`). "process
ends" means that Triton crashes, hangs or runs out of memory on the request, so the test is not sent to it.

Numbers are HTTP statuses, names are gRPC statuses. This page is written by `python -m tests.conformance.differences`.
"""


NOT_BUILT = (
    ("the classification extension (`class_count`)", "501, UNIMPLEMENTED"),
    ("the generate extension, trace and log settings over the network", "501, UNIMPLEMENTED"),
    ("the Python backend (`model.py`) and other backends than onnxruntime and openvino", "the load fails"),
)

ENDING = """
## What is not built

| | |
|---|---|
{not_built}

A model whose configuration says one of these is refused when it is loaded:

| setting | why |
|---|---|
{refused}

These have no effect, and the log warns of each that a configuration says:

| setting | why |
|---|---|
{noted}

So have the parameters {parameters}.
"""


def _ending() -> str:
    refused, noted, parameters = table()
    rows = (NOT_BUILT, [(f"`{name}`", why) for name, why in refused], [(f"`{name}`", why) for name, why in noted])
    texts = ["\n".join(f"| {first} | {second} |" for first, second in each) for each in rows]
    listed = ", ".join(f"`{each}`" for each in parameters)
    return ENDING.format(not_built=texts[0], refused=texts[1], noted=texts[2], parameters=listed)


def page() -> str:
    """The text of docs/differences-from-triton.md: one row per reason and pair of answers."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for difference in DIFFERENCES:
        groups.setdefault((difference.why, difference.triton, difference.penstock), []).append(difference.case)
    rows = ["| case | Triton 2.51 | Penstock | why |", "|---|---|---|---|"]
    for (why, triton, penstock), cases in groups.items():
        rows.append(f"| {', '.join(f'`{case}`' for case in cases)} | {triton} | {penstock} | {why} |")
    return HEADING + "\n" + "\n".join(rows) + "\n" + _ending()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
