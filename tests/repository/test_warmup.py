"""`model_warmup` as it is read: the arrays of each kind of data, and what makes a sample invalid."""

import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

import penstock as ps
from penstock import limits
from penstock.errors import ConfigError, ModelLoadError
from penstock.repository import Model, Repository, from_function, messages, warmup
from penstock.tensors import bfloat16
from tests import onnx_models

DATA = {
    "BOOL": TensorProto.BOOL, "UINT8": TensorProto.UINT8, "INT8": TensorProto.INT8, "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64, "UINT64": TensorProto.UINT64, "FP16": TensorProto.FLOAT16, "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE, "BYTES": TensorProto.STRING,
}  # fmt: skip


def triton(datatype: str) -> str:
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"


def one(source: str = "zero_data: true", *, datatype: str = "FP32", dims: Sequence[int] = (4,), name: str = "x") -> str:
    """The text of one input."""
    sizes = ", ".join(map(str, dims))
    return f'inputs {{ key: "{name}" value {{ data_type: {triton(datatype)} dims: [ {sizes} ] {source} }} }}'


def sample(inputs: str, *, name: str = "s", batch_size: int = 1, count: int = 0) -> str:
    counted = f"count: {count}" if count else ""
    return f'model_warmup [ {{ name: "{name}" batch_size: {batch_size} {counted} {inputs} }} ]\n'


class Folder:
    """A repository with the one model `m`, y = x."""

    def __init__(self, path: Path) -> None:
        self.root = path / "models"

    def load(self, text: str, datatype: str = "FP32", shape: Sequence[int | str] = ("n", 4)) -> Model:
        onnx_models.identity(self.root / "m/1/model.onnx", DATA[datatype], shape)
        (self.root / "m/config.pbtxt").write_text(text)
        (model,) = Repository([self.root]).load("m")
        return model

    def arrays(self, text: str, datatype: str = "FP32", shape: Sequence[int | str] = ("n", 4)) -> Mapping[str, Any]:
        """The only sample's batch."""
        model = self.load(text, datatype, shape)
        model.close()
        (only,) = model.warmup
        return only.batch(only.row())

    def file(self, data: bytes, name: str = "raw") -> str:
        path = self.root / "m/warmup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return f'input_data_file: "{name}"'


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


# ---- what is run ----


@pytest.mark.parametrize("datatype", DATA)
def test_zeros_are_zeros_of_every_type(datatype: str, folder: Folder) -> None:
    x = folder.arrays(sample(one(datatype=datatype), batch_size=3), datatype)["x"]
    assert x.shape == (3, 4)
    assert x.tolist() == [[b"" if datatype == "BYTES" else 0] * 4] * 3


@pytest.mark.parametrize("datatype", DATA)
def test_random_data_is_finite_the_same_in_every_row_and_in_every_load(datatype: str, folder: Folder) -> None:
    text = sample(one("random_data: true", datatype=datatype, dims=[64]), batch_size=2)
    x = folder.arrays(text, datatype, ("n", "size"))["x"]
    assert x.shape == (2, 64)
    np.testing.assert_array_equal(x[0], x[1])
    np.testing.assert_array_equal(x, folder.arrays(text, datatype, ("n", "size"))["x"])
    if datatype == "BYTES":
        assert set(x[0]) == {b""}
        return
    assert len(set(x[0].tolist())) == 2 if datatype == "BOOL" else len(set(x[0].tolist())) > 32
    if x.dtype.kind == "f":
        assert (x >= 0).all()
        assert (x <= 1).all()
    elif datatype.startswith("INT"):
        assert x.min() < np.iinfo(x.dtype).min // 2
        assert x.max() > np.iinfo(x.dtype).max // 2


def test_a_file_has_one_row_as_raw_bytes(folder: Folder) -> None:
    row = np.array([1, -2.5, 3e38, 0], "<f4")
    x = folder.arrays(sample(one(folder.file(row.tobytes(), "inputs/x.bin")), batch_size=3))["x"]
    np.testing.assert_array_equal(x, [row] * 3)
    assert x.dtype == np.float32


