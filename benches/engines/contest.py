"""One model at one batch: every contender in a process of its own, compared in accuracy and timed in turns.

Promises: only one process computes at any instant; a round gives everyone one turn, in an order that is reversed every
round, and ratios are taken within a round, so that a machine that slows down slows all alike; medians, and the range of
the rounds beside them. A contender that fails is a row with the reason. Called by `engine_cpu`.
"""

import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benches.engines.child import Arrays, Child, LostError
from benches.engines.contenders import BASE, OURS, Contender
from benches.engines.judging import DifferentError, Gate, Judge, Judged, pieces

TURN_SECONDS, LEAST_CALLS = 0.3, 3


@dataclass(frozen=True)
class Row:
    """What became of one contender."""

    contender: str
    batch: int
    detail: str = ""
    lost: str = ""
    """Why there are no figures."""
    judged: Judged | None = None
    turns_ms: tuple[float, ...] = ()
    """Median call of each round's turn."""

    @property
    def accurate(self) -> bool:
        return self.judged is not None and self.judged.accurate

    @property
    def milliseconds(self) -> float:
        return median(self.turns_ms) if self.turns_ms else math.nan


def speed_up(row: Row, base: Row) -> tuple[float, float, float]:
    """How many times faster than `base`, within each round: the median, the least and the most. NaN without figures."""
    ratios = [theirs / ours for ours, theirs in zip(row.turns_ms, base.turns_ms, strict=False)]
    return (median(ratios), min(ratios), max(ratios)) if ratios else (math.nan,) * 3


def best_single(rows: Sequence[Row]) -> Row | None:
    """The fastest of one batch that is accurate enough and not ours."""
    able = [row for row in rows if row.contender != OURS and not row.lost and row.accurate]
    return min(able, key=lambda row: row.milliseconds, default=None)


def contest(
    contenders: Sequence[Contender], reference: Contender, held_out: Arrays, gate: Gate, batch: int, rounds: int
) -> list[Row]:
    """Every contender's row, the base first. Raises LostError when the reference can't be run."""
    with tempfile.TemporaryDirectory(prefix="engine-cpu-") as name, ExitStack() as stack:
        folder = Path(name)
        first = folder / "first.npz"
        named: dict[str, Any] = next(pieces(held_out, batch))
        np.savez(first, **named)
        with Child(reference, folder) as child:
            child.load(first)
            judge = Judge(gate, held_out, batch, child.run)
        rows: dict[str, Row] = {}
        running: dict[str, Child] = {}
        for contender in contenders:
            child = stack.enter_context(Child(contender, folder))
            try:
                detail = child.load(first)
                judged = judge.judge(child.run)
                child.time(TURN_SECONDS, LEAST_CALLS)  # warm
            except (LostError, DifferentError) as error:
                rows[contender.name] = Row(contender.name, batch, lost=str(error))
                continue
            rows[contender.name] = Row(contender.name, batch, detail, "", judged)
            running[contender.name] = child
        turns = _rounds(running, rounds)
        return [_finished(row, turns.get(name)) for name, row in rows.items()]


def _rounds(running: dict[str, Child], rounds: int) -> Mapping[str, list[float] | LostError]:
    turns: dict[str, list[float]] = {name: [] for name in running}
    lost: dict[str, LostError] = {}
    for number in range(rounds):
        order = list(running) if number % 2 == 0 else list(reversed(running))
        for name in order:
            try:
                times = running[name].time(TURN_SECONDS, LEAST_CALLS)
            except LostError as error:
                lost[name] = error
                del running[name]
                continue
            turns[name].append(median(times) / 1e6)
            print(f"  round {number + 1}  {name:32} {turns[name][-1]:9.2f} ms", file=sys.stderr, flush=True)
    return turns | lost


def _finished(row: Row, turns: list[float] | LostError | None) -> Row:
    if turns is None:
        return row
    if isinstance(turns, LostError):
        return Row(row.contender, row.batch, row.detail, str(turns))
    return replace(row, turns_ms=tuple(turns))


def base_of(rows: Sequence[Row]) -> Row | None:
    return next((row for row in rows if row.contender == BASE and not row.lost), None)


def ours_of(rows: Sequence[Row]) -> Row | None:
    return next((row for row in rows if row.contender == OURS and not row.lost), None)
