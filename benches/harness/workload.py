"""What is asked of every server: three models, each with one real request and the answer that is right for it.

The inputs are never zeros, so that a server that answers zeros, or the input, is seen. Every number is a float32
exactly, so that answers are compared for equality. Called by the dialects, the catalogue and the rounds.
"""

import random
from array import array
from dataclasses import dataclass
from enum import Enum, StrEnum

SLEEP_SECONDS = 0.005
"""The batching workload's model: long against a request's own cost, short enough that waiting shows."""


class Wire(StrEnum):
    """How a request travels."""

    BINARY = "http"
    JSON = "json"
    GRPC = "grpc"

    @property
    def label(self) -> str:
        return {Wire.BINARY: "HTTP binary", Wire.JSON: "HTTP JSON", Wire.GRPC: "gRPC"}[self]


class Workload(Enum):
    """The models; the value names the workload in commands and reports."""

    DOUBLE = "double"
    IMAGE = "image"
    SLEEP = "sleep"

    @property
    def question(self) -> "Question":
        return _IMAGE if self is Workload.IMAGE else _DOUBLE

    @property
    def sleep_seconds(self) -> float:
        return SLEEP_SECONDS if self is Workload.SLEEP else 0.0


@dataclass(frozen=True)
class Question:
    """One request with one row, and its right answer."""

    shape: tuple[int, ...]
    values: tuple[float, ...]
    raw: bytes
    """The values as float32, little-endian (the only machines that these benches know)."""
    expected: tuple[float, ...]


def _double() -> Question:
    values = array("f", [index + 0.5 for index in range(16)])
    return Question((1, 16), tuple(values), values.tobytes(), tuple(2 * value for value in values))


def _image() -> Question:
    generator = random.Random(0)
    values = array("f", [generator.random() for _ in range(3 * 224 * 224)])
    corner = tuple(values[:: 224 * 224])
    return Question((1, 3, 224, 224), tuple(values), values.tobytes(), corner)


_DOUBLE = _double()
_IMAGE = _image()