def test_a_file_of_bytes_has_elements_after_their_lengths(folder: Folder) -> None:
    elements = [b"", "größer".encode(), b"\0" * 300, b"z"]
    data = b"".join(struct.pack("<I", len(each)) + each for each in elements)
    x = folder.arrays(sample(one(folder.file(data), datatype="BYTES"), batch_size=2), "BYTES")["x"]
    assert x.tolist() == [elements] * 2


def test_any_byte_of_a_file_but_zero_is_true(folder: Folder) -> None:
    x = folder.arrays(sample(one(folder.file(b"\x00\x01\x02\xff"), datatype="BOOL")), "BOOL")["x"]
    assert x.tolist() == [[False, True, True, True]]
    assert x.view(np.uint8).tolist() == [[0, 1, 1, 1]]


def test_bfloat16_is_the_upper_half_of_fp32(folder: Folder) -> None:
    x = {"x": ps.BF16[4]}
    model = from_function(ps.model(name="m", max_batch_size=4, inputs=x, outputs={"y": ps.BF16[4]})(lambda x: x))
    data = np.array([1, -2, 0.5, 96], bfloat16())
    sources = ("zero_data: true", "random_data: true", folder.file(data.tobytes()))
    text = "".join(sample(one(source, datatype="BF16"), batch_size=2) for source in sources)
    model.config.message.MergeFrom(messages.from_text(text, "a test"))
    found = warmup.samples(model.config, folder.root / "m", folder.root.resolve())
    zeros, random, raw = (each.batch(each.row())["x"].view(bfloat16()).astype(np.float32) for each in found)
    assert zeros.tolist() == [[0] * 4] * 2
    assert ((random >= 0) & (random < 1)).all()
    assert len(set(random[0].tolist())) > 1
    assert raw.tolist() == [[1, -2, 0.5, 96]] * 2


def test_a_model_without_batches_gets_the_dims_as_they_are(folder: Folder) -> None:
    x = folder.arrays("max_batch_size: 0\n" + sample(one(dims=[2, 4])))["x"]
    assert x.shape == (2, 4)
    x = folder.arrays("max_batch_size: 0\n" + sample(one("random_data: true", dims=[])), shape=())["x"]
    assert (type(x), x.shape) == (np.ndarray, ())


def test_a_count_of_zero_is_one_and_a_batch_of_zero_is_skipped(folder: Folder) -> None:
    text = sample(one(), name="once") + sample(one(), name="often", count=7) + sample(one(), name="never", batch_size=0)
    model = folder.load(text)
    model.close()
    assert [(each.name, each.count) for each in model.warmup] == [("'once'", 1), ("'often'", 7)]
    assert model.config.notes == (
        "model_warmup with batch_size 0 has no effect: such a sample is skipped, as by Triton",
    )


def test_each_batch_is_its_own(folder: Folder) -> None:
    """A function may write to its inputs, and the next execution is the same nevertheless."""
    for text in (sample(one()), "max_batch_size: 0\n" + sample(one(dims=[1, 4]))):
        model = folder.load(text)
        model.close()
        (only,) = model.warmup
        row = only.row()
        only.batch(row)["x"][:] = 9
        assert not only.batch(row)["x"].any()


@pytest.mark.parametrize("dims", [(2, 2), (4,)], ids=["client", "model"])
def test_dims_may_be_those_on_either_side_of_a_reshape(dims: Sequence[int], folder: Folder) -> None:
    tensors = 'input [ { name: "x" data_type: TYPE_FP32 dims: [ 2, 2 ] reshape { shape: [ 4 ] } } ]\n'
    x = folder.arrays("max_batch_size: 2\n" + tensors + sample(one(dims=dims), batch_size=2))["x"]
    assert x.shape == (2, 2, 2)


def test_rows_are_padded_as_those_of_requests(folder: Folder) -> None:
    rule = r"{\"inputs\": {\"x\": {\"axis\": 1, \"multiple\": 8, \"value\": -1}}}"
    text = f'max_batch_size: 4\nparameters {{ key: "padding" value {{ string_value: "{rule}" }} }}\n'
    x = folder.arrays(text + sample(one(dims=[5]), batch_size=2), shape=("n", "size"))["x"]
    assert x.tolist() == [[0] * 5 + [-1] * 3] * 2


