"""One level of load, measured until it is stable: three windows alike in throughput and latency.

Latency in an open loop counts from the moment at which a request was due: a server that stalls delays those who would
have come meanwhile, and leaving them out (coordinated omission) hides the stall. The same counted from sending is
beside it. What never gets stable is a best effort, marked so, with intervals by bootstrap over blocks of time. Called
by `searching`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from penstock.bench.load import ANSWERED, UNSENT, WRONG, Load, Plan, Records
from penstock.bench.subject import Statistics

PERCENTILES: Final = (50, 90, 95, 99)

_ALIKE: Final = 3  # windows
_BLOCK_SECONDS: Final = 0.1
_RESAMPLES: Final = 200
_SAMPLE: Final = 200_000  # latencies that intervals are computed from
_BUSY: Final = 0.9  # of a thread's time
_LATE_SECONDS: Final = 1e-3
_POLL_SECONDS: Final = 0.02

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Settings:
    window_seconds: float = 5.0
    count: int | None = None
    """Requests that make a window, where windows are counted and not timed."""

    stability: float = 0.1
    """How far throughput and latency of a window may be from the mean of three."""

    trials: int = 10
    percentile: int | None = None
    """Latency that has to be stable, and that a limit is for; None: the average."""

    warm_up_seconds: float = 0.5
    limit_us: float | None = None


@dataclass(frozen=True, slots=True)
class Latencies:
    """Microseconds."""

    mean: float
    deviation: float
    percentiles: Mapping[int, float]
    maximum: float

    @classmethod
    def of(cls, nanoseconds: NDArray[Any], more: int | None = None) -> "Latencies":
        wanted = sorted({*PERCENTILES, *([more] if more else [])})
        if not nanoseconds.size:
            return cls(float("nan"), float("nan"), dict.fromkeys(wanted, float("nan")), float("nan"))
        found = np.percentile(nanoseconds, wanted) / 1e3
        return cls(
            float(nanoseconds.mean()) / 1e3,
            float(nanoseconds.std()) / 1e3,
            dict(zip(wanted, map(float, found), strict=True)),
            float(nanoseconds.max()) / 1e3,
        )

    def stable(self, percentile: int | None) -> float:
        """The one that counts."""
        return self.mean if percentile is None else self.percentiles[percentile]


@dataclass(frozen=True, slots=True)
class Window:
    begin: int
    end: int
    requests: int
    throughput: float
    """Answers a second."""

    latency_us: float


@dataclass(frozen=True, slots=True)
class Interval:
    """95 % of resamples lie in it."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Measured:
    """A level of load."""

    mode: str
    """`concurrency` or `request rate`."""

    level: float
    batch: int
    stable: bool
    windows: Sequence[Window]
    requests: int
    """Answered, within the windows that count."""

    throughput: float
    """Inferences a second: rows of answered requests."""

    latency: Latencies
    """From when requests were due."""

    since_sent: Latencies
    failed: int
    wrong: int
    unsent: int
    messages: Mapping[str, int]
    server: Statistics | None
    cpu_us_per_request: float
    busy: float
    """Share of its threads' time that the generator computed."""

    late_us: float
    """How much later than due requests were sent, at the 99th percentile; in an open loop."""

    throughput_interval: Interval | None
    latency_interval: Interval | None
    records: Records = field(repr=False)

    @property
    def saturated(self) -> str:
        """Why the client and not the server may be what was measured; empty where it is not."""
        if self.busy > _BUSY:
            return f"the generator's threads were busy for {100 * self.busy:.0f} % of the time"
        if self.late_us > _LATE_SECONDS * 1e6 and not self.unsent:
            return f"requests were sent {self.late_us / 1e3:.1f} ms late at the 99th percentile"
        return ""


def measure(
    plan: Plan,
    mode: str,
    level: float,
    batch: int,
    settings: Settings,
    statistics: Callable[[], Statistics | None] = lambda: None,
) -> Measured:
    """Raises InvalidArgument for a plan that can't be meant."""
    with Load(plan) as load:
        _wait(load, settings.warm_up_seconds, 1 if settings.count else None)
        windows: list[Window] = []
        seen: list[Statistics | None] = [statistics()]
        spent = [load.cpu_seconds()]
        for _ in range(settings.trials):
            begin = time.monotonic_ns()
            _wait(load, settings.window_seconds, settings.count)
            end = time.monotonic_ns()
            seen.append(statistics())
            spent.append(load.cpu_seconds())
            windows.append(_window(load.records, begin, end, settings))
            if len(windows) >= _ALIKE and _stable(windows[-_ALIKE:], settings):
                break
        load.stop()
        counted = windows[-_ALIKE:]
        return _measured(
            load, mode, level, batch, settings, windows,
            _since(seen, len(counted)),
            spent[-1] - spent[-1 - len(counted)],
        )  # fmt: skip


