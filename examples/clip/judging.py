"""Answers against a reference: right, wrong, missing or failed, and how long they took.

Promises: an answer is right when its direction is that of its own picture's known embedding (cosine of at least
`limit`) and no other picture's is closer, so that a swapped answer never passes; NaN never passes. References whose
pictures can't be told apart are refused, since judging by them could not fail. Called by the demo, by tests and by
the stories of the benches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

LIMIT: Final = 0.999
_APART: Final = 0.001  # more than pictures' embeddings must be away from the limit

Trouble = Literal["missing", "failed"]


@dataclass(frozen=True, slots=True)
class Answer:
    """To one request: what came, or what went wrong."""

    picture: int
    seconds: float
    embedding: npt.NDArray[Any] | None = None
    trouble: Trouble | None = None
    """missing: no answer came; failed: the answer was an error."""

    said: str = ""


@dataclass(frozen=True)
class Reference:
    """Known embeddings [pictures, numbers], of whatever length."""

    embeddings: npt.NDArray[Any]
    limit: float = LIMIT
    units: npt.NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        wide = self.embeddings.astype(np.float64)
        object.__setattr__(self, "units", wide / np.linalg.norm(wide, axis=1, keepdims=True))
        if not self.closest <= self.limit - _APART:
            raise ValueError(
                f"two pictures' embeddings have a cosine of {self.closest:.6f}: a swapped answer could pass at "
                f"{self.limit}; take other pictures or another tower"
            )

    @property
    def closest(self) -> float:
        """The largest cosine of two different pictures."""
        found = self.units @ self.units.T
        np.fill_diagonal(found, -1.0)
        return float(found.max())

    def likeness(self, picture: int, embedding: npt.NDArray[Any]) -> float:
        """Cosine with the picture's own embedding; -1 for another shape, what is not finite, and where another
        picture's is closer."""
        wide = embedding.astype(np.float64).ravel()
        if len(wide) != self.units.shape[1]:
            return -1.0
        length = float(np.linalg.norm(wide))
        if not np.isfinite(length) or length == 0:
            return -1.0
        found = self.units @ (wide / length)
        return float(found[picture]) if int(np.argmax(found)) == picture else -1.0


@dataclass
class Tally:
    """Of one level of load."""

    asked: int = 0
    right: int = 0
    wrong: int = 0
    missing: int = 0
    failed: int = 0
    least: float = 1.0
    """The smallest cosine of a right answer with its reference."""

    seconds: float = 0.0
    """From the first request to the last answer."""

    milliseconds: list[float] = field(default_factory=list)
    """Of each answer that was no error, right or wrong."""

    reasons: list[str] = field(default_factory=list)
    """What failures said, each once."""

    @property
    def good(self) -> bool:
        return self.right == self.asked > 0

    @property
    def throughput(self) -> float:
        """Answers a second, right or wrong."""
        return (self.right + self.wrong) / self.seconds if self.seconds else 0.0

    def percentile(self, percent: float) -> float:
        """Milliseconds; NaN when nothing was answered."""
        return float(np.percentile(self.milliseconds, percent)) if self.milliseconds else float("nan")


def judged(reference: Reference, answers: Sequence[Answer], asked: int, seconds: float) -> Tally:
    """`asked`: requests that were sent; what has no answer among them is missing."""
    tally = Tally(asked=asked, seconds=seconds)
    for each in answers:
        if each.embedding is None:
            _trouble(tally, each)
            continue
        tally.milliseconds.append(1e3 * each.seconds)
        likeness = reference.likeness(each.picture, each.embedding)
        if likeness >= reference.limit:
            tally.right += 1
            tally.least = min(tally.least, likeness)
        else:
            tally.wrong += 1
    tally.missing += asked - len(answers)
    return tally


def _trouble(tally: Tally, answer: Answer) -> None:
    if answer.trouble == "failed":
        tally.failed += 1
    else:
        tally.missing += 1
    if answer.said not in tally.reasons:
        tally.reasons.append(answer.said)
