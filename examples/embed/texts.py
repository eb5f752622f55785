"""Texts: pairs whose likeness anyone can judge, loads of mixed length, and what an engine is calibrated with.

Promises: the same texts for the same seed; the load, the calibration and the judging share no text. Called by the
demonstration, by tests, and by `penstock build --calibration examples.embed.texts:calibration`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from examples.embed.tokens import tokens
from examples.ocr.texts import line_of_text

STEP: Final = 16
"""Tokens: lengths are padded to a multiple of it, in the server and here. Half of it would save 4 tokens a text and
double the shapes that a library prepares kernels for."""


@dataclass(frozen=True, slots=True)
class Triple:
    """`alike` says what `text` says, in other words; `unlike` shares a word with it and says something else."""

    text: str
    alike: str
    unlike: str


TRIPLES: Final = (
    Triple(
        "A cat is asleep on the sofa.",
        "The kitten naps on the couch.",
        "The sofa was delivered to the wrong address.",
    ),
    Triple(
        "The central bank raised interest rates again.",
        "Borrowing has become more expensive after another rate rise by the monetary authority.",
        "We walked along the bank of the river in the evening.",
    ),
    Triple(
        "How do I reset my password?",
        "I forgot my login details and can't get into my account.",
        "How do I reset the clock in my car?",
    ),
    Triple(
        "The server refused the connection because too many requests were waiting.",
        "Clients were turned away as the queue of the service was full.",
        "The table of the waiter was full of flowers.",
    ),
    Triple(
        "Heavy rain flooded the streets of the old town.",
        "A downpour left roads in the historic centre under water.",
        "The old town is famous for its streets full of bookshops.",
    ),
    Triple(
        "She plays the violin in an orchestra.",
        "A woman is a musician in a symphony ensemble.",
        "She plays tennis in a club.",
    ),
)

_LOAD, _CALIBRATION, _JUDGING = 31, 32, 33
_LINES: Final = (1, 1, 1, 1, 2, 2, 3, 5, 8, 14)
"""Of a text of the load, drawn from these: mostly a sentence, now and then a paragraph."""


def mixed(count: int) -> list[str]:
    """The load: generated texts of one line to fourteen, of which the longest are longer than what is read."""
    return _texts(_LOAD, count)


def judging(count: int) -> list[str]:
    """What answers are compared with the reference on."""
    said = [text for each in TRIPLES for text in (each.text, each.alike, each.unlike)]
    return (said + _texts(_JUDGING, max(0, count - len(said))))[:count]


def calibration(count: int = 48) -> Iterator[dict[str, npt.NDArray[np.int64]]]:
    """One text at a time, padded as the server pads a batch of one."""
    for text in _texts(_CALIBRATION, count):
        read = tokens(text.encode())
        short = -len(read.ids) % STEP
        yield {
            "input_ids": np.pad(read.ids, (0, short))[None],
            "attention_mask": np.pad(read.mask, (0, short))[None],
        }


def _texts(seed: int, count: int) -> list[str]:
    randoms = (np.random.default_rng((seed, index)) for index in range(count))
    return [" ".join(line_of_text(random) for _ in range(int(random.choice(_LINES)))) for random in randoms]
