"""What stands in for calibration data: noise that a model answers with numbers, or a clear word."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import penstock as ps
from penstock import graph
from penstock.build.samples import Samples, noise
from penstock.errors import AccuracyError, ExecutionError
from penstock.tensors import TensorSpec
from tests.graph.small import graph as small
from tests.graph.small import normal, run

Array = NDArray[Any]
SHAPES = {"ids": (3, 8), "attention_mask": (3, 8), "third": (3, 8), "x": (3, 8)}
IDS, MASK, THIRD = (TensorSpec(name, "INT64", (-1, 8)) for name in ("ids", "attention_mask", "third"))
X = TensorSpec("x", "FP32", (-1, 8))


def is_mask(array: Array) -> bool:
    """Ones, then zeros, at least half of each row set."""
    return bool(np.isin(array, (0, 1)).all() and (np.diff(array) <= 0).all() and (2 * array.sum(-1) > 8).all())


def test_masks_are_known_by_their_names_and_ids_are_small_numbers() -> None:
    made = noise([IDS, MASK, X], SHAPES)
    assert is_mask(made["attention_mask"])
    assert made["attention_mask"].dtype == np.int64
    assert made["ids"].max() > 1
    assert made["ids"].max() < 100
    assert made["x"].dtype == np.float32
    assert np.array_equal(noise([IDS], SHAPES)["ids"], made["ids"])


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("attention_mask", True), ("mask", True), ("token_type_ids", True), ("bert/segment_ids:0", True),
        ("padding.mask", True), ("input_ids", False), ("prototype_ids", False), ("masked_lm_ids", False),
        ("segment_lengths", False), ("datatype", False), ("unmasked", False),
    ],
)  # fmt: skip
def test_flags_are_known_by_whole_words(name: str, flags: bool) -> None:
    made = noise([TensorSpec(name, "INT64", (-1, 8))], {name: (9, 8)})[name]
    assert (made.max() <= 1) == flags


def test_boolean_masks_have_something_in_every_row() -> None:
    named = noise([TensorSpec("attention_mask", "BOOL", (-1, 8))], {"attention_mask": (50, 8)})["attention_mask"]
    assert named.dtype == bool
    assert is_mask(named.astype(int))
    other = TensorSpec("keep", "BOOL", (-1, 2))
    samples = Samples([other], None)

    def model(inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": np.where(inputs["keep"].any(-1), 1.0, np.nan).astype(np.float32)}

    assert samples.settle(model, [{"keep": (50, 2)}]) != ""
    assert samples.at({"keep": (50, 2)})["keep"].any(-1).all()


def test_what_only_larger_shapes_show_is_found() -> None:
    """A number drawn once may be in a table that 64 of them leave."""

    def model(inputs: Mapping[str, Array]) -> dict[str, Array]:
        if inputs["ids"].max() >= 60:
            raise ExecutionError("index 82 is outside a table of 60 rows")
        return {"y": np.zeros((1, 1), np.float32)}

    samples = Samples([TensorSpec("ids", "INT64", (-1, 1))], None)
    assert samples.settle(model, [{"ids": (64, 1)}, {"ids": (1, 1)}, {"ids": (8, 1)}]) == "all integer inputs are flags"
    assert samples.at({"ids": (64, 1)})["ids"].max() == 1


@pytest.mark.parametrize(
    ("bears", "assumed"),
    [
        (lambda ids, third: True, ""),
        (lambda ids, third: third.max() <= 1, "all integer inputs but the first are flags"),
        (lambda ids, third: max(ids.max(), third.max()) <= 1, "all integer inputs are flags"),
        (lambda ids, third: min(ids.min(), third.min()) == 1, "all integer inputs are 1"),
    ],
)
@pytest.mark.parametrize("fails", ["NaN", "error"])
def test_noise_becomes_tamer_until_the_model_answers_numbers(bears: Any, assumed: str, fails: str) -> None:
    def model(inputs: Mapping[str, Array]) -> dict[str, Array]:
        fine = bears(inputs["ids"], inputs["third"])
        if not fine and fails == "error":
            raise ExecutionError("index 57 is outside a table of 2 rows")
        return {"y": np.full((3, 2), 1.0 if fine else np.nan, np.float32)}

    samples = Samples([IDS, THIRD, X], None)
    assert samples.settle(model, [SHAPES]) == assumed
    assert bears(samples.at(SHAPES)["ids"], samples.at(SHAPES)["third"])
    assert all(bears(each["ids"], each["third"]) for each in samples.held_out([SHAPES], 4))


def test_every_other_input_has_masks_where_no_name_tells_of_one() -> None:
    """A mask of ones says nothing of what it hides."""

    def answers(wild: bool) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
        return lambda inputs: {"y": np.full(1, 0.0 if wild or inputs["third"].max() > 1 else np.nan, np.float32)}

    for bears_flags in (True, False):
        samples = Samples([IDS, THIRD, X], None)
        assert samples.settle(answers(bears_flags), [SHAPES]) == ""
        held_out = list(samples.held_out([SHAPES], 4))
        flags = [bool(each["third"].max() <= 1 and each["third"].min() == 0) for each in held_out]
        assert flags == ([False, True, False, True] if bears_flags else [False] * 4)
        assert all(each["ids"].max() > 1 for each in held_out)


def test_nothing_is_asked_where_there_are_data_or_no_integers() -> None:
    def model(_: Mapping[str, Array]) -> dict[str, Array]:
        raise AssertionError

    assert Samples([IDS], [{"ids": np.zeros((3, 8), np.int64)}]).settle(model, [SHAPES]) == ""
    assert Samples([X, TensorSpec("picture", "UINT8", (-1, 8))], None).settle(model, [SHAPES]) == ""


WEIGHTS = {"words": normal(1000, 16), "kinds": normal(2, 16, seed=1), "w": normal(16, 4, seed=2)}


def masked(folder: Path) -> Path:
    """As a transformer is exported: a mask that anything but 0 and 1 makes NaN of, and a table of two rows."""
    text = """(int64[n,8] a, int64[n,8] b, int64[n,8] c) => (float[n,4] y) {
        one = Constant<value_float=1.0>() low = Constant<value_float=-3.4e38>() last = Constant<value_ints=[2]>()
        e = Gather(words, a) k = Gather(kinds, c) s = Add(e, k)
        m = Cast<to=1>(b) inverse = Sub(one, m) away = Mul(inverse, low) wide = Unsqueeze(away, last)
        t = Transpose<perm=[0,2,1]>(s) scores = MatMul(s, t) row = Transpose<perm=[0,2,1]>(wide)
        masked = Add(scores, row) p = Softmax<axis=-1>(masked) q = MatMul(p, s)
        middle = ReduceMean<axes=[1], keepdims=0>(q) y = MatMul(middle, w)
    }"""
    path = folder / "masked.onnx"
    graph.save(small(text, WEIGHTS), path)
    return path


def test_a_masked_model_is_built_without_data(tmp_path: Path) -> None:
    path = masked(tmp_path)
    engine = ps.build(path, device="cpu", shapes="a:1x8,2x8,4x8", budget_seconds=8)
    inputs = {
        "a": np.random.default_rng(5).integers(0, 1000, (3, 8)),
        "b": np.array([[1] * 8, [1] * 5 + [0] * 3, [1] + [0] * 7]),
        "c": np.array([[0] * 4 + [1] * 4] * 3),
    }
    expected, found = run(graph.load(path), inputs)["y"], engine(**inputs)["y"]
    assert float((expected * found).sum() / np.linalg.norm(expected) / np.linalg.norm(found)) > 0.999
    assert any("all integer inputs but the first are flags" in note for note in engine.evidence["notes"])
    assert engine.manifest.precision in ("fp32", "bf16", "fp16")  # masks of bytes are no eight-bit products
    engine.close()


def test_a_model_that_answers_nan_is_to_blame_itself(tmp_path: Path) -> None:
    text = "(float[n,4] x) => (float[n,4] y) { s = Mul(x, x) m = Neg(s) t = Sub(m, one) y = Sqrt(t) }"
    graph.save(small(text, {"one": np.float32(1)}), tmp_path / "nan.onnx")
    with pytest.raises(
        AccuracyError, match=r"the model itself, in FP32, answers NaN in \d+ of \d+ values of output 'y'"
    ):
        ps.build(tmp_path / "nan.onnx", device="cpu", shapes="x:2x4", budget_seconds=4)


def test_a_model_that_bears_no_other_rounding_is_run_as_the_file_says(tmp_path: Path) -> None:
    """Parities of large numbers: a norm inside a convolution's weights changes every other one."""
    text = """(float[n,3,16,16] x) => (float[n,8,16,16] y) {
        c = Conv<pads=[1,1,1,1]>(x, w) b = BatchNormalization(c, scale, shift, mean, variance)
        large = Mul(b, many) whole = Floor(large) y = Mod<fmod=1>(whole, two)
    }"""
    weights = {
        "w": normal(8, 3, 3, 3), "scale": normal(8, seed=1), "shift": normal(8, seed=2), "mean": normal(8, seed=3),
        "variance": np.abs(normal(8, seed=4)) + 0.5, "many": np.float32(2e5), "two": np.float32(2),
    }  # fmt: skip
    path = tmp_path / "parity.onnx"
    graph.save(small(text, weights), path)
    engine = ps.build(path, device="cpu", shapes="x:1x3x16x16", budget_seconds=6)
    (program,) = engine.manifest.programs
    assert program.tactic.name.endswith("graph_optimization_level=disabled")
    x = normal(1, 3, 16, 16, seed=9)
    assert np.array_equal(engine(x=x)["y"], run(graph.load(path), {"x": x})["y"])
    engine.close()
