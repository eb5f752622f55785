"""How well pages were read: word accuracy against a known truth, and whether two readers read the same lines.

Promises: one definition for every reader, which sees its lines only as text and corners. No normalisation: case and
punctuation count, and so does a space more or less. Called by `compare_pages` and the tests.

A line read belongs to the line of the truth in which its middle lies (grown by a quarter of its height up and down),
the nearest middle if there are several. What belongs to one line of the truth is put in order along it and split at
spaces. Word errors are the insertions, deletions and substitutions of words from there to the truth, and every word of
what belongs nowhere. Word accuracy is 1 - errors / words of the truth over all pages: 1 less the field's word error
rate. It doesn't depend on the order in which a reader tells its lines, and columns read as one line cost it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt

from examples.ocr.metrics import edit_distance

Floats = npt.NDArray[np.float32]
_GROWN = 0.25  # of its height: boxes of readers are higher than the ink, mostly upwards
_RESAMPLES = 5_000  # the ends of a 95 % interval then move by about a hundredth of its width


class PlacedText(Protocol):
    """A line, of the truth or read. `corners` [4, 2] (x, y), clockwise from where the text begins."""

    @property
    def text(self) -> str: ...

    @property
    def corners(self) -> Floats: ...


@dataclass(frozen=True, slots=True)
class WordErrors:
    words: int  # of the truth
    errors: int

    @property
    def accuracy(self) -> float:
        """At most 1; below 0 when more was made up than there is."""
        return 1 - self.errors / self.words


@dataclass(frozen=True, slots=True)
class LineErrors:
    """What became of one line of the truth; `truth` is empty for what was read where nothing stands."""

    truth: str
    read: str
    errors: int


def word_errors(truth: Sequence[PlacedText], read: Sequence[PlacedText]) -> WordErrors:
    """Of one page. ValueError if the truth has no word."""
    words = sum(len(line.text.split()) for line in truth)
    if words == 0:
        raise ValueError("word_errors: expected at least one word of truth, got none")
    return WordErrors(words, sum(line.errors for line in line_errors(truth, read)))


def line_errors(truth: Sequence[PlacedText], read: Sequence[PlacedText]) -> list[LineErrors]:
    """Line by line of the truth; then what belongs to none of them."""
    belonging: list[list[PlacedText]] = [[] for _ in truth]
    strays: list[PlacedText] = []
    for line in read:
        owner = _owner(truth, line.corners.mean(axis=0))
        (strays if owner is None else belonging[owner]).append(line)
    found = []
    for line, pieces in zip(truth, belonging, strict=True):
        text = " ".join(piece.text for piece in _along(line, pieces))
        found.append(LineErrors(line.text, text, edit_distance(line.text.split(), text.split())))
    return found + [LineErrors("", stray.text, len(stray.text.split())) for stray in strays]


def total(pages: Sequence[WordErrors]) -> WordErrors:
    return WordErrors(sum(page.words for page in pages), sum(page.errors for page in pages))


def accuracy_gain(
    ours: Sequence[WordErrors], theirs: Sequence[WordErrors], seed: int = 0
) -> tuple[float, float, float]:
    """Word accuracy of `ours` less that of `theirs` on the same pages, and its 95 % interval.

    The interval is the percentile bootstrap's (Efron 1979): pages drawn with replacement, the same for both readers.
    """
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"accuracy_gain: expected the same pages twice, got {len(ours)} and {len(theirs)}")
    words = np.array([page.words for page in ours])
    fewer = np.array([their.errors - our.errors for our, their in zip(ours, theirs, strict=True)])
    drawn = np.random.default_rng(seed).integers(len(words), size=(_RESAMPLES, len(words)))
    gains = fewer[drawn].sum(axis=1) / words[drawn].sum(axis=1)
    low, high = np.percentile(gains, (2.5, 97.5))
    return float(fewer.sum() / words.sum()), float(low), float(high)


def differing_lines(ours: Sequence[str], theirs: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs (ours, theirs) of lines, in order, that are not the same; empty where one has a line less."""
    length = max(len(ours), len(theirs))
    ours, theirs = ([*lines, *[""] * (length - len(lines))] for lines in (ours, theirs))
    return [(our, their) for our, their in zip(ours, theirs, strict=True) if our != their]


def _along(line: PlacedText, pieces: Sequence[PlacedText]) -> list[PlacedText]:
    direction = line.corners[1] - line.corners[0]
    return sorted(pieces, key=lambda piece: float(piece.corners.mean(axis=0) @ direction))


def _owner(truth: Sequence[PlacedText], middle: Floats) -> int | None:
    """Which line of the truth a middle lies in."""
    nearest, owner = np.inf, None
    for index, line in enumerate(truth):
        outside = (
            cv2.pointPolygonTest(_grown(line.corners), (float(middle[0]), float(middle[1])), measureDist=False) < 0
        )
        distance = float(np.linalg.norm(line.corners.mean(axis=0) - middle))
        if not outside and distance < nearest:
            nearest, owner = distance, index
    return owner


def _grown(corners: Floats) -> Floats:
    """Up and down by a part of its height."""
    top_left, top_right, bottom_right, bottom_left = corners
    left, right = _GROWN * (bottom_left - top_left), _GROWN * (bottom_right - top_right)
    return np.stack((top_left - left, top_right - right, bottom_right + right, bottom_left + left)).astype(np.float32)
