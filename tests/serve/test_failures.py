"""Models that fail or answer what they may not: the client learns what is wrong, nobody else notices, the server lives.

Exceptions of a model are 500 with their name and text, except for `penstock.errors`, which carry their own status. An
exception meant to end a program (KeyboardInterrupt, SystemExit, GeneratorExit) is one like any other here: it was
raised by a model on a worker thread, so it fails its requests with 500 and neither the instance nor the server ends.
"""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

import penstock as ps
from penstock import errors
from tests.serve.calls import Answer, Array, Client, at_once, batch_sizes, infer, serving
from tests.servers.cases import LEAKS
from tests.servers.raw import dumps

GOOD, MARKER = 1.0, 13.0
# Longer texts are no messages; they would not fit into gRPC's trailers either.
LONGEST = 2000


def x_of(value: float, size: int = 4) -> Array:
    return np.full((1, size), value, np.float32)


def failing_model(fail: Callable[[Array], Any], **settings: Any) -> ps.ModelFunction:
    """Answers x for GOOD, and what `fail` does for anything else."""
    model = ps.model(name="m", inputs={"x": ps.F32[-1]}, outputs={"y": ps.F32[-1]}, **settings)
    return model(lambda x: x if (x == GOOD).all() else fail(x))


def assert_clean(answer: Answer) -> None:
    assert not LEAKS.search(answer.error), answer.error
    assert not answer.error.endswith(": None"), answer.error
    assert len(answer.error) < LONGEST


def raising(error: BaseException) -> Callable[[Array], Any]:
    def fail(_: Array) -> Any:
        raise error

    return fail


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def missing_file(_: Array) -> Any:
    return Path("/etc/penstock-secret/weights.bin").read_bytes()


@dataclass(frozen=True)
class Case:
    fail: Callable[[Array], Any]
    status: int = 500
    words: tuple[str, ...] = ()


EXCEPTIONS: dict[str, Case] = {
    "ValueError": Case(raising(ValueError("sizes differ by 3")), words=("ValueError", "sizes differ by 3", "'m'")),
    "KeyError": Case(raising(KeyError("weight")), words=("KeyError", "weight")),
    "an assertion without text": Case(raising(AssertionError()), words=("AssertionError",)),
    "StopIteration": Case(raising(StopIteration(3)), words=("StopIteration",)),
    "a file that is missing": Case(missing_file, words=("FileNotFoundError", "No such file")),
    "OSError with one argument": Case(raising(OSError("the device is gone")), words=("OSError",)),
    "OSError about two paths": Case(
        raising(PermissionError(13, "Permission denied", "/etc/a", None, "/etc/b")), words=("Permission denied",)
    ),
    "CancelledError": Case(raising(asyncio.CancelledError("enough")), words=("CancelledError",)),
    "KeyboardInterrupt": Case(raising(KeyboardInterrupt("stop")), words=("KeyboardInterrupt",)),
    "SystemExit": Case(raising(SystemExit(3)), words=("SystemExit", "3")),
    "GeneratorExit": Case(raising(GeneratorExit()), words=("GeneratorExit",)),
    "an ExceptionGroup": Case(raising(ExceptionGroup("two", [ValueError("a"), OSError("b")])), words=("two",)),
    "lone surrogates": Case(raising(ValueError("bad \ud800")), words=("ValueError", "bad")),
    "a very long text": Case(raising(ValueError("x" * 1_000_000)), words=("ValueError",)),
    "penstock InvalidArgument": Case(raising(errors.InvalidArgument("the picture is no PNG")), 400, ("no PNG",)),
    "penstock NotFound": Case(raising(errors.NotFound("no such customer")), 404, ("no such customer",)),
    "penstock Unauthenticated": Case(raising(errors.Unauthenticated("who asks?")), 401, ("who asks?",)),
    "penstock ResourceExhausted": Case(raising(errors.ResourceExhausted("too many pixels")), 413, ("pixels",)),
    "penstock Unsupported": Case(raising(errors.Unsupported("no alpha channel")), 501, ("alpha",)),
    "penstock Unavailable": Case(raising(errors.Unavailable("warming up")), 503, ("warming up",)),
    "penstock ExecutionError": Case(raising(errors.ExecutionError("diverged")), 500, ("diverged",)),
}


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_an_exception_fails_its_request_and_nothing_else(name: str) -> None:
    case = EXCEPTIONS[name]
    with serving(failing_model(case.fail)) as server, Client(server) as client:
        for _ in range(2):
            answer = client.infer("m", x=x_of(MARKER))
            assert answer.status == case.status, answer.reply.body[:300]
            assert_clean(answer)
            for word in case.words:
                assert word in answer.error
            np.testing.assert_array_equal(client.infer("m", x=x_of(GOOD)).arrays["y"], x_of(GOOD))
        assert client.get("/v2/health/ready").status == 200
        assert client.statistics("m")["inference_stats"]["fail"]["count"] == 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_exception_without_a_text_is_named() -> None:
    with serving(failing_model(raising(UnprintableError()))) as server:
        answer = infer(server, "m", x=x_of(MARKER))
    assert (answer.status, "UnprintableError" in answer.error) == (500, True)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("sizes differ"), "StatusCode.INTERNAL"),
        (ValueError("two\nlines\x00"), "StatusCode.INTERNAL"),
        (ValueError("ö" * 500_000), "StatusCode.INTERNAL"),
        (errors.InvalidArgument("no PNG"), "StatusCode.INVALID_ARGUMENT"),
        (errors.NotFound("nobody"), "StatusCode.NOT_FOUND"),
        (errors.Unauthenticated("who?"), "StatusCode.UNAUTHENTICATED"),
    ],
    ids=["ValueError", "control characters", "a megabyte", "InvalidArgument", "NotFound", "Unauthenticated"],
)
def test_an_exception_has_its_status_over_grpc(error: Exception, status: str) -> None:
    x = tritonclient.grpc.InferInput("x", [1, 4], "FP32")
    with (
        serving(failing_model(raising(error)), grpc_port=0) as server,
        tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client,
    ):
        x.set_data_from_numpy(x_of(MARKER))
        with pytest.raises(InferenceServerException) as caught:
            client.infer("m", [x])
        x.set_data_from_numpy(x_of(GOOD))
        np.testing.assert_array_equal(client.infer("m", [x]).as_numpy("y"), x_of(GOOD))
    assert caught.value.status() == status
    assert str(error)[:3] in (caught.value.message() or "")


