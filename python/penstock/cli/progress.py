"""A build's progress on standard error: a live line on a terminal, plain lines elsewhere. For `penstock build`."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from penstock.tactics import Progress as RaceEvent


class Shown:
    """Satisfies `penstock.build.Progress`."""

    def __init__(self) -> None:
        self._live: Any = None
        self._started = time.monotonic()
        self._stage = ""

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.status import Status

            self._live = Status("starting", console=Console(file=sys.stderr))
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def stage(self, name: str, detail: str = "") -> None:
        """Every stage keeps its line."""
        self._stage = f"{name} {detail}".rstrip()
        self._print(f"{time.monotonic() - self._started:6.1f} s  {self._stage}")
        self._update(self._stage)

    def racing(self, event: "RaceEvent") -> None:
        """Times are shown as they come; losses keep their line."""
        from penstock.build.evidence import milliseconds
        from penstock.tactics import Lost, Measurement, Trying

        if isinstance(event, Trying):
            self._update(f"{self._stage}: {event.number} of {event.of}, {event.tactic.name}")
        elif isinstance(event, Measurement):
            self._update(f"{self._stage}: {event.tactic.name}, {milliseconds(event.median_us)} ms")
        elif isinstance(event, Lost):
            self._print(f"          lost {event.tactic.name}: {event.reason}")

    def _print(self, line: str) -> None:
        if self._live is not None:
            self._live.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def _update(self, text: str) -> None:
        if self._live is not None:
            from rich.markup import escape

            self._live.update(escape(text))
