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
    """`answers[i]` is what the recogniser made of `grouped[i]`: probabilities, or their reduction.

    Of a line that is among `lines` twice, the reading counts of which the reader is surer.
    """
    found: dict[int, tuple[Floats, _Read]] = {}
    for batch, answer in zip(grouped, answers, strict=True):
        best, confidence = best_classes(answer)
        for member, classes, chances in zip(batch.members, best, confidence, strict=True):
            crop = lines[member]
            one = _read(crop.pixels.shape[1], classes, chances, alphabet)
            if one is not None and (crop.line not in found or one.score > found[crop.line][1].score):
                found[crop.line] = crop.corners, one
    return _placed(frame, [found[line] for line in sorted(found)])


@dataclass(frozen=True, slots=True)
class _Read:
    """A line before it has a place."""

    score: float
    words: list[tuple[str, float]]  # text and score
    edges: list[tuple[float, float]]  # of each word, both 0 to 1 along the line


def _read(width: int, classes: Classes, chances: Floats, alphabet: Sequence[str]) -> _Read | None:
    reading = greedy_ctc(classes, chances, alphabet)
    if not reading.text.strip() or not reading.score >= SURE:
        return None
    pieces = width / STEP  # columns of scores that the line, without its padding, is wide
    columns = np.flatnonzero(kept_columns(classes))
    middles, scores = (columns + 0.5).tolist(), chances[columns].tolist()
    spans = _spans(reading.text)
    return _Read(
        reading.score,
        [(reading.text[start:end], sum(scores[start:end]) / (end - start)) for start, end in spans],
        [_edges(middles, start, end, pieces) for start, end in spans],
    )


def _placed(frame: Frame, read: Sequence[tuple[Floats, _Read]]) -> tuple[Line, ...]:
    """All corners at once, which for some hundred words is four times as fast as one by one."""
    if not read:
        return ()
    whole = frame.in_picture(np.stack([corners for corners, _ in read]))
    edges = np.array([edge for _, line in read for edge in line.edges], np.float32)
    around = np.repeat(np.stack([corners for corners, _ in read]), [len(line.edges) for _, line in read], axis=0)
    parts = iter(frame.in_picture(_between(around, edges[:, 0], edges[:, 1])))
    found = []
    for corners, (_, line) in zip(whole, read, strict=True):
        members = tuple(Word(text, score, next(parts)) for text, score in line.words)
        found.append(Line(" ".join(word.text for word in members), line.score, corners, members))
    return tuple(found)


def _spans(text: str) -> list[tuple[int, int]]:
    """Start and end of every word."""
    spans: list[tuple[int, int]] = []
    start: int | None = None
    for place, letter in enumerate(text + " "):
        if letter.isspace():
            if start is not None:
                spans.append((start, place))
            start = None
        elif start is None:
            start = place
    return spans


def _edges(middles: Sequence[float], start: int, end: int, pieces: float) -> tuple[float, float]:
    """Where a word begins and ends along its line, 0 to 1: the network marks a letter near its middle."""
    first, last = middles[start], middles[end - 1]
    pitch = (last - first) / (end - 1 - start) if end - start > 1 else 2.0
    left, right = first - _EDGE * pitch, last + _EDGE * pitch
    if start > 0:  # no further than half way to the neighbour, the space between included
        left = max(left, (middles[start - 1] + first) / 2)
    if end < len(middles):
        right = min(right, (middles[end] + last) / 2)
    return max(0.0, min(left / pieces, 1.0)), min(right / pieces, 1.0)


def _between(corners: Floats, left: Floats, right: Floats) -> Floats:
    """The parts of quadrilaterals [n, 4, 2] from `left` to `right` [n], both 0 to 1 along their text."""
    top_left, top_right, bottom_right, bottom_left = corners.transpose(1, 0, 2)
    top, bottom = top_right - top_left, bottom_right - bottom_left
    left, right = left[:, None], right[:, None]
    return np.stack(
        (top_left + left * top, top_left + right * top, bottom_left + right * bottom, bottom_left + left * bottom),
        axis=1,
    )
