"""Every form calibration data may come in, and everything that is refused."""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from penstock.errors import InvalidArgument, NotFound
from penstock.quantize.data import Calibration, load
from penstock.quantize.randomness import looks_random
from penstock.tensors import TensorSpec
from tests.quantize.networks import pictures

X = TensorSpec("x", "FP32", (-1, 3))
Y = TensorSpec("y", "INT64", (-1, 2))
PAIR = TensorSpec("x", "FP32", (2, 3))
STATE = TensorSpec("state", "FP32", (2, 1, 4))


def rows(count: int, width: int = 3) -> NDArray[np.float32]:
    return np.arange(count * width, dtype=np.float32).reshape(count, width)


@pytest.mark.parametrize(
    ("inputs", "arrays", "shapes"),
    [
        pytest.param([X], {"x": rows(5)}, [{"x": (1, 3)}] * 5, id="rows of a free batch"),
        pytest.param([PAIR], {"x": rows(6)}, [{"x": (2, 3)}] * 3, id="rows of a fixed batch"),
        pytest.param([X], {"x": rows(6).reshape(3, 2, 3)}, [{"x": (2, 3)}] * 3, id="one axis more counts samples"),
        pytest.param([X], {"x__0": rows(4), "x__b": rows(2)}, [{"x": (4, 3)}, {"x": (2, 3)}], id="one array each"),
        pytest.param(
            [X, Y],
            {"x": rows(4), "y": np.zeros((4, 2), np.int64)},
            [{"x": (1, 3), "y": (1, 2)}] * 4,
            id="two inputs",
        ),
        pytest.param(
            [X, STATE],
            {"x": rows(3), "state": np.ones((3, 2, 1, 4), np.float32)},
            [{"x": (1, 3), "state": (2, 1, 4)}] * 3,
            id="a state without batch",
        ),
    ],
)
def test_an_archive_gives_samples(
    tmp_path: Path,
    inputs: list[TensorSpec],
    arrays: dict[str, NDArray[Any]],
    shapes: list[dict[str, tuple[int, ...]]],
) -> None:
    np.savez(tmp_path / "data.npz", allow_pickle=False, **arrays)
    found = load(tmp_path / "data.npz", inputs)
    assert [{name: array.shape for name, array in sample.items()} for sample in found] == shapes


def test_rows_keep_their_order_and_values(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=rows(4))
    found = load(str(tmp_path / "data.npz"), [X])
    np.testing.assert_array_equal(np.concatenate([sample["x"] for sample in found]), rows(4))


def test_a_folder_gives_its_arrays_in_order_of_their_names(tmp_path: Path) -> None:
    np.save(tmp_path / "b.npy", rows(2))
    np.save(tmp_path / "a.npy", rows(1))
    np.savez(tmp_path / "c.npz", x=rows(2))
    (tmp_path / "readme.txt").write_text("not data")
    # a.npy, b.npy, then the two rows of c.npz.
    assert [sample["x"].shape[0] for sample in load(tmp_path, [X])] == [1, 2, 1, 1]


def test_a_folder_of_several_inputs_joins_files_by_key(tmp_path: Path) -> None:
    for key in ("0", "1"):
        np.save(tmp_path / f"x__{key}.npy", rows(1) + int(key))
        np.save(tmp_path / f"y__{key}.npy", np.full((1, 2), int(key)))
    found = load(tmp_path, [X, Y])
    assert [(sample["x"][0, 0], sample["y"][0, 0]) for sample in found] == [(0, 0), (1, 1)]


def test_a_function_of_the_working_directory_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "calibration_of_this_test.py").write_text(
        "import numpy as np\ndef samples():\n    for k in range(3):\n        yield {'x': np.full((1, 3), k, 'f')}\n"
    )
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    found = load("calibration_of_this_test:samples", [X])
    assert [sample["x"][0, 0] for sample in found] == [0, 1, 2]
    assert sys.path == before


