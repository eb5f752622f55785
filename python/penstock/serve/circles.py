"""Which pipelines call which, so that none waits for itself.

A pipeline has room for so many requests. One that calls itself through its queue, or another one that calls it back,
can fill that room with requests which all wait for room. Only circles can do that, so the call that would close one
is refused.
"""

from penstock.errors import InvalidArgument


class Circles:
    """The calls between the pipelines of one server, as they are made. `check` is for the event loop's thread."""

    def __init__(self) -> None:
        self._pipelines: set[str] = set()
        self._calls: dict[str, set[str]] = {}

    def add(self, pipeline: str) -> None:
        """From now on that name is a pipeline."""
        self._pipelines.add(pipeline)

    def check(self, caller: str, called: str) -> None:
        """Raises InvalidArgument for the call that would close a circle."""
        if called not in self._pipelines:
            return
        calls = self._calls.setdefault(caller, set())
        if called in calls:
            return
        if way := self._way(called, caller):
            raise InvalidArgument(
                f"pipelines call each other in a circle: {' -> '.join([caller, *way])}; let one await the other's "
                "function in place of a call by name"
            )
        calls.add(called)

    def _way(self, start: str, end: str) -> list[str]:
        """From one to the other by calls that were made; empty when there is none."""
        ways = [[start]]
        seen = {start}
        while ways:
            way = ways.pop()
            if way[-1] == end:
                return way
            further = self._calls.get(way[-1], set()) - seen
            seen |= further
            ways += [[*way, name] for name in sorted(further)]
        return []
