"""One run of the bench of engines as Markdown and JSON.

Speed-ups are over ONNX Runtime FP32 within the same round. Rows whose answers are not accurate enough are marked and
never the best single one; rows that failed carry the reason and no figures. Pure. Called by `engine_cpu`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import geometric_mean
from typing import Any

from benches.engines.contenders import OURS, TWINS
from benches.engines.contest import Row, base_of, best_single, ours_of, speed_up
from benches.engines.judging import Judged

SCHEMA = 1

# What two equal programs differ by in paired medians on a shared machine.
TIE = 0.03


@dataclass(frozen=True)
class Result:
    """One model, all its batches."""

    model: str
    shape: tuple[int, ...]
    rows: tuple[Row, ...]
    build_seconds: float
    gate: str
    """As the build was given it, and as every contender is held to."""
    build_failure: str = ""
    """What `penstock build` said when it gave no engine."""

    @property
    def batches(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(row.batch for row in self.rows))

    def at(self, batch: int) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.batch == batch)


@dataclass(frozen=True)
class Run:
    machine: str
    flags: tuple[str, ...]
    cores: int
    versions: tuple[tuple[str, str], ...]
    rounds: int
    budget_seconds: float
    results: tuple[Result, ...]
    absent: tuple[tuple[str, str], ...]


def result_to_json(result: Result) -> dict[str, Any]:
    return asdict(result)


def result_from_json(data: dict[str, Any]) -> Result:
    rows = tuple(
        Row(
            **(row | {"turns_ms": tuple(row["turns_ms"]), "judged": Judged(**row["judged"]) if row["judged"] else None})
        )
        for row in data["rows"]
    )
    return Result(data["model"], tuple(data["shape"]), rows, data["build_seconds"], data["gate"], data["build_failure"])


@dataclass(frozen=True)
class Check:
    """Ours against the fastest single candidate that is accurate enough."""

    model: str
    batch: int
    single: str
    ratio: float
    """Their time over ours within a round, median; at least 1: none is faster than ours."""
    least: float
    most: float
    accurate: bool
    """Ours, on the held-out inputs."""
    tie: float = TIE
    """What is no difference here."""

    @property
    def verdict(self) -> str:
        if math.isnan(self.ratio):
            return "not measured"
        if not self.accurate:
            return "INACCURATE"
        if self.ratio >= 1 + self.tie:
            return "faster"
        return "as fast" if self.ratio >= 1 - self.tie else "SLOWER"


def checks(run: Run) -> Iterator[Check]:
    for result in run.results:
        for batch in result.batches:
            rows = result.at(batch)
            best, ours = best_single(rows), ours_of(rows)
            figures = speed_up(ours, best) if ours and best else (math.nan,) * 3
            tie = max(TIE, _chance(rows)) if best and best.contender in TWINS else TIE
            yield Check(
                result.model, batch, best.contender if best else "", *figures, bool(ours and ours.accurate), tie
            )


def _chance(rows: Sequence[Row]) -> float:
    """By how much the slower of two equal programs was behind the other; 0 where there are no such two."""
    twins = [row for row in rows if row.contender in TWINS and row.turns_ms]
    if len(twins) != len(TWINS) or twins[0].detail != twins[1].detail:
        return 0.0
    ratio = speed_up(*twins)[0]
    return 1 - min(ratio, 1 / ratio)


def means(run: Run) -> dict[str, tuple[float, int]]:
    """Geometric mean of the speed-up over ONNX Runtime FP32 by contender, and of how many points."""
    found: dict[str, list[float]] = {}
    for result in run.results:
        for batch in result.batches:
            rows = result.at(batch)
            base = base_of(rows)
            for row in rows:
                if base and not row.lost and row.accurate:
                    found.setdefault(row.contender, []).append(speed_up(row, base)[0])
            best = best_single(rows)
            if base and best:
                found.setdefault("best single of each point", []).append(speed_up(best, base)[0])
    return {name: (geometric_mean(values), len(values)) for name, values in found.items()}


def markdown(run: Run) -> str:
    return "\n\n".join([_head(run), _checks(run), _means(run), *map(_model, run.results)]) + "\n"


def document(run: Run) -> dict[str, Any]:
    """The JSON document; NaN, which JSON has not, is null."""
    found = asdict(run) | {
        "schema": SCHEMA,
        "versions": dict(run.versions),
        "checks": [asdict(check) | {"verdict": check.verdict} for check in checks(run)],
        "geometric_mean_speed_up": {
            name: {"times": mean, "points": count} for name, (mean, count) in means(run).items()
        },
    }
    cleaned = _without_nan(found)
    assert isinstance(cleaned, dict)
    return cleaned


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _head(run: Run) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run.versions)
    lines = [
        "# Engines on this CPU",
        "",
        f"{run.machine}, {run.cores} cores ({', '.join(run.flags)}); {versions}. {run.rounds} rounds; "
        f"builds had {run.budget_seconds:.0f} s each.",
        "",
        "Times are medians of the rounds' medians, of calls with arrays in and arrays out. Speed-ups are taken within "
        "a round. Accuracy is that of held-out inputs against ONNX Runtime unoptimised; a row outside the model's gate "
        "is in parentheses and counts for nothing.",
    ]
    lines += [f"* {name}: {why}" for name, why in run.absent]
    return "\n".join(lines)


def _checks(run: Run) -> str:
    lines = [
        "## Ours against the best single candidate",
        "",
        "| model | batch | best single | ours / best single | range | |",
    ]
    lines.append("|---|---|---|---|---|---|")
    for check in checks(run):
        lines.append(
            f"| {check.model} | {check.batch} | {check.single} | {_times(check.ratio)} | "
            f"{_times(check.least)}-{_times(check.most)} | {check.verdict}{_aside(check)} |"
        )
    return "\n".join(lines)


def _aside(check: Check) -> str:
    return f" (equal programs are {check.tie:.0%} apart)" if check.tie > TIE else ""


def _means(run: Run) -> str:
    lines = ["## Speed-up over ONNX Runtime FP32", "", "| | geometric mean | points |", "|---|---|---|"]
    ranked = sorted(means(run).items(), key=lambda item: -item[1][0])
    lines += [f"| {name} | {_times(mean)} | {count} |" for name, (mean, count) in ranked]
    return "\n".join(lines)


def _model(result: Result) -> str:
    built = f"No engine: {result.build_failure}" if result.build_failure else f"Built in {result.build_seconds:.0f} s."
    lines = [f"## {result.model}, {' x '.join(map(str, result.shape))}", "", f"{built} Gate: {result.gate}.", ""]
    lines.append("| contender | batch | ms | speed-up | range | least cosine | same top | metric's drop | |")
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for row in result.rows:
        base = base_of(result.at(row.batch))
        if row.lost or row.judged is None:
            lines.append(f"| {row.contender} | {row.batch} | | | | | | | {_cell(row.lost)} |")
            continue
        middle, least, most = speed_up(row, base) if base else (math.nan,) * 3
        figures = [f"{row.milliseconds:.2f}", _times(middle), f"{_times(least)}-{_times(most)}"]
        if not row.accurate:
            figures = [f"({each})" for each in figures]
        drop = "" if math.isnan(row.judged.drop) else f"{row.judged.drop:.4f}"
        name = f"**{row.contender}**" if row.contender == OURS else row.contender
        cells = [name, row.batch, *figures, f"{row.judged.least_cosine:.5f}", f"{row.judged.same_top:.3f}", drop]
        lines.append(f"| {' | '.join(map(str, cells))} | {_cell(row.detail)} |")
    return "\n".join(lines)


def _times(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


def verdict_counts(found: Sequence[Check]) -> str:
    """For a last line: `faster 5, as fast 9, SLOWER 1`."""
    counts: dict[str, int] = {}
    for check in found:
        counts[check.verdict] = counts.get(check.verdict, 0) + 1
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