def test_an_iterable_may_reuse_its_buffer() -> None:
    buffer = np.zeros((1, 3), np.float32)

    def samples() -> Iterator[Mapping[str, Any]]:
        for value in range(3):
            buffer[:] = value
            yield {"x": buffer}

    assert [sample["x"][0, 0] for sample in load(samples(), [X])] == [0, 1, 2]


def test_no_more_than_the_limit_is_taken_from_an_endless_iterable() -> None:
    def endless() -> Iterator[Mapping[str, Any]]:
        while True:
            yield {"x": rows(1)}

    assert len(load(endless(), [X], limit=7)) == 7


def test_wider_numbers_are_narrowed_where_nothing_is_lost() -> None:
    found = load([{"x": rows(1).astype(np.float64), "y": np.ones((1, 2), np.int32)}], [X, Y])
    assert (found.samples[0]["x"].dtype, found.samples[0]["y"].dtype) == (np.float32, np.int64)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "holds no samples"),
        ([{"z": rows(1)}], "unexpected input 'z'.*x FP32"),
        ([{}], "input 'x' is missing"),
        ([{"x": rows(1, 4)}], r"shape \[1, 4\].*takes \[-1, 3\]"),
        ([{"x": rows(0)}], "is empty"),
        ([{"x": np.array([["a", "b", "c"]])}], "array of str.*FP32"),
        ([{"x": rows(1) * np.nan}], "NaN or infinity"),
        ([{"x": rows(1)}, {"x": np.full((1, 3), np.inf)}], "sample 1.*NaN or infinity"),
        ([rows(1)], "sample 0 is a ndarray, expected a mapping"),
        ({"x": rows(1)}, "is a dict, expected an iterable"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(samples: Iterable[Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        load(samples, [X])


def test_numbers_that_do_not_fit_the_integer_type_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="do not fit INT8"):
        load([{"x": np.array([[300]])}], [TensorSpec("x", "INT8", (-1, 1))])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"z": rows(2)}, "unexpected array 'z'"),
        ({"x": np.zeros(3, np.float32)}, "as many axes, or one more"),
        ({"x": rows(3), "y": np.zeros((2, 2), np.int64)}, "different numbers of samples: x 3, y 2"),
    ],
)
def test_archives_that_do_not_fit_the_model_are_refused(
    tmp_path: Path, arrays: dict[str, NDArray[Any]], message: str
) -> None:
    np.savez(tmp_path / "data.npz", allow_pickle=False, **arrays)
    with pytest.raises(InvalidArgument, match=message):
        load(tmp_path / "data.npz", [X, Y])


def test_a_batch_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=rows(3))
    with pytest.raises(InvalidArgument, match="has 3 rows, the model takes 2 at once"):
        load(tmp_path / "data.npz", [PAIR])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"\x80\x04}q\x00."])
def test_files_that_are_no_arrays_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(InvalidArgument, match=r"data\.npz is no readable"):
        load(tmp_path / "data.npz", [X])


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    objects = np.empty(1, object)
    objects[0] = {"code": "would run"}
    np.save(tmp_path / "x.npy", objects)
    with pytest.raises(
        InvalidArgument, match=r"x\.npy is no readable.* it holds something else than arrays of numbers$"
    ):
        load(tmp_path, [X])
    (tmp_path / "data.npz").write_bytes(b"neither an archive nor an array")
    with pytest.raises(InvalidArgument, match=r"data\.npz is no readable.* something else than arrays of numbers$"):
        load(tmp_path / "data.npz", [X])


@pytest.mark.parametrize("source", ["nowhere.npz", "no_such_module_at_all:f", "json:no_such_function"])
def test_what_does_not_exist_is_not_found_and_no_path_is_told(source: str, tmp_path: Path) -> None:
    with pytest.raises(NotFound) as caught:
        load(source, [X])
    assert str(tmp_path) not in str(caught.value)


