"""How well a detector finds the lines of rendered pages: what its engine is judged by, since a map that differs by a
hundredth finds the same lines.

Promises: scores of the same held-out pages whoever is judged, one each, higher is better; neither calibration nor
comparison sees those pages. Called by `penstock build --accuracy` and `--calibration`.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from examples.ocr.documents import Document, rendered_documents
from examples.ocr.page.boxes import boxes
from examples.ocr.page.frame import prepare

Floats = npt.NDArray[np.float32]
Run = Callable[[Mapping[str, npt.NDArray[Any]]], Mapping[str, npt.NDArray[Any]]]

HELD_OUT, JUDGED = 400, 10
CALIBRATION, LEARNT = 300, 12
# A box is that of a line when it holds so much of the line, and the line so much of it. Boxes are grown beyond the ink
# on all sides, by about half of a line's height in all: a good one is up to twice as large.
COVERED, FILLED = 0.9, 0.4


def lines_found(run: Run) -> npt.NDArray[np.float64]:
    """F1 of the lines of each held-out page: boxes that are a line's, against boxes and lines."""
    return np.array([_f1(run, document) for document in _held_out()])


def pages() -> Iterator[dict[str, Floats]]:
    """Inputs of the detector, for calibration."""
    for document in rendered_documents(LEARNT, first=CALIBRATION):
        yield {"x": prepare(np.asarray(document.pixels))[1]}


@lru_cache(maxsize=1)
def _held_out() -> tuple[Document, ...]:
    return tuple(rendered_documents(JUDGED, first=HELD_OUT))


def _f1(run: Run, document: Document) -> float:
    frame, page = prepare(np.asarray(document.pixels))
    (probabilities,) = run({"x": page}).values()
    found = frame.in_picture(boxes(probabilities, frame.size))
    truth = [np.asarray(line.corners, np.float32) for line in document.lines]
    right = sum(any(is_of(box, line) for box in found) for line in truth)
    return 2 * right / max(1, len(found) + len(truth))


def is_of(box: Floats, line: Floats) -> bool:
    """Whether a box is that of a line; both convex quadrilaterals [4, 2]."""
    shared, _ = cv2.intersectConvexConvex(np.asarray(box, np.float32), line)
    return bool(shared >= COVERED * cv2.contourArea(line) and shared >= FILLED * cv2.contourArea(box))
