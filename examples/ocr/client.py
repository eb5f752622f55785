"""Sends pictures of lines to `read_line` with Triton's public Python client, over gRPC or HTTP, many in flight.

Promises: every picture is sent once; an answer counts only when it carries the id of its own request, so a mixed-up
answer is a failure and not a misreading; a failed request is kept with its reason and stops nobody else. Needs a
server that speaks the v2 protocol, Penstock or not. Called by `demo`.
"""

import asyncio
import json
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import tritonclient.grpc as grpc
import tritonclient.grpc.aio as grpc_aio
import tritonclient.http as http
import tritonclient.http.aio as http_aio

from examples.ocr import runs

MODEL = "read_line"
Protocol = Literal["grpc", "http"]
# A line takes some 20 ms alone; a minute means that the server is stuck, not slow.
TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    score: float
    seconds: float  # from handing the picture to the client library to having its text
    error: str = ""  # why there is no text; empty when there is


@dataclass(frozen=True, slots=True)
class Run(runs.Run[Answer]):
    @property
    def lines_per_second(self) -> float:
        return self.answered_per_second


Infer = Callable[[bytes, str], Awaitable[tuple[str, str, float]]]
"""Sends one picture under a request id; gives the id that came back, the text and the score."""


def read_lines(protocol: Protocol, address: str, images: Sequence[bytes], in_flight: int) -> Run:
    """Sends all pictures to `HOST:PORT`, `in_flight` at a time: each answer at once makes room for the next."""
    session = _over_grpc if protocol == "grpc" else _over_http
    return asyncio.run(session(address, images, in_flight))


async def _over_grpc(address: str, images: Sequence[bytes], in_flight: int) -> Run:
    async with grpc_aio.InferenceServerClient(address) as client:

        async def infer(image: bytes, identity: str) -> tuple[str, str, float]:
            tensor = grpc.InferInput("image", [1, 1], "BYTES")
            tensor.set_data_from_numpy(_as_row(image))
            result = await client.infer(MODEL, [tensor], request_id=identity, client_timeout=TIMEOUT_SECONDS)
            return result.get_response().id, *_text_and_score(result.as_numpy("text"), result.as_numpy("score"))

        return await _closed_loop(infer, images, in_flight)


async def _over_http(address: str, images: Sequence[bytes], in_flight: int) -> Run:
    async with http_aio.InferenceServerClient(address, conn_limit=in_flight, conn_timeout=TIMEOUT_SECONDS) as client:
        outputs = [http.InferRequestedOutput(name, binary_data=True) for name in ("text", "score")]

        async def infer(image: bytes, identity: str) -> tuple[str, str, float]:
            tensor = http.InferInput("image", [1, 1], "BYTES")
            tensor.set_data_from_numpy(_as_row(image), binary_data=True)
            result = await client.infer(MODEL, [tensor], outputs=outputs, request_id=identity)
            identity_back = str(result.get_response().get("id", ""))
            return identity_back, *_text_and_score(result.as_numpy("text"), result.as_numpy("score"))

        return await _closed_loop(infer, images, in_flight)


async def _closed_loop(infer: Infer, images: Sequence[bytes], in_flight: int) -> Run:
    answers: list[Answer | None] = [None] * len(images)
    waiting: Iterator[tuple[int, bytes]] = iter(enumerate(images))

    async def one_after_another() -> None:
        for index, image in waiting:  # shared by all of them: each takes the next picture nobody has taken
            answers[index] = await _answer(infer, image, f"line-{index}")

    began = time.perf_counter()
    await asyncio.gather(*(one_after_another() for _ in range(in_flight)))
    seconds = time.perf_counter() - began
    return Run(tuple(answer for answer in answers if answer is not None), seconds)


async def _answer(infer: Infer, image: bytes, identity: str) -> Answer:
    began = time.perf_counter()
    try:
        identity_back, text, score = await infer(image, identity)
    except Exception as error:  # the clients raise their own, grpc's and aiohttp's errors: all mean "no answer"
        return Answer("", 0.0, time.perf_counter() - began, f"{identity}: {type(error).__name__}: {error}")
    seconds = time.perf_counter() - began
    if identity_back != identity:
        return Answer("", 0.0, seconds, f"{identity}: the answer belongs to request {identity_back!r}")
    return Answer(text, score, seconds)


def _as_row(image: bytes) -> np.ndarray[tuple[int, int], np.dtype[np.object_]]:
    row = np.empty((1, 1), dtype=object)
    row[0, 0] = image
    return row


def _text_and_score(text: object, score: object) -> tuple[str, float]:
    """Raises ValueError when the server left an output out or answered another shape."""
    if not (isinstance(text, np.ndarray) and isinstance(score, np.ndarray) and text.shape == score.shape == (1, 1)):
        raise ValueError("expected outputs text BYTES [1, 1] and score FP32 [1, 1], got something else")
    return text[0, 0].decode(), float(score[0, 0])


@dataclass(frozen=True, slots=True)
class Batches:
    """How often the server ran a batch of each size since it started."""

    counts: Mapping[int, int]

    def since(self, earlier: "Batches") -> "Batches":
        grown = {size: count - earlier.counts.get(size, 0) for size, count in self.counts.items()}
        return Batches({size: count for size, count in sorted(grown.items()) if count > 0})

    @property
    def mean(self) -> float:
        """Rows per batch; NaN when none ran."""
        batches = sum(self.counts.values())
        return sum(size * count for size, count in self.counts.items()) / batches if batches else float("nan")


def batches(http_address: str) -> Batches:
    """From the server's statistics, `batch_stats` of the v2 statistics extension."""
    url = f"http://{http_address}/v2/models/{MODEL}/stats"
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer:
        rows = json.load(answer)["model_stats"][0]["batch_stats"]
    return Batches({int(row["batch_size"]): int(row["compute_infer"]["count"]) for row in rows})