def test_a_function_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "failing_calibration_of_this_test.py").write_text("def samples():\n    raise RuntimeError('no disk')\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidArgument, match="failed: RuntimeError: no disk"):
        load("failing_calibration_of_this_test:samples", [X])


# ---- noise ----

PICTURE = TensorSpec("x", "FP32", (-1, 3, -1, -1))
_RNG = np.random.default_rng(11)
_MEAN, _DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(_RNG.random((8, 3, 48, 48)), id="uniform"),
        pytest.param(_RNG.standard_normal((8, 3, 48, 48)), id="normal"),
        pytest.param(_RNG.integers(0, 256, (8, 3, 48, 48)).astype(float), id="random bytes"),
        pytest.param(
            ((_RNG.random((8, 3, 48, 48)).transpose(0, 2, 3, 1) - _MEAN) / _DEVIATION).transpose(0, 3, 1, 2),
            id="uniform, standardised by channel",
        ),
    ],
)
def test_noise_is_refused_unless_it_is_allowed(array: NDArray[Any]) -> None:
    samples = [{"x": picture[None].astype(np.float32)} for picture in array]
    with pytest.raises(InvalidArgument, match="looks like noise"):
        load(samples, [PICTURE])
    assert len(load(samples, [PICTURE], allow_random=True)) == 8


def test_sound_of_noise_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="looks like noise"):
        load([{"x": _RNG.standard_normal((1, 16000)).astype(np.float32)}], [TensorSpec("x", "FP32", (-1, -1))])


def _real() -> list[Any]:
    smooth = [sample["x"] for sample in pictures(3)]
    page = np.ones((1, 3, 64, 64), np.float32)
    page[:, :, 20:24, 8:50] = -1
    independent = _RNG.standard_normal((1, 3, 48, 48)) ** 3  # no neighbourhood, but no generator's distribution either
    return [
        pytest.param(smooth, id="smooth pictures"),
        pytest.param([page], id="a page"),
        pytest.param([np.zeros((1, 3, 32, 32), np.float32)], id="black"),
        pytest.param([independent], id="independent, heavy tails"),
        pytest.param([_RNG.standard_normal((64, 128))], id="embeddings"),
        pytest.param([_RNG.integers(0, 30000, (16, 64))], id="token ids"),
        pytest.param([_RNG.random((1, 3, 4, 4))], id="too little to tell"),
    ]


@pytest.mark.parametrize("arrays", _real())
def test_what_is_no_noise_or_no_signal_passes(arrays: list[NDArray[Any]]) -> None:
    assert looks_random(arrays) == ""


def test_photographs_pass() -> None:
    data = pytest.importorskip("skimage.data")
    for name in ("astronaut", "coffee", "chelsea", "page"):
        picture = np.atleast_3d(getattr(data, name)()).transpose(2, 0, 1)[None].astype(np.float32)
        assert looks_random([picture]) == "", name


# ---- digest and split ----


def test_the_digest_follows_names_types_shapes_and_values() -> None:
    base = load([{"x": rows(2)}], [X])
    assert re.fullmatch("[0-9a-f]{64}", base.digest)
    assert base.digest == load([{"x": rows(2)}], [X]).digest
    others = [
        load([{"x": rows(2) + 1}], [X]),
        load([{"x": rows(1)}, {"x": rows(2)[1:]}], [X]),
        load([{"y": rows(2)}], [TensorSpec("y", "FP32", (-1, 3))]),
        load([{"x": rows(2)}], [TensorSpec("x", "FP64", (-1, 3))]),
    ]
    assert len({base.digest, *(each.digest for each in others)}) == 5


@pytest.mark.parametrize(("count", "sizes"), [(1, (1, 1)), (2, (1, 1)), (10, (8, 2)), (37, (30, 7))])
def test_a_split_is_disjoint_and_whole(count: int, sizes: tuple[int, int]) -> None:
    data = Calibration(tuple({"x": np.array([index])} for index in range(count)))
    first, second = data.split()
    assert (len(first), len(second)) == sizes
    if count > 1:
        assert sorted(int(sample["x"][0]) for sample in (*first, *second)) == list(range(count))
