"""Instances that lend memory for their inputs: batches are laid out in it, and nothing else about them changes.

What such an instance does for a GPU is in `tests/engine/cuda/test_input_memory.py`.
"""

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import penstock as ps
from penstock import _core
from penstock.backends.base import Array, input_memory
from penstock.backends.observed import ObservedBackend
from penstock.backends.reshape import Reshape, ReshapedBackend
from penstock.backends.runtime import RuntimeBackend
from penstock.repository import from_function
from penstock.serve.spec import specification
from penstock.tensors import TensorSpec
from tests.serve.calls import Answer, Client, at_once, eventually, infer, waiting

# FP32 elements of a row: copied in any case, and passed on as it is where nothing is lent.
SMALL, LARGE = 16, 1 << 16
SIZES = pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])


def start(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


class LendingRuntime:
    """y = 2x on FP32[-1, -1], from memory of its own; notes of each batch its rows and whether it lay there.

    It says of rows whose first number is NaN that they are wrong, and waits for `gate` before anything else.
    """

    name = "lending"
    inputs = (TensorSpec("x", "FP32", (-1, -1)),)
    outputs = (TensorSpec("y", "FP32", (-1, -1)),)

    def __init__(self, room: int) -> None:
        self.room = room
        self.seen: list[tuple[int, bool]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)

    def instance(self) -> "LendingInstance":
        return LendingInstance(self)

    def __call__(self, **arrays: Any) -> dict[str, Array]:
        return self.instance().execute(arrays)

    def close(self) -> None:
        """Nothing is held."""


class LendingInstance:
    def __init__(self, runtime: LendingRuntime) -> None:
        self._runtime = runtime
        self.memory = np.zeros(runtime.room, np.uint8)

    def input_memory(self) -> Mapping[str, Array]:
        return {"x": self.memory}

    def execute(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        x = inputs["x"]
        self._runtime.entered.release()
        assert self._runtime.gate.wait(20)
        self._runtime.seen.append((len(x), start(x) == start(self.memory)))
        if np.isnan(x[:, 0]).any():
            raise ValueError("a row is wrong")
        return {"y": x * 2}

    def close(self) -> None:
        """Nothing is held."""


@contextmanager
def serving(runtime: LendingRuntime, **options: Any) -> Iterator[ps.Server]:
    server = ps.Server(http_port=0, grpc_port=None, metrics_port=0)
    server.add(runtime, name="m", **options)
    with server:
        yield server


def rows(count: int, size: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((count, size), np.float32)


def doubled(server: ps.Server, x: Array) -> bool:
    return bool(np.array_equal(infer(server, "m", x=x).arrays["y"], x * 2))


@SIZES
@pytest.mark.parametrize("count", [1, 3, 8])
def test_a_batch_that_fits_lies_in_the_memory_that_is_lent(count: int, size: int) -> None:
    runtime = LendingRuntime(8 * size * 4)
    with serving(runtime) as server:
        for seed in range(3):
            assert doubled(server, rows(count, size, seed))
    assert runtime.seen == [(count, True)] * 3


@SIZES
def test_a_batch_that_does_not_fit_comes_elsewhere(size: int) -> None:
    runtime = LendingRuntime(8 * size * 4)
    with serving(runtime) as server:
        for count in (9, 2, 16):
            assert doubled(server, rows(count, size, count))
    assert runtime.seen == [(9, False), (2, True), (16, False)]


def together(runtime: LendingRuntime, server: ps.Server, arrays: list[Array]) -> list[Answer]:
    """The answers to all of these, which wait together behind one request that is held."""
    runtime.gate.clear()
    with ThreadPoolExecutor(len(arrays) + 1) as pool:
        pool.submit(lambda: infer(server, "m", x=rows(1, SMALL)))
        assert runtime.entered.acquire(timeout=20)
        answers = [pool.submit(lambda x=x: infer(server, "m", x=x)) for x in arrays]
        eventually("all wait", lambda: waiting(server, "m") == len(arrays))
        runtime.gate.set()
        return [answer.result() for answer in answers]


def test_rows_of_many_requests_are_laid_out_side_by_side() -> None:
    runtime = LendingRuntime(16 * SMALL * 4)
    arrays = [rows(1 + number % 2, SMALL, number) for number in range(8)]
    with serving(runtime) as server:
        answers = together(runtime, server, arrays)
    for x, answer in zip(arrays, answers, strict=True):
        np.testing.assert_array_equal(answer.arrays["y"], x * 2)
    assert runtime.seen == [(1, True), (12, True)]


def test_a_wrong_request_fails_alone() -> None:
    runtime = LendingRuntime(16 * SMALL * 4)
    arrays = [rows(1, SMALL, number) for number in range(4)]
    arrays[2][0, 0] = np.nan
    with serving(runtime) as server:
        answers = together(runtime, server, arrays)
    assert [answer.status for answer in answers].count(500) == 1
    assert answers[2].status == 500
    np.testing.assert_array_equal(answers[3].arrays["y"], arrays[3] * 2)
    assert runtime.seen == [(1, True), (4, True), *[(1, True)] * 4]


def test_instances_have_memory_of_their_own() -> None:
    runtime = LendingRuntime(16 * SMALL * 4)
    with serving(runtime, instances=4) as server:

        def work(client: Client, number: int) -> None:
            for seed in range(8):
                x = rows(2, SMALL, 8 * number + seed)
                np.testing.assert_array_equal(client.infer("m", x=x).arrays["y"], x * 2)

        at_once(server, work, 8)
    assert all(lay for _, lay in runtime.seen)


@pytest.mark.parametrize("wrap", ["observed", "reshaped"])
def test_memory_is_lent_through_what_wraps_a_backend(wrap: str) -> None:
    runtime = LendingRuntime(8 * SMALL * 4)
    inner = RuntimeBackend(runtime)
    if wrap == "observed":
        instance = ObservedBackend(inner).instance(0, 1, None)
    else:
        instance = ReshapedBackend(inner, {"x": Reshape((-1, -1, 1), (-1, -1))}, {}).instance(0, 1, None)
    memory = input_memory(instance)["x"]
    assert memory.nbytes == 8 * SMALL * 4
    shape = (2, SMALL) if wrap == "observed" else (2, SMALL, 1)
    lent = memory[: 2 * SMALL * 4].view(np.float32).reshape(shape)
    lent[:] = 3
    np.testing.assert_array_equal(instance.execute({"x": lent})["y"], np.full((2, SMALL), 6))
    assert runtime.seen == [(2, True)]


def test_most_instances_lend_nothing() -> None:
    function = ps.model(name="f", inputs={"x": ps.F32[4]}, outputs={"y": ps.F32[4]})(lambda x: x)
    assert input_memory(from_function(function).backend.instance(0, 1, None)) == {}


@pytest.mark.parametrize(
    "buffer",
    [b"read-only", np.zeros(0, np.uint8), np.zeros((4, 4), np.uint8)[:, ::2], 5],
    ids=["bytes", "empty", "pieces", "none"],
)
def test_memory_that_can_not_be_written_to_is_refused(buffer: Any) -> None:
    from penstock.repository import from_function

    function = ps.model(name="f", inputs={"x": ps.F32[4]}, outputs={"y": ps.F32[4]})(lambda x: x)
    core = _core.Model(specification(from_function(function), "auto", 0.0))
    with pytest.raises((ValueError, TypeError, BufferError)):
        core.run(0, lambda inputs: inputs, {"x": buffer})
