"""ModelStreamInfer through Triton's clients: order, the final mark, errors that stay in the stream."""

import asyncio
import queue
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from tests.conformance.clients import Call, arguments
from tests.servers.process import RunningServer
from tests.servers.zoo import BY_NAME, Array, random_inputs

# An event that takes longer is a hang.
EVENT_SECONDS = 20.0
FINAL = "triton_final_response"


@dataclass(frozen=True)
class Event:
    """What a stream's callback got: a response, or an error."""

    response: Any
    error: InferenceServerException | None
    arrays: Mapping[str, Array]

    @property
    def final(self) -> bool | None:
        parameters = self.response.parameters
        return parameters[FINAL].bool_param if FINAL in parameters else None


def event(result: Any, error: InferenceServerException | None) -> Event:
    if result is None:
        return Event(None, error, {})
    response = result.get_response()
    return Event(response, error, {output.name: result.as_numpy(output.name) for output in response.outputs})


def sent(name: str, arrays: Mapping[str, Array], **options: Any) -> dict[str, Any]:
    """Keyword arguments of `async_stream_infer`, which knows no compression of a request."""
    made = arguments("grpc", BY_NAME[name], arrays, Call(request_id=options.pop("request_id", "")))
    del made["compression_algorithm"]
    return made | options


def stream(server: RunningServer, requests: Sequence[Mapping[str, Any]], wanted: int) -> list[Event]:
    """Sends all requests into one stream and waits for `wanted` events; more would be found at the end."""
    events: queue.Queue[Event] = queue.Queue()
    client = tritonclient.grpc.InferenceServerClient(server.grpc_address)
    client.start_stream(lambda result, error: events.put(event(result, error)))
    for request in requests:
        client.async_stream_infer(**request)
    got = [events.get(timeout=EVENT_SECONDS) for _ in range(wanted)]
    client.stop_stream()
    client.close()
    assert events.empty(), f"more events than {wanted}: {events.get().response}"
    return got


def test_answers_come_in_the_order_of_requests(server: RunningServer, rng: np.random.Generator) -> None:
    model = BY_NAME["double_fp32"]
    inputs = [random_inputs(model, 1, rng) for _ in range(50)]
    requests = [sent(model.name, arrays, request_id=str(number)) for number, arrays in enumerate(inputs)]
    events = stream(server, requests, 50)
    assert [each.response.id for each in events] == [str(number) for number in range(50)]
    for arrays, each in zip(inputs, events, strict=True):
        np.testing.assert_array_equal(each.arrays["y"], arrays["x"] * np.float32(2))


def test_every_answer_is_marked_final(server: RunningServer, rng: np.random.Generator) -> None:
    model = BY_NAME["double_fp32"]
    events = stream(server, [sent(model.name, random_inputs(model, 1, rng)) for _ in range(3)], 3)
    assert [each.final for each in events] == [True, True, True]


def test_a_final_answer_with_data_is_not_followed_by_an_empty_one(
    server: RunningServer, rng: np.random.Generator
) -> None:
    """Asked for, an empty final closes the answers of decoupled models; one answer to one request is its own final."""
    model = BY_NAME["double_fp32"]
    request = sent(model.name, random_inputs(model, 1, rng), enable_empty_final_response=True)
    events = stream(server, [request, request], 2)
    assert [(each.final, len(each.response.outputs)) for each in events] == [(True, 1), (True, 1)]


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ({"model_name": "absent"}, "absent"),
        ({"model_version": "9"}, "9"),
        ({"inputs": []}, "x"),
    ],
    ids=["unknown-model", "unknown-version", "no-inputs"],
)
def test_an_error_stays_in_the_stream(
    server: RunningServer, rng: np.random.Generator, broken: dict[str, Any], says: str
) -> None:
    model = BY_NAME["double_fp32"]
    arrays = random_inputs(model, 1, rng)
    good = sent(model.name, arrays)
    events = stream(server, [good, good | broken, good], 3)
    assert [each.error is None for each in sorted(events, key=lambda e: e.error is not None)] == [True, True, False]
    error = next(each.error for each in events if each.error is not None)
    assert says in error.message()
    for each in events:
        if each.error is None:
            np.testing.assert_array_equal(each.arrays["y"], arrays["x"] * np.float32(2))


def test_an_error_carries_the_id_of_its_request(server: RunningServer, rng: np.random.Generator) -> None:
    """The client library drops it, so the stub is asked."""
    model = BY_NAME["double_fp32"]
    request = service_pb2.ModelInferRequest(model_name=model.name, id="wrong-one")
    with grpc.insecure_channel(server.grpc_address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answers = list(stub.ModelStreamInfer(iter([request]), timeout=EVENT_SECONDS))
    assert len(answers) == 1
    assert answers[0].error_message
    assert answers[0].infer_response.id == "wrong-one"


def test_a_stream_without_requests_ends(server: RunningServer) -> None:
    with grpc.insecure_channel(server.grpc_address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert list(stub.ModelStreamInfer(iter([]), timeout=EVENT_SECONDS)) == []


def test_the_aio_client_streams(server: RunningServer, rng: np.random.Generator) -> None:
    model = BY_NAME["addsub"]
    inputs = [random_inputs(model, 2, rng) for _ in range(10)]

    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number, arrays in enumerate(inputs):
            yield sent(model.name, arrays, request_id=str(number))

    async def run() -> list[tuple[str, Mapping[str, Array]]]:
        got: list[tuple[str, Mapping[str, Array]]] = []
        async with tritonclient.grpc.aio.InferenceServerClient(server.grpc_address) as client:
            async for result, error in client.stream_infer(requests()):
                assert error is None
                got.append((result.get_response().id, {n: result.as_numpy(n) for n in ("OUTPUT0", "OUTPUT1")}))
        return got

    answers = asyncio.run(run())
    assert [number for number, _ in answers] == [str(number) for number in range(10)]
    for arrays, (_, outputs) in zip(inputs, answers, strict=True):
        for name, wanted in model.reference(arrays).items():
            np.testing.assert_array_equal(outputs[name], wanted)


def test_streams_do_not_wait_for_each_other(server: RunningServer, rng: np.random.Generator) -> None:
    """A stream whose request sleeps holds up no request of another stream."""
    fast = BY_NAME["double_fp32"]
    events: queue.Queue[Event] = queue.Queue()
    client = tritonclient.grpc.InferenceServerClient(server.grpc_address)
    client.start_stream(lambda result, error: events.put(event(result, error)))
    client.async_stream_infer(**sent("slow", {"ms": np.array([[1000]], dtype=np.int32)}))
    assert len(stream(server, [sent(fast.name, random_inputs(fast, 1, rng))], 1)) == 1
    assert events.empty(), "the slow request was answered before the fast one"
    assert events.get(timeout=EVENT_SECONDS).error is None
    client.stop_stream()
    client.close()
