"""Numbers by hand: what a comparison of outputs says, and what it refuses to put a number on."""

import math

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from penstock.build.metrics import OutputError, compare_outputs, worst
from penstock.tensors import TensorSpec

NAN, INF = math.nan, math.inf


def floats(*values: object) -> npt.NDArray[np.float32]:
    return np.array(values, np.float32)


def compare(reference: npt.ArrayLike, candidate: npt.ArrayLike) -> OutputError:
    (found,) = compare_outputs({"y": np.asarray(reference)}, {"y": np.asarray(candidate)})
    return found


# ---- floats ----


def test_every_number_by_hand() -> None:
    """r = (3, 4), c = (4, 3): dot 24, norms 5 and 5; noise (1, -1); signal 25 over noise 2; the largest moved."""
    found = compare(floats(3, 4), floats(4, 3))
    assert found.cosine == pytest.approx(24 / 25)
    assert found.maximum_absolute == 1
    assert found.maximum_relative == pytest.approx(1 / 4)
    assert found.snr_db == pytest.approx(10 * math.log10(25 / 2))
    assert (found.agreement, found.compared, found.fault) == (0, 1, "")


@pytest.mark.parametrize(
    ("reference", "candidate", "cosine"),
    [
        ([[1, 0], [0, 1]], [[1, 0], [1, 1]], math.sqrt(0.5)),  # the least row, not the mean
        ([[1, 0], [0, 1]], [[2, 0], [0, 9]], 1),  # a cosine is blind to scale
        ([1, 1, 1], [-1, -1, -1], -1),
        ([[0, 0], [1, 1]], [[0, 0], [1, 1]], 1),  # nothing, rightly
        ([[0, 0], [1, 1]], [[0, 1e-9], [1, 1]], 0),
        ([[1, 1], [1, 1]], [[0, 0], [1, 1]], 0),
        ([[3], [4]], [[4], [3]], 24 / 25),  # a number has no direction: the batch is the vector
        ([[4]], [[2]], 0.5),  # a lone number: how far off it is
        (4, 4, 1),
        ([[4]], [[-4]], -1),
        ([1e300, 1e300], [1e300, 1e300], 1),  # squares beyond float64
        ([1e-300, 0], [1e-300, 0], 1),
        ([], [], 1),
    ],
)
def test_cosine(reference: npt.ArrayLike, candidate: npt.ArrayLike, cosine: float) -> None:
    found = compare(np.array(reference, np.float64), np.array(candidate, np.float64))
    assert found.cosine == pytest.approx(cosine, abs=1e-12)
    assert found.fault == ""


@pytest.mark.parametrize(
    ("reference", "candidate", "relative", "snr"),
    [
        ([1, 2], [1, 2], 0, INF),
        ([0, 0], [0, 0], 0, INF),
        ([0, 0], [0, 1], INF, -INF),
        ([10, 1e-9], [10, 0], 1e-10, 200),  # an element near zero does not blow the relative error up
        ([1, 0], [1.1, 0], 0.1, 20),
    ],
)
def test_relative_error_and_noise(reference: list[float], candidate: list[float], relative: float, snr: float) -> None:
    found = compare(np.array(reference, np.float64), np.array(candidate, np.float64))
    assert found.maximum_relative == pytest.approx(relative)
    assert found.snr_db == pytest.approx(snr)


def test_a_scaled_output_is_seen_by_its_relative_error() -> None:
    found = compare(floats(1, 2, 3), floats(2, 4, 6))
    assert (found.cosine, found.maximum_relative) == (pytest.approx(1), 1)


@pytest.mark.parametrize(
    ("shape", "moved", "agreement", "compared"),
    [
        ((2, 5, 3), 3, 0.7, 10),
        ((4, 2), 1, 0.75, 4),
        ((4, 1), 1, None, 0),  # one class is none
        ((3,), 1, 0, 1),
    ],
)
def test_top_1_is_a_share_of_positions(
    shape: tuple[int, ...], moved: int, agreement: float | None, compared: int
) -> None:
    reference = np.zeros(shape, np.float32)
    reference[..., 0] = 1
    candidate = reference.copy()
    rows = candidate.reshape(-1, shape[-1])
    rows[:moved, -1] = 2
    found = compare(reference, candidate)
    assert found.agreement == (agreement if agreement is None else pytest.approx(agreement))
    assert found.compared == compared


# ---- what must not pass ----


