"""How well text was read: the character error rate.

Promises: the field's definition, edits divided by characters of the truth over the whole set; not the mean of the
lines' rates, which short lines would dominate. No normalisation: case, spaces and punctuation count.
Called by `demo` and the tests; `penstock build`, at the root of the checkout, is given `character_accuracy` to judge
engines by and `calibration_lines` to calibrate them with; `engine`, which has a minute, the two of fewer lines.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from examples.ocr import samples
from examples.ocr.model import alphabet_of, recogniser_path
from examples.ocr.reader import Floats, best_classes, greedy_ctc

Scores = npt.NDArray[np.float64]
Run = Callable[[Mapping[str, npt.NDArray[Any]]], Mapping[str, npt.NDArray[Any]]]
_INPUT = "x"


def edit_distance(truth: Sequence[str], reading: Sequence[str]) -> int:
    """Fewest insertions, deletions and substitutions that turn one into the other (Levenshtein 1966).

    Of characters, given strings; of words, given lists of them.
    """
    previous = list(range(len(reading) + 1))
    for row, wanted in enumerate(truth, start=1):
        current = [row]
        for column, got in enumerate(reading, start=1):
            substituted = previous[column - 1] + (wanted != got)
            current.append(min(previous[column] + 1, current[column - 1] + 1, substituted))
        previous = current
    return previous[-1]


def character_error_rate(truths: Sequence[str], readings: Sequence[str]) -> float:
    """Edits / characters of truth, all lines together; 0 is perfect, above 1 possible. ValueError without truth."""
    characters = sum(map(len, truths))
    if characters == 0:
        raise ValueError("character_error_rate: expected at least one character of truth, got none")
    edits = sum(edit_distance(truth, reading) for truth, reading in zip(truths, readings, strict=True))
    return edits / characters


def line_accuracies(truths: Sequence[str], readings: Sequence[str]) -> Scores:
    """Per line 1 - edits / characters, never below 0: 1-D, higher is better, as an accuracy gate wants it."""
    scores = [
        max(0.0, 1 - edit_distance(truth, reading) / max(1, len(truth)))
        for truth, reading in zip(truths, readings, strict=True)
    ]
    return np.asarray(scores, dtype=np.float64)


def character_accuracy(run: Run) -> Scores:
    """How well `run` reads 200 plain lines: `--accuracy 'examples.ocr.metrics:character_accuracy drop<=0.001'`.

    `run` takes FP32 [n, 3, 48, width] as `x`, widths from 320 to about 1200 in steps of 160, and answers the
    probabilities [n, columns, classes], or what `--reduce` leaves of them. Raises ValueError for anything else.
    """
    return _scores(run, samples.HELD_OUT, short=False)


def few_lines_accuracy(run: Run) -> Scores:
    """The same on the first 64 of those lines: seconds a candidate, and a bound on the drop that is less tight."""
    return _scores(run, samples.FEW_HELD_OUT, short=False)


def short_line_accuracy(run: Run) -> Scores:
    """The same on 200 lines that fit 320 columns: for engines of the one shape 48 x 320."""
    return _scores(run, samples.HELD_OUT, short=True)


def calibration_lines() -> Iterator[dict[str, Floats]]:
    """`--calibration examples.ocr.metrics:calibration_lines`: 96 other lines, at most 8 of one width at once."""
    for batch in samples.calibration(short=False):
        yield {_INPUT: batch.pictures}


def few_calibration_lines() -> Iterator[dict[str, Floats]]:
    """The first 32 of those."""
    for batch in samples.calibration(samples.FEW_CALIBRATION, short=False):
        yield {_INPUT: batch.pictures}


def short_calibration_lines() -> Iterator[dict[str, Floats]]:
    """96 other lines of at most 320 columns, in batches of 8."""
    for batch in samples.calibration(short=True):
        yield {_INPUT: batch.pictures}


def _scores(run: Run, count: int, *, short: bool) -> Scores:
    letters = alphabet()
    found: list[Scores] = []
    for batch in held_out(count, short=short):
        classes, chances = best_classes(run({_INPUT: batch.pictures}))
        readings = [greedy_ctc(*row, letters).text for row in zip(classes, chances, strict=True)]
        found.append(line_accuracies(batch.texts, readings))
    return np.concatenate(found)


@lru_cache(maxsize=1)
def alphabet() -> list[str]:
    return alphabet_of(recogniser_path())


@lru_cache(maxsize=2)
def held_out(count: int, *, short: bool) -> list[samples.Batch]:
    """Kept: a gate asks for every candidate, and rendering takes longer than reading on some machines."""
    return samples.held_out(count, short=short)
