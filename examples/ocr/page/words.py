"""The recogniser's answers to lines and words, each with its place on the page and how sure the reader is.

Promises: lines come in the order of the crops; one that reads as nothing, or that the reader is not sure of, is left
out; a line's text is its words with single spaces between; every corner lies in the picture. Called by `reading`, last.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from examples.ocr.page.crops import Batch, Crop
from examples.ocr.page.frame import Frame
from examples.ocr.reader import STEP, Classes, Floats, best_classes, greedy_ctc, kept_columns

SURE = 0.5  # mean probability of its characters, below which a line is left out. `text_score`
_EDGE = 0.5  # of the mean distance of two letters: what a word has beside the middles of its outer letters


@dataclass(frozen=True, slots=True)
class Word:
    text: str
    score: float  # mean probability of its characters, 0 to 1
    corners: Floats  # [4, 2]: (x, y) in the picture, clockwise from where the text begins


@dataclass(frozen=True, slots=True)
class Line:
    text: str
    score: float
    corners: Floats
    words: tuple[Word, ...]


def words(
    frame: Frame,
    lines: Sequence[Crop],
    grouped: Sequence[Batch],
    answers: Sequence[Mapping[str, npt.NDArray[Any]]],
    alphabet: Sequence[str],
) -> tuple[Line, ...]:
    """`answers[i]` is what the recogniser made of `grouped[i]`: probabilities, or their reduction."""
    found: dict[int, Line] = {}
    for batch, answer in zip(grouped, answers, strict=True):
        best, confidence = best_classes(answer)
        for member, classes, chances in zip(batch.members, best, confidence, strict=True):
            line = _line(frame, lines[member], classes, chances, alphabet)
            if line is not None:
                found[member] = line
    return tuple(found[member] for member in sorted(found))


def _line(frame: Frame, crop: Crop, classes: Classes, chances: Floats, alphabet: Sequence[str]) -> Line | None:
    reading = greedy_ctc(classes, chances, alphabet)
    if not reading.text.strip() or not reading.score >= SURE:
        return None
    found = []
    columns = np.flatnonzero(kept_columns(classes))
    for start, end in _spans(reading.text):
        left, right = _edges(columns, start, end)
        pieces = crop.pixels.shape[1] / STEP  # columns of scores that the crop, without its padding, is wide
        corners = _between(crop.corners, min(left / pieces, 1.0), min(right / pieces, 1.0))
        score = float(chances[columns[start:end]].mean())
        found.append(Word(reading.text[start:end], score, frame.in_picture(corners)))
    text = " ".join(word.text for word in found)
    return Line(text, reading.score, frame.in_picture(crop.corners), tuple(found))


def _spans(text: str) -> list[tuple[int, int]]:
    """Start and end of every word."""
    spans, start = [], None
    for place, letter in enumerate(text + " "):
        if letter.isspace():
            if start is not None:
                spans.append((start, place))
            start = None
        elif start is None:
            start = place
    return spans


def _edges(columns: Classes, start: int, end: int) -> tuple[float, float]:
    """Where a word begins and ends, in columns of scores: the network marks a letter near its middle."""
    middles = columns + 0.5
    first, last = float(middles[start]), float(middles[end - 1])
    pitch = (last - first) / (end - 1 - start) if end - start > 1 else 2.0
    left, right = first - _EDGE * pitch, last + _EDGE * pitch
    if start > 0:  # no further than half way to the neighbour, the space between included
        left = max(left, float(middles[start - 1] + first) / 2)
    if end < len(columns):
        right = min(right, float(middles[end] + last) / 2)
    return max(0.0, left), right


def _between(corners: Floats, left: float, right: float) -> Floats:
    """The part of a quadrilateral from `left` to `right`, both 0 to 1 along its text."""
    top_left, top_right, bottom_right, bottom_left = corners
    top, bottom = top_right - top_left, bottom_right - bottom_left
    return np.stack(
        (top_left + left * top, top_left + right * top, bottom_left + right * bottom, bottom_left + left * bottom)
    )
