"""What this story's measurements say: tables, figures, and sentences with their bars. Computes, measures nothing."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benches.stories.report import COLOURS, Cell, Table

ENGINE_BAR: Final = 2.0
ENGINE_BAR_AMX: Final = 4.0
"""Of the engine over the plain model at the highest concurrency; tiles of BF16 and bytes make the larger one."""

GPU_BAR: Final = 9.9
GPU_P95_BAR_MS: Final = 4.8
"""What was reported on a GPU: the last way's peak over the first's, and its 95th percentile there."""

ACCURACY_BAR: Final = 0.01
HARD_BAR: Final = 0.02
"""Of characters, what any way may read worse than the plain one; hard lines are read by guesses, which scatter."""

REPORTED: Final = (
    ("plain", "679 → 677", "6.0 → 47.5"),
    ("dynamic batching", "672 → 1163", "–"),
    ("two instances", "570 → 1329", "–"),
    ("TensorRT FP16", "2901 → 6750", "1.4 → 4.8"),
)
"""By practitioners, of a recogniser of theirs on a GPU, client batch 2, concurrency 2 to 16."""

_COLUMNS: Final = (
    ("infer/s", "infer_per_s"),
    ("p50 ms", "p50_ms"),
    ("p95 ms", "p95_ms"),
    ("p99 ms", "p99_ms"),
    ("queue ms", "queue_ms"),
    ("compute ms", "compute_ms"),
    ("rows of a batch", "rows_of_a_batch"),
    ("CPU ms a line", "cpu_ms"),
    ("lowest turn", "lowest_turn"),
    ("highest turn", "highest_turn"),
)

Figures = Mapping[str, float]


@dataclass(frozen=True)
class Reading:
    accuracy: float
    """1 - edits / characters of the truth, of lines as a scanner sees them."""

    hard: float
    """The same of lines that are blurred, turned, and printed over a photograph."""

    like_plain: float
    """The share of lines that it reads as the first way does."""


_TICKS: Final = [digit * 10.0**power for power in range(-2, 5) for digit in (1, 2, 5)]  # of logarithmic axes


@dataclass(frozen=True)
class Results:
    """All that was measured, by names in the order of the tables."""

    ours: tuple[str, ...]
    """From the first step to the last; those that were measured."""

    peers: tuple[str, ...]
    levels: tuple[int, ...]
    points: Mapping[tuple[str, int], Figures]
    readings: Mapping[str, Reading]
    words: Mapping[str, str]
    gpu: bool
    amx: bool

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.ours, *self.peers)

    def peak(self, name: str) -> tuple[int, Figures]:
        """The concurrency of the most inferences a second, and its figures."""
        level = max(self.levels, key=lambda each: self.points[name, each]["infer_per_s"])
        return level, self.points[name, level]


def to_data(results: Results) -> dict[str, Any]:
    """JSON-able; `from_data` gives the same again."""
    points = [{"served": name, "at_once": level, **each} for (name, level), each in results.points.items()]
    readings = {name: vars(each) for name, each in results.readings.items()}
    return vars(results) | {"points": points, "readings": readings}


def from_data(data: Mapping[str, Any]) -> Results:
    def figures(each: Mapping[str, Any]) -> Figures:
        values = {key: value for key, value in each.items() if key not in ("served", "at_once")}
        return {key: math.nan if value is None else float(value) for key, value in values.items()}

    return Results(
        ours=tuple(data["ours"]), peers=tuple(data["peers"]), levels=tuple(data["levels"]),
        points={(each["served"], each["at_once"]): figures(each) for each in data["points"]},
        readings={name: Reading(**each) for name, each in data["readings"].items()},
        words=data["words"], gpu=data["gpu"], amx=data["amx"],
    )  # fmt: skip


def tables(results: Results) -> tuple[Table, ...]:
    rows: list[tuple[Cell, ...]] = [
        (name, level, *(results.points[name, level][key] for _, key in _COLUMNS))
        for name in results.names
        for level in results.levels
    ]
    return (
        Table("Two lines a request", ("served", "at once", *(title for title, _ in _COLUMNS)), tuple(rows)),
        Table(
            "What they are and what they read",
            ("served", "with", "characters right %", "of hard lines %", "lines as the first %"),
            tuple(
                (name, results.words[name], 100 * each.accuracy, 100 * each.hard, 100 * each.like_plain)
                for name, each in results.readings.items()
            ),
        ),
        Table("Reported on a GPU, 2 → 16 at once", ("served", "infer/s", "p95 ms"), REPORTED),
    )


def findings(results: Results) -> tuple[str, ...]:
    most = results.levels[-1]
    last = results.ours[-1]
    found = [_peak(results, name) for name in results.names]
    if len(results.ours) > 1:
        first = results.ours[0]
        at_most = _ratio(results.points[last, most], results.points[first, most])
        by_peak = _ratio(results.peak(last)[1], results.peak(first)[1])
        if results.gpu:
            found.append(
                f"From the first to the last, peak over peak: {by_peak:.1f} times "
                f"(bar: {GPU_BAR}): {_kept(by_peak >= GPU_BAR)}."
            )
        else:
            bar = ENGINE_BAR_AMX if results.amx else ENGINE_BAR
            found.append(
                f"At {most} at once the {last} serves {at_most:.2f} times what the {first} model does "
                f"(bar with{'' if results.amx else 'out'} AMX: {bar:g}): {_kept(at_most >= bar)}."
            )
            found.append(f"From the first to the last, peak over peak: {by_peak:.2f} times (reported on a GPU: 9.9).")
        base, mine = (results.points[name, most]["cpu_ms"] for name in (first, last))
        found.append(
            f"A line at {most} at once costs {base:.2f} ms of a core with the {first} model and {mine:.2f} ms with the "
            f"{last}: {base / mine if mine else math.nan:.2f} times less."
        )
    p95 = results.peak(last)[1]["p95_ms"]
    if results.gpu:
        kept = _kept(p95 <= GPU_P95_BAR_MS)
        found.append(f"The {last}'s p95 at its peak is {p95:.2f} ms (bar: {GPU_P95_BAR_MS} ms): {kept}.")
    found += _beside_peers(results, last)
    found += _split(results, most)
    found.append(_accuracy(results))
    failed = {name: sum(results.points[name, level]["failed"] for level in results.levels) for name in results.names}
    lost = ", ".join(f"{name} {count:.0f}" for name, count in failed.items() if count)
    found.append(f"Requests that failed: {lost or 'none'}.")
    busiest = max(each["generator_busy"] for each in results.points.values())
    if busiest > 0.9:
        found.append(f"The load generator computed for {100 * busiest:.0f} % of a turn: servers may be faster.")
    return tuple(found)


def _peak(results: Results, name: str) -> str:
    level, figures = results.peak(name)
    low, high = (results.points[name, each] for each in (results.levels[0], results.levels[-1]))
    return (
        f"{name}: {_number(low['infer_per_s'])} → {_number(high['infer_per_s'])} infer/s, p95 {low['p95_ms']:.1f} → "
        f"{high['p95_ms']:.1f} ms from {results.levels[0]} to {results.levels[-1]} at once; "
        f"the most at {level}: {_number(figures['infer_per_s'])}."
    )


def _beside_peers(results: Results, last: str) -> list[str]:
    if not results.peers:
        return []
    best = max(results.peers, key=lambda name: results.peak(name)[1]["infer_per_s"])
    theirs = results.peak(best)[1]
    found = [
        f"The best peer is {best}: at their peaks the {last} serves {_ratio(results.peak(last)[1], theirs):.2f} times "
        "as much."
    ]
    costs = ", ".join(f"{name} {results.points[name, results.levels[-1]]['cpu_ms']:.2f}" for name in results.peers)
    found.append(f"With peers a line costs (ms of a core): {costs}.")
    plain = [name for name in results.ours if name != last]
    if plain:
        fastest = max(plain, key=lambda name: results.peak(name)[1]["infer_per_s"])
        ratio = _ratio(results.peak(fastest)[1], theirs)
        found.append(
            f"With the same model in ONNX Runtime, ours ({fastest}) serves {ratio:.2f} times what {best} does."
        )
    return found


def _split(results: Results, level: int) -> list[str]:
    found = []
    for name in (results.ours[0], results.ours[-1]):
        each = results.points[name, level]
        if math.isfinite(each["queue_ms"]):
            found.append(
                f"{name}: of an average {each['mean_ms']:.1f} ms at {level} at once a request waits "
                f"{each['queue_ms']:.1f} ms and is computed for {each['compute_ms']:.1f} ms."
            )
    return list(dict.fromkeys(found))


def _accuracy(results: Results) -> str:
    found = [100 * each.accuracy for each in results.readings.values()]
    return (
        f"Characters of plain lines read right: {min(found):.2f} to {max(found):.2f} % "
        f"(bar: at most {100 * ACCURACY_BAR:g} point below the first, {100 * HARD_BAR:g} of hard lines): "
        f"{_kept(accurate(results))}."
    )


def accurate(results: Results) -> bool:
    base, *others = results.readings.values()
    return all(base.accuracy - each.accuracy <= ACCURACY_BAR and base.hard - each.hard <= HARD_BAR for each in others)


def _ratio(mine: Figures, theirs: Figures) -> float:
    """NaN, which passes no bar, where nothing was answered."""
    return mine["infer_per_s"] / theirs["infer_per_s"] if theirs["infer_per_s"] else math.nan


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _kept(good: bool) -> str:
    """NaN passes nothing: it is never `good`."""
    return "kept" if good else "MISSED"


# ---- figures ----


def figures(results: Results) -> tuple[Any, ...]:
    """Throughput and p95 over concurrency, and where a request's time goes at the highest."""
    return (
        _lines(results, "infer_per_s", "Throughput, two lines a request", "inferences a second", log=False),
        _lines(results, "p95_ms", "Latency, 95th percentile", "milliseconds (logarithmic)", log=True),
        _parts(results),
    )