def _wait(load: Load, seconds: float, count: int | None) -> None:
    """So long, or until so many were answered; a server that answers nothing has ten times the window."""
    if count is None:
        time.sleep(seconds)
        return
    until, wanted = time.monotonic() + 10 * seconds, load.count + count
    while load.count < wanted and time.monotonic() < until:
        time.sleep(_POLL_SECONDS)


def _since(seen: Sequence[Statistics | None], windows: int) -> Statistics | None:
    first, last = seen[-1 - windows], seen[-1]
    return last.since(first) if first is not None and last is not None else None


def _window(records: Records, begin: int, end: int, settings: Settings) -> Window:
    inside = records[(records["received"] >= begin) & (records["received"] < end) & (records["outcome"] == ANSWERED)]
    latencies = Latencies.of((inside["received"] - inside["scheduled"]).astype(np.float64), settings.percentile)
    return Window(begin, end, len(inside), len(inside) / ((end - begin) / 1e9), latencies.stable(settings.percentile))


def _stable(windows: Sequence[Window], settings: Settings) -> bool:
    if not all(each.requests for each in windows):
        return False
    for values in ([each.throughput for each in windows], [each.latency_us for each in windows]):
        middle = float(np.mean(values))
        if any(abs(value - middle) > settings.stability * middle for value in values):
            return False
    return True


def _measured(
    load: Load,
    mode: str,
    level: float,
    batch: int,
    settings: Settings,
    windows: Sequence[Window],
    server: Statistics | None,
    cpu_seconds: float,
) -> Measured:
    counted = windows[-_ALIKE:]
    begin, end = counted[0].begin, counted[-1].end
    seconds = (end - begin) / 1e9
    every = load.records
    open_loop = load.plan.concurrency is None
    arrived = _within(every, "received", begin, end)
    # In an open loop those that were due then, whenever they were answered.
    due = _within(every, "scheduled", begin, end) if open_loop else arrived
    answered = due[due["outcome"] == ANSWERED]
    # Who was never sent has waited for so long at least.
    waited = due[(due["outcome"] == ANSWERED) | (due["outcome"] == UNSENT)]
    from_due = (waited["received"] - waited["scheduled"]).astype(np.float64)
    from_sent = (answered["received"] - answered["sent"]).astype(np.float64)
    arrived_well = arrived[arrived["outcome"] == ANSWERED]
    stable = len(counted) == _ALIKE and _stable(counted, settings)
    throughput = batch * len(arrived_well) / seconds
    intervals = (None, None) if stable else _bootstrap(arrived_well, begin, end, batch, settings)
    late = answered["sent"].astype(np.int64) - answered["scheduled"].astype(np.int64)
    threads = max(1, load.plan.threads)
    return Measured(
        mode, level, batch, stable, tuple(windows), len(arrived_well), throughput,
        Latencies.of(from_due, settings.percentile),
        Latencies.of(from_sent, settings.percentile),
        int(np.sum((due["outcome"] != ANSWERED) & (due["outcome"] != UNSENT))),
        int(np.sum(due["outcome"] == WRONG)),
        int(np.sum(due["outcome"] == UNSENT)),
        load.messages, server,
        1e6 * cpu_seconds / max(1, len(arrived)),
        cpu_seconds / seconds / threads,
        float(np.percentile(late, 99)) / 1e3 if open_loop and late.size else 0.0,
        *intervals, every,
    )  # fmt: skip


def _within(records: Records, key: str, begin: int, end: int) -> Records:
    found: Records = records[(records[key] >= begin) & (records[key] < end)]
    return found


def _bootstrap(
    answered: Records, begin: int, end: int, batch: int, settings: Settings
) -> tuple[Interval | None, Interval | None]:
    """Of throughput, and of the latency that counts: blocks of time are drawn anew, since neighbours are alike."""
    blocks = max(1, int((end - begin) / 1e9 / _BLOCK_SECONDS))
    if blocks < 2 * _ALIKE or not answered.size:
        return None, None
    step = max(1, len(answered) // _SAMPLE)
    place = ((answered["received"] - begin) * blocks // (end - begin)).astype(np.int64)
    latency = (answered["received"] - answered["scheduled"]).astype(np.float64) / 1e3
    counts = np.bincount(place, minlength=blocks)
    by_block = [latency[::step][place[::step] == each] for each in range(blocks)]
    random = np.random.default_rng(0)
    rates, latencies = [], []
    for _ in range(_RESAMPLES):
        drawn = random.integers(0, blocks, blocks)
        rates.append(batch * float(counts[drawn].sum()) / ((end - begin) / 1e9))
        sample = np.concatenate([by_block[each] for each in drawn])
        if sample.size:
            chosen = sample.mean() if settings.percentile is None else np.percentile(sample, settings.percentile)
            latencies.append(float(chosen))
    return _interval(rates), _interval(latencies) if latencies else None


def _interval(values: Sequence[float]) -> Interval:
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(float(low), float(high))
