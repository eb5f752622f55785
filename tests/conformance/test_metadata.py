"""What a server tells about itself and its models: liveness, metadata, configuration; HTTP and gRPC say the same."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from tests.conformance.clients import TRANSPORTS, Transport, method
from tests.servers.process import RunningServer
from tests.servers.zoo import MODELS, Model, Tensor

# What perf_analyzer, Triton's clients and our own tools ask for before they use it.
NEEDED_EXTENSIONS = {"binary_tensor_data", "statistics", "model_configuration", "model_repository", "parameters"}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_ready_server_says_so(server: RunningServer, transport: Transport) -> None:
    assert method(transport, server, "is_server_live") is True
    assert method(transport, server, "is_server_ready") is True
    assert method(transport, server, "is_model_ready", "addsub") is True
    assert method(transport, server, "is_model_ready", "addsub", "1") is True


@pytest.mark.parametrize(("name", "version"), [("absent", ""), ("addsub", "9"), ("absent", "1")])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_does_not_exist_is_not_ready(server: RunningServer, transport: Transport, name: str, version: str) -> None:
    assert method(transport, server, "is_model_ready", name, version) is False


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_server_metadata(server: RunningServer, transport: Transport) -> None:
    metadata = method(transport, server, "get_server_metadata")
    assert metadata["name"] == server.kind
    assert metadata["version"][0].isdigit()
    assert set(metadata["extensions"]) >= NEEDED_EXTENSIONS
    assert len(set(metadata["extensions"])) == len(metadata["extensions"])


def _shape(model: Model, tensor: Tensor) -> list[int]:
    return [-1, *tensor.shape] if model.max_batch_size else list(tensor.shape)


def _described(model: Model, tensors: Sequence[Tensor]) -> list[tuple[str, str, list[int]]]:
    return [(tensor.name, tensor.datatype, _shape(model, tensor)) for tensor in tensors]


def _told(tensors: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, list[int]]]:
    # gRPC as JSON prints 64-bit integers as strings.
    return [(tensor["name"], tensor["datatype"], [int(size) for size in tensor["shape"]]) for tensor in tensors]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_model_metadata(server: RunningServer, transport: Transport, model: Model) -> None:
    metadata = method(transport, server, "get_model_metadata", model.name)
    assert metadata["name"] == model.name
    assert metadata["versions"] == ["1"]
    assert metadata["platform"]
    assert _told(metadata["inputs"]) == _described(model, model.inputs)
    assert _told(metadata["outputs"]) == _described(model, model.outputs)
    assert method(transport, server, "get_model_metadata", model.name, "1") == metadata


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_model_config_over_http(server: RunningServer, model: Model) -> None:
    """proto3 JSON with snake_case names, defaults printed, 64-bit fields as numbers."""
    config = method("http", server, "get_model_config", model.name)
    assert config["name"] == model.name
    assert config["max_batch_size"] == model.max_batch_size
    for key, tensors in (("input", model.inputs), ("output", model.outputs)):
        told = [(tensor["name"], tensor["data_type"], tensor["dims"]) for tensor in config[key]]
        types = [f"TYPE_{'STRING' if tensor.datatype == 'BYTES' else tensor.datatype}" for tensor in tensors]
        assert told == [(t.name, kind, list(t.shape)) for t, kind in zip(tensors, types, strict=True)]
    assert [tensor["optional"] for tensor in config["input"]] == [tensor.optional for tensor in model.inputs]
    assert sum(group["count"] for group in config["instance_group"]) == model.instances
    # Defaults are printed: tools read them without asking whether they are there.
    assert config["version_policy"] == {"latest": {"num_versions": 1}}
    assert {"platform", "backend", "batch_input", "batch_output", "parameters"} <= set(config)
    if model.max_batch_size > 1:
        batching = config["dynamic_batching"]
        assert batching["preferred_batch_size"] == [model.max_batch_size]
        assert batching["max_queue_delay_microseconds"] == 0
        assert batching["preserve_ordering"] is False
    if model.max_queue_size:
        policy = config["dynamic_batching"]["default_queue_policy"]
        assert policy["max_queue_size"] == model.max_queue_size
        assert policy["timeout_action"] == "REJECT"
        assert policy["default_timeout_microseconds"] == 0
        assert policy["allow_timeout_override"] is False


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_model_config_over_grpc_agrees_with_http(server: RunningServer, model: Model) -> None:
    over_http = method("http", server, "get_model_config", model.name)
    over_grpc = method("grpc", server, "get_model_config", model.name)["config"]
    assert over_grpc["name"] == over_http["name"]
    assert over_grpc.get("max_batch_size", 0) == over_http["max_batch_size"]
    for key in ("input", "output"):
        over = [(tensor["name"], tensor["data_type"], [int(d) for d in tensor["dims"]]) for tensor in over_grpc[key]]
        assert over == [(tensor["name"], tensor["data_type"], tensor["dims"]) for tensor in over_http[key]]
