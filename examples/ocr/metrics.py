"""How well text was read: the character error rate.

Promises: the field's definition, edits divided by characters of the truth over the whole set; not the mean of the
lines' rates, which short lines would dominate. No normalisation: case, spaces and punctuation count.
Called by `demo` and the tests; `character_accuracy` scores an engine against another.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def edit_distance(truth: str, reading: str) -> int:
    """Fewest insertions, deletions and substitutions that turn one into the other (Levenshtein 1966)."""
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


def character_accuracy(truths: Sequence[str], readings: Sequence[str]) -> npt.NDArray[np.float64]:
    """Per line 1 - edits / characters, never below 0: 1-D, higher is better, as an accuracy gate wants it."""
    scores = [
        max(0.0, 1 - edit_distance(truth, reading) / max(1, len(truth)))
        for truth, reading in zip(truths, readings, strict=True)
    ]
    return np.asarray(scores, dtype=np.float64)
