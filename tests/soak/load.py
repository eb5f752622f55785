"""Clients that send and compare for as long as asked: each answer against its own input.

Plain HTTP with binary tensors on kept connections, since the subject is the server. A `Tally` counts every request
exactly once: right, wrong, failed or without an answer.
"""

import http.client
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from tests.servers.process import RunningServer
from tests.servers.raw import HEADER_LENGTH, dumps

CLIENT_SECONDS = 30.0


@dataclass
class Tally:
    """`problems` holds the first few in words."""

    sent: int = 0
    right: int = 0
    problems: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, sent: int, right: int, problems: list[str]) -> None:
        with self.lock:
            self.sent += sent
            self.right += right
            self.problems += problems[:5]


@dataclass(frozen=True)
class Target:
    """A model that answers `y = factor * x` on FP32 rows of `size`."""

    model: str
    size: int
    factor: float
    max_rows: int


def _request(target: Target, x: np.ndarray, identity: str) -> tuple[bytes, dict[str, str]]:
    tensor = {
        "name": "x",
        "shape": list(x.shape),
        "datatype": "FP32",
        "parameters": {"binary_data_size": x.nbytes},
    }
    head = dumps(id=identity, inputs=[tensor], parameters={"binary_data_output": True})
    return head + x.tobytes(), {HEADER_LENGTH: str(len(head))}


def _mistake(response: http.client.HTTPResponse, body: bytes, target: Target, x: np.ndarray, identity: str) -> str:
    """What is wrong with the answer; empty when nothing is."""
    if response.status != 200:
        return f"{response.status} {body[:200]!r}"
    length = int(response.headers[HEADER_LENGTH])
    if f'"id":"{identity}"'.encode() not in body[:length].replace(b": ", b":"):
        return f"the answer to another request than {identity}: {body[:length]!r}"
    if body[length:] != (x * np.float32(target.factor)).tobytes():
        return f"wrong values for {identity}"
    return ""


def client(
    server: RunningServer, target: Target, number: int, seed: int, stop: Callable[[], bool], tally: Tally
) -> None:
    rng = np.random.default_rng([seed, number])
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=CLIENT_SECONDS)
    sent = right = 0
    problems: list[str] = []
    while not stop():
        x = rng.standard_normal((int(rng.integers(1, target.max_rows + 1)), target.size)).astype(np.float32)
        identity = f"{number}-{sent}"
        body, headers = _request(target, x, identity)
        sent += 1
        try:
            connection.request("POST", f"/v2/models/{target.model}/infer", body, headers)
            response = connection.getresponse()
            problem = _mistake(response, response.read(), target, x, identity)
        except (OSError, http.client.HTTPException) as error:
            problem = f"{identity}: {error!r}"
            connection.close()
        if problem:
            problems.append(problem)
        else:
            right += 1
    connection.close()
    tally.count(sent, right, problems)


class Clients:
    """`count` clients in threads, from entering to leaving the context; then the tally is complete."""

    def __init__(self, server: RunningServer, target: Target, count: int, seed: int) -> None:
        self.tally = Tally()
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=client, args=(server, target, number, seed, self._stopped.is_set, self.tally))
            for number in range(count)
        ]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()
