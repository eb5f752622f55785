"""Clients that ask at once and again as soon as they are answered, over HTTP and gRPC, keeping every answer.

Promises: a request is sent once; an answer counts only under the id of its own request; what goes wrong is kept with
its reason and stops no other client. HTTP needs the standard library alone; gRPC Triton's public client. Needs a server
that speaks v2. Called by the demo, by tests and by the stories of the benches.
"""

import http.client
import json
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import numpy as np
import numpy.typing as npt

from examples.clip.judging import Answer

Wire = Literal["http", "grpc"]
# With 500 in flight the last of them waits for some 60 batches; three minutes mean that the server is stuck, not slow.
TIMEOUT_SECONDS: Final = 180.0
_NUMPY: Final = {"FP32": np.float32, "FP16": np.float16}


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input: its bytes as the binary extension of the protocol has them."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes


def encoded_picture(encoded: bytes) -> Tensor:
    """For a pipeline that takes `image`, BYTES [1]."""
    return Tensor("image", "BYTES", (1,), struct.pack("<I", len(encoded)) + encoded)


def prepared_picture(pixels: npt.NDArray[np.float32]) -> Tensor:
    """For a model that takes `x`, one row."""
    return Tensor("x", "FP32", (1, *pixels.shape), pixels.tobytes())


@dataclass(frozen=True, slots=True)
class Target:
    """A model behind a server."""

    wire: Wire
    address: str  # HOST:PORT
    model: str


class Client(Protocol):
    def ask(self, identity: str, tensor: Tensor) -> tuple[str, npt.NDArray[Any]]:
        """The id that came back and the first output. Raises AnsweredError for an error, others for no answer."""
        ...


class AnsweredError(Exception):
    """The server answered, with an error."""


class Turns:
    """Which picture is asked with next, until so many requests were sent or the time is over. For many threads."""

    def __init__(
        self, pictures: int, *, requests: int | None = None, seconds: float | None = None, least: int = 0
    ) -> None:
        """least: requests that are sent though the time is over, so that as many callers ask at once as are said to."""
        self._pictures, self._requests, self._least = pictures, requests, least
        self._until = time.monotonic() + seconds if seconds is not None else None
        self._lock = threading.Lock()
        self.taken = 0

    def next(self) -> int | None:
        """The number of the request; its picture is that modulo the pictures. None: there are no more."""
        with self._lock:
            over = self._until is not None and time.monotonic() >= self._until
            if (over and self.taken >= self._least) or self.taken == self._requests:
                return None
            self.taken += 1
            return self.taken - 1

    def picture(self, number: int) -> int:
        # Neighbours in time ask with unlike pictures, and no client with the same one always: 7 is prime to most pools.
        return number * 7 % self._pictures


@dataclass(frozen=True, slots=True)
class Run:
    answers: tuple[Answer, ...]
    asked: int
    seconds: float


def at_once(call: Callable[[int, int], Answer], turns: Turns, callers: int) -> Run:
    """`callers` threads that begin together and call (number of the request, its picture) one turn after the other."""
    found: list[list[Answer]] = [[] for _ in range(callers)]
    ready = threading.Barrier(callers + 1)

    def work(own: list[Answer]) -> None:
        ready.wait()
        while (number := turns.next()) is not None:
            own.append(call(number, turns.picture(number)))

    threads = [threading.Thread(target=work, args=(own,), daemon=True) for own in found]
    for thread in threads:
        thread.start()
    ready.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    return Run(tuple(answer for own in found for answer in own), turns.taken, seconds)


def asked(target: Target, tensors: Sequence[Tensor], turns: Turns, in_flight: int) -> Run:
    """Sends the pictures to the model, `in_flight` at a time."""
    with _http_clients(target) if target.wire == "http" else _grpc_client(target) as client:

        def call(number: int, picture: int) -> Answer:
            return _answer(client(), f"request-{number}", picture, tensors[picture])

        return at_once(call, turns, in_flight)


