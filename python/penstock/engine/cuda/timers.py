"""What one call of a step takes, by a CUDA graph of many or by the clock: the tuner's stopwatches.

Called by the tuner and by the runtime for its regions.
"""

import statistics
import time
from collections.abc import Callable
from typing import Final

import torch

Call = Callable[[], object]
Timer = Callable[[Call], float]
"""Microseconds of one call."""

_SAMPLE_SECONDS: Final = 1.5e-3  # of the device in one measurement
_LAUNCH: Final = 10.0  # microseconds of launching a graph, of which a few calls show more than many
_FEW: Final = 8  # calls of a glance
_MOST: Final = 16  # calls of a longer look: each takes the host a fifth of a millisecond to take down


def timer_for(device: torch.device) -> Timer:
    return in_a_graph if device.type == "cuda" else by_the_clock


def glance(call: Call) -> float:
    """Within a fifth or so."""
    from penstock.engine.cuda.kernels.tuning import microseconds

    _make_room()
    return max(0.1, microseconds(call, calls=_FEW, replays=2) - _LAUNCH / _FEW)


def in_a_graph(call: Call) -> float:
    return refined(call, glance(call))


def refined(call: Call, rough: float) -> float:
    """As it will be run; as many calls as make a measurement, and no more."""
    from penstock.engine.cuda.kernels.tuning import microseconds

    calls = max(3, min(_MOST, int(_SAMPLE_SECONDS * 1e6 / max(rough, 1.0))))
    return max(0.1, microseconds(call, calls=calls, replays=7) - _LAUNCH / calls)


def _make_room() -> None:
    free, total = torch.cuda.mem_get_info()
    if free < total // 2:  # graphs that are gone leave their pools behind, and a capture can't give them back
        torch.cuda.empty_cache()


def by_the_clock(call: Call) -> float:
    times = []
    for _ in range(3):
        started = time.perf_counter()
        call()
        times.append((time.perf_counter() - started) * 1e6)
    return statistics.median(times)