# ---- what is refused ----


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (sample(one(), batch_size=5), ("batch_size is 5", "at most max_batch_size 4")),
        ("max_batch_size: 0\n" + sample(one(dims=[1, 4]), batch_size=2), ("batch_size is 2", "does not batch")),
        (sample(""), ("input 'x' is missing",)),
        (sample(one() + one(name="other")), ("unexpected input 'other'", "the model has x")),
        (sample(one(datatype="INT32")), ("input 'x'", "data_type is TYPE_INT32", "expected TYPE_FP32")),
        (sample(one(dims=[5])), ("input 'x'", "dims are [5]", "the model takes [4]")),
        (sample(one(dims=[1, 4])), ("dims are [1, 4]", "leave the batch dimension out")),
        (sample(one(dims=[1] * 33)), ("input 'x'", "there are 33 dims", "the model takes [4]")),
        (sample(one(dims=[-1])), ("input 'x'", "dims are [-1]", "a size for every dimension")),
        (sample(one("")), ("input 'x'", "expected zero_data, random_data or input_data_file")),
        (sample(one('input_data_file: ""')), ("input 'x'", "input_data_file is refused")),
        (sample(one('input_data_file: "absent"')), ("input 'x'", "'absent' is missing")),
        (sample(one(), count=limits.WARMUP_EXECUTIONS + 1), ("10001 executions", "at most 10000")),
    ],
    ids=lambda each: each[-1] if isinstance(each, tuple) else "",
)  # fmt: skip
def test_an_invalid_sample_fails_the_load(text: str, words: Sequence[str], folder: Folder) -> None:
    with pytest.raises((ConfigError, ModelLoadError)) as caught:
        folder.load(text)
    for word in ("model 'm'", "model_warmup", *words):
        assert word in caught.value.message
    if "executions" not in caught.value.message:
        assert "sample 's'" in caught.value.message


def test_a_sample_without_a_name_is_named_by_its_place(folder: Folder) -> None:
    with pytest.raises(ConfigError, match="sample number 2: input 'x': dims are"):
        folder.load(sample(one()) + sample(one(dims=[7]), name=""))


@pytest.mark.parametrize("size", [0, 15, 17])
def test_a_file_of_another_size_is_refused(size: int, folder: Folder) -> None:
    with pytest.raises(ConfigError, match=rf"'s': input 'x': its file has {size} bytes, expected 16: .* FP32\[4\]"):
        folder.load(sample(one(folder.file(bytes(size)))))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 elements, expected 2"),
        (struct.pack("<I", 0), "1 elements, expected 2"),
        (struct.pack("<I", 0) * 3, "more elements, expected 2"),
        (struct.pack("<I", 0) + b"\0\0", "ends inside an element"),
        (struct.pack("<I", 0) + struct.pack("<I", 5) + b"four", "ends inside an element"),
        (struct.pack("<I", 0) + b"\xff\xff\xff\xff", "ends inside an element"),
    ],
    ids=["empty", "short", "long", "cut length", "cut element", "huge length"],
)
def test_a_file_of_bytes_that_does_not_add_up_is_refused(data: bytes, words: str, folder: Folder) -> None:
    text = sample(one(folder.file(data), datatype="BYTES", dims=[2]))
    model = folder.load(text, "BYTES", ("n", 2))
    model.close()
    with pytest.raises(ConfigError, match=f"'s': input 'x': .*{words}"):
        model.warmup[0].row()


def test_a_file_that_changed_since_the_load_is_looked_at_again(folder: Folder) -> None:
    model = folder.load(sample(one(folder.file(bytes(16)))))
    model.close()
    folder.file(bytes(17))
    with pytest.raises(ConfigError, match="17 bytes, expected 16"):
        model.warmup[0].row()
    (folder.root / "m/warmup/raw").unlink()
    with pytest.raises(ConfigError, match="input 'x': its file can't be read: No such file") as caught:
        model.warmup[0].row()
    assert str(folder.root) not in caught.value.message


