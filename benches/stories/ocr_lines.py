"""Text lines as the recogniser's clients of this story send them: 48 x 320 pixels in bytes, and what is read off.

Promises: rendered lines whose truth is known, plain and hard ones in turn, none of which the engine was calibrated with
or judged by; they travel as one file to machines that can't render. `penstock build` is given the functions at the end.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

HEIGHT, WIDTH = 48, 320
INPUT, INDEX, VALUE = "x", "fetch_name_0_index", "fetch_name_0_value"
LINES: Final = 128
_GREY: Final = 127.5
_PAPER: Final = 128
"""What a shorter line is filled up with: nothing, to the recogniser."""
_FILE: Final = "lines.npz"

Bytes = NDArray[np.uint8]
Run = Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]


@dataclass(frozen=True)
class Lines:
    texts: tuple[str, ...]
    pictures: Bytes
    """[n, 48, 320, 3], blue-green-red."""

    hard: tuple[bool, ...]
    """Blurred, turned, printed over a photograph; the others are as a scanner sees them."""

    alphabet: tuple[str, ...]
    """Class -> character; class 0 is the CTC blank."""

    def first(self, count: int) -> "Lines":
        return Lines(self.texts[:count], self.pictures[:count], self.hard[:count], self.alphabet)

    def read(self, index: NDArray[np.int64]) -> list[str]:
        """[n, columns] of classes to text: repeats merged, blanks dropped (Graves et al. 2006, best path)."""
        found = []
        for row in index:
            kept = row != 0
            kept[1:] &= row[1:] != row[:-1]
            found.append("".join(self.alphabet[each] for each in row[kept]))
        return found

    def accuracy(self, readings: Sequence[str], *, hard: bool) -> float:
        """1 - edits / characters of the truth, all lines of a kind together. NaN without such lines."""
        pairs = [each[:2] for each in zip(self.texts, readings, self.hard, strict=True) if each[2] == hard]
        characters = sum(len(truth) for truth, _ in pairs)
        return 1 - sum(edits(*pair) for pair in pairs) / characters if characters else float("nan")

    def save(self, folder: Path) -> None:
        words = json.dumps({"texts": self.texts, "hard": self.hard, "alphabet": self.alphabet}).encode()
        np.savez_compressed(folder / _FILE, pictures=self.pictures, words=np.frombuffer(words, np.uint8))


def saved(folder: Path) -> Lines:
    """Those of a machine that could render them."""
    with np.load(folder / _FILE, allow_pickle=False) as found:
        words = json.loads(found["words"].tobytes())
        return Lines(tuple(words["texts"]), found["pictures"], tuple(words["hard"]), tuple(words["alphabet"]))


def rendered(count: int = LINES) -> Lines:
    """The first so many of the demonstration's lines that fit; needs what the demonstration needs."""
    from examples.ocr.lines import SEED, rendered_lines
    from examples.ocr.model import alphabet_of, recogniser_path
    from examples.ocr.reader import scaled_line

    texts: list[str] = []
    hard: list[bool] = []
    rows: list[Bytes] = []
    part = 0
    while len(rows) < count:
        # Seeds that nothing else draws from: the engine's own lines begin at 1000 times theirs.
        for line in rendered_lines(4 * count, seed=SEED + part):
            pixels = scaled_line(line.encoded)
            if pixels.shape[1] <= WIDTH and len(rows) < count:
                row = np.full((HEIGHT, WIDTH, 3), _PAPER, np.uint8)
                row[:, : pixels.shape[1]] = pixels
                rows.append(row)
                texts.append(line.text)
                hard.append(line.kind == "hard")
        part += 1
    return Lines(tuple(texts), np.stack(rows), tuple(hard), tuple(alphabet_of(recogniser_path())))


def edits(truth: str, reading: str) -> int:
    """Fewest insertions, deletions and substitutions (Levenshtein 1966)."""
    previous = list(range(len(reading) + 1))
    for row, wanted in enumerate(truth, start=1):
        current = [row]
        for column, got in enumerate(reading, start=1):
            current.append(min(previous[column] + 1, current[column - 1] + 1, previous[column - 1] + (wanted != got)))
        previous = current
    return previous[-1]


# ---- for `penstock build` ----


def calibration() -> Iterator[dict[str, Bytes]]:
    """32 other lines, eight at once."""
    from examples.ocr import samples

    for batch in samples.calibration(samples.FEW_CALIBRATION, short=True):
        yield {INPUT: _as_bytes(batch.pictures)}


def accuracy(run: Run) -> NDArray[np.float64]:
    """Of each of 64 other plain lines: 1 - edits / characters, never below 0; an accuracy gate wants it so."""
    from examples.ocr import samples
    from examples.ocr.metrics import alphabet, held_out, line_accuracies

    lines = Lines((), np.empty((0, HEIGHT, WIDTH, 3), np.uint8), (), tuple(alphabet()))
    found = []
    for batch in held_out(samples.FEW_HELD_OUT, short=True):
        answer = run({INPUT: _as_bytes(batch.pictures)})
        found.append(line_accuracies(batch.texts, lines.read(np.array(answer[INDEX]))))
    return np.concatenate(found)


def _as_bytes(pictures: NDArray[np.float32]) -> Bytes:
    """FP32 [n, 3, 48, 320] in -1..1 to the bytes that it was made of."""
    return np.ascontiguousarray(np.rint((pictures + 1) * _GREY).astype(np.uint8).transpose(0, 2, 3, 1))
