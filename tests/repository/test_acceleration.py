"""Accelerators in configurations: Triton's names and parameters, ours, and what is refused."""

from pathlib import Path

import onnx
import pytest

from penstock.backends.engine import EngineBackend
from penstock.backends.observed import ObservedBackend
from penstock.engine import open_engine
from penstock.errors import ConfigError, ModelLoadError
from penstock.repository import Repository, accelerated
from penstock.repository.acceleration import Acceleration, fixed_shapes, middle, shapes_text
from penstock.repository.config import Config, parse
from penstock.tensors import TensorSpec
from tests import onnx_models
from tests.engine.engines import ORT, Plan, profile, seal


def asking(field: str = "gpu", name: str = "tensorrt", **parameters: str) -> str:
    lines = " ".join(f'parameters {{ key: "{key}" value: "{value}" }}' for key, value in parameters.items())
    return optimization(f'{field}_execution_accelerator : [ {{ name : "{name}" {lines} }} ]')


def optimization(accelerators: str) -> str:
    return f"optimization {{ execution_accelerators {{ {accelerators} }} }}"


def read(**parameters: str) -> Config:
    return parse("m", asking(**parameters))


def test_without_parameters_nothing_is_computed_more_coarsely() -> None:
    assert parse("m", "").acceleration is None
    for field, name in (("gpu", "tensorrt"), ("cpu", "openvino")):
        assert parse("m", asking(field, name)).acceleration == Acceleration("fp32", None, None, 300.0, None, ())


def test_parameters_become_flags_of_a_build() -> None:
    config = read(
        precision_mode="FP16", max_workspace_size_bytes="1073741824", accuracy="cosine>=0.99", budget="1h30m",
        calibration="data/inputs.npz", shapes="x:1x3,8x3,64x3;mask:1,8,64",
    )  # fmt: skip
    assert config.acceleration is not None
    assert config.acceleration.calibration == "data/inputs.npz"
    assert config.acceleration.flags() == [
        "--precision=fp16", "--budget=5400s", "--shapes=x:1x3,8x3,64x3;mask:1,8,64", "--workspace=1073741824B",
        "--accuracy=cosine>=0.99",
    ]  # fmt: skip


def test_an_engine_is_built_for_as_many_contexts_as_there_will_be_instances() -> None:
    for count, expected in (("count: 1", []), ("count: 3", ["--contexts=3"]), ("count: 40", ["--contexts=16"])):
        config = parse("m", f"{asking()} instance_group [ {{ {count} }} ]")
        assert config.acceleration is not None
        assert config.acceleration.flags()[2:] == expected


def test_profiles_of_tensorrt_are_profiles() -> None:
    found = read(trt_profile_min_shapes="x:1x3", trt_profile_opt_shapes="x:4x3", trt_profile_max_shapes="x:8x3")
    assert found.acceleration is not None
    assert found.acceleration.shape_flags == ("--minShapes=x:1x3", "--optShapes=x:4x3", "--maxShapes=x:8x3")


def test_the_processors_accelerator_goes_first_and_both_are_checked() -> None:
    def both(gpu: str) -> str:
        cpu = 'cpu_execution_accelerator : [ { name : "openvino" parameters { key: "budget" value: "7s" } } ]'
        return optimization(f'gpu_execution_accelerator : [ {{ name : "{gpu}" }} ] {cpu}')

    config = parse("m", both("tensorrt"))
    assert config.acceleration is not None
    assert config.acceleration.budget_seconds == 7.0
    assert config.notes == ("execution_accelerators 'tensorrt' has no effect: 'openvino' goes before it",)
    with pytest.raises(ConfigError, match="gpu_execution_accelerator 'gpu_io' is not known"):
        parse("m", both("gpu_io"))


def test_what_steers_tensorrt_alone_is_noted() -> None:
    config = read(trt_engine_cache_enable="True", trt_engine_cache_path="/anywhere")
    assert config.acceleration == Acceleration()
    assert config.notes == (
        "execution_accelerators parameter trt_engine_cache_enable has no effect",
        "execution_accelerators parameter trt_engine_cache_path has no effect",
    )