@pytest.mark.parametrize(
    "name",
    ["../secret", "../../secret", "inner/../../../secret", "..", ".", "/etc/passwd", "a//b", "a/", "a b", "a\\\\b",
     "x" * 256, "/".join("x" * 9)],
)  # fmt: skip
def test_names_that_leave_the_folder_are_refused(name: str, folder: Folder, tmp_path: Path) -> None:
    for place in (folder.root / "m/secret", folder.root / "secret", tmp_path / "secret"):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(bytes(16))
    with pytest.raises(ConfigError, match="'s': input 'x': input_data_file is refused"):
        folder.load(sample(one(f'input_data_file: "{name}"')))


@pytest.mark.parametrize("place", ["file", "folder"])
def test_links_out_of_the_repository_are_refused(place: str, folder: Folder, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "raw").write_bytes(bytes(16))
    text = sample(one(folder.file(bytes(16), "kept").replace("kept", "raw")))
    warmup = folder.root / "m/warmup"
    if place == "file":
        (warmup / "raw").symlink_to(outside / "raw")
    else:
        (warmup / "kept").unlink()
        warmup.rmdir()
        warmup.symlink_to(outside)
    with pytest.raises(ModelLoadError, match=r"'s': input 'x': 'raw' is .* out of the repository") as caught:
        folder.load(text)
    assert str(tmp_path) not in caught.value.message


def test_links_within_the_repository_are_followed(folder: Folder) -> None:
    text = sample(one(folder.file(bytes(16), "kept").replace("kept", "raw")))
    (folder.root / "shared").mkdir()
    (folder.root / "shared/raw").write_bytes(np.ones(4, "<f4").tobytes())
    (folder.root / "m/warmup/raw").symlink_to(folder.root / "shared/raw")
    assert folder.arrays(text)["x"].tolist() == [[1, 1, 1, 1]]


@pytest.mark.parametrize("kind", ["directory", "pipe"])
def test_what_is_no_file_is_refused(kind: str, folder: Folder) -> None:
    """A pipe nobody writes to would hold the load for ever."""
    text = sample(one(folder.file(b"")))
    path = folder.root / "m/warmup/raw"
    path.unlink()
    if kind == "directory":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(ConfigError, match="'s': input 'x': input_data_file 'raw' is not a file"):
        folder.load(text)


@pytest.mark.parametrize(
    ("datatype", "dims", "batch_size"),
    [("FP32", (1 << 26,), 5), ("FP32", (1 << 62, 1 << 62), 1), ("BYTES", (1 << 30,), 1)],
)
def test_memory_is_bounded_before_it_is_taken(
    datatype: str, dims: Sequence[int], batch_size: int, folder: Folder
) -> None:
    shape = ("n", *(f"size{axis}" for axis in range(len(dims))))
    text = "max_batch_size: 8\n" + sample(one("random_data: true", datatype=datatype, dims=dims), batch_size=batch_size)
    with pytest.raises(ConfigError, match=r"'s': its batch has \d+ bytes, expected at most 1073741824; .*input 'x'"):
        folder.load(text, datatype, shape)


def test_a_large_file_of_bytes_counts(folder: Folder) -> None:
    text = sample(one(folder.file(b""), datatype="BYTES", dims=[2]))
    with (folder.root / "m/warmup/raw").open("wb") as file:
        file.truncate(limits.WARMUP_BYTES)  # takes no room on the disk
    with pytest.raises(ConfigError, match="'s': its batch has 1073741840 bytes, expected at most 1073741824"):
        folder.load(text, "BYTES", ("n", 2))


def test_files_of_a_load_request_are_read_from_there(folder: Folder) -> None:
    path = onnx_models.identity(folder.root / "m/1/model.onnx")
    config = """{"model_warmup": [{"name": "s", "batch_size": 1, "inputs": {"x": {
        "data_type": "TYPE_FP32", "dims": [4], "input_data_file": "raw"}}}]}"""
    files = {"1/model.onnx": path.read_bytes(), "warmup/raw": np.full(4, 7, "<f4").tobytes()}
    (model,) = Repository([folder.root]).load("m", config, files)
    (only,) = model.warmup
    assert only.batch(only.row())["x"].tolist() == [[7, 7, 7, 7]]
    model.close()
    with pytest.raises(ModelLoadError, match="'raw' is missing"):
        Repository([folder.root]).load("m", config)
