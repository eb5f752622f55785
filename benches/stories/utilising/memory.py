"""What a process holds, and the rule of thumb that sizes a batch by memory.

The rule: best batch = 0.8 x memory / memory of a sample. It is applied as practitioners write it, and then judged by
what was measured. Pure but for /proc.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

SHARE: Final = 0.8
"""Of the memory that the rule gives to samples; the rest is for the model and for what it didn't think of."""

NEAR_BEST: Final = 0.97
"""Of the best throughput: three in a hundred are noise."""


@dataclass(frozen=True)
class Memory:
    """Of one process, in bytes."""

    now: int
    peak: int


def of_process(process: int) -> Memory:
    """Raises OSError where the process has ended."""
    facts = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines() if ":" in line)
    return Memory(*(int(facts[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM")))


def available() -> int:
    """Bytes that programs can have on this machine without swapping, this container's limit included."""
    found = [_meminfo()]
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        found.append(int(text))
    return min(found)


def _meminfo() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo does not say what is available")


@dataclass(frozen=True)
class Line:
    """Peak memory by batch: base + each x batch, in bytes."""

    base: float
    each: float

    def at(self, batch: int) -> float:
        return self.base + self.each * batch


def fitted(peaks: Mapping[int, float]) -> Line:
    """Least squares over the batches that were measured. Raises ValueError for fewer than two."""
    if len(peaks) < 2:
        raise ValueError(f"expected the memory of two batches or more, got {len(peaks)}")
    each, base = np.polyfit(list(peaks), list(peaks.values()), 1)
    return Line(float(base), float(each))


def suggested(memory: float, line: Line) -> int:
    """By the rule, at least 1. Raises ValueError where a sample takes no memory that could be seen."""
    if line.each <= 0:
        raise ValueError(f"a sample takes {line.each:.0f} bytes: the rule can't be applied")
    return max(1, int(SHARE * memory / line.each))


def best(rates: Mapping[int, float]) -> int:
    """The batch of the highest throughput."""
    return max(rates, key=lambda batch: rates[batch])


def enough(rates: Mapping[int, float]) -> int:
    """The smallest batch that is near the best."""
    top = max(rates.values())
    return min(batch for batch, rate in rates.items() if rate >= NEAR_BEST * top)
