"""Triton's four Python clients behind one function, so that a test runs over each of them with the same data.

`infer` sends arrays and returns what the client made of the answer. Nothing is checked here.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio

from tests.servers.process import RunningServer
from tests.servers.zoo import Array, Model

Transport = Literal["http", "http.aio", "grpc", "grpc.aio"]
TRANSPORTS: tuple[Transport, ...] = ("http", "http.aio", "grpc", "grpc.aio")
MODULES: Mapping[Transport, Any] = {
    "http": tritonclient.http,
    "http.aio": tritonclient.http.aio,
    "grpc": tritonclient.grpc,
    "grpc.aio": tritonclient.grpc.aio,
}
Encoding = Literal["json", "binary"]


@dataclass(frozen=True)
class Call:
    """How a request is put; the defaults are the clients' own."""

    encoding: Encoding = "binary"
    answer: Encoding = "binary"
    outputs: Sequence[str] | None = None
    request_id: str = ""
    priority: int = 0
    timeout_microseconds: int | None = None
    version: str = ""
    compression: str | None = None
    response_compression: str | None = None
    parameters: Mapping[str, str | int | bool] | None = None
    sequence_id: int = 0


@dataclass(frozen=True)
class Answer:
    arrays: Mapping[str, Array]
    order: Sequence[str]
    request_id: str
    model_name: str
    model_version: str


def connect(transport: Transport, server: RunningServer) -> Any:
    """A client of the transport; the aio ones must be made inside a running loop."""
    address = server.http_address if transport.startswith("http") else server.grpc_address
    return MODULES[transport].InferenceServerClient(address)


def inputs_of(transport: Transport, model: Model, arrays: Mapping[str, Array], encoding: Encoding) -> list[Any]:
    made = []
    for name, array in arrays.items():
        each = MODULES[transport].InferInput(name, list(array.shape), model.input(name).datatype)
        if transport.startswith("http"):
            each.set_data_from_numpy(array, binary_data=encoding == "binary")
        else:
            each.set_data_from_numpy(array)
        made.append(each)
    return made


def outputs_of(transport: Transport, call: Call) -> list[Any] | None:
    if call.outputs is None:
        return None
    made = MODULES[transport].InferRequestedOutput
    if transport.startswith("http"):
        return [made(name, binary_data=call.answer == "binary") for name in call.outputs]
    return [made(name) for name in call.outputs]


def arguments(transport: Transport, model: Model, arrays: Mapping[str, Array], call: Call) -> dict[str, Any]:
    """Keyword arguments for the client's `infer`."""
    http = transport.startswith("http")
    made: dict[str, Any] = {
        "model_name": model.name,
        "inputs": inputs_of(transport, model, arrays, call.encoding),
        "outputs": outputs_of(transport, call),
        "request_id": call.request_id,
        "model_version": call.version,
        "priority": call.priority,
        "timeout": call.timeout_microseconds,
        "sequence_id": call.sequence_id,
        "parameters": dict(call.parameters) if call.parameters else None,
    }
    if call.sequence_id:
        made |= {"sequence_start": True, "sequence_end": True}
    if http:
        made["request_compression_algorithm"] = call.compression
        made["response_compression_algorithm"] = call.response_compression
    else:
        made["compression_algorithm"] = call.compression
    return made


def answer_of(result: Any) -> Answer:
    """The client's result object as data."""
    response = result.get_response()
    if isinstance(response, dict):
        order = [output["name"] for output in response["outputs"]]
        identity = (response.get("id", ""), response["model_name"], response["model_version"])
    else:
        order = [output.name for output in response.outputs]
        identity = (response.id, response.model_name, response.model_version)
    return Answer({name: normal(result.as_numpy(name)) for name in order}, order, *identity)


def normal(array: Array) -> Array:
    """BYTES elements come from JSON as str; as bytes they compare."""
    if array.dtype != np.object_:
        return array
    elements = np.empty(array.shape, dtype=np.object_)
    for index in np.ndindex(array.shape):
        element: object = array[index]
        elements[index] = element.encode() if isinstance(element, str) else element
    return elements


def infer(
    transport: Transport, server: RunningServer, model: Model, arrays: Mapping[str, Array], call: Call | None = None
) -> Answer:
    """One request over a fresh connection of the transport."""
    prepared = arguments(transport, model, arrays, call or Call())
    if transport.endswith("aio"):
        return asyncio.run(_infer_aio(transport, server, prepared))
    with connect(transport, server) as client:
        return answer_of(client.infer(**prepared))


async def _infer_aio(transport: Transport, server: RunningServer, prepared: dict[str, Any]) -> Answer:
    async with connect(transport, server) as client:
        return answer_of(await client.infer(**prepared))


def method(transport: Transport, server: RunningServer, name: str, *values: Any, **named: Any) -> Any:
    """Calls any other method of the client: metadata, statistics, load. gRPC answers come back as dicts."""
    if transport.startswith("grpc") and name.startswith("get_"):
        named["as_json"] = True
    if transport.endswith("aio"):
        return asyncio.run(_method_aio(transport, server, name, values, named))
    with connect(transport, server) as client:
        return getattr(client, name)(*values, **named)


async def _method_aio(
    transport: Transport, server: RunningServer, name: str, values: tuple[Any, ...], named: dict[str, Any]
) -> Any:
    async with connect(transport, server) as client:
        return await getattr(client, name)(*values, **named)


def assert_same(got: Mapping[str, Array], wanted: Mapping[str, Array]) -> None:
    """Exactly equal: names, datatypes, shapes and every bit of every element."""
    assert set(got) == set(wanted)
    for name, array in wanted.items():
        assert got[name].dtype == array.dtype, f"{name}: {got[name].dtype} for {array.dtype}"
        assert got[name].shape == array.shape, f"{name}: {got[name].shape} for {array.shape}"
        if array.dtype == np.object_:
            assert got[name].tolist() == array.tolist(), name
        else:
            assert got[name].tobytes() == array.tobytes(), name