WRONG: dict[str, tuple[Callable[[Array], Any], tuple[str, ...]]] = {
    "big-endian": (lambda x: x.astype(">f4"), ("y", "FP32", ">f4")),
    "another type": (lambda x: x.astype(np.float64), ("y", "FP32", "float64")),
    "integers": (lambda x: x.astype(np.int32), ("y", "FP32", "int32")),
    "complex": (lambda x: x.astype(np.complex64), ("y", "FP32", "complex64")),
    "structured": (lambda x: np.zeros((1, 4), [("a", "f4")]), ("y", "FP32")),
    "times": (lambda x: np.zeros((1, 4), "M8[s]"), ("y", "FP32", "datetime64")),
    "objects": (lambda x: np.array([[None] * 4]), ("y", "FP32", "object")),
    "text": (lambda x: "answer", ("y", "FP32")),
    "None": (lambda x: None, ("'y'", "None")),
    "a list": (lambda x: [[1.0, 2.0, 3.0, 4.0]], ("y", "FP32", "float64")),
    "a ragged list": (lambda x: [[1.0], [2.0, 3.0]], ("m",)),
    "a number": (lambda x: 3, ("y",)),
    "a scalar": (lambda x: np.float32(3), ("y", "shape", "[]")),
    "a 0-d array": (lambda x: np.array(3, np.float32), ("y", "shape", "[]")),
    "no rows": (lambda x: x[:0], ("y", "[1, -1]", "[0, 4]")),
    "too many rows": (lambda x: np.zeros((2, 4), np.float32), ("y", "[1, -1]", "[2, 4]")),
    "no batch dimension": (lambda x: x[0], ("y", "[1, -1]", "[4]")),
    "a dimension too many": (lambda x: x[None], ("y", "[1, -1]", "[1, 1, 4]")),
    "another output": (lambda x: {"z": x}, ("output 'y' is missing", "expected y, got z")),
    "no outputs": (lambda x: {}, ("'y'", "missing", "got nothing")),
    "an output of None": (lambda x: {"y": None}, ("y", "FP32")),
    "a number as key": (lambda x: {0: x}, ("'y'", "missing", "got 0")),
    "a generator": (lambda x: (row for row in x), ("y",)),
    "an array of no data": (lambda x: np.ndarray, ("y",)),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_answer_of_a_model_is_named(what: str) -> None:
    function, words = WRONG[what]
    with serving(failing_model(function)) as server, Client(server) as client:
        answer = client.infer("m", x=x_of(MARKER))
        assert answer.status == 500, answer.reply.body[:300]
        assert_clean(answer)
        for word in words:
            assert word in answer.error
        np.testing.assert_array_equal(client.infer("m", x=x_of(GOOD)).arrays["y"], x_of(GOOD))


def test_outputs_nobody_declared_are_left_out() -> None:
    with serving(failing_model(lambda x: {"y": x, "more": x, "odd": None})) as server:
        assert list(infer(server, "m", x=x_of(MARKER)).arrays) == ["y"]


@pytest.mark.parametrize("answer", [lambda x: x, lambda x: [x, x], lambda x: (x, x)], ids=["array", "list", "tuple"])
def test_several_outputs_need_a_dictionary(answer: Callable[[Array], Any]) -> None:
    def function(x: Array) -> Any:
        return answer(x)

    model = ps.model(name="m", inputs={"x": ps.F32[-1]}, outputs={"a": ps.F32[-1], "b": ps.F32[-1]})
    with serving(model(function)) as server:
        refused = infer(server, "m", x=x_of(GOOD))
    assert refused.status == 500
    assert "expected a dict with a, b" in refused.error


@pytest.mark.parametrize(
    "elements", [[1, 2], [b"a", None], [b"a", 1.5], [bytearray(b"a"), b"b"]], ids=["int", "None", "float", "bytearray"]
)
def test_elements_that_are_neither_bytes_nor_text_are_refused(elements: list[Any]) -> None:
    def function(x: Array) -> Array:
        y = np.empty((1, 2), np.object_)
        y[0, :] = elements
        return y

    with serving(ps.model(name="m", inputs={"x": ps.F32[1]}, outputs={"y": ps.Bytes[2]})(function)) as server:
        answer = infer(server, "m", x=x_of(GOOD, 1))
    assert answer.status == 500
    assert "expected elements of bytes or str" in answer.error


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_json_has_no_number_for_is_an_error_that_asks_for_binary(value: float) -> None:
    y = np.array([[1, value]], np.float32)
    with serving(failing_model(lambda x: y)) as server, Client(server) as client:
        answer = client.infer("m", x=x_of(MARKER), binary=False)
        assert answer.status == 500
        assert "binary" in answer.error
        np.testing.assert_array_equal(client.infer("m", x=x_of(MARKER)).arrays["y"], y)


def test_no_rows_are_refused_before_the_model_runs() -> None:
    called = threading.Event()
    with serving(failing_model(lambda x: called.set())) as server, Client(server) as client:
        empty = {"name": "x", "shape": [0, 4], "datatype": "FP32", "data": []}
        reply = client.ask("POST", "/v2/models/m/infer", dumps(inputs=[empty]))
    assert reply.status == 400
    assert "1 to 64 rows" in reply.error
    assert not called.is_set()


@pytest.mark.parametrize("size", [4, 1 << 18], ids=["small", "large"])
def test_a_poisonous_request_fails_alone(size: int) -> None:
    """Eight in one batch, one of them bad: it is tried again by itself, and so are its neighbours."""
    calls: list[int] = []

    def function(x: Array) -> Array:
        calls.append(len(x))
        # Inputs changed before the failure must not be seen by the second try.
        poisoned = bool((x == MARKER).any())
        x += 1
        if poisoned:
            raise ValueError("poison")
        return x

    model = ps.model(
        name="m",
        max_batch_size=8,
        inputs={"x": ps.F32[-1]},
        outputs={"y": ps.F32[-1]},
        dynamic_batching=ps.DynamicBatching(max_queue_delay_us=10_000_000, preferred_batch_sizes=(8,)),
    )

    def ask(client: Client, number: int) -> None:
        if number == 3:
            answer = client.infer("m", x=x_of(MARKER, size))
            assert answer.status == 500
            assert "poison" in answer.error
        else:
            x = x_of(100.0 + number, size)
            np.testing.assert_array_equal(client.infer("m", x=x).arrays["y"], x + 1)

    with serving(model(function)) as server, Client(server) as client:
        at_once(server, ask, 8)
        statistics = client.statistics("m")
    assert calls == [8] + [1] * 8
    assert batch_sizes(statistics) == {8: 1}
    assert statistics["inference_stats"]["success"]["count"] == 7
    assert statistics["inference_stats"]["fail"]["count"] == 1


# ---- the log ----

PROGRAM = """
import http.client, sys
import penstock as ps

@ps.model(name="m", inputs={{"x": ps.F32[-1]}}, outputs={{"y": ps.F32[-1]}})
def failing(x):
    raise ValueError("what went wrong")

for _ in range(2):  # one log, however many servers
    server = ps.Server(http_port=0, grpc_port=None, metrics_port=None{options})
    server.add(failing)
    with server:
        client = http.client.HTTPConnection("127.0.0.1", server.http_port)
        client.request("POST", "/v2/models/m/infer", sys.argv[1])
        assert client.getresponse().status == 500
        client.close()
"""


@pytest.mark.parametrize(("options", "times"), [("", 2), (", log_verbose=0", 2), (", log_verbose=None", 0)])
def test_a_program_finds_the_traceback_of_a_failure_on_standard_error(options: str, times: int) -> None:
    request = dumps(inputs=[{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1]}])
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(options=options), request.decode()],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert ended.stderr.count("model 'm' failed: ValueError: what went wrong") == times
    assert ended.stderr.count("Traceback") == times
    assert ended.stderr.count("in failing") == times
    assert times or not ended.stderr
