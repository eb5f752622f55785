"""One run of the bench of engines on a GPU as Markdown and JSON. Pure; called by `engine_gpu`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from benches.gpu.results import (
    DIFFERENT,
    FAILING,
    OURS,
    TIE,
    TOLERANCES,
    Point,
    Row,
    bar_kept,
    speed_up,
    to_data,
    verdict,
)  # fmt: skip
from benches.gpu.subjects import CHIP, SUBJECTS, Bar

SCHEMA: Final = 1


@dataclass(frozen=True)
class Run:
    machine: str
    versions: tuple[tuple[str, str], ...]
    rounds: int
    points: tuple[Point, ...]
    absent: tuple[tuple[str, str], ...]
    """What was asked for and not measured, and why."""


def document(run: Run) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "machine": run.machine,
        "versions": dict(run.versions),
        "rounds": run.rounds,
        "absent": dict(run.absent),
        "verdicts": {
            f"{each.model} {each.batch}": {"verdict": verdict(each), "bar_kept": bar_kept(each, bar_of(each))}
            for each in run.points
        },
        "points": [to_data(each) for each in run.points],
    }


def markdown(run: Run) -> str:
    parts = [_head(run), _summary(run.points)] + ([_ways(run.points)] if run.points else [])
    return "\n\n".join([*parts, _gauges(run.points)]) + "\n"


def bar_of(point: Point) -> Bar:
    """Milliseconds are a bar on the chip that they were set for, multiples are one everywhere."""
    subject = SUBJECTS.get(point.model)
    bar = Bar() if subject is None else subject.bars.get(point.batch, Bar())
    return bar if CHIP in point.device else replace(bar, milliseconds=None)


def _head(run: Run) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run.versions)
    limits = ", ".join(f"{limit:g} in {name.upper()}" for name, limit in TOLERANCES.items())
    lines = [
        "# Engines on a GPU",
        "",
        f"{run.machine}; {versions}. {run.rounds} rounds in which every way of a point takes a turn.",
        "",
        "* **ms**: one replay, inputs on the device in 16 bits (ours as the model has them, torch's channels-last), "
        "between events on its stream; median of the rounds' medians. L2 is not flushed.",
        "* **with transfers**: the same from pinned memory and back to it.",
        "* **error**: length of the difference over the length of the right answer, the largest of the outputs, "
        "against the same model with the same 16-bit weights in FP32 without TF32 on this device, on inputs drawn for "
        f"this run that nothing was tuned on; at most {limits}, and of integer outputs at most {DIFFERENT:.0%} "
        "different. NaN never passes. A row that is not accurate is in parentheses and counts for nothing.",
        f"* **x best peer**: how many times ours is faster than the fastest accurate peer, median of the ratios within "
        f"rounds; within {TIE:.0%} of 1 is as fast.",
        "* **floor**: sum over the lowered steps of the larger of FLOPs at 724 TFLOP/s and bytes at 4.28 TB/s; "
        "**share** is the floor over the time.",
        "* **bar**: what ours has to reach; **same bits**: whether replays are bitwise equal; **row alone**: row 0 of "
        "the batch against the same input at batch 1.",
    ]
    lines += [f"* {name}: {why}" for name, why in run.absent]
    return "\n".join(lines)


def _summary(points: Sequence[Point]) -> str:
    lines = [
        "## Ours",
        "",
        "| model | batch | ms | with transfers | best peer | its ms | its transfers | x best peer | | error | floor ms "
        "| share | bar | | same bits | row alone |",
        "|" + "---|" * 16,
    ]
    for point in points:
        ours, peer = point.ours, point.best_peer
        kept = bar_kept(point, bar := bar_of(point))
        cells = [
            point.model, point.batch, _ms(ours), _number(ours.transfers if ours else math.nan),
            peer.way if peer else "-", _ms(peer), _number(peer.transfers if peer else math.nan),
            _number(speed_up(ours, peer), 2), verdict(point), _error(ours), f"{point.floor:.4f}",
            f"{point.floor / ours.milliseconds:.0%}" if ours else "-", str(bar) or "-",
            {True: "kept", False: "MISSED", None: "-"}[kept], _repeats(ours), point.alone or "-",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _ways(points: Sequence[Point]) -> str:
    lines = ["## All ways", "", "| model | batch | way | ms | x ours | error | same bits | precision | |"]
    lines.append("|" + "---|" * 9)
    for point in points:
        for row in sorted(point.rows, key=lambda row: (not row.turns, row.milliseconds if row.turns else 0.0)):
            if not row.turns:
                lines.append(f"| {point.model} | {point.batch} | {row.way} | | | | | | {_cell(row.lost)} |")
                continue
            figures = [_ms(row), _number(speed_up(point.ours, row), 2)]
            if not row.accurate:
                figures = [f"({each})" for each in figures]
            name = f"**{row.way}**" if row.way.startswith(OURS) else row.way
            cells = [name, *figures, _error(row), _repeats(row), row.precision, _cell(row.note)]
            lines.append(f"| {point.model} | {point.batch} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _gauges(points: Sequence[Point]) -> str:
    lines = [
        "## Work and the chip's state",
        "",
        "| model | batch | GFLOP ours | GFLOP torch's module | seconds | complete | clock, power, temperature |",
        "|" + "---|" * 7,
    ]
    for point in points:
        said = "; ".join(
            f"{each.moment} {each.clock:.0f} MHz {each.power:.0f} W {each.temperature:.0f} °C" for each in point.gauges
        )
        theirs = "the same steps" if math.isnan(point.peer_flops) else f"{point.peer_flops / 1e9:.3f}"
        lines.append(
            f"| {point.model} | {point.batch} | {point.flops / 1e9:.3f} | {theirs} | {point.seconds:.0f} | "
            f"{'yes' if point.complete else 'no'} | {said or '-'} |"
        )
    return "\n".join(lines)


def failures(run: Run) -> list[str]:
    """What `--check` ends with 1 for; everything that was asked for has to be there."""
    found = [f"{name}: {why}" for name, why in run.absent]
    for point in run.points:
        said = verdict(point)
        if said in FAILING:
            found.append(f"{point.model} at batch {point.batch}: {said}")
        found += [
            f"{point.model} at batch {point.batch}, {row.way}: INACCURATE, {_error(row)}"
            for row in point.rows
            if row.ours and row.turns and not row.accurate and row is not point.ours
        ]
    return found


def counts(points: Sequence[Point]) -> str:
    """For a last line: `faster 5, SLOWER 1; bars 4 kept, 2 missed`."""
    found: dict[str, int] = {}
    for point in points:
        found[verdict(point)] = found.get(verdict(point), 0) + 1
    kept = [bar_kept(point, bar_of(point)) for point in points]
    verdicts = ", ".join(f"{name} {count}" for name, count in sorted(found.items()))
    return f"{verdicts or 'nothing measured'}; bars {kept.count(True)} kept, {kept.count(False)} missed"


def _ms(row: Row | None) -> str:
    return _number(row.milliseconds if row else math.nan)


def _number(value: float, digits: int = 4) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _error(row: Row | None) -> str:
    if row is None:
        return "-"
    said = "NaN" if math.isnan(row.error) else f"{row.error:.1e}"
    return f"{said}, {row.different:.1%} of indices" if row.different else said


def _repeats(row: Row | None) -> str:
    return "-" if row is None or row.repeats is None else ("yes" if row.repeats else "NO")


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")
