"""What a build says while it runs. The command line draws it; everything else may leave it silent."""

from typing import Protocol

from penstock.tactics import Progress as RaceEvent


class Progress(Protocol):
    """Told from the thread that builds; must not raise."""

    def stage(self, name: str, detail: str = "") -> None:
        """A step begins: `optimize`, `race`, `calibrate`, `gate`, `seal`, ... with what it is about."""
        ...

    def racing(self, event: RaceEvent) -> None:
        """A candidate was tried, timed, lost or left out."""
        ...


class Silent:
    """Says nothing."""

    def stage(self, name: str, detail: str = "") -> None:
        """Nothing."""

    def racing(self, event: RaceEvent) -> None:
        """Nothing."""
