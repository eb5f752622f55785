"""gRPC itself: health, reflection, statuses of errors, raw contents, deadlines, cancellation, compression."""

import queue
import time
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from tests.conformance.clients import Call, Transport, connect, infer, inputs_of, method
from tests.conformance.differences import expected
from tests.servers.process import RunningServer
from tests.servers.zoo import BY_NAME, random_inputs

SERVICE = "inference.GRPCInferenceService"
METHODS = {
    *("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer", "ModelStreamInfer"),
    *("ModelConfig", "ModelStatistics", "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"),
    *("SystemSharedMemoryStatus", "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister"),
    *("CudaSharedMemoryStatus", "CudaSharedMemoryRegister", "CudaSharedMemoryUnregister"),
    *("TraceSetting", "LogSettings"),
}
SECONDS = 20.0


@pytest.mark.parametrize("service", ["", SERVICE])
def test_health_is_readiness(server: RunningServer, service: str) -> None:
    with grpc.insecure_channel(server.grpc_address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=SECONDS)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def reflect(server: RunningServer, request: Any) -> Any:
    """The first answer; None where the server is expected to have no reflection, and has none."""
    status = expected("grpc/reflection", server.kind)
    with grpc.insecure_channel(server.grpc_address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        try:
            return next(iter(stub.ServerReflectionInfo(iter([request]), timeout=SECONDS)))
        except grpc.RpcError as error:
            code = error.code().name if isinstance(error, grpc.Call) else "unknown"
            if code != status:
                raise
            return None


def test_reflection_lists_the_service(server: RunningServer) -> None:
    answer = reflect(server, reflection_pb2.ServerReflectionRequest(list_services=""))
    if answer is None:
        return
    assert SERVICE in {service.name for service in answer.list_services_response.service}


def test_reflection_describes_the_methods(server: RunningServer) -> None:
    answer = reflect(server, reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE))
    if answer is None:
        return
    files = [FileDescriptorProto.FromString(raw) for raw in answer.file_descriptor_response.file_descriptor_proto]
    services = {service.name: service for file in files for service in file.service}
    assert {each.name for each in services["GRPCInferenceService"].method} >= METHODS


@pytest.mark.parametrize(
    ("case", "name", "change"),
    [
        ("NOT_FOUND", "double_fp32", {"model_name": "absent"}),
        ("NOT_FOUND", "double_fp32", {"model_version": "9"}),
        ("INVALID_ARGUMENT", "double_fp32", {"inputs": []}),
    ],
    ids=["unknown-model", "unknown-version", "no-inputs"],
)
@pytest.mark.parametrize("transport", ["grpc"])
def test_errors_have_a_status(
    server: RunningServer, rng: np.random.Generator, transport: Transport, case: str, name: str, change: dict[str, Any]
) -> None:
    model = BY_NAME[name]
    inputs = inputs_of(transport, model, random_inputs(model, 1, rng), "binary")
    with connect(transport, server) as client, pytest.raises(InferenceServerException) as raised:
        client.infer(**({"model_name": name, "inputs": inputs} | change))
    assert raised.value.status() == f"StatusCode.{case}"


@pytest.mark.parametrize(
    ("name", "values", "status"),
    [
        ("get_model_metadata", ("absent",), "NOT_FOUND"),
        ("get_model_config", ("absent",), "NOT_FOUND"),
        ("get_model_metadata", ("addsub", "9"), "NOT_FOUND"),
        ("get_inference_statistics", ("absent",), "INVALID_ARGUMENT"),
        ("load_model", ("addsub",), "UNAVAILABLE"),
        ("unload_model", ("addsub",), "UNAVAILABLE"),
    ],
)
def test_other_methods_have_the_same_statuses(
    server: RunningServer, name: str, values: tuple[str, ...], status: str
) -> None:
    with pytest.raises(InferenceServerException) as raised:
        method("grpc", server, name, *values)
    assert raised.value.status() == f"StatusCode.{status}"


def message(name: str, *arrays: np.ndarray) -> Any:
    """A request with raw contents, built without a client."""
    request = service_pb2.ModelInferRequest(model_name=name)
    for tensor, array in zip(BY_NAME[name].inputs, arrays, strict=False):
        request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=list(array.shape))
        request.raw_input_contents.append(array.tobytes())
    return request


def test_answers_are_raw_contents(server: RunningServer) -> None:
    x = np.arange(16, dtype=np.float32)[None]
    with grpc.insecure_channel(server.grpc_address) as channel:
        answer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(message("double_fp32", x))
    assert list(answer.raw_output_contents) == [(x * 2).tobytes()]
    assert not answer.outputs[0].HasField("contents")
    assert (answer.outputs[0].datatype, list(answer.outputs[0].shape)) == ("FP32", [1, 16])