def test_settings_for_other_devices_ask_for_nothing() -> None:
    config = parse("m", asking("gpu", "cuda", cudnn_conv_algo_search="2"))
    assert config.acceleration is None
    assert config.notes == ("gpu_execution_accelerator cuda has no effect: models run on the CPU",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (asking("gpu", "auto_mixed_precision"), "is not known, expected tensorrt or cuda"),
        (asking("cpu", "tensorrt"), "cpu_execution_accelerator 'tensorrt' is not known, expected openvino"),
        (asking(precision="FP16"), "unknown parameter 'precision', expected one of precision_mode, max_workspace"),
        (asking(precision_mode="FP12"), "precision_mode is 'FP12', expected one of FP32, TF32"),
        (asking(max_workspace_size_bytes="1GiB"), "max_workspace_size_bytes is '1GiB', expected a number of bytes"),
        (asking(max_workspace_size_bytes="0"), "expected a number of bytes from 1"),
        (asking(accuracy="0.99"), "accuracy is '0.99', expected a cosine"),
        (asking(accuracy="cosine>=1.5"), "expected a cosine from 0 to 1"),
        (asking(accuracy="os:system drop<=1"), "expected a cosine"),
        (asking(budget="5"), "budget is '5', expected a time from 1s to 24h, as in 90s"),
        (asking(budget=""), "expected a time"),
        (asking(budget="99h"), "expected a time"),
        (asking(calibration="os:system"), "expected a .npz file beneath the model's directory"),
        (asking(calibration="../other/inputs.npz"), "expected a .npz file beneath"),
        (asking(calibration="/etc/inputs.npz"), "expected a .npz file beneath"),
        (asking(shapes="1x3"), "shapes is '1x3', expected shapes with the batch"),
        (asking(shapes="x:1x3", trt_profile_min_shapes="x:1x3"), "say the same; leave one out"),
        (asking(trt_profile_min_shapes="x:1x3"), "needs the others, too"),
        (asking(shapes="x:1" + "," * 5000), "expected up to 4096"),
    ],
)  # fmt: skip
def test_what_is_wrong_fails_the_load_and_names_what_is_known(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse("m", text)


def test_shapes_follow_from_fixed_dims_and_the_batch() -> None:
    specs = [TensorSpec("x", "FP32", (3, 2)), TensorSpec("s", "FP32", ())]
    assert fixed_shapes(specs, 64) == "x:1x3x2,8x3x2,64x3x2;s:1,8,64"
    assert fixed_shapes(specs, 0) == "x:3x2,3x2,3x2;s:scalar,scalar,scalar"
    assert fixed_shapes([TensorSpec("x", "FP32", (-1,))], 4) is None
    assert fixed_shapes([TensorSpec("x", "FP32", (3,), optional=True)], 4) is None
    assert shapes_text({"x": ((5,), (7,), (9,))}, 4) == "x:1x5,2x7,4x9"
    assert [middle(size) for size in (1, 2, 4, 64)] == [1, 1, 2, 8]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    onnx_models.scale(tmp_path / "models/scale/1/model.onnx", 3)
    (tmp_path / "models/scale/config.pbtxt").write_text(asking(calibration="inputs.npz"))
    return tmp_path / "models"


def test_a_calibration_file_lies_in_the_models_own_directory(root: Path) -> None:
    place = root / "scale/inputs.npz"
    with pytest.raises(ModelLoadError, match=r"model 'scale': calibration: 'inputs.npz' is missing, or a link"):
        Repository([root]).load("scale")
    (root / "other.npz").write_bytes(b"")
    place.symlink_to(root / "other.npz")
    with pytest.raises(ModelLoadError, match="a link that leads out"):
        Repository([root]).load("scale")
    place.unlink()
    place.write_bytes(b"")
    (model,) = Repository([root]).load("scale")
    assert model.buildable is not None
    assert model.buildable.calibration == place
    assert isinstance(model.backend, ObservedBackend)
    model.close()


def test_an_engine_stands_for_the_model_it_was_built_from(root: Path, tmp_path: Path) -> None:
    config = (root / "scale/config.pbtxt").read_text().replace("calibration", "x").replace("inputs.npz", "1")
    (root / "scale/config.pbtxt").write_text(config.replace('parameters { key: "x" value: "1" }', ""))
    (model,) = Repository([root]).load("scale")
    source = onnx_models.scale(tmp_path / "same.onnx", 3)
    built = seal(Plan(source, profile("x", (1, 4), (2, 4), (4, 4)), [(ORT, {})]), tmp_path / "same.engine")
    made = accelerated(model, open_engine(built))
    assert isinstance(made.backend, EngineBackend)
    assert (made.name, made.version, made.config) == (model.name, model.version, model.config)
    model.close()
    made.close()


def test_an_engine_with_other_tensors_is_refused(root: Path, tmp_path: Path) -> None:
    (root / "scale/config.pbtxt").write_text(asking())
    (model,) = Repository([root]).load("scale")
    other = tmp_path / "other.onnx"
    onnx_models.scale(other, 3)

    renamed = onnx.load(other)
    renamed.graph.output[0].name = "z"
    renamed.graph.node[-1].output[0] = "z"
    onnx.save(renamed, other)
    built = seal(Plan(other, profile("x", (1, 4), (2, 4), (4, 4)), [(ORT, {})]), tmp_path / "other.engine")
    with pytest.raises(ConfigError, match="the engine has other tensors than the model"):
        accelerated(model, open_engine(built))
    model.close()