@pytest.mark.parametrize(
    ("reference", "candidate", "words"),
    [
        ([1, 2], [1, NAN], "NaN in 1 of 2 values of the candidate"),
        ([1, NAN], [1, 2], "NaN in 1 of 2 values of the reference"),
        ([1, NAN], [1, NAN], "NaN in 1 of 2"),  # alike, and still nothing to serve
        ([1, 2], [1, INF], "an infinity on one side only in 1 of 2"),
        ([1, INF], [1, 2], "an infinity on one side only"),
        ([1, INF], [1, -INF], "an infinity on one side only"),
    ],
)
def test_what_is_not_finite_is_a_fault(reference: list[float], candidate: list[float], words: str) -> None:
    assert words in compare(floats(*reference), floats(*candidate)).fault


def test_infinities_that_agree_are_left_out() -> None:
    """An attention mask: what counts is the rest."""
    found = compare(floats(3, 4, -INF), floats(4, 3, -INF))
    assert found.fault == ""
    assert found.cosine == pytest.approx(24 / 25)


@pytest.mark.parametrize(
    ("reference", "candidate", "words"),
    [
        (floats(1, 2), floats(1, 2, 3), "shape [3] instead of [2]"),
        (floats(1, 2), floats([1], [2]), "shape [2, 1] instead of [2]"),
        (floats(1, 2), np.array([1, 2]), "int64 values instead of float32"),
        (np.array([1, 2]), floats(1, 2), "float32 values instead of int64"),
    ],
)
def test_another_kind_of_answer_is_a_fault(
    reference: npt.NDArray[np.generic], candidate: npt.NDArray[np.generic], words: str
) -> None:
    found = compare(reference, candidate)
    assert found.fault == words
    assert found.cosine is None


def test_missing_and_surplus_outputs_are_faults() -> None:
    found = compare_outputs({"a": floats(1), "b": floats(1)}, {"b": floats(1), "c": floats(1)})
    assert [(each.output, bool(each.fault)) for each in found] == [("a", True), ("b", False), ("c", True)]


# ---- what is no float ----


@pytest.mark.parametrize(
    ("reference", "candidate", "agreement", "furthest"),
    [
        (np.array([1, 2, 3, 4]), np.array([1, 2, 3, 9]), 0.75, 5),
        (np.array([True, False]), np.array([True, True]), 0.5, None),
        (np.array([b"a", b"b"], object), np.array([b"a", b"c"], object), 0.5, None),
        (np.array([2**63], np.uint64), np.array([0], np.uint64), 0, 2.0**63),
        (np.array([-(2**63)]), np.array([2**63 - 1]), 0, 2.0**64),  # the difference does not fit 64 bits
        (np.array([], np.int64), np.array([], np.int64), 1, None),
    ],
)
def test_integers_booleans_and_bytes_agree_or_not(
    reference: npt.NDArray[np.generic], candidate: npt.NDArray[np.generic], agreement: float, furthest: float | None
) -> None:
    found = compare(reference, candidate)
    assert (found.cosine, found.agreement, found.maximum_absolute) == (None, agreement, furthest)


def test_half_and_brain_floats_are_numbers() -> None:
    spec = TensorSpec("y", "BF16", (2,))
    reference = np.array([3, 4], ml_dtypes.bfloat16).view(np.uint16)
    candidate = np.array([4, 3], ml_dtypes.bfloat16).view(np.uint16)
    (found,) = compare_outputs({"y": reference}, {"y": candidate}, [spec])
    assert found.cosine == pytest.approx(24 / 25)
    assert compare(np.array([3, 4], np.float16), floats(4, 3)).cosine == pytest.approx(24 / 25)


# ---- many inputs ----


def test_the_worst_of_many_inputs_and_all_their_positions() -> None:
    good = compare(floats([1, 0], [1, 0], [1, 0]), floats([1, 0], [1, 0], [1, 0]))
    bad = compare(floats([3, 4]), floats([4, 3]))
    (found,) = worst([[good], [bad], [good]])
    assert found.cosine == bad.cosine
    assert (found.maximum_absolute, found.snr_db) == (1, bad.snr_db)
    assert (found.agreement, found.compared) == (pytest.approx(6 / 7), 7)


def test_a_fault_of_one_input_is_kept() -> None:
    fault = compare(floats(1), floats(NAN))
    fine = compare(floats(1), floats(1))
    assert worst([[fine], [fault], [fine]])[0].fault == fault.fault
