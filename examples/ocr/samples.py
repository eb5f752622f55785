"""Batches of rendered lines as the recogniser takes them: to calibrate an engine with, and to judge it by.

Promises: both sets are the same on every call, share no picture with each other nor with the demonstration's (short
texts recur in other fonts); a batch is of one width, so that an engine meets few shapes. Lines that fit 48 x 320 make
sets of their own, for engines of that one shape. Called by `metrics`, whose functions `penstock build` names.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from examples.ocr.lines import Line, rendered_lines
from examples.ocr.reader import Floats, Pixels, as_batch, scaled_line

# The demonstration has the seed 2026 of `lines`. One seeded generator makes one line, so other seeds are other lines.
_HELD_OUT_SEED, _CALIBRATION_SEED = 2027, 2028
HELD_OUT, CALIBRATION = 200, 96
# For a build of a minute or so: a gate reads all of them once for the reference and once for each candidate.
FEW_HELD_OUT, FEW_CALIBRATION = 64, 32
_BATCH = 8
SHORT_WIDTH = 320
# Widths are rounded up to these, which pads a median line by a fifth: a shape more costs an engine a preparation.
_WIDTH_STEP = 160
_LINES_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Batch:
    texts: tuple[str, ...]  # what a perfect reader answers, row by row
    pictures: Floats  # FP32 [n, 3, 48, width]


def held_out(count: int = HELD_OUT, *, short: bool) -> list[Batch]:
    """Plain lines only: on those the FP32 recogniser is all but perfect, so a drop is the engine's.

    Fewer of them are the first of all of them.
    """
    return _batches(_lines(_HELD_OUT_SEED, count, short=short, plain=True))


def calibration(count: int = CALIBRATION, *, short: bool) -> Iterator[Batch]:
    """Plain and hard lines, as a service meets both."""
    yield from _batches(_lines(_CALIBRATION_SEED, count, short=short, plain=False))


def _lines(seed: int, wanted: int, *, short: bool, plain: bool) -> list[tuple[Line, Pixels]]:
    """The first `wanted` lines of the kind; `rendered_lines` makes plain and hard ones in turn."""
    found: list[tuple[Line, Pixels]] = []
    for part in count():
        for line in rendered_lines(_LINES_AT_ONCE, seed=1_000 * seed + part):
            if plain and line.kind != "plain":
                continue
            pixels = scaled_line(line.encoded)
            if not short or pixels.shape[1] <= SHORT_WIDTH:
                found.append((line, pixels))
            if len(found) == wanted:
                return found
    raise AssertionError("count() has no end")


def _batches(lines: Sequence[tuple[Line, Pixels]]) -> list[Batch]:
    """Sorted by width and cut into batches; the widest of a batch says how wide it is."""
    ordered = sorted(lines, key=lambda pair: _padded(pair[1].shape[1]))
    found: list[Batch] = []
    start = 0
    while start < len(ordered):
        width = _padded(ordered[start][1].shape[1])
        rows = [pair for pair in ordered[start : start + _BATCH] if _padded(pair[1].shape[1]) == width]
        found.append(Batch(tuple(line.text for line, _ in rows), as_batch([pixels for _, pixels in rows], width)))
        start += len(rows)
    return found


def _padded(width: int) -> int:
    return max(SHORT_WIDTH, -(-width // _WIDTH_STEP) * _WIDTH_STEP)
