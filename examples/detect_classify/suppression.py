"""Non-maximum suppression: of boxes that cover each other, the one with the highest score stays.

Greedy, as detectors are judged with (Felzenszwalb et al. 2010, section 7.1). Called by `detections`.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]


def kept(corners: Floats, scores: Floats, *, overlap: float, most: int) -> Indices:
    """Which boxes stay, by falling score (of equal ones, the first), `most` at most.

    corners  FP32 [n, 4]: left, top, right, bottom.
    scores   FP32 [n]; one that is NaN is never kept.
    overlap  intersection over union above which the lower one goes.
    """
    order = np.argsort(-scores, kind="stable")
    order = order[~np.isnan(scores[order])]
    chosen: list[np.intp] = []
    while order.size and len(chosen) < most:
        best, order = order[0], order[1:]
        chosen.append(best)
        order = order[overlaps(corners[best], corners[order]) <= overlap]
    return np.array(chosen, np.intp)


def overlaps(box: Floats, others: Floats) -> Floats:
    """Intersection over union of one box [4] with others [n, 4], 0 where neither has an area: FP32 [n]."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = np.maximum(sides, 0).prod(axis=1)
    union = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(axis=1) - shared
    found: Floats = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return found
