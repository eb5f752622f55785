"""What one call takes, from counters that only tell the average of all calls so far.

In such an average what held up one call stays in all that follow; between two readings it is told apart again. Called
by the runtime modules when they profile.
"""

from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Final

# The counters are whole microseconds, so a difference is off by as many as there were groups before it.
_GROUPS: Final = 5


def groups(calls: int) -> list[int]:
    """So many calls in a few parts of nearly one size, after each of which the counters are read."""
    parts = min(calls, _GROUPS)
    return [calls * (at + 1) // parts - calls * at // parts for at in range(parts)]


def typical(readings: Sequence[tuple[int, float]]) -> float:
    """(calls so far, their average) to the median of the averages between readings; the first reading is not counted.

    One reading alone is taken as it is.
    """
    between = [
        (calls * average - before * earlier) / (calls - before)
        for (before, earlier), (calls, average) in pairwise(readings)
    ]
    return max(0.0, median(between)) if between else readings[-1][1]
