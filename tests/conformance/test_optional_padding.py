"""An optional input of one free axis that padding applies to: present or absent, each request gets its own answer.

Filler must never stand for an input that is not there: a model that is called without it computes something else.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

import penstock as ps
from tests.conformance.inside import GATE_SECONDS, serving
from tests.servers.http2 import Http2, framed, grpc_headers
from tests.servers.zoo import Array, Arrays

LIVE_METHOD = "/inference.GRPCInferenceService/ServerLive"
REQUESTS = 48
# What the model adds when there is no bias, so that a bias of zeros is told from none.
ABSENT = np.float32(1000)


@dataclass
class Biased:
    """y = x plus the sum of the bias, or plus ABSENT; `seen` is rows and presence of every batch.

    It answers nothing until all requests were sent, so that they wait together and batches must form.
    """

    x_size: int
    all_sent: threading.Event = field(default_factory=threading.Event)
    seen: list[tuple[int, bool]] = field(default_factory=list)

    def __call__(self, x: Array, bias: Array | None = None) -> Array:
        assert self.all_sent.wait(GATE_SECONDS)
        self.seen.append((len(x), bias is not None))
        if bias is None:
            return np.asarray(x + ABSENT)
        assert len(bias) == len(x)
        return np.asarray(x + bias.sum(axis=1, keepdims=True))

    def model(self, padding: dict[str, Any] | None) -> ps.ModelFunction:
        made = ps.model(
            name="biased",
            max_batch_size=8,
            inputs={"x": ps.F32[self.x_size], "bias": ps.F32[-1]},
            outputs={"y": ps.F32[self.x_size]},
            padding=padding,
        )
        return made(lambda x, bias=None: self(x, bias))


BIAS_ONLY = {"inputs": {"bias": {"axis": 1, "multiple": 4}}}
BOTH = {
    "inputs": {"x": {"axis": 1, "multiple": 4}, "bias": {"axis": 1, "multiple": 4}},
    "outputs": {"y": {"axis": 1}},
}
MODELS = {"the bias is padded": (4, BIAS_ONLY), "both are padded": (-1, BOTH), "nothing is padded": (4, None)}

# Which of the requests, in the order of sending, bring a bias.
MIXES: dict[str, Callable[[int], bool]] = {
    "alternating": lambda number: number % 2 == 0,
    "in halves": lambda number: number < REQUESTS // 2,
    "in fours": lambda number: number // 4 % 2 == 0,
    "one without": lambda number: number != REQUESTS // 2,
}


def whole_numbers(rng: np.random.Generator, size: int) -> Array:
    """Sums of them are exact in any order."""
    return rng.integers(-100, 100, (1, size)).astype(np.float32)


def message(arrays: Arrays) -> bytes:
    request = service_pb2.ModelInferRequest(model_name="biased")
    for name, array in arrays.items():
        request.inputs.add(name=name, datatype="FP32", shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    return framed(request.SerializeToString())


def answers(connection: Http2, requests: Sequence[Arrays], all_sent: threading.Event) -> list[Array]:
    streams = [connection.begin(grpc_headers(), message(arrays)) for arrays in requests]
    # Answered on the same connection, so the server has read everything that was sent before it.
    last = connection.begin(grpc_headers(LIVE_METHOD), framed(b""))
    assert connection.wait(last).status == 0
    all_sent.set()
    results = [connection.wait(stream) for stream in streams]
    assert [result.status for result in results] == [0] * len(results)
    decoded = [service_pb2.ModelInferResponse.FromString(result.body[5:]) for result in results]
    return [np.frombuffer(each.raw_output_contents[0], np.float32).reshape(each.outputs[0].shape) for each in decoded]


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("kind", MODELS)
def test_present_and_absent_are_answered_apart(rng: np.random.Generator, kind: str, mix: str) -> None:
    x_size, padding = MODELS[kind]
    biased, requests = Biased(x_size), []
    for number in range(REQUESTS):
        arrays = {"x": whole_numbers(rng, 4 if x_size == 4 else int(rng.integers(3, 6)))}
        if MIXES[mix](number):
            arrays["bias"] = whole_numbers(rng, int(rng.integers(3, 6)) if padding else 4)
        requests.append(arrays)
    with serving(biased.model(padding)) as server, Http2(server) as connection:
        got = answers(connection, requests, biased.all_sent)
    for arrays, y in zip(requests, got, strict=True):
        added = arrays["bias"].sum() if "bias" in arrays else ABSENT
        np.testing.assert_array_equal(y, arrays["x"] + added)
    assert sum(rows for rows, _ in biased.seen) == REQUESTS
    assert max(rows for rows, _ in biased.seen) > 1, "no requests shared a batch, so nothing was tried"
