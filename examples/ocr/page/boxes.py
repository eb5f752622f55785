"""The detector's map of probabilities to the quadrilaterals that hold text, in reading order.

Differentiable binarisation's reading of such a map (Liao et al. 2020, section 3.4): areas above a threshold, each as
the smallest rectangle around it, grown again, since the network was taught shrunken areas. The constants are those of
the config.yaml in the package that carries the models. Called by `reading`, after the detector.
"""

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from examples.ocr.reader import Floats

THRESHOLD = 0.3  # above it a point of the map is text. `thresh`
SCORE = 0.5  # mean probability inside a rectangle, below which it is no text. `box_thresh`
GROWTH = 1.6  # what was shrunken away: area x growth / perimeter, on all sides. `unclip_ratio`
MOST = 1000  # areas looked at. `max_candidates`
THINNEST = 3  # points of the map: what is thinner is a speck
SMALLEST = 3  # pixels of the frame: likewise, after growing
JOINING = np.ones((2, 2), np.uint8)  # one step of growth joins areas that touch by a corner. `use_dilation`
LEVEL = np.deg2rad(1.0)  # a page turned by less is read as if it were level

Quadrilaterals = npt.NDArray[np.float32]
"""[n, 4, 2]: corners (x, y) clockwise from the top left one."""

Contour = npt.NDArray[np.int32]
Rectangle = tuple[tuple[float, float], tuple[float, float], float]
"""Centre, size and degrees, as OpenCV has them."""


def boxes(probabilities: npt.NDArray[Any], size: tuple[int, int]) -> Quadrilaterals:
    """FP [1, 1, rows, columns] or [rows, columns] to quadrilaterals in a frame of `size` (height, width); [0, 4, 2]
    where there is no text. Raises ValueError for another shape.
    """
    if probabilities.ndim not in {2, 4} or probabilities.shape[:-2] not in {(), (1, 1)}:
        raise ValueError(f"expected a map [1, 1, rows, columns] of one page, got {list(probabilities.shape)}")
    chances = np.ascontiguousarray(probabilities.reshape(probabilities.shape[-2:]), dtype=np.float32)
    rectangles = [grown for contour in _contours(chances) if (grown := _rectangle(contour, chances)) is not None]
    if not rectangles:
        return np.zeros((0, 4, 2), np.float32)
    height, width = size
    rows, columns = chances.shape
    corners = np.stack([cv2.boxPoints(rectangle) for rectangle in rectangles])
    corners = np.rint(corners * np.array((width / columns, height / rows)))
    corners = np.clip(clockwise(corners), 0, np.array((width - 1, height - 1))).astype(np.float32)
    across = np.linalg.norm(corners[:, 1] - corners[:, 0], axis=1)
    down = np.linalg.norm(corners[:, 3] - corners[:, 0], axis=1)
    return in_reading_order(corners[(across > SMALLEST) & (down > SMALLEST)])


def clockwise(corners: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[n, 4, 2] in any order to clockwise from the top left: the two leftmost by height, then the others."""
    by_x = np.take_along_axis(corners, np.argsort(corners[:, :, 0], axis=1, kind="stable")[:, :, None], axis=1)
    halves = by_x.reshape(-1, 2, 2, 2)  # [n, left and right, points, xy]
    halves = np.take_along_axis(halves, np.argsort(halves[:, :, :, 1], axis=2, kind="stable")[..., None], axis=2)
    return np.stack((halves[:, 0, 0], halves[:, 1, 0], halves[:, 1, 1], halves[:, 0, 1]), axis=1)


def in_reading_order(corners: Quadrilaterals) -> Quadrilaterals:
    """Top to bottom and, within half the height of a line, left to right; on a turned page, along its own lines."""
    if len(corners) < 2:
        return corners
    starts = corners[:, 0] @ _levelling(corners)
    tolerance = float(np.median(np.linalg.norm(corners[:, 3] - corners[:, 0], axis=1))) / 2
    row_of = np.zeros(len(starts), np.intp)
    first, row = -np.inf, -1
    for index in np.argsort(starts[:, 1], kind="stable"):
        if starts[index, 1] - first >= tolerance:
            first, row = starts[index, 1], row + 1
        row_of[index] = row
    return corners[np.lexsort((starts[:, 0], row_of))]


def _levelling(corners: Quadrilaterals) -> npt.NDArray[np.float64]:
    """What turns points (x, y) so that the median line is level."""
    along = corners[:, 1] - corners[:, 0]
    long = np.linalg.norm(along, axis=1) > np.linalg.norm(corners[:, 3] - corners[:, 0], axis=1)
    if not long.any():
        return np.eye(2)
    angle = float(np.median(np.arctan2(along[long, 1], along[long, 0])))
    if abs(angle) < LEVEL:
        return np.eye(2)
    return np.array(((np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))))


def _contours(chances: Floats) -> list[Contour]:
    text = cv2.dilate((chances > THRESHOLD).view(np.uint8), JOINING)
    # Holes as well: text in a frame that was taken for text.
    contours, _ = cv2.findContours(text, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    return [np.asarray(contour, dtype=np.int32) for contour in contours[:MOST]]


def _rectangle(contour: Contour, chances: Floats) -> Rectangle | None:
    """The rectangle around an area, grown; None: not text."""
    centre, (across, down), degrees = cv2.minAreaRect(contour)
    if (
        min(across, down) < THINNEST
        or not _mean_inside(np.asarray(cv2.boxPoints((centre, (across, down), degrees)), np.float32), chances) >= SCORE
    ):
        return None
    # Growing a rectangle by the same distance on all sides leaves a rectangle (with round corners, that don't count).
    distance = across * down * GROWTH / (2 * (across + down))
    return (centre[0], centre[1]), (across + 2 * distance, down + 2 * distance), degrees


def _mean_inside(corners: Floats, chances: Floats) -> float:
    """Of the map's points inside a quadrilateral; NaN where the network answered NaN."""
    rows, columns = chances.shape
    left, top = (int(edge) for edge in np.clip(np.floor(corners.min(axis=0)), 0, (columns - 1, rows - 1)))
    right, bottom = (int(edge) for edge in np.clip(np.ceil(corners.max(axis=0)), 0, (columns - 1, rows - 1)))
    inside = np.zeros((bottom - top + 1, right - left + 1), np.uint8)
    cv2.fillConvexPoly(inside, (corners - np.array((left, top))).astype(np.int32), 1)
    return float(cv2.mean(chances[top : bottom + 1, left : right + 1], inside)[0])
