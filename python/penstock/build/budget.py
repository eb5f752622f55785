"""The time of a build: what is left of it, and the shares that its stages may take. Called by the driver."""

import time
from typing import Final

# Of what is left when the stage begins.
FLOAT: Final = 0.5
CALIBRATE: Final = 0.35
INT8: Final = 0.5
MIX: Final = 0.35
REPAIR: Final = 0.6
CONFIRM: Final = 0.3
WIDER: Final = 0.6


class Budget:
    """It begins when it is made."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._started = time.monotonic()

    @property
    def spent(self) -> float:
        return time.monotonic() - self._started

    @property
    def left(self) -> float:
        """Never less than none."""
        return max(0.0, self.seconds - self.spent)

    def share(self, part: float) -> float:
        return part * self.left
