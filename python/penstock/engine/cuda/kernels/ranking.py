"""The order in which cuts of a kernel are worth timing."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from typing import Final, TypeVar

C = TypeVar("C")

_MORE_OF_THE_SAME: Final = 1.15


def diverse(costs: Iterable[tuple[float, C]], kind: Callable[[C], Hashable], limit: int = 12) -> list[C]:
    """The cheapest first, but each further one of a kind counts as dearer than the one before: guesses are wrong about
    whole kinds, and a kind's variations are within a few percent of each other."""
    seen: Counter[Hashable] = Counter()
    ranked: list[tuple[float, C]] = []
    for cost, each in sorted(costs, key=lambda pair: pair[0]):
        ranked.append((cost * _MORE_OF_THE_SAME ** seen[kind(each)], each))
        seen[kind(each)] += 1
    ranked.sort(key=lambda pair: pair[0])
    return [each for _, each in ranked[:limit]]
