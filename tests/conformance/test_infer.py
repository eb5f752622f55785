"""Inference through Triton's own clients: fresh random inputs, answers compared bit by bit."""

import numpy as np
import pytest

from tests.conformance.clients import TRANSPORTS, Call, Encoding, Transport, assert_same, infer
from tests.conformance.differences import expected
from tests.servers.process import RunningServer
from tests.servers.zoo import BY_NAME, MODELS, random_inputs

ANSWERING = [model.name for model in MODELS if model.behaviour != "sleep"]
# Half precision has no form in JSON: the clients refuse to send it.
IN_JSON = [name for name in ANSWERING if BY_NAME[name].inputs[0].datatype != "FP16"]


def text(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """BYTES for JSON, which carries text only."""
    elements = np.empty(shape, dtype=np.object_)
    for index in np.ndindex(shape):
        elements[index] = bytes(rng.integers(32, 127, int(rng.integers(0, 30)), dtype=np.uint8))
    return elements


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("name", ANSWERING)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_binary_tensors_are_answered_exactly(
    server: RunningServer, rng: np.random.Generator, transport: Transport, name: str, batch: int
) -> None:
    model = BY_NAME[name]
    arrays = random_inputs(model, batch, rng)
    answer = infer(transport, server, model, arrays)
    assert_same(answer.arrays, model.reference(arrays))
    assert (answer.model_name, answer.model_version) == (name, "1")


@pytest.mark.parametrize("answer_encoding", ["json", "binary"])
@pytest.mark.parametrize("name", IN_JSON)
@pytest.mark.parametrize("transport", ["http", "http.aio"])
def test_json_tensors_are_answered_exactly(
    server: RunningServer, rng: np.random.Generator, transport: Transport, name: str, answer_encoding: Encoding
) -> None:
    model = BY_NAME[name]
    arrays = random_inputs(model, 2, rng)
    if model.inputs[0].datatype == "BYTES":
        arrays["x"] = text(rng, (2, 4))
    call = Call("json", answer_encoding, outputs=[output.name for output in model.outputs])
    assert_same(infer(transport, server, model, arrays, call).arrays, model.reference(arrays))


@pytest.mark.parametrize("transport", ["http", "http.aio"])
def test_extreme_numbers_survive_json(server: RunningServer, transport: Transport) -> None:
    fp32 = np.finfo(np.float32)
    values = [0.0, -0.0, 1.0, 0.1, fp32.smallest_subnormal, fp32.tiny, fp32.max / 2, -fp32.max / 2]
    x = np.array([values * 2], dtype=np.float32)
    arrays = {"x": x}
    call = Call("json", "json", outputs=["y"])
    assert_same(infer(transport, server, BY_NAME["double_fp32"], arrays, call).arrays, {"y": x * np.float32(2)})
    extremes = np.array([[2**62 - 1, -(2**62), 0, -1] * 4], dtype=np.int64)
    answer = infer(transport, server, BY_NAME["double_int64"], {"x": extremes}, call)
    assert_same(answer.arrays, {"y": extremes * 2})


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_a_number_and_infinity_pass_through_binary(
    server: RunningServer, transport: Transport, value: float
) -> None:
    arrays = {"x": np.full((1, 16), value, dtype=np.float32)}
    answer = infer(transport, server, BY_NAME["double_fp32"], arrays)
    np.testing.assert_array_equal(answer.arrays["y"], arrays["x"])


@pytest.mark.parametrize("request_id", ["", "42", "a b/c?&=", "é and 日本", "x" * 200])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_request_id_comes_back(
    server: RunningServer, rng: np.random.Generator, transport: Transport, request_id: str
) -> None:
    model = BY_NAME["double_fp32"]
    answer = infer(transport, server, model, random_inputs(model, 1, rng), Call(request_id=request_id))
    assert answer.request_id == request_id


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (None, ["OUTPUT0", "OUTPUT1"]),
        (["OUTPUT0"], ["OUTPUT0"]),
        (["OUTPUT1"], ["OUTPUT1"]),
        (["OUTPUT0", "OUTPUT1"], ["OUTPUT0", "OUTPUT1"]),
        (["OUTPUT1", "OUTPUT0"], ["OUTPUT0", "OUTPUT1"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_only_requested_outputs_are_answered(
    server: RunningServer, rng: np.random.Generator, transport: Transport, asked: list[str] | None, told: list[str]
) -> None:
    """`told` is in the model's order, as they come when none is asked for."""
    model = BY_NAME["addsub"]
    arrays = random_inputs(model, 2, rng)
    answer = infer(transport, server, model, arrays, Call(outputs=asked))
    wanted = model.reference(arrays)
    assert_same(answer.arrays, {name: wanted[name] for name in told})
    as_asked = expected("infer/order-of-outputs", server.kind) == "as they were asked for"
    assert list(answer.order) == (asked if asked and as_asked else told)


@pytest.mark.parametrize("given", [("x",), ("x", "bias")])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_optional_input_may_be_left_out(
    server: RunningServer, rng: np.random.Generator, transport: Transport, given: tuple[str, ...]
) -> None:
    model = BY_NAME["optional"]
    arrays = {name: array for name, array in random_inputs(model, 2, rng).items() if name in given}
    assert_same(infer(transport, server, model, arrays).arrays, model.reference(arrays))


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_variable_dimension_takes_any_size(
    server: RunningServer, rng: np.random.Generator, transport: Transport, size: int
) -> None:
    arrays = {"x": rng.standard_normal((2, size)).astype(np.float32)}
    assert_same(infer(transport, server, BY_NAME["variable"], arrays).arrays, {"y": arrays["x"] * np.float32(2)})


# The HTTP library of the aio client would rather be given a file.
@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_large_tensor_passes(server: RunningServer, rng: np.random.Generator, transport: Transport) -> None:
    """4 MB: past every default of HTTP/2 windows and of gRPC's usual message limit on the server's side."""
    arrays = {"x": rng.standard_normal((1, 1_000_000)).astype(np.float32)}
    assert_same(infer(transport, server, BY_NAME["variable"], arrays).arrays, {"y": arrays["x"] * np.float32(2)})


@pytest.mark.parametrize(
    "call",
    [
        Call(priority=1),
        Call(priority=7),
        Call(timeout_microseconds=5_000_000),
        Call(parameters={"customer": "a", "weight": 3, "flag": True}),
        Call(version="1"),
        Call(sequence_id=7),
    ],
    ids=["priority-1", "priority-7", "timeout", "own-parameters", "version", "sequence"],
)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_request_options_are_accepted(
    server: RunningServer, rng: np.random.Generator, transport: Transport, call: Call
) -> None:
    model = BY_NAME["double_fp32"]
    arrays = random_inputs(model, 1, rng)
    assert_same(infer(transport, server, model, arrays, call).arrays, model.reference(arrays))


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_compressed_requests_and_responses(
    server: RunningServer, rng: np.random.Generator, transport: Transport, compression: str
) -> None:
    model = BY_NAME["addsub"]
    arrays = random_inputs(model, 8, rng)
    call = Call(compression=compression, response_compression=compression)
    assert_same(infer(transport, server, model, arrays, call).arrays, model.reference(arrays))
