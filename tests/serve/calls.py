"""A server inside the test's own process, and arrays sent to it as binary tensors over HTTP.

In the test's process the test sees what the model saw and holds the events that the model waits for. The client is
plain `http.client`: the answer's bytes are compared as they came.
"""

import contextlib
import http.client
import json
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

import penstock as ps
from penstock.tensors import datatype_of, numpy_dtype
from tests.servers.raw import HEADER_LENGTH, Reply

Array = npt.NDArray[Any]
# An answer later than this is a hang.
SECONDS = 20.0


@contextlib.contextmanager
def serving(*models: ps.ModelFunction | ps.Pipeline, **options: Any) -> Iterator[ps.Server]:
    """A started server on free ports with these models; `options` are keyword arguments of `penstock.Server`."""
    server = ps.Server(**{"http_port": 0, "grpc_port": None, "metrics_port": None, **options})
    for model in models:
        server.add(model)
    with server:
        yield server


def encoded(array: Array) -> bytes:
    """The tensor's bytes on the wire: little-endian rows, or elements after their lengths."""
    if array.dtype != np.object_:
        return array.tobytes()
    return b"".join(struct.pack("<I", len(element)) + element for element in array.ravel())


def decoded(data: bytes, datatype: str, shape: Sequence[int]) -> Array:
    if datatype != "BYTES":
        return np.frombuffer(data, numpy_dtype(datatype)).reshape(shape)
    elements = []
    while data:
        (length,) = struct.unpack_from("<I", data)
        elements.append(data[4 : 4 + length])
        data = data[4 + length :]
    array = np.empty(len(elements), np.object_)
    array[:] = elements
    return array.reshape(shape)


@dataclass(frozen=True)
class Answer:
    """One reply to an inference, taken apart when it is good."""

    reply: Reply

    @property
    def status(self) -> int:
        return self.reply.status

    @property
    def error(self) -> str:
        return self.reply.error

    @property
    def arrays(self) -> dict[str, Array]:
        """The outputs by name; an answer that is no success is an assertion error."""
        assert self.reply.status == 200, self.reply.body[:500]
        length = int(self.reply.headers[HEADER_LENGTH.lower()])
        rest = self.reply.body[length:]
        found = {}
        for output in json.loads(self.reply.body[:length])["outputs"]:
            size = output["parameters"]["binary_data_size"]
            found[output["name"]] = decoded(rest[:size], output["datatype"], output["shape"])
            rest = rest[size:]
        assert not rest, f"{len(rest)} bytes belong to no output"
        return found


class Client:
    """One kept connection. `send` and `answer` apart let a test look at what happens between the two."""

    def __init__(self, server: ps.Server) -> None:
        assert server.http_port is not None
        self.connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.connection.close()

    def send(self, model: str, arrays: Mapping[str, Array], *, version: str = "", binary: bool = True) -> None:
        tensors = [
            {
                "name": name,
                "shape": list(array.shape),
                "datatype": datatype_of(array.dtype),
                "parameters": {"binary_data_size": len(encoded(array))},
            }
            for name, array in arrays.items()
        ]
        head = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": binary}}).encode()
        path = f"/v2/models/{model}" + (f"/versions/{version}" if version else "") + "/infer"
        body = b"".join([head, *map(encoded, arrays.values())])
        self.connection.request("POST", path, body, {HEADER_LENGTH: str(len(head))})

    def answer(self) -> Answer:
        response = self.connection.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(Reply(response.status, headers, response.read()))

    def infer(self, model: str, *, version: str = "", binary: bool = True, **arrays: Array) -> Answer:
        self.send(model, arrays, version=version, binary=binary)
        return self.answer()

    def get(self, path: str) -> Reply:
        return self.ask("GET", path)

    def ask(self, method: str, path: str, body: bytes | None = None) -> Reply:
        self.connection.request(method, path, body)
        return self.answer().reply

    def statistics(self, model: str) -> dict[str, Any]:
        """The statistics of the model's only version."""
        (found,) = json.loads(self.get(f"/v2/models/{model}/stats").body)["model_stats"]
        return dict(found)


def infer(server: ps.Server, model: str, *, version: str = "", binary: bool = True, **arrays: Array) -> Answer:
    """One request on a connection of its own."""
    with Client(server) as client:
        return client.infer(model, version=version, binary=binary, **arrays)


def at_once(server: ps.Server, work: Callable[[Client, int], None], count: int) -> None:
    """`count` clients in threads, each with its own connection and number; the first failure is raised."""

    def run(number: int) -> None:
        with Client(server) as client:
            work(client, number)

    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(run, number) for number in range(count)]:
            done.result()


def batch_sizes(statistics: Mapping[str, Any]) -> dict[int, int]:
    """How many batches of which size were executed."""
    return {each["batch_size"]: each["compute_infer"]["count"] for each in statistics["batch_stats"]}


def waiting(server: ps.Server, model: str) -> int:
    """Requests to the model that wait for an instance, those that run left out. The server needs a metrics port."""
    assert server.metrics_port is not None
    connection = http.client.HTTPConnection("127.0.0.1", server.metrics_port, timeout=SECONDS)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        page = connection.getresponse().read().decode()
    lines = [line for line in page.splitlines() if line.startswith("nv_inference_pending_request_count{")]
    return sum(int(line.rsplit(" ", 1)[1]) for line in lines if f'model="{model}"' in line)


def eventually(what: str, holds: Callable[[], bool], seconds: float = SECONDS) -> None:
    """For states that nobody announces, such as what a poll of the repository does: looks again until it holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.01)
