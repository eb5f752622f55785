"""A form's file: what is stored once, that safetensors agrees with it, and that no change of it does harm."""

import json
import struct
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from penstock import graph
from penstock.engine.cuda import form
from penstock.engine.cuda.runtime import CudaRuntime
from penstock.engine.lowered import Input, Instruction, LoweredGraph, Operand, Output, Step, Value, Weight
from penstock.engine.plan import Shapes, Tactic
from penstock.errors import InvalidArgument, ModelLoadError
from penstock.graph.lowering import lower
from tests.quantize import networks

pytestmark = pytest.mark.torch

CPU = torch.device("cpu")
Edit = Callable[[dict[str, Any], list[dict[str, Any]]], object]


def sums(rows: int, weights: dict[str, np.ndarray]) -> tuple[Shapes, LoweredGraph, dict[str, np.ndarray]]:
    """x plus the first of the weights."""
    kinds = {"bool": "BOOL", "int64": "INT64", "uint8": "UINT8", "float16": "FP16", "bfloat16": "BF16"}
    known = {name: Weight(each.shape, kinds.get(each.dtype.name, "FP32")) for name, each in weights.items()}
    read = tuple(Operand(name) for name in ("x", *weights))
    step = Step("s", "pointwise", read, ("y",), program=(Instruction("add", ("i0", "i1")),))
    values = {"x": Value((rows, 2), "FP32"), "y": Value((rows, 2), "FP32")}
    made = LoweredGraph((Input("x", (rows, 2), "FP32"),), (Output("y", "y", (rows, 2)),), values, known, (step,))
    return {"x": (rows, 2)}, made, weights


