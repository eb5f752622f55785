"""The detector's answer to boxes in the picture. Called by `service`, between the networks."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from examples.detect_classify.pictures import Floats, Frame
from examples.detect_classify.suppression import kept

CANDIDATES = 2000
"""Boxes looked at, the best ones: a network that is sure of everything must not cost minutes."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What counts as found."""

    score: float  # and higher
    overlap: float  # intersection over union of two boxes that are one thing
    most: int  # things in a picture


def found(frame: Frame, boxes: npt.NDArray[Any], scores: npt.NDArray[Any], rules: Rules) -> tuple[Floats, Floats]:
    """Corners (left, top, right, bottom) in pixels of the picture, FP32 [k, 4], and scores [k], the best first.

    boxes   FP [n, 4]: centre and size in pixels of the detector's input.
    scores  FP [n]; NaN is no score.
    """
    likely = np.flatnonzero(scores >= rules.score)
    if likely.size > CANDIDATES:
        likely = likely[np.argsort(-scores[likely], kind="stable")[:CANDIDATES]]
    centres, sizes = np.split(boxes[likely].astype(np.float32), 2, axis=1)
    corners = frame.in_picture(np.concatenate((centres - sizes / 2, centres + sizes / 2), axis=1))
    sure = scores[likely].astype(np.float32)
    inside = (corners[:, 2:] - corners[:, :2]).min(axis=1, initial=np.inf) >= 1  # in the margin there is nothing
    corners, sure = corners[inside], sure[inside]
    chosen = kept(corners, sure, overlap=rules.overlap, most=rules.most)
    return corners[chosen], sure[chosen]
