"""The second lane of a capture: a stream and a workspace of its own, and events by which the lanes wait for each other.

`Executor.compute` asks `current_side()` where each step runs; without one everything runs on the current stream. What
the lanes hand each other stays in memory until the end: torch's allocator knows of one stream for each block, and would
give it to the next step of that one while the other lane still reads.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Final

import torch

from penstock.engine.cuda.lanes import Lanes
from penstock.engine.cuda.workspace import Workspace, working_in


class Side:
    """Used by one capture. Without a stream it is nowhere: all steps run where they are."""

    def __init__(
        self, lanes: Lanes, stream: torch.cuda.Stream | None = None, workspace: Workspace | None = None
    ) -> None:
        self._lanes, self._stream, self.workspace = lanes, stream, workspace
        self._marks: dict[int, torch.cuda.Event] = {}
        self._kept: list[torch.Tensor | None] = []

    def lane(self, number: int) -> AbstractContextManager[None]:
        """Where the step runs, behind what it waits for."""
        return nullcontext() if self._stream is None else self._lane(number, self._stream)

    @contextmanager
    def _lane(self, number: int, stream: torch.cuda.Stream) -> Iterator[None]:
        lanes = self._lanes
        with ExitStack() as there:
            awaited = lanes.waits.get(number)
            if awaited == -1:
                self._mark(-1)
            if number in lanes.side:
                assert self.workspace is not None
                there.enter_context(torch.cuda.stream(stream))
                there.enter_context(working_in(self.workspace))
            if awaited is not None:
                torch.cuda.current_stream().wait_event(self._marks[awaited])
            yield
            if number in lanes.marks or number == lanes.last:
                self._mark(number)

    def _mark(self, number: int) -> None:
        self._marks[number] = torch.cuda.Event()
        self._marks[number].record(torch.cuda.current_stream())

    def keep(self, tensor: torch.Tensor | None) -> None:
        """Until the lanes meet: no step behind reads it, but one of the other lane may not have begun."""
        if self._stream is not None:
            self._kept.append(tensor)

    def end(self) -> None:
        """The lanes meet."""
        if self._stream is not None and self._lanes.last is not None:
            torch.cuda.current_stream().wait_event(self._marks[self._lanes.last])
            self._marks, self._kept = {}, []


_NOWHERE: Final = Side(Lanes())
_current: ContextVar[Side] = ContextVar("side", default=_NOWHERE)


def current_side() -> Side:
    return _current.get()


@contextmanager
def beside(side: Side) -> Iterator[None]:
    """Executors that compute in here use its lane."""
    token = _current.set(side)
    try:
        yield
    finally:
        _current.reset(token)
