"""Models that lie or attack, given to `penstock build`: refused in one line, soon, and nothing is written."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests import onnx_models
from tests.cli.processes import run

pytestmark = pytest.mark.slow

SECONDS = 40.0  # of which the interpreter and its libraries take a few


def value(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def model(nodes: list[onnx.NodeProto], *weights: onnx.TensorProto) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", [value("x", 1, 4)], [value("y", 1, 4)], list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def external(location: str, **entries: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "inside").mkdir()
        (folder / "secret.bin").write_bytes(bytes(64))
        (folder / "inside" / "link.bin").symlink_to(folder / "secret.bin")
        (folder / "inside" / "hard.bin").hardlink_to(folder / "secret.bin")
        return onnx_models.external(folder / "inside" / "m.onnx", {"location": location, **entries})

    return make


def written(data: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "m.onnx").write_bytes(data)
        return folder / "m.onnx"

    return make


def saved(made: onnx.ModelProto) -> Callable[[Path], Path]:
    return lambda folder: onnx_models.save(made, folder / "m.onnx")


def claimed() -> onnx.ModelProto:
    """A tensor of 2**62 numbers in sixteen bytes."""
    weight = numpy_helper.from_array(np.ones(4, np.float32), "w")
    del weight.dims[:]
    weight.dims.extend([1 << 31, 1 << 31])
    return model([helper.make_node("Add", ["x", "w"], ["y"])], weight)


def cycle() -> onnx.ModelProto:
    return model([helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"]),
                  helper.make_node("Relu", ["b"], ["y"])])  # fmt: skip


def grown() -> onnx.ModelProto:
    """Constants from which 2**40 numbers would be folded."""
    shape = numpy_helper.from_array(np.array([1 << 20, 1 << 20], np.int64), "shape")
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["total"], keepdims=0),
        helper.make_node("Add", ["x", "total"], ["y"]),
    ]
    return model(nodes, shape)


def nested(depth: int) -> bytes:
    """Branches in branches, as bytes: libraries that write models don't make such."""

    def field(number: int, data: bytes) -> bytes:
        size, head = len(data), bytes([number << 3 | 2])
        while size > 127:
            head, size = head + bytes([size & 127 | 128]), size >> 7
        return head + bytes([size]) + data

    inner = b""
    for _ in range(depth):  # GraphProto.node, NodeProto.attribute, AttributeProto.g
        inner = field(1, field(4, b"If") + field(5, field(1, b"then_branch") + field(6, inner)))
    return bytes(model([]).SerializeToString()) + field(7, inner)


def cut() -> bytes:
    whole: bytes = model([helper.make_node("Relu", ["x"], ["y"])]).SerializeToString()
    return whole[: len(whole) // 2]


HOSTILE = {
    "empty": written(b""),
    "text": written(b"not a model at all\n" * 100),
    "cut": written(cut()),
    "ones": written(b"\xff" * 4096),
    "a tensor that claims 2**62 numbers": saved(claimed()),
    "a cycle": saved(cycle()),
    "constants that would fill the memory": saved(grown()),
    "branches two thousand deep": written(nested(2000)),
    "an unknown operator": saved(model([helper.make_node("Explode", ["x"], ["y"], domain="evil")])),
    "data in the folder above": external("../secret.bin"),
    "data behind a link": external("link.bin"),
    "data of another file": external("hard.bin"),
    "data of a negative length": external("hard.bin", length="-4"),
    "data far away": external("hard.bin", offset="9999999999999"),
    "a device": external("/dev/zero"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_model_is_refused_in_one_line(what: str, tmp_path: Path) -> None:
    path, out = HOSTILE[what](tmp_path), tmp_path / "m.engine"
    begun = time.monotonic()
    ended = run("build", str(path), "-o", str(out), "--budget", "10s", "--device", "cpu")
    assert time.monotonic() - begun < SECONDS
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("penstock: ")
    assert str(tmp_path) not in last
    assert not out.exists()
    assert ended.stdout == ""