def _answer(client: Client, identity: str, picture: int, tensor: Tensor) -> Answer:
    began = time.perf_counter()
    try:
        back, embedding = client.ask(identity, tensor)
    except AnsweredError as error:
        return Answer(picture, time.perf_counter() - began, trouble="failed", said=str(error))
    except Exception as error:  # each library has errors of its own; all of them mean that no answer came
        return Answer(picture, time.perf_counter() - began, trouble="missing", said=f"{type(error).__name__}: {error}")
    spent = time.perf_counter() - began
    if back != identity:
        return Answer(picture, spent, trouble="failed", said="the answer belongs to another request")
    return Answer(picture, spent, embedding)


# ---- wires ----


@contextmanager
def _http_clients(target: Target) -> Iterator[Callable[[], Client]]:
    """One connection for each thread that asks."""
    own, every = threading.local(), list[_Http]()

    def client() -> Client:
        if not hasattr(own, "client"):
            own.client = _Http(target)
            every.append(own.client)
        found: Client = own.client
        return found

    yield client
    for each in every:
        each.close()


@contextmanager
def _grpc_client(target: Target) -> Iterator[Callable[[], Client]]:
    """One for all threads: calls share its connection."""
    with closing(_Grpc(target)) as client:
        yield lambda: client


class _Http:
    """The binary extension over one connection, which is opened again after a failure."""

    def __init__(self, target: Target) -> None:
        self._path = f"/v2/models/{target.model}/infer"
        self._connection = http.client.HTTPConnection(target.address, timeout=TIMEOUT_SECONDS)

    def ask(self, identity: str, tensor: Tensor) -> tuple[str, npt.NDArray[Any]]:
        try:
            return self._asked(identity, tensor)
        except AnsweredError:
            raise
        except Exception:
            self._connection.close()
            raise

    def _asked(self, identity: str, tensor: Tensor) -> tuple[str, npt.NDArray[Any]]:
        given = {
            "name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape),
            "parameters": {"binary_data_size": len(tensor.data)},
        }  # fmt: skip
        head = json.dumps({"id": identity, "inputs": [given], "parameters": {"binary_data_output": True}}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
        self._connection.request("POST", self._path, head + tensor.data, headers)
        reply = self._connection.getresponse()
        content = reply.read()
        if reply.status != http.client.OK:
            raise AnsweredError(f"{reply.status}: {content[:200].decode(errors='replace')}")
        size = int(reply.headers["Inference-Header-Content-Length"])
        said = json.loads(content[:size])
        first = said["outputs"][0]
        length = first["parameters"]["binary_data_size"]
        return str(said.get("id", "")), np.frombuffer(content[size : size + length], _NUMPY[first["datatype"]])

    def close(self) -> None:
        self._connection.close()


class _Grpc:
    """Triton's public client."""

    def __init__(self, target: Target) -> None:
        import tritonclient.grpc as triton
        from tritonclient.utils import InferenceServerException

        self._triton, self._error = triton, InferenceServerException
        self._model, self._client = target.model, triton.InferenceServerClient(target.address)

    def ask(self, identity: str, tensor: Tensor) -> tuple[str, npt.NDArray[Any]]:
        given = self._triton.InferInput(tensor.name, list(tensor.shape), tensor.datatype)
        given._raw_content = tensor.data  # what set_data_from_numpy would make of them again, each time
        try:
            answer = self._client.infer(self._model, [given], request_id=identity, client_timeout=TIMEOUT_SECONDS)
        except self._error as error:
            if error.status() in {"StatusCode.DEADLINE_EXCEEDED", "StatusCode.UNAVAILABLE"}:
                raise
            raise AnsweredError(str(error)) from None
        response = answer.get_response()
        return response.id, answer.as_numpy(response.outputs[0].name)

    def close(self) -> None:
        self._client.close()
