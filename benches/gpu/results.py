"""What was measured, as data: rows of ways at one point (a model at a batch), and the verdicts on them. Pure.

A time counts only where the answer is accurate; NaN never is. Comparisons are medians of ratios within rounds, as the
ways took turns. Written by `points`, read by `report` and `engine_gpu`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Final

from benches.gpu.subjects import Bar

OURS: Final = "penstock"
"""What the names of our ways begin with."""

TIE: Final = 0.03
"""What two equal programs differ by in paired medians."""

TOLERANCES: Final[Mapping[str, float]] = {"fp16": 1e-2, "bf16": 5e-2, "int8": 0.25, "fp8": 0.15}
"""Largest error, norm-relative: of sums through a hundred layers; a wrong step is off by a tenth and more. In eight
bits weights from a seed say little about trained ones; a row's note says how far it is from the same numbers in eight
bits, multiplied exactly."""

DIFFERENT: Final = 0.02
"""Largest share of indices that differ: near ties fall either way."""


@dataclass(frozen=True)
class Row:
    """One way at one point."""

    way: str
    turns: tuple[float, ...] = ()
    """Milliseconds, the median of each round; none: `lost` says why."""

    error: float = math.nan
    """Norm-relative to the same model in FP32, the largest of its outputs."""

    different: float = 0.0
    """Share of integers in the outputs that differ."""

    precision: str = "fp16"
    repeats: bool | None = None
    """Whether replays are bitwise equal; None: not looked at."""

    transfers: float = math.nan
    """Milliseconds from pinned memory and back to it; NaN: not measured."""

    note: str = ""
    lost: str = ""

    @property
    def milliseconds(self) -> float:
        return median(self.turns) if self.turns else math.nan

    @property
    def accurate(self) -> bool:
        return self.error <= TOLERANCES[self.precision] and self.different <= DIFFERENT

    @property
    def ours(self) -> bool:
        return self.way.startswith(OURS)

    @property
    def counts(self) -> bool:
        return bool(self.turns) and self.accurate


@dataclass(frozen=True)
class Gauge:
    """What nvidia-smi said."""

    moment: str
    clock: float
    """Of the multiprocessors, MHz."""

    power: float
    """Watts."""

    temperature: float


@dataclass(frozen=True)
class Point:
    """A model at a batch, all ways."""

    model: str
    batch: int
    rows: tuple[Row, ...]
    floor: float
    """Milliseconds."""

    flops: float
    """Of the lowered graph."""

    peer_flops: float
    """Of the torch module; NaN where both are the same steps."""

    choices: str = ""
    """Of the tuner, as JSON."""

    alone: str = ""
    """How row 0 compares with the same input at batch 1; empty: not looked at."""

    gauges: tuple[Gauge, ...] = ()
    seconds: float = 0.0
    complete: bool = True
    """Whether every way was given its time."""

    stamp: Mapping[str, Any] = field(default_factory=dict)
    """The settings it was measured with."""

    @property
    def device(self) -> str:
        return str(self.stamp.get("device", ""))

    @property
    def ours(self) -> Row | None:
        """The fastest of our ways that is right; where none is, one that isn't."""
        rows = [row for row in self.rows if row.ours and row.turns]
        right = [row for row in rows if row.accurate and row.repeats is not False]
        return min(right or rows, key=lambda row: row.milliseconds, default=None)

    @property
    def best_peer(self) -> Row | None:
        rows = [row for row in self.rows if not row.ours and row.counts]
        return min(rows, key=lambda row: row.milliseconds, default=None)

    def fastest(self, name: str) -> Row | None:
        rows = [row for row in self.rows if row.way.startswith(name) and row.counts]
        return min(rows, key=lambda row: row.milliseconds, default=None)


def speed_up(row: Row | None, over: Row | None) -> float:
    """How many times faster `row` is: median of the ratios within rounds; NaN without turns."""
    if row is None or over is None or not row.turns or not over.turns:
        return math.nan
    return median(theirs / own for own, theirs in zip(row.turns, over.turns, strict=False))


def bar_kept(point: Point, bar: Bar) -> bool | None:
    """None where nothing says: no bar, or a rival of it was not measured. A wrong answer keeps no bar."""
    ours = point.ours
    wanted: list[bool | None] = []
    if bar.milliseconds is not None:
        wanted.append(None if ours is None else ours.milliseconds <= bar.milliseconds)
    for times, name in ((bar.times_compiled, "torch.compile"), (bar.times_eager, "eager")):
        if times is not None:
            found = speed_up(ours, point.fastest(name))
            wanted.append(None if math.isnan(found) else found >= times)
    if not wanted:
        return None
    if False in wanted or (ours is not None and not ours.accurate):
        return False
    return None if None in wanted else True


def verdict(point: Point) -> str:
    """Ours against the fastest peer that is accurate."""
    ours, peer = point.ours, point.best_peer
    if ours is None:
        return "not measured"
    if not ours.accurate:
        return "INACCURATE"
    if ours.repeats is False:
        return "UNSTEADY"
    ratio = speed_up(ours, peer)
    if math.isnan(ratio):
        return "no peer"
    if ratio >= 1 + TIE:
        return "faster"
    return "as fast" if ratio >= 1 - TIE else "SLOWER"


FAILING: Final = ("not measured", "INACCURATE", "UNSTEADY", "SLOWER")


def same_work(ours: float, theirs: float) -> bool:
    """Whether two FLOP counts are of one model; layers that became one may multiply 5 % more, none is left out."""
    return math.isnan(theirs) or 0.98 * theirs <= ours <= 1.05 * theirs


def to_data(point: Point) -> dict[str, Any]:
    """NaN, which JSON has not, is null."""
    found: dict[str, Any] = _without_nan(asdict(point))
    return found


def from_data(data: Mapping[str, Any]) -> Point:
    rows = tuple(_row(each) for each in data["rows"])
    gauges = tuple(Gauge(**each) for each in data["gauges"])
    fixed = {"rows": rows, "gauges": gauges, "peer_flops": _number(data["peer_flops"])}
    return Point(**{**data, **fixed})


def _row(data: Mapping[str, Any]) -> Row:
    numbers = {name: _number(data[name]) for name in ("error", "different", "transfers")}
    return Row(**{**data, **numbers, "turns": tuple(data["turns"])})


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
