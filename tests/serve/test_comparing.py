"""When an engine may take the place of the model it was built from: what its answers and times have to be."""

import time
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from penstock.backends.observed import Batch
from penstock.serve.comparing import compare, noise
from penstock.tensors import TensorSpec
from tests.serve.calls import Array

X = np.linspace(-2, 2, 12, dtype=np.float32).reshape(3, 4)
Function = Callable[[Array], Array]


class Computing:
    """An instance that answers `y` from `x`, and takes a while when told."""

    def __init__(self, function: Function, seconds: float = 0.0) -> None:
        self._function = function
        self._seconds = seconds

    def execute(self, inputs: dict[str, Array]) -> Mapping[str, Array]:
        time.sleep(self._seconds)
        return {"y": self._function(inputs["x"])}

    def close(self) -> None:
        """Nothing is held."""


def problem(plain: Function, engine: Function, datatype: str = "FP32", inputs: Array = X) -> str:
    batches = [Batch({"x": inputs}, 1)]
    output = TensorSpec("y", datatype, (-1, 4))
    return compare(Computing(plain, 1e-3), Computing(engine, 1e-4), batches, [output], 0.999).problem


@pytest.mark.parametrize(
    ("engine", "fits"),
    [
        (lambda x: x, True),
        (lambda x: x + np.float32(1e-3), True),
        (lambda x: x[::-1], False),
        (lambda x: -x, False),
        (lambda x: x * np.array([[1], [1], [-1]], np.float32), False),  # one row of three
        (lambda x: np.where(x > 1, np.nan, x), False),
        (lambda x: np.where(x > 1, np.inf, x), False),
        (lambda x: x[:, :3], False),
        (np.zeros_like, False),
    ],
)
def test_answers_have_to_be_alike_in_every_row(engine: Function, fits: bool) -> None:
    assert (problem(lambda x: x, engine) == "") is fits


def test_zero_rows_and_infinities_of_both_are_alike() -> None:
    assert problem(np.zeros_like, np.zeros_like) == ""
    assert problem(lambda x: np.where(x > 1, np.inf, x), lambda x: np.where(x > 1, np.inf, x)) == ""


def test_whole_numbers_have_to_be_equal() -> None:
    ids = np.arange(4000, dtype=np.int64).reshape(1000, 4)
    assert problem(lambda x: x, lambda x: np.where(x == 7, 8, x), "INT64", ids) == ""  # 1 of 4000
    assert "likeness of 0.99" in problem(lambda x: x, lambda x: np.where(x % 200 == 7, 8, x), "INT64", ids)


@pytest.mark.parametrize(("plain", "engine"), [([[1.0]], [[2.0]]), ([[1.0], [2.0]], [[2.0], [1.0]])])
def test_single_numbers_are_judged_by_their_size(plain: list[list[float]], engine: list[list[float]]) -> None:
    assert "likeness" in problem(lambda x: np.array(plain), lambda x: np.array(engine))


def test_an_engine_may_not_be_slower() -> None:
    batches, outputs = [Batch({"x": X}, 1)], [TensorSpec("y", "FP32", (-1, 4))]
    slow, fast = Computing(lambda x: x, 4e-3), Computing(lambda x: x, 1e-3)
    found = compare(fast, slow, batches, outputs, 0.999)
    assert "it is slower" in found.problem
    assert found.engine_ms > 2 * found.plain_ms > 0
    assert compare(slow, fast, batches, outputs, 0.999).problem == ""


def test_shapes_count_as_often_as_they_come() -> None:
    """Slower with the rare shape and faster with the usual one is faster."""

    class ByRows(Computing):
        def __init__(self, one: float, three: float) -> None:
            super().__init__(lambda x: x)
            self._by_rows = {1: one, 3: three}

        def execute(self, inputs: dict[str, Array]) -> Mapping[str, Array]:
            time.sleep(self._by_rows[len(inputs["x"])])
            return super().execute(inputs)

    outputs = [TensorSpec("y", "FP32", (-1, 4))]
    plain, engine = ByRows(4e-3, 2e-3), ByRows(1e-3, 8e-3)
    often, rarely = Batch({"x": X[:1]}, 20), Batch({"x": X}, 1)
    assert compare(plain, engine, [often, rarely], outputs, 0.999).problem == ""
    swapped = [Batch(often.inputs, 1), Batch(rarely.inputs, 20)]
    assert "it is slower" in compare(plain, engine, swapped, outputs, 0.999).problem


def test_noise_is_the_same_every_time_and_of_every_size() -> None:
    specs = [TensorSpec("x", "FP32", (3, 2)), TensorSpec("ids", "INT64", (5,))]
    first, second = (noise(specs, 8, 3) for _ in range(2))
    assert [batch.inputs["x"].shape for batch in first] == [(1, 3, 2), (3, 3, 2), (8, 3, 2)]
    assert [batch.inputs["ids"].shape for batch in first] == [(1, 5), (3, 5), (8, 5)]
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.inputs["x"], other.inputs["x"])
    assert [batch.inputs["x"].shape for batch in noise(specs, 0, 1)] == [(3, 2)]
