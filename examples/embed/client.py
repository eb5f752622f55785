"""Asks `embed` with Triton's public Python clients, one request a text, many in flight. Any v2 server will do.

Raises what the clients raise when a request fails: nothing is left out silently.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tritonclient.grpc
import tritonclient.http

from examples.embed.service import MODEL

Protocol = Literal["http", "grpc"]
_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Answers:
    """In the order of the texts."""

    embeddings: npt.NDArray[np.float32]  # [n, 384]
    tokens: npt.NDArray[np.int32]  # [n]
    truncated: npt.NDArray[np.bool_]  # [n]


def embedded(protocol: Protocol, address: str, texts: Sequence[str | bytes], in_flight: int = 16) -> Answers:
    """One request for each text, so many at a time."""
    sent = [text.encode() if isinstance(text, str) else text for text in texts]
    asked = _over_http if protocol == "http" else _over_grpc
    return asked(address, sent, in_flight)


def _over_http(address: str, texts: Sequence[bytes], in_flight: int) -> Answers:
    own = threading.local()  # a client belongs to the thread that made it, and has one request under way

    def begin() -> None:
        own.client = tritonclient.http.InferenceServerClient(
            address, network_timeout=_SECONDS, connection_timeout=_SECONDS
        )

    def ask(text: bytes) -> Any:
        return own.client.infer(MODEL, [_tensor(tritonclient.http, text)])

    with ThreadPoolExecutor(in_flight, initializer=begin) as pool:
        return _joined(list(pool.map(ask, texts)))


def _over_grpc(address: str, texts: Sequence[bytes], in_flight: int) -> Answers:
    with tritonclient.grpc.InferenceServerClient(address) as client, ThreadPoolExecutor(in_flight) as pool:

        def ask(text: bytes) -> Any:
            return client.infer(MODEL, [_tensor(tritonclient.grpc, text)], client_timeout=_SECONDS)

        return _joined(list(pool.map(ask, texts)))


def _tensor(library: Any, text: bytes) -> Any:
    tensor = library.InferInput("text", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([text], object))
    return tensor


def _joined(answers: Sequence[Any]) -> Answers:
    arrays = ([each.as_numpy(name) for each in answers] for name in ("embedding", "tokens", "truncated"))
    return Answers(*(np.concatenate(each) for each in arrays))
