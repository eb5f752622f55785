"""Tells a server that keeps a little of each request from one that has only warmed up.

Allocators grow in steps and caches fill once; a leak grows for ever. So several windows of equal work are measured
after a warm-up, and the smallest growth counts: a leak shows in every window, a step in one.
"""

from collections.abc import Callable
from dataclasses import dataclass

WINDOWS = 3
ALLOWED_PER_100 = 1 << 20


@dataclass(frozen=True)
class Growth:
    """Bytes per 100 requests in the calmest window."""

    bytes_per_100: float
    windows: tuple[int, ...]

    @property
    def leaks(self) -> bool:
        return self.bytes_per_100 > ALLOWED_PER_100


def measure(resident: Callable[[], int], work: Callable[[], int]) -> Growth:
    """`work` does the same each time and returns how many requests that was; `resident` reads the bytes held."""
    work()
    windows, requests = [], 0
    for _ in range(WINDOWS):
        before = resident()
        requests = work()
        windows.append(resident() - before)
    return Growth(min(windows) * 100 / requests, tuple(windows))
