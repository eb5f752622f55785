"""A load under way: what is sent, when, and the records of what came of it.

The native generator sends; this is what it is told, and what it says. Times are nanoseconds of CLOCK_MONOTONIC, which
is `time.monotonic_ns()`. Called by `measuring`.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from penstock import _core
from penstock.errors import InvalidArgument, Unavailable

ANSWERED: Final = 0
REFUSED: Final = 1
LOST: Final = 2
WRONG: Final = 3
UNSENT: Final = 4
"""Due, but still waiting for a free connection when the load ended."""

RECORD: Final = np.dtype(
    [("scheduled", "<u8"), ("sent", "<u8"), ("received", "<u8"), ("outcome", "<u4"), ("item", "<u4")]
)
Records = NDArray[np.void]

HTTP: Final = "http"
GRPC: Final = "grpc"
GRPC_STREAM: Final = "grpc-stream"


@dataclass(frozen=True, slots=True)
class Request:
    """One input set as it goes over the wire."""

    body: bytes
    """JSON with what follows it, or a protobuf message."""

    json_bytes: int | None = None
    """Of the JSON, where binary data follows it."""

    expected: bytes | None = None
    """The raw outputs one after the other, with which every answer has to end."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the generator is told; `concurrency` or `schedule_ns`."""

    protocol: str
    address: str
    path: str
    requests: Sequence[Request]
    headers: Sequence[tuple[str, str]] = ()
    concurrency: int | None = None
    schedule_ns: Sequence[int] = ()
    """When requests are due, from the start, ascending; again after the last."""

    sequence_length: int | None = None
    first_sequence: int = 1
    threads: int = 1
    most_connections: int = 1024
    answer_within_seconds: float = 60.0


@dataclass(slots=True)
class Load:
    """Started by `with`, stopped at its end."""

    plan: Plan
    _native: _core.Load | None = None
    _taken: list[Records] = field(default_factory=list)

    def __enter__(self) -> Self:
        try:
            self._native = _core.Load(self.plan)
        except ValueError as error:
            raise InvalidArgument(str(error)) from None
        except OSError as error:
            raise Unavailable(f"the load generator can't start: {error}") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def records(self) -> Records:
        """All so far, in the order in which answers came."""
        self._take()
        if len(self._taken) > 1:
            self._taken = [np.concatenate(self._taken)]
        return self._taken[0] if self._taken else np.empty(0, RECORD)

    @property
    def count(self) -> int:
        """Of the records so far."""
        self._take()
        return sum(map(len, self._taken))

    def _take(self) -> None:
        if self._native is not None:
            found = np.frombuffer(self._native.take(), dtype=RECORD)
            self._taken.append(np.sort(found, order="received"))

    @property
    def messages(self) -> dict[str, int]:
        """What was said of requests that failed, and how often."""
        return dict(self._native.messages()) if self._native is not None else {}

    def cpu_seconds(self) -> float:
        """That the generator's threads have spent so far; 0 where the kernel does not say, or they have ended."""
        spent = 0
        for each in self._native.thread_ids if self._native is not None else ():
            with suppress(OSError, ValueError):
                spent += int(Path(f"/proc/self/task/{each}/schedstat").read_text().split()[0])
        return spent / 1e9

    def stop(self) -> None:
        """Nothing more is sent; returns when what was under way is answered."""
        if self._native is not None:
            self._native.stop()
