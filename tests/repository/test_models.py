"""Models without a repository: a bare file, a function, a runtime."""

# mypy: disable-error-code="valid-type,no-any-return,index,unused-ignore"

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import penstock as ps
from penstock.errors import ConfigError, InvalidArgument, ModelLoadError, NotFound
from penstock.repository import bare, from_function, from_runtime
from penstock.repository.padding import InputPadding, OutputCut, Padding
from penstock.tensors import TensorSpec
from tests import onnx_models


@pytest.mark.parametrize("runtime", [None, "openvino"])
def test_a_bare_file_is_named_after_its_stem_and_batches_to_64(runtime: str | None, tmp_path: Path) -> None:
    model = bare(onnx_models.double(tmp_path / "twice.onnx"), runtime=runtime, instances=2)
    assert (model.name, model.version) == ("twice", 1)
    assert (model.config.max_batch_size, model.config.instance_count) == (64, 2)
    assert model.config.dynamic_batching is not None
    assert model.config.dynamic_batching.automatic
    assert model.backend.name == (runtime or "onnxruntime")


def test_a_bare_file_without_a_free_first_dimension_does_not_batch(tmp_path: Path) -> None:
    model = bare(onnx_models.double(tmp_path / "fixed.onnx", shape=(1, 16)))
    assert model.config.max_batch_size == 0
    assert model.config.inputs[0].shape == (1, 16)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("absent.onnx", NotFound, "'absent.onnx' does not exist"),
        ("model.pt", ModelLoadError, "'model.pt' is not a model file that can be served"),
        ("a name.onnx", InvalidArgument, "'a name' is not allowed"),
    ],
)
def test_a_bare_file_that_cannot_be_served_says_why(
    name: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        bare(tmp_path / name)


def test_a_function_becomes_a_model_with_its_settings() -> None:
    @ps.model(
        name="padded",
        max_batch_size=8,
        instances=3,
        outputs={"y": ps.F32[-1]},
        parameters={"note": "ours"},
        padding={"inputs": {"x": {"axis": 1, "multiple": 4}}, "outputs": {"y": {"axis": 1, "divisor": 2}}},
        dynamic_batching=ps.DynamicBatching(
            max_queue_delay_us=500, preferred_batch_sizes=(4, 8), default_queue_policy=ps.QueuePolicy("delay", 9)
        ),
    )
    def half(x: ps.F32[-1], bias: ps.F32 = None) -> Any:  # type: ignore[valid-type,assignment]
        return x[:, ::2]

    model = from_function(half)
    config = model.config
    assert (model.name, config.max_batch_size, config.instance_count) == ("padded", 8, 3)
    assert config.inputs == (TensorSpec("x", "FP32", (-1,)), TensorSpec("bias", "FP32", (), optional=True))
    assert config.outputs == (TensorSpec("y", "FP32", (-1,)),)
    assert config.parameters["note"] == "ours"
    assert config.padding == Padding((InputPadding("x", 1, 4, 0.0),), (OutputCut("y", 1, 2),))
    assert config.dynamic_batching == half.dynamic_batching
    assert model.backend.inputs[0].shape == (-1, -1)
    x = np.ones((2, 6), np.float32)
    assert model.backend.instance(0, 3, None).execute({"x": x})["y"].shape == (2, 3)


def test_a_function_without_a_batch_dimension_stays_without() -> None:
    model = from_function(
        ps.model(name="m", max_batch_size=0, inputs={"x": ps.U8[-1]}, outputs={"y": ps.Bytes})(lambda x: x)
    )
    assert model.config.max_batch_size == 0
    assert '"data_type":"TYPE_STRING","dims":[]' in model.config.to_json()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"padding": {"inputs": {"z": {"axis": 1}}}}, ConfigError, "padding names 'z'"),
        ({"padding": {"inputs": {"x": object()}}}, InvalidArgument, "can't be written as JSON"),
        ({"parameters": {"a": 1}}, InvalidArgument, "parameter 'a' must be text"),
        (
            {"dynamic_batching": ps.DynamicBatching(preferred_batch_sizes=(128,))},
            ConfigError,
            "preferred_batch_size 128",
        ),
    ],
)
def test_settings_of_a_function_are_checked_when_it_becomes_a_model(
    settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    function = ps.model(name="m", inputs={"x": ps.F32[-1]}, outputs={"y": ps.F32[-1]}, **settings)(lambda x: x)
    with pytest.raises(error, match=message):
        from_function(function)


def test_a_runtime_becomes_a_model_under_the_name_given(tmp_path: Path) -> None:
    runtime = ps.load(onnx_models.double(tmp_path / "m.onnx"), instances=2)
    model = from_runtime(runtime, "resnet", max_batch_size=16, instances=2)
    assert (model.name, model.config.max_batch_size, model.config.instance_count) == ("resnet", 16, 2)
    model.close()
    assert runtime(x=np.ones((1, 16), np.float32))["y"][0, 0] == 2
    with pytest.raises(InvalidArgument, match="instances is 0, expected an integer from 1 to"):
        from_runtime(runtime, "resnet", instances=0)