def full(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


def weight(found: form.Form, bucket: int, name: str) -> np.ndarray:
    return found.weights[found.prepared[bucket].stored.get(name, name)]


# ---- what is written ----


def test_equal_constants_of_several_buckets_are_stored_once_and_names_are_never_taken_twice(tmp_path: Path) -> None:
    one, two = full(1, 1), full(2, 2)
    buckets = [{"c": one}, {"c": two, "c@1": full(7, 7)}, {"c": one.copy()}, {"c": two.copy(), "c@1": two.copy()}]
    form.write(tmp_path / "f", (sums(rows, each) for rows, each in enumerate(buckets, start=1)))
    found = form.read((tmp_path / "f").read_bytes(), "f")
    for number, weights in enumerate(buckets):
        for name, right in weights.items():
            np.testing.assert_array_equal(weight(found, number, name), right)
    assert len(found.weights) == 4  # c is 1 or 2, c@1 is 7 or 2


def test_a_weight_of_every_type_comes_back_and_safetensors_reads_the_same(tmp_path: Path) -> None:
    from safetensors import safe_open

    weights = {
        "half": np.array([1, 2], np.float16),
        "brain": np.array([1.5, -3], ml_dtypes.bfloat16),
        "long": np.array([2**62, -1]),
        "true": np.array([True, False]),
        "byte": np.arange(3, dtype=np.uint8),
        "one": np.float32(5) * np.ones(()),
        "none": np.zeros((0, 4), np.float32),
        "across": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    }
    weights["one"] = weights["one"].astype(np.float32)
    form.write(tmp_path / "f", [sums(1, weights)])
    data = (tmp_path / "f").read_bytes()
    found = form.read(data, "f")
    for name, right in weights.items():
        assert found.weights[name].shape == right.shape
        assert found.weights[name].dtype == right.dtype
        np.testing.assert_array_equal(found.weights[name], right)
    whole = np.frombuffer(data, np.uint8)
    assert all(np.shares_memory(each, whole) for name, each in found.weights.items() if name != "none")
    with safe_open(tmp_path / "f", framework="numpy") as file:
        assert set(file.keys()) == set(weights)
        np.testing.assert_array_equal(file.get_tensor("across"), weights["across"])
    header = 8 + int.from_bytes(data[:8], "little")
    assert header % 8 == 0


def test_weights_are_let_go_of_as_soon_as_a_bucket_has_those_of_another(tmp_path: Path) -> None:
    seen: list[weakref.ref[np.ndarray]] = []

    def buckets() -> Iterator[tuple[Shapes, LoweredGraph, dict[str, np.ndarray]]]:
        for rows in (1, 2, 3, 4):
            assert sum(each() is not None for each in seen) <= 1
            array = full(1, 2)
            seen.append(weakref.ref(array))
            made = sums(rows, {"c": array})
            del array
            yield made
            del made

    form.write(tmp_path / "f", buckets())
    assert len(seen) == 4


def test_a_weight_of_a_type_that_steps_can_not_have_is_refused(tmp_path: Path) -> None:
    shapes, made, _ = sums(1, {"c": full(1, 1)})
    with pytest.raises(InvalidArgument, match="complex64"):
        form.write(tmp_path / "f", [(shapes, made, {"c": np.zeros(2, np.complex64)})])


# ---- files that lie ----


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    found = tmp_path_factory.mktemp("form")
    graph.save(networks.residual(), found / "m.onnx")
    model = graph.load(found / "m.onnx")
    sizes = [{"x": (batch, 3, 64, 64)} for batch in (1, 4)]
    form.write(found / "f", ((each, *lower(graph.optimize(model, shapes=each).model)) for each in sizes))
    return (found / "f").read_bytes()


def rebuilt(data: bytes, edit: Edit) -> bytes:
    """The file with another header; `edit` changes it and the graphs in it."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    graphs = json.loads(header["__metadata__"]["graphs"])
    edit(header, graphs)
    if "__metadata__" in header and header["__metadata__"].get("graphs"):
        header["__metadata__"]["graphs"] = json.dumps(graphs)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def step(graphs: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in graphs[0]["graph"]["steps"] if each["kind"] == kind)
    return found


def attribute(name: str, value: object, kind: str = "conv") -> Edit:
    return lambda _, graphs: step(graphs, kind)["attributes"].update({name: value})


def tensor(**changes: object) -> Edit:
    return lambda header, _: header[sorted(header)[-1]].update(changes)


def offset(place: int, by: int) -> Edit:
    def edit(header: dict[str, Any], _: object) -> None:
        header[sorted(header)[-1]]["data_offsets"][place] += by

    return edit


def of_value(shape: list[object]) -> Edit:
    def edit(_: object, graphs: list[dict[str, Any]]) -> None:
        made = graphs[0]["graph"]
        made["values"][step(graphs, "conv")["outputs"][0]][0] = shape

    return edit


def first_input(shape: list[object]) -> Edit:
    def edit(_: object, graphs: list[dict[str, Any]]) -> None:
        made = graphs[0]["graph"]
        graphs[0]["shapes"]["x"] = made["inputs"][0][1] = made["values"]["x"][0] = shape

    return edit


EDITS: dict[str, Edit] = {
    "infinite strides": attribute("strides", [float("inf"), 1]),
    "huge strides": attribute("strides", [10**400, 1]),
    "broken strides": attribute("strides", [1.5, 1]),
    "no strides": attribute("strides", [0, 0]),
    "three strides": attribute("strides", [1, 1, 1]),
    "huge pads": attribute("pads", [2**33] * 4),
    "no groups": attribute("groups", 0),
    "true groups": attribute("groups", True),
    "unknown activation": attribute("activation", "zzz"),
    "activation of numbers": attribute("activation", [1]),
    "no number": attribute("alpha", float("nan")),
    "unknown attribute": attribute("color", 1),
    "missing attribute": lambda _, graphs: step(graphs, "conv")["attributes"].pop("pads"),
    "unknown reduction": attribute("how", "median", "reduce"),
    "an axis that is not there": attribute("axes", [9], "reduce"),
    "an axis twice": attribute("axes", [1, 1], "reduce"),
    "pads of other axes": attribute("begin", [0, 0], "pad"),
    "an implementation": lambda _, graphs: step(graphs, "conv").update(implementation="triton_x"),
    "a weight that is computed": lambda _, graphs: step(graphs, "conv")["inputs"][1].__setitem__(0, "x"),
    "two outputs": lambda _, graphs: step(graphs, "conv")["outputs"].append("another"),
    "an infinite value": of_value([float("inf")]),
    "a long axis": of_value([1, 2**31, 1, 1]),
    "too many numbers": of_value([2**20, 2**20, 2, 1]),
    "a map of two axes": of_value([16, 16]),
    "a bucket of nothing": first_input([0, 3, 64, 64]),
    "a bucket of infinite size": lambda _, graphs: graphs[0]["shapes"].update(x=[float("inf")]),
    "a bucket of other axes": first_input([1, 3, 4096]),
    "the same bucket twice": lambda _, graphs: graphs.append(graphs[0]),
    "no graphs": lambda _, graphs: graphs.clear(),
    "graphs that are none": lambda _, graphs: graphs.append([]),  # type: ignore[arg-type]
    "another format": lambda header, _: header["__metadata__"].update(format="lowered-0"),
    "metadata that are no text": lambda header, _: header["__metadata__"].update(more=7),
    "no metadata": lambda header, _: header.pop("__metadata__"),
    "a weight elsewhere": lambda _, graphs: graphs[0]["stored"].update({next(iter(graphs[0]["graph"]["weights"])): 1}),
    "a weight nowhere": lambda _, graphs: graphs[0]["stored"].update(
        {next(iter(graphs[0]["graph"]["weights"])): "elsewhere"}
    ),
    "a weight of integers": tensor(dtype="I32"),
    "a weight of a type without a name": tensor(dtype="U32"),
    "a type that is no text": tensor(dtype=["F32"]),
    "another shape": tensor(shape=[1]),
    "a shape that is none": tensor(shape="1"),
    "a negative shape": tensor(shape=[-1]),
    "an entry with more": tensor(more=1),
    "offsets below zero": tensor(data_offsets=[-4, 4]),
    "offsets that are none": tensor(data_offsets=[0]),
    "offsets in turn": tensor(data_offsets=[8, 0]),
    "an offset beyond": offset(1, 2**40),
    "an overlap": offset(0, -4),
    "a gap": offset(0, 4),
    "a tensor less": lambda header, _: header.pop(sorted(header)[-1]),
    "an entry that is none": lambda header, _: header.update(another=7),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_a_form_that_lies_is_refused(edit: Edit, data: bytes) -> None:
    form.read(rebuilt(data, lambda _, graphs: graphs), "m.engine")
    with pytest.raises(ModelLoadError, match="build it again"):
        form.read(rebuilt(data, edit), "m.engine")


@pytest.mark.parametrize(
    "changed",
    [
        b"",
        b"\xff" * 8,
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 2) + b"\xff\xfe",
        struct.pack("<Q", 100_000) + b"[" * 100_000,
        struct.pack("<Q", 101 * 2**20) + bytes(101 * 2**20),
    ],
    ids=["nothing", "endless", "a row", "no text", "deep", "a long header"],
)
def test_headers_that_are_none_are_refused(changed: bytes) -> None:
    with pytest.raises(ModelLoadError, match="build it again"):
        form.read(changed, "m.engine")


def test_a_name_that_is_there_twice_and_bytes_behind_the_last_tensor_are_refused(data: bytes) -> None:
    with pytest.raises(ModelLoadError, match="tensors take"):
        form.read(data + b"\0", "m.engine")
    length = int.from_bytes(data[:8], "little")
    text = data[8 : 8 + length].replace(b'"__metadata__":', b'"__metadata__":{},"__metadata__":', 1)
    with pytest.raises(ModelLoadError, match="twice"):
        form.read(struct.pack("<Q", len(text)) + text + data[8 + length :], "m.engine")


def test_a_truth_that_is_neither_is_refused(tmp_path: Path) -> None:
    form.write(tmp_path / "f", [sums(1, {"c": np.array([True, True])})])
    changed = bytearray((tmp_path / "f").read_bytes())
    changed[-1] = 2
    with pytest.raises(ModelLoadError, match="neither true nor false"):
        form.read(changed, "m.engine")


def test_every_cut_and_every_changed_bit_is_refused_or_can_be_bound(data: bytes, tmp_path: Path) -> None:
    header = 8 + int.from_bytes(data[:8], "little")
    random = np.random.default_rng(1)
    for end in [0, 7, 8, *random.integers(9, len(data), 20)]:
        with pytest.raises(ModelLoadError):
            form.read(data[:end], "m.engine")
    refused = 0
    tactic = Tactic("cuda", "fp32", "lowered", "dynamic")
    for place in random.integers(0, header, 200):
        changed = bytearray(data)
        changed[place] ^= 1 << int(random.integers(0, 8))
        try:
            form.read(changed, "m.engine")
            (tmp_path / "f").write_bytes(changed)
            CudaRuntime.compile(tmp_path / "f", tactic, shapes=None, instances=1, threads=None, device=CPU)
        except ModelLoadError:
            refused += 1
    assert 50 < refused < 200
