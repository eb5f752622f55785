"""Requests handed to an engine's contexts: each answer waited for at once, or several under way.

Every fiftieth answer is compared with what the engine answered before. Called by `tracker_cpu` and, for a GPU, by
`tracker_gpu_engine`.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from benches.stories.tracker_results import Flight
from examples.tracker.likeness import likeness

Arrays = Mapping[str, npt.NDArray[Any]]

_WARM: Final = 3
_COSINE: Final = 0.999  # contexts of another number of threads may sum in another order


class WrongError(Exception):
    """An answer was not the one to its request."""


def flight(
    engine: Any, way: str, contexts: int, ahead: int, seconds: float, request: Callable[[int], Arrays], kinds: int
) -> Flight:
    """For about `seconds`.

    ahead    requests under way before the oldest answer is waited for; 1: each is waited for at once.
    request  makes number 0 to `kinds` - 1, on this thread, while others are under way.

    Raises WrongError.
    """
    expected = [engine(**request(kind)) for kind in range(kinds)]
    made = [engine.context() for _ in range(contexts)]
    under_way: deque[tuple[float, int, Any]] = deque()
    times: list[float] = []
    answers: list[tuple[int, Arrays]] = []

    def collect() -> None:
        begun, kind, future = under_way.popleft()
        answer = future.result()
        times.append(1e3 * (time.perf_counter() - begun))
        if len(times) % 50 == 1:
            answers.append((kind, answer))

    def hand_over(number: int) -> None:
        kind = number % kinds
        given = request(kind)
        if len(under_way) >= ahead:
            collect()
        under_way.append((time.perf_counter(), kind, made[number % contexts].enqueue(**given)))
        if ahead == 1:
            collect()

    number = 0
    try:
        for number in range(2 * contexts * _WARM):
            hand_over(number)
        while under_way:
            collect()
        times.clear()
        begun = time.perf_counter()
        while time.perf_counter() < begun + seconds or not times:
            number += 1
            hand_over(number)
        answered, spent = len(times), time.perf_counter() - begun
        while under_way:
            collect()
    finally:
        for each in made:
            each.close()
    for kind, answer in answers:
        least = min(row.cosine for row in likeness(answer, expected[kind]).values())
        if not least >= _COSINE:
            raise WrongError(f"{way}: request {kind} was answered with a cosine of {least:.4f} to its own answer")
    p50, p99 = np.percentile(times, [50, 99])
    return Flight(way, contexts, ahead, answered / spent, float(p50), float(p99))


def there_and_back(
    ways: Sequence[tuple[str, int, int]], once: Callable[[tuple[str, int, int]], Flight]
) -> list[Flight]:
    """Every way twice, the second time in the opposite order, and the means: a machine that drifts favours none."""
    first = [once(way) for way in ways]
    second = [once(way) for way in reversed(ways)][::-1]
    return [
        replace(
            one,
            per_second=(one.per_second + other.per_second) / 2,
            p50_ms=(one.p50_ms + other.p50_ms) / 2,
            p99_ms=(one.p99_ms + other.p99_ms) / 2,
        )
        for one, other in zip(first, second, strict=True)
    ]
