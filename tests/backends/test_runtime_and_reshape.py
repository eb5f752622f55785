"""Runtimes as backends, and the view that a configuration's `reshape` gives."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import penstock as ps
from penstock.backends.reshape import Reshape, ReshapedBackend
from penstock.backends.runtime import RuntimeBackend
from penstock.errors import ConfigError
from penstock.tensors import TensorSpec
from tests import onnx_models


@pytest.mark.parametrize(("runtime", "platform"), [("onnxruntime", "onnxruntime_onnx"), ("openvino", "openvino")])
def test_a_runtime_serves_as_a_backend(runtime: str, platform: str, tmp_path: Path) -> None:
    backend = RuntimeBackend(ps.load(onnx_models.double(tmp_path / "m.onnx"), runtime=runtime))
    assert (backend.name, backend.platform) == (runtime, platform)
    assert backend.inputs == (TensorSpec("x", "FP32", (-1, 16)),)
    instance = backend.instance(0, 1, None)
    x = np.ones((3, 16), np.float32)
    np.testing.assert_array_equal(instance.execute({"x": x})["y"], x + x)
    instance.close()
    backend.close()


class Echo:
    """A backend that gives back what it got and remembers the shapes."""

    name = platform = "echo"

    def __init__(self, inputs: tuple[TensorSpec, ...]) -> None:
        self.inputs = inputs
        self.outputs = inputs
        self.seen: list[tuple[int, ...]] = []

    def instance(self, index: int, count: int, threads: int | None) -> "Echo":
        return self

    def execute(self, inputs: dict[str, Any]) -> Mapping[str, Any]:
        self.seen = [array.shape for array in inputs.values()]
        return inputs

    def close(self) -> None:
        """Nothing is held."""


@pytest.mark.parametrize(
    ("client", "model", "sent", "seen"),
    [
        ((-1, 1), (-1,), (5, 1), (5,)),
        ((-1, 12), (-1, 3, 4), (2, 12), (2, 3, 4)),
        ((-1, -1, 4), (-1, 1, -1, 4), (2, 7, 4), (2, 1, 7, 4)),
        ((2, 6), (12,), (2, 6), (12,)),
        ((-1, 4), (-1, 2, 2), (0, 4), (0, 2, 2)),
    ],
)
def test_arrays_are_reshaped_on_the_way_in_and_back_on_the_way_out(
    client: tuple[int, ...], model: tuple[int, ...], sent: tuple[int, ...], seen: tuple[int, ...]
) -> None:
    echo = Echo((TensorSpec("x", "FP32", model),))
    shapes = {"x": Reshape(client, model)}
    backend = ReshapedBackend(echo, shapes, shapes)
    assert backend.inputs[0].shape == backend.outputs[0].shape == client
    answer = backend.instance(0, 1, None).execute({"x": np.zeros(sent, np.float32)})
    assert echo.seen == [seen]
    assert answer["x"].shape == sent


def test_free_sizes_must_pair_up() -> None:
    echo = Echo((TensorSpec("x", "FP32", (-1, -1)),))
    with pytest.raises(ConfigError, match="equally many"):
        ReshapedBackend(echo, {"x": Reshape((-1, 4), (-1, -1))}, {})
