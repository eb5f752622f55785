"""The time of a build: what is left of it, and the shares that its stages may take. Called by the driver."""

import time
from typing import Final

# Of what is left when the stage begins.
FLOAT: Final = 0.35
TUNE: Final = 0.5  # instead, where steps are tuned first
FURTHER_INPUTS: Final = 0.04
CALIBRATE: Final = 0.35
INT8: Final = 0.5
MIX: Final = 0.4
SIBLINGS: Final = 0.25
REPAIR: Final = 0.6
CONFIRM: Final = 0.3
WIDER: Final = 0.6


_IMPORTED: Final = time.monotonic()
_AT_ONCE: Final = 8.0  # seconds of importing, on a cold disk
_MOST_OF_IT: Final = 0.2


class Budget:
    """It begins when it is made; the first one of a process with the imports that it waited for."""

    _first = True

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        now = time.monotonic()
        waited = now - _IMPORTED if Budget._first and now - _IMPORTED < _AT_ONCE else 0.0
        Budget._first = False
        self._started = now - min(waited, _MOST_OF_IT * seconds)

    @property
    def spent(self) -> float:
        return time.monotonic() - self._started

    @property
    def left(self) -> float:
        """Never less than none."""
        return max(0.0, self.seconds - self.spent)

    def share(self, part: float) -> float:
        return part * self.left
