"""What an accuracy gate asks of the OCR example: scores per line from a recogniser's answers, whatever their form."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from examples.ocr import metrics, samples
from examples.ocr.model import recogniser_path
from examples.ocr.reader import best_classes
from penstock.engine import Runtime, load

Arrays = Mapping[str, npt.NDArray[Any]]


@lru_cache(maxsize=1)
def runtime() -> Runtime:
    return load(recogniser_path(), runtime="onnxruntime")


def full(inputs: Arrays) -> Arrays:
    (scores,) = runtime()(x=inputs["x"]).values()
    return {"y": scores}


def reduced(inputs: Arrays) -> Arrays:
    scores = full(inputs)["y"]
    return {"y_index": scores.argmax(axis=2), "y_value": scores.max(axis=2)}


@pytest.fixture(scope="module")
def accuracies() -> npt.NDArray[np.float64]:
    return metrics.short_line_accuracy(full)


def test_the_trained_recogniser_reads_nearly_every_line(accuracies: npt.NDArray[np.float64]) -> None:
    assert accuracies.shape == (200,)
    assert accuracies.mean() > 0.995
    assert accuracies.min() >= 0


def test_ids_and_probabilities_score_as_the_class_scores_they_came_from(accuracies: npt.NDArray[np.float64]) -> None:
    assert np.array_equal(metrics.short_line_accuracy(reduced), accuracies)


def test_a_recogniser_that_sees_half_of_each_letter_scores_lower(accuracies: npt.NDArray[np.float64]) -> None:
    def blinded(inputs: Arrays) -> Arrays:
        picture = inputs["x"].copy()
        picture[:, :, 20:] = 0
        return full({"x": picture})

    worse = metrics.short_line_accuracy(blinded)
    assert worse.shape == accuracies.shape
    assert worse.mean() < accuracies.mean() - 0.1


def test_lines_of_any_width_are_read_in_batches_of_one_width() -> None:
    batches = samples.held_out(short=False)
    assert sum(len(batch.texts) for batch in batches) >= 160
    assert len({batch.pictures.shape[3] for batch in batches}) > 3
    assert all(batch.pictures.shape[:3] == (len(batch.texts), 3, 48) for batch in batches)
    assert all(batch.pictures.dtype == np.float32 for batch in batches)


def test_short_lines_have_one_shape() -> None:
    assert {batch.pictures.shape for batch in samples.held_out(short=True)} == {(8, 3, 48, 320)}


@pytest.mark.parametrize("short", [False, True])
def test_no_picture_is_in_two_sets(short: bool) -> None:
    def pictures(batches: Iterable[samples.Batch]) -> set[bytes]:
        return {row.tobytes() for batch in batches for row in batch.pictures}

    judging, calibrating = pictures(samples.held_out(short=short)), pictures(samples.calibration(short=short))
    assert len(judging) == 200
    assert judging.isdisjoint(calibrating)


def test_calibration_is_the_same_each_time() -> None:
    first, second = (list(metrics.calibration_lines()) for _ in range(2))
    assert len(first) == len(second) > 10
    assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(first, second, strict=True))


def test_the_few_lines_of_a_short_build_are_the_first_of_all_lines_and_of_many_widths() -> None:
    few, every = (samples.held_out(count, short=False) for count in (samples.FEW_HELD_OUT, samples.HELD_OUT))
    texts = [[text for batch in batches for text in batch.texts] for batches in (few, every)]
    assert len(texts[0]) == samples.FEW_HELD_OUT
    assert set(texts[0]) <= set(texts[1])
    assert len({batch.pictures.shape[3] for batch in few}) > 3
    assert sum(len(each["x"]) for each in metrics.few_calibration_lines()) == samples.FEW_CALIBRATION


@pytest.mark.parametrize(
    "outputs",
    [
        {"y": np.zeros((2, 4), np.float32)},
        {"y_index": np.zeros((2, 4), np.int64)},
        {"y_index": np.zeros((2, 4), np.int64), "y_value": np.zeros((2, 5), np.float32)},
    ],
)
def test_answers_of_another_form_are_refused_with_what_was_got(outputs: Arrays) -> None:
    with pytest.raises(ValueError, match=r"expected probabilities .* got y"):
        best_classes(outputs)
