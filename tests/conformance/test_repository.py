"""Load, unload and index under explicit control, through each of Triton's clients."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from tests.conformance.clients import TRANSPORTS, Transport, assert_same, infer, method
from tests.conformance.differences import expected
from tests.servers import raw
from tests.servers.process import RunningServer
from tests.servers.zoo import Model, Tensor

ARRAYS = {"x": np.array([[1.5, -2, 0, 4]], dtype=np.float32)}
DOUBLED = {"y": ARRAYS["x"] * np.float32(2)}


def scale(name: str) -> Model:
    return Model(
        name, "double", (Tensor("x", "FP32", (4,)),), (Tensor("y", "FP32", (4,)),), lambda a: {"y": a["x"] * 2}
    )


def index(transport: Transport, server: RunningServer) -> dict[str, list[Mapping[str, Any]]]:
    document = method(transport, server, "get_model_repository_index")
    entries = document.get("models", []) if isinstance(document, dict) else document
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        by_name.setdefault(entry["name"], []).append(entry)
    return by_name


@pytest.fixture(autouse=True)
def nothing_loaded(explicit_server: RunningServer) -> Iterator[None]:
    def unload() -> None:
        for name in ("first", "second", "broken"):
            method("http", explicit_server, "unload_model", name)

    unload()
    yield
    unload()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_model_is_served_from_load_to_unload(explicit_server: RunningServer, transport: Transport) -> None:
    server, first = explicit_server, scale("first")
    assert not method(transport, server, "is_model_ready", "first")
    method(transport, server, "load_model", "first")
    assert method(transport, server, "is_model_ready", "first")
    assert_same(infer(transport, server, first, ARRAYS).arrays, DOUBLED)
    assert [(e["version"], e["state"]) for e in index(transport, server)["first"]] == [("1", "READY")]
    method(transport, server, "unload_model", "first")
    assert not method(transport, server, "is_model_ready", "first")
    with pytest.raises(InferenceServerException) as raised:
        infer(transport, server, first, ARRAYS)
    assert raised.value.status() in ("404", "StatusCode.NOT_FOUND", "StatusCode.UNAVAILABLE")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_index_lists_models_that_are_not_loaded(explicit_server: RunningServer, transport: Transport) -> None:
    listed = index(transport, explicit_server)
    assert set(listed) == {"first", "second", "broken"}
    method(transport, explicit_server, "load_model", "first")
    document = raw.ask(explicit_server, "POST", "/v2/repository/index", b'{"ready": true}').json()
    assert [entry["name"] for entry in document] == ["first"]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_latest_version_is_served(explicit_server: RunningServer, transport: Transport) -> None:
    method(transport, explicit_server, "load_model", "second")
    assert infer(transport, explicit_server, scale("second"), ARRAYS).model_version == "2"
    assert method(transport, explicit_server, "get_model_metadata", "second")["versions"] == ["2"]
    assert method(transport, explicit_server, "is_model_ready", "second", "2")
    assert not method(transport, explicit_server, "is_model_ready", "second", "1")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_model_that_cannot_load_fails_with_a_reason(explicit_server: RunningServer, transport: Transport) -> None:
    with pytest.raises(InferenceServerException) as raised:
        method(transport, explicit_server, "load_model", "broken")
    assert "broken" in raised.value.message()
    assert raised.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")
    assert not method(transport, explicit_server, "is_model_ready", "broken")
    entry = index(transport, explicit_server)["broken"][0]
    assert entry["state"] == "UNAVAILABLE"
    assert entry["reason"]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_model_that_is_not_in_the_repository(explicit_server: RunningServer, transport: Transport) -> None:
    with pytest.raises(InferenceServerException, match="absent") as raised:
        method(transport, explicit_server, "load_model", "absent")
    assert raised.value.status() == expected("load-absent-" + transport.partition(".")[0], explicit_server.kind)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_load_may_bring_its_own_config(explicit_server: RunningServer, transport: Transport) -> None:
    server = explicit_server
    method("http", server, "load_model", "first")
    config = method("http", server, "get_model_config", "first")
    override = {key: config[key] for key in ("backend", "platform", "input", "output", "parameters")}
    method(transport, server, "load_model", "first", config=json.dumps(override | {"max_batch_size": 2}))
    assert method("http", server, "get_model_config", "first")["max_batch_size"] == 2


def test_a_failed_load_of_a_name_that_nobody_knows_leaves_nothing_behind(explicit_server: RunningServer) -> None:
    """Else anybody who may load could make a server unready for good, or fill its index."""
    ready = raw.ask(explicit_server, "GET", "/v2/health/ready").status
    rows = raw.ask(explicit_server, "POST", "/v2/repository/index").json()
    assert raw.ask(explicit_server, "POST", "/v2/repository/models/absent/load").status >= 400
    assert raw.ask(explicit_server, "GET", "/v2/health/ready").status == ready
    assert raw.ask(explicit_server, "POST", "/v2/repository/index").json() == rows


def test_unloaded_and_unknown_models_over_http(explicit_server: RunningServer) -> None:
    method("http", explicit_server, "load_model", "first")
    method("http", explicit_server, "unload_model", "first")
    body = raw.dumps(inputs=[{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0] * 4}])
    reply = raw.ask(explicit_server, "POST", "/v2/models/first/infer", body)
    assert reply.status == 404
    assert "has no available versions" in reply.error
    assert raw.ask(explicit_server, "GET", "/v2/models/first/ready").status == 400
    assert raw.ask(explicit_server, "POST", "/v2/repository/models/first/unload").status == 200
