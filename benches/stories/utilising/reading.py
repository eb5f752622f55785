"""How well lines are read: some judge a build, others judge what came of it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from examples.ocr import samples
from examples.ocr.metrics import alphabet, held_out, line_accuracies
from examples.ocr.reader import best_classes, greedy_ctc

Scores = NDArray[np.float64]
Run = Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]

GATE: Final = 64
"""Lines that a build is judged by: seconds for each candidate."""


def gate(run: Run) -> Scores:
    """`--accuracy 'benches.stories.utilising.reading:gate drop<=0.007'`: of each line 1 - edits / characters."""
    return scores(run, held_out(GATE, short=True), alphabet())


def unseen(run: Run) -> Scores:
    """The same of the lines that come after those."""
    lines = held_out(samples.HELD_OUT, short=True)
    return scores(run, lines[GATE // len(lines[0].texts) :], alphabet())


def scores(run: Run, batches: Sequence[samples.Batch], letters: Sequence[str]) -> Scores:
    """Of each line of these batches."""
    found: list[Scores] = []
    for batch in batches:
        classes, chances = best_classes(run({"x": batch.pictures}))
        read = [greedy_ctc(*row, letters).text for row in zip(classes, chances, strict=True)]
        found.append(line_accuracies(batch.texts, read))
    return np.concatenate(found)
