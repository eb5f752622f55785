"""Several ways to do the same, timed in turns, so that a machine that slows down slows all of them alike.

Called by `__main__` and by the benches.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

Call = Callable[[], object]


def take_turns(ways: Mapping[str, Call], rounds: int, seconds: float, least: int = 3) -> dict[str, list[float]]:
    """Milliseconds of a call of each way, the median of each round's turn.

    A turn takes about `seconds` and at least `least` calls. Its first call is not counted: threads of the way before
    may still spin. Every second round runs backwards.
    """
    if not ways or rounds < 1 or least < 1:
        raise ValueError(f"expected ways, a round and a call at least, got {len(ways)}, {rounds} and {least}")
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways)[:: 1 if number % 2 == 0 else -1]:
            found[name].append(median(_turn(ways[name], seconds, least)))
    return found


def _turn(call: Call, seconds: float, least: int) -> list[float]:
    call()
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < until:
        begun = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - begun))
    return times


def speed_up(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """How many times faster `ours` is: the median of the ratios within rounds."""
    return median(slow / fast for fast, slow in zip(ours, theirs, strict=True))
