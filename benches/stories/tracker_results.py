"""What the story of the tracker measured, as data: it is taken on one machine and may be told on another. Pure.

Written by `tracker_cpu` and `tracker_gpu`, read by `tracker_page`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from statistics import median
from typing import Any, Final

TIE: Final = 0.03
"""What two equal programs differ by in paired medians."""

EAGER, ENGINE, BASE = "eager", "engine", "ONNX Runtime"
"""What the names of ways begin with."""

NO_GRAPH: Final = "no CUDA graph"
"""What the name of an engine's way ends with where the host launches every kernel."""


@dataclass(frozen=True)
class Way:
    """One way to compute the search branch at one batch."""

    name: str
    batch: int
    precision: str
    """FP32, TF32, BF16, FP16 or INT8: the narrowest it computes in."""

    turns_ms: tuple[float, ...] = ()
    """The median call of each round; none: `lost` says why."""

    likeness: float = math.nan
    """Least cosine with FP32 (CPU), or the largest norm-relative error (GPU)."""

    accurate: bool = False
    note: str = ""
    lost: str = ""

    @property
    def milliseconds(self) -> float:
        return median(self.turns_ms) if self.turns_ms else math.nan

    @property
    def counts(self) -> bool:
        return bool(self.turns_ms) and self.accurate


@dataclass(frozen=True)
class Rows:
    """Calls of some rows on an engine that was built for their shape alone, and on one with a range of shapes."""

    rows: int
    built_for: str
    turns_ms: tuple[float, ...]


@dataclass(frozen=True)
class Flight:
    """Requests of one row, one after the other or several under way."""

    way: str
    contexts: int
    ahead: int
    """Requests handed over before the first answer is waited for; 1: each is waited for at once."""

    per_second: float
    p50_ms: float
    """From handing a request over until its answer is taken."""

    p99_ms: float


@dataclass(frozen=True)
class Split:
    """Where a call's time goes, medians in milliseconds; copies are 0 where nothing is copied."""

    way: str
    batch: int
    enqueue: float
    copy_in: float
    compute: float
    copy_out: float
    latency: float


@dataclass(frozen=True)
class Measured:
    """Everything."""

    device: str
    machine: Mapping[str, object]
    settings: Mapping[str, object]
    ways: tuple[Way, ...] = ()
    rows: tuple[Rows, ...] = ()
    flights: tuple[Flight, ...] = ()
    splits: tuple[Split, ...] = ()
    absent: tuple[str, ...] = field(default=())
    """What was not measured, and why."""


def to_data(measured: Measured) -> dict[str, Any]:
    """JSON-able but for NaN, which `report` makes null."""
    return asdict(measured)


def from_data(data: Mapping[str, Any]) -> Measured:
    """Raises ValueError for what `to_data` did not write."""
    try:
        return Measured(
            device=data["device"], machine=data["machine"], settings=data["settings"],
            ways=tuple(_made(Way, each) for each in data["ways"]),
            rows=tuple(_made(Rows, each) for each in data["rows"]),
            flights=tuple(_made(Flight, each) for each in data["flights"]),
            splits=tuple(_made(Split, each) for each in data["splits"]),
            absent=tuple(data["absent"]),
        )  # fmt: skip
    except (KeyError, TypeError) as error:
        raise ValueError(f"expected the data of a tracker story, {error!r}") from None


def _made(kind: Any, data: Mapping[str, Any]) -> Any:
    known = {each.name for each in fields(kind)}
    if data.keys() != known:
        raise ValueError(f"{kind.__name__} has {sorted(data.keys() ^ known)} too many or too few")
    return kind(**{name: tuple(value) if name == "turns_ms" else _number(value) for name, value in data.items()})


def _number(value: Any) -> Any:
    return math.nan if value is None else value


# ---- what is said of it ----


def speed_up(way: Way, over: Way) -> float:
    """How many times faster: the median of the ratios within rounds; NaN without turns."""
    ratios = [theirs / own for own, theirs in zip(way.turns_ms, over.turns_ms, strict=False)]
    return median(ratios) if ratios else math.nan


def best(ways: Sequence[Way], batch: int, start: str, precision: str = "") -> Way | None:
    """The fastest accurate one of a batch whose name begins so."""
    able = [
        each
        for each in ways
        if each.batch == batch and each.name.startswith(start) and each.counts and precision in ("", each.precision)
    ]
    return min(able, key=lambda each: each.milliseconds, default=None)


def plain(ways: Sequence[Way], batch: int) -> Way | None:
    """What the others are seen beside: torch as a module is called, in FP32; without torch ONNX Runtime."""
    by_name = {each.name: each for each in ways if each.batch == batch and each.turns_ms}
    return by_name.get(f"{EAGER} FP32") or by_name.get(f"{BASE} FP32")


def batches(ways: Sequence[Way]) -> tuple[int, ...]:
    return tuple(sorted({each.batch for each in ways}))
