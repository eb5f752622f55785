"""When requests are due in an open loop: offsets in nanoseconds, for so many seconds, after which they come again.

Arrivals of independent users are a Poisson process; clients that send by a clock of their own are rarer than they are
measured. Called by `searching`.
"""

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from penstock.errors import InvalidArgument, NotFound

POISSON: Final = "poisson"
CONSTANT: Final = "constant"
DISTRIBUTIONS: Final = (POISSON, CONSTANT)

_MOST_REQUESTS: Final = 20_000_000  # 160 MB of offsets

Offsets = NDArray[np.uint64]


def by_rate(rate: float, distribution: str, seconds: float, seed: int) -> Offsets:
    """`rate` requests a second on the average, for about so many seconds.

    Raises InvalidArgument for a rate or a distribution that can't be meant.
    """
    if not 0 < rate < 1e7:
        raise InvalidArgument(f"request rate {rate:g}: expected more than 0 and less than ten million a second")
    count = max(1, round(rate * seconds))
    if count > _MOST_REQUESTS:
        raise InvalidArgument(f"request rate {rate:g} for {seconds:g} s is {count} requests; use several generators")
    if distribution == POISSON:
        # Exponential gaps, scaled so that so many take exactly the time: the rate is the one asked for.
        gaps = np.random.default_rng(seed).exponential(size=count)
        gaps *= count / rate / gaps.sum()
    elif distribution == CONSTANT:
        gaps = np.full(count, 1 / rate)
    else:
        raise InvalidArgument(f"request distribution {distribution!r}: expected {' or '.join(DISTRIBUTIONS)}")
    return _offsets(gaps)


def from_file(path: Path) -> Offsets:
    """A file of intervals, in microseconds, one a line, as perf_analyzer reads them."""
    try:
        lines = path.read_text().split()
    except FileNotFoundError:
        raise NotFound(f"{path.name}: no such file of intervals") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{path.name} can't be read: {error}") from None
    try:
        gaps = np.array([float(each) for each in lines]) / 1e6
    except ValueError as error:
        raise InvalidArgument(f"{path.name}: expected one interval in microseconds a line ({error})") from None
    if not gaps.size or not np.all(np.isfinite(gaps)) or gaps.min() < 0 or gaps.sum() <= 0:
        raise InvalidArgument(f"{path.name}: expected intervals of 0 and more microseconds, some of them more")
    return _offsets(gaps)


def from_trace(path: Path) -> Offsets:
    """A file of moments, in seconds, ascending, one a line: arrivals that were seen somewhere, to be replayed."""
    gaps = np.diff(np.concatenate([[0.0], _moments(path)]))
    return _offsets(gaps)


def _moments(path: Path) -> NDArray[np.float64]:
    try:
        found = np.array([float(each) for each in path.read_text().split()])
    except FileNotFoundError:
        raise NotFound(f"{path.name}: no such trace") from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InvalidArgument(f"{path.name}: expected one moment in seconds a line ({error})") from None
    found -= found[:1].copy()
    if found.size < 2 or not np.all(np.isfinite(found)) or np.any(np.diff(found) < 0) or found[-1] <= 0:
        raise InvalidArgument(f"{path.name}: expected two moments and more, in seconds, ascending")
    return found


def _offsets(gaps: NDArray[np.float64]) -> Offsets:
    return np.maximum(1, np.cumsum(gaps) * 1e9).astype(np.uint64)