def _lines(results: Results, key: str, title: str, axis: str, *, log: bool) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    dashes = dict.fromkeys(results.peers, "dot")
    for number, name in enumerate(results.names):
        figure.add_scatter(
            x=[str(level) for level in results.levels],
            y=[results.points[name, level][key] for level in results.levels],
            name=name, mode="lines+markers", marker={"size": 10},
            line={"width": 3, "color": COLOURS[number % len(COLOURS)], "dash": dashes.get(name)},
        )  # fmt: skip
    return figure.update_layout(
        title=title, xaxis_title="requests at once", yaxis_title=axis, xaxis_type="category",
        yaxis={"type": "log", "tickvals": _TICKS} if log else {"rangemode": "tozero"},
    )  # fmt: skip


def _parts(results: Results) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    most = results.levels[-1]
    told: Sequence[str] = [name for name in results.names if math.isfinite(results.points[name, most]["queue_ms"])]
    for at, part in enumerate(("queue", "compute")):
        values = [results.points[name, most][f"{part}_ms"] for name in told]
        figure.add_bar(
            x=told, y=values, name=part, marker_color=COLOURS[at], text=[f"{each:.1f}" for each in values],
            textangle=0,
        )  # fmt: skip
    return figure.update_layout(
        title=f"An average request inside the server, {most} at once", barmode="stack",
        xaxis_title="served", yaxis_title="milliseconds",
    )  # fmt: skip
