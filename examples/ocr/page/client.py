"""Sends pages to `read_page` with Triton's public Python clients, over gRPC or HTTP, several in flight.

Promises: every page is sent once; an answer counts only when it carries the id of its own request; a page that fails is
kept with its reason and stops no other. Called by `demo`.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http

from examples.ocr import runs
from examples.ocr.client import Protocol
from examples.ocr.page.words import Line, Word

MODEL = "read_page"
GRPC: Protocol = "grpc"
HTTP: Protocol = "http"
CLIENTS: dict[Protocol, ModuleType] = {GRPC: tritonclient.grpc, HTTP: tritonclient.http}
TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Answer:
    lines: tuple[Line, ...]
    seconds: float  # from handing the page to the client library to having its lines
    error: str = ""  # why there are no lines; empty when there may be


@dataclass(frozen=True, slots=True)
class Run(runs.Run[Answer]):
    @property
    def pages_per_second(self) -> float:
        return self.answered_per_second


def read_pages(protocol: Protocol, address: str, pages: Sequence[bytes], in_flight: int) -> Run:
    """Sends all pages, PNG or JPEG, to `HOST:PORT`: each answer at once makes room for the next."""
    infer = _over_grpc(address) if protocol == GRPC else _over_http(address)

    def answer(numbered: tuple[int, bytes]) -> Answer:
        number, page = numbered
        begin = time.perf_counter()
        try:
            lines = infer(page, f"page-{number}")
        except Exception as error:  # the clients raise their own, grpc's and gevent's errors: all mean "no answer"
            return Answer((), time.perf_counter() - begin, f"page-{number}: {type(error).__name__}: {error}")
        return Answer(lines, time.perf_counter() - begin)

    begin = time.perf_counter()
    with ThreadPoolExecutor(in_flight) as pool:
        answers = tuple(pool.map(answer, enumerate(pages)))
    return Run(answers, time.perf_counter() - begin)


Infer = Callable[[bytes, str], tuple[Line, ...]]


def _over_grpc(address: str) -> Infer:
    client = tritonclient.grpc.InferenceServerClient(address)

    def infer(page: bytes, identity: str) -> tuple[Line, ...]:
        found = client.infer(MODEL, _inputs(GRPC, page), request_id=identity, client_timeout=TIMEOUT_SECONDS)
        return _lines(found, identity, found.get_response().id)

    return infer


def _over_http(address: str) -> Infer:
    own = threading.local()  # a client belongs to the thread that made it, and has one request under way

    def infer(page: bytes, identity: str) -> tuple[Line, ...]:
        if not hasattr(own, "client"):
            own.client = tritonclient.http.InferenceServerClient(
                address, network_timeout=TIMEOUT_SECONDS, connection_timeout=TIMEOUT_SECONDS
            )
        found = own.client.infer(MODEL, _inputs(HTTP, page), request_id=identity)
        return _lines(found, identity, str(found.get_response().get("id", "")))

    return infer


def _inputs(protocol: Protocol, page: bytes) -> list[Any]:
    tensor = CLIENTS[protocol].InferInput("image", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([page], object))
    return [tensor]


def _lines(found: Any, identity: str, identity_back: str) -> tuple[Line, ...]:
    """Raises ValueError for the answer to another request."""
    if identity_back != identity:
        raise ValueError(f"the answer belongs to request {identity_back!r}")
    words: dict[int, list[Word]] = {}
    rows = [found.as_numpy(f"word_{each}") for each in ("line", "text", "score", "corners")]
    for line, text, score, corners in zip(*rows, strict=True):
        words.setdefault(int(line), []).append(Word(text.decode(), float(score), corners))
    rows = [found.as_numpy(each) for each in ("text", "score", "corners")]
    return tuple(
        Line(text.decode(), float(score), corners, tuple(words.get(number, ())))
        for number, (text, score, corners) in enumerate(zip(*rows, strict=True))
    )
