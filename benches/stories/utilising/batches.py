"""Throughput and peak memory by batch, and what the rule of thumb makes of the memory.

EfficientNet-Lite0 at 224 x 224 with its trained weights, by each library as it is. Every batch is computed in a process
of its own, whose highest memory is that batch's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benches.inputs import held_out
from benches.stories.utilising import memory
from benches.stories.utilising.worker import Worker

MODEL: Final = "efficientnet_lite0"
BATCHES: Final = (1, 2, 4, 8, 16, 32, 64)
RUNTIMES: Final = ("onnxruntime", "openvino")
_PICTURES: Final = 16
"""Real ones, again and again in larger batches: what they show costs nothing."""


@dataclass
class Sweep:
    """Of one library."""

    runtime: str
    rates: dict[int, float] = field(default_factory=dict)
    """Pictures a second, by batch."""

    peaks: dict[int, int] = field(default_factory=dict)
    """Bytes of the process, by batch."""

    tried: "Tried | None" = None

    @property
    def line(self) -> memory.Line:
        return memory.fitted(self.peaks)


@dataclass(frozen=True)
class Tried:
    """The rule applied to a limit that a batch of the sweep's size can reach, and then measured."""

    limit: int
    batch: int
    peak: int
    rate: float

    @property
    def within(self) -> bool:
        return self.peak <= self.limit


def measured(path: Path, batches: Sequence[int], seconds: float) -> list[Sweep]:
    found = [Sweep(runtime) for runtime in RUNTIMES]
    for batch in batches:
        for each in found:
            each.rates[batch], each.peaks[batch] = _one(path, each.runtime, batch, seconds)
    for each in found:
        limit = limit_for(each.line, max(batches))
        batch = memory.suggested(limit, each.line)
        rate, peak = _one(path, each.runtime, batch, seconds)
        each.tried = Tried(limit, batch, peak, rate)
    return found


def limit_for(line: memory.Line, batch: int) -> int:
    """Bytes with which the rule suggests about half of this batch."""
    return int(line.each * batch / 2 / memory.SHARE)


def _one(path: Path, runtime: str, batch: int, seconds: float) -> tuple[float, int]:
    (pictures,) = held_out(MODEL, _PICTURES).values()
    inputs = {"x": pictures[[row % _PICTURES for row in range(batch)]]}
    with Worker() as worker:
        worker.load(path, runtime)
        milliseconds = worker.time(inputs, seconds)
        return 1000 * batch / milliseconds, worker.memory().peak