def test_typed_contents_are_understood(server: RunningServer) -> None:
    """Answered raw all the same: clients fail on typed answers."""
    request = service_pb2.ModelInferRequest(model_name="double_fp32")
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[1, 16])
    tensor.contents.fp32_contents.extend(range(16))
    with grpc.insecure_channel(server.grpc_address) as channel:
        answer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    assert list(answer.raw_output_contents) == [(np.arange(16, dtype=np.float32) * 2).tobytes()]


@pytest.mark.parametrize(
    ("name", "field", "values", "wanted"),
    [
        ("double_int64", "int64_contents", [3] * 16, np.full(16, 6, np.int64)),
        ("double_uint8", "uint_contents", [3] * 16, np.full(16, 6, np.uint8)),
        ("negate", "bool_contents", [True, False] * 8, np.array([False, True] * 8)),
    ],
)
def test_typed_contents_of_each_kind(
    server: RunningServer, name: str, field: str, values: list[Any], wanted: np.ndarray
) -> None:
    request = service_pb2.ModelInferRequest(model_name=name)
    tensor = request.inputs.add(name="x", datatype=BY_NAME[name].inputs[0].datatype, shape=[1, 16])
    getattr(tensor.contents, field).extend(values)
    with grpc.insecure_channel(server.grpc_address) as channel:
        answer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    assert list(answer.raw_output_contents) == [wanted.tobytes()]


def test_a_deadline_is_kept(server: RunningServer) -> None:
    inputs = inputs_of("grpc", BY_NAME["slow"], {"ms": np.array([[1000]], dtype=np.int32)}, "binary")
    start = time.monotonic()
    with connect("grpc", server) as client, pytest.raises(InferenceServerException) as raised:
        client.infer("slow", inputs, client_timeout=0.1)
    assert raised.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    assert time.monotonic() - start < 0.9


def test_a_future_can_be_cancelled(server: RunningServer) -> None:
    """Cancelled in the queue, behind a request that sleeps, the job is never executed."""
    model, sleeping = BY_NAME["cancelled"], {"ms": np.array([[300]], dtype=np.int32)}
    done: queue.Queue[InferenceServerException | None] = queue.Queue()
    with connect("grpc", server) as client:
        before = statistics(server)
        inputs = inputs_of("grpc", model, sleeping, "binary")
        client.async_infer(model.name, inputs, callback=lambda result, error: done.put(error))
        second = client.async_infer(model.name, inputs, callback=lambda result, error: done.put(error))
        second.cancel()
        error = done.get(timeout=SECONDS)
        assert error is not None
        assert error.status() == "StatusCode.CANCELLED"
        assert done.get(timeout=SECONDS) is None
        # One more goes through the queue after the cancelled one, which would have been executed by then.
        client.infer(model.name, inputs_of("grpc", model, {"ms": np.array([[1]], dtype=np.int32)}, "binary"))
    executed = statistics(server, before + 2) - before
    # Triton hands an idle instance its next batch ahead, and does not take it back.
    assert executed in ([2] if server.kind == "penstock" else [2, 3])


def statistics(server: RunningServer, at_least: int = 0) -> int:
    """Rows that the model `cancelled` has inferred."""
    deadline = time.monotonic() + 5
    while True:
        document = method("http", server, "get_inference_statistics", "cancelled")
        counted = int(document["model_stats"][0]["inference_count"])
        if counted >= at_least or time.monotonic() > deadline:
            return counted


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_compressed_messages(server: RunningServer, rng: np.random.Generator, compression: str) -> None:
    model = BY_NAME["variable"]
    arrays = {"x": np.zeros((1, 100_000), dtype=np.float32)}
    answer = infer("grpc", server, model, arrays, Call(compression=compression))
    assert answer.arrays["y"].tobytes() == arrays["x"].tobytes()


def test_keepalive_pings_are_tolerated(server: RunningServer) -> None:
    """tritonclient's KeepAliveOptions: a ping each second on an idle connection must not end it."""
    options = tritonclient.grpc.KeepAliveOptions(1000, 1000, True, 0)
    with tritonclient.grpc.InferenceServerClient(server.grpc_address, keepalive_options=options) as client:
        assert client.is_server_live()
        inputs = inputs_of("grpc", BY_NAME["slow"], {"ms": np.array([[2500]], dtype=np.int32)}, "binary")
        assert client.infer("slow", inputs) is not None


def test_shared_memory_is_off_and_says_so(server: RunningServer) -> None:
    with connect("grpc", server) as client:
        assert client.get_system_shared_memory_status(as_json=True).get("regions", {}) == {}
        assert client.get_cuda_shared_memory_status(as_json=True).get("regions", {}) == {}
        # perf_analyzer does this before it starts, on hosts without CUDA as well.
        client.unregister_system_shared_memory()
        client.unregister_cuda_shared_memory()
        with pytest.raises(InferenceServerException) as raised:
            client.register_system_shared_memory("r", "/r", 64)
    assert raised.value.status() == "StatusCode." + expected("grpc/shared-memory-register", server.kind)
