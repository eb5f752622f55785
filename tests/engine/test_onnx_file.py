"""External data of ONNX files: what lies beside the model is read, anything else is refused."""

import os
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

import penstock as ps
from penstock import limits
from penstock.engine.plan import WIDE_KEY
from penstock.engine.runtimes import onnx_file
from penstock.errors import ModelLoadError
from tests import onnx_models

WEIGHTS = np.arange(4, dtype=np.float32)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """model/ with weights.bin, beside a secret outside."""
    (tmp_path / "secret.bin").write_bytes(b"\0" * 16)
    model = tmp_path / "model"
    (model / "parts").mkdir(parents=True)
    (model / "weights.bin").write_bytes(WEIGHTS.tobytes())
    (model / "parts" / "weights.bin").write_bytes(WEIGHTS.tobytes())
    (model / "link.bin").symlink_to(tmp_path / "secret.bin")
    (model / "outside").symlink_to(tmp_path)
    os.link(tmp_path / "secret.bin", model / "hard.bin")
    os.mkfifo(model / "pipe")
    return model


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("location", ["weights.bin", "parts/weights.bin"])
def test_data_beside_the_model_is_read(runtime: str, location: str, directory: Path) -> None:
    path = onnx_models.external(directory / "model.onnx", {"location": location, "offset": "0", "length": "16"})
    assert onnx_file.inspect(path).external == {location}
    x = np.ones((1, 4), np.float32)
    np.testing.assert_array_equal(ps.load(path, runtime=runtime)(x=x)["y"], x + WEIGHTS)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "../secret.bin"}, "expected a relative path"),
        ({"location": "parts/../../secret.bin"}, "expected a relative path"),
        ({"location": "..\\secret.bin"}, "expected a relative path"),
        ({"location": "/etc/passwd"}, "expected a relative path"),
        ({"location": "C:\\secret"}, "expected a relative path"),
        ({"location": ""}, "expected a relative path"),
        ({"location": "link.bin"}, "symbolic link"),
        ({"location": "outside/secret.bin"}, "symbolic link"),
        ({"location": "hard.bin"}, "plain file with one name"),
        ({"location": "pipe"}, "plain file with one name"),
        ({"location": "parts"}, "plain file with one name"),
        ({"location": "absent.bin"}, "does not exist"),
        ({"location": "weights.bin/x"}, "does not exist"),
        ({"offset": "0"}, "exactly one location, got 0"),
        ({"location": "weights.bin", "offset": "-16"}, "expected a size in bytes"),
        ({"location": "weights.bin", "length": "-1"}, "expected a size in bytes"),
        ({"location": "weights.bin", "length": "1e3"}, "expected a size in bytes"),
        ({"location": "weights.bin", "length": "17"}, "has 16 bytes"),
        ({"location": "weights.bin", "offset": "9223372036854775807", "length": "16"}, "has 16 bytes"),
        ({"location": "weights.bin", "offset": "99999999999999999999"}, "expected a size in bytes"),
    ],
)
def test_data_anywhere_else_is_refused(entries: dict[str, str], message: str, nested: bool, directory: Path) -> None:
    path = onnx_models.external(directory / "model.onnx", entries, nested=nested)
    with pytest.raises(ModelLoadError, match=message) as caught:
        ps.load(path)
    assert str(directory) not in caught.value.message


def test_two_locations_in_one_tensor_are_refused(directory: Path) -> None:
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for location in ("weights.bin", "../secret.bin"):
        weight.external_data.add(key="location", value=location)
    graph = helper.make_graph([], "g", [], [], [weight])
    path = onnx_models.save(helper.make_model(graph), directory / "model.onnx")
    with pytest.raises(ModelLoadError, match="exactly one location, got 2"):
        onnx_file.inspect(path)


def test_graphs_that_nest_without_end_are_refused(tmp_path: Path) -> None:
    inner = b""
    for _ in range(4 * limits.ONNX_DEPTH):  # each level: Graph.node, Node.attribute, Attribute.g
        for tag in (0x32, 0x2A, 0x0A):
            inner = bytes([tag]) + _varint(len(inner)) + inner
    path = tmp_path / "deep.onnx"
    path.write_bytes(b"\x3a" + _varint(len(inner)) + inner)
    with pytest.raises(ModelLoadError, match="nest deeper"):
        onnx_file.inspect(path)


def test_names_of_outputs_are_those_of_the_main_graph(directory: Path) -> None:
    path = onnx_models.external(directory / "model.onnx", {"location": "weights.bin"}, nested=True)
    assert onnx_file.inspect(path).outputs == ("y",)


def test_the_recogniser_is_walked_in_a_moment(recogniser: Path) -> None:
    assert onnx_file.inspect(recogniser) == onnx_file.OnnxFile(
        tuple(spec.name for spec in ps.load(recogniser).outputs), frozenset(), ("x",)
    )


def test_inputs_are_those_that_have_no_value_in_the_file(tmp_path: Path) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("x", "w", "z", "y")]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4], [1.0, 2.0, 3.0, 4.0])
    nodes = [helper.make_node("Sum", ["z", "w", "x"], ["y"])]
    graph = helper.make_graph(nodes, "older", ends[:3], ends[3:], [weight])
    path = onnx_models.save(helper.make_model(graph), tmp_path / "older.onnx")
    assert onnx_file.inspect(path).inputs == ("x", "z")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def test_nodes_that_stay_in_fp32_are_known_by_their_names_and_outputs(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", [str(at)], [str(at + 1)], f"relu{at}" if at else "") for at in range(4)]
    for at, key, value in ((0, WIDE_KEY, "fp32"), (1, WIDE_KEY, "bf16"), (2, "other", "fp32"), (3, WIDE_KEY, "fp32")):
        nodes[at].metadata_props.add(key=key, value=value)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "04"]
    model = helper.make_model(helper.make_graph(nodes, "chain", ends[:1], ends[1:]))
    path = onnx_models.save(model, tmp_path / "chain.onnx")
    assert onnx_file.inspect(path).wide == {"1", "relu3", "4"}
