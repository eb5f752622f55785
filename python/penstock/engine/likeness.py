"""How alike two outputs are, as the accuracy gate means it.

Rows are dimension 0; where each holds a single number, the batch is the vector. Whoever calls has looked for what is
not finite. Called by the builder's gate, and by the server before an engine takes over from its model.
"""

import numpy as np
from numpy.typing import NDArray


def cosine(reference: NDArray[np.float64], candidate: NDArray[np.float64]) -> float:
    """The least cosine over the rows; of single numbers, which have no direction, how near their sizes are."""
    if reference.size == 0:
        return 1.0
    if reference.size == 1:
        r, c = reference.item(), candidate.item()
        return 1.0 if r == c else 1.0 - abs(c - r) / max(abs(c), abs(r))
    rows = len(reference) if reference.ndim > 1 and reference.size > len(reference) else 1
    # Scaled first: squares of very large or very small values leave the range of float64.
    pair = (each.reshape(rows, -1) for each in (reference, candidate))
    left, right = (flat / np.where(top := np.max(np.abs(flat), axis=1, keepdims=True), top, 1.0) for flat in pair)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    both_zero = ~left.any(axis=1) & ~right.any(axis=1)
    dots = np.einsum("ij,ij->i", left, right)
    cosines = np.divide(dots, norms, out=np.where(both_zero, 1.0, 0.0), where=norms > 0)
    return float(np.clip(cosines.min(), -1.0, 1.0))
