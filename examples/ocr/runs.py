"""What came of pictures that were sent to a server, whatever was asked of them. Called by the two clients."""

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np


class Timed(Protocol):
    """An answer, or why there is none."""

    @property
    def seconds(self) -> float:
        """From handing the picture to the client library to having what was read."""
        ...

    @property
    def error(self) -> str:
        """Empty when there was an answer."""
        ...


Answer = TypeVar("Answer", bound=Timed)


@dataclass(frozen=True, slots=True)
class Run(Generic[Answer]):
    answers: tuple[Answer, ...]  # in the order of the pictures
    seconds: float  # wall time from the first request to the last answer

    @property
    def errors(self) -> list[str]:
        return [answer.error for answer in self.answers if answer.error]

    @property
    def answered_per_second(self) -> float:
        return (len(self.answers) - len(self.errors)) / self.seconds

    def latency_ms(self, percent: float) -> float:
        """Percentile over the answered requests, interpolated; NaN when none was answered."""
        answered = [answer.seconds for answer in self.answers if not answer.error]
        return float(np.percentile(answered, percent)) * 1000 if answered else float("nan")
