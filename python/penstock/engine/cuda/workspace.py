"""Memory through which the blocks of one kernel share a sum: one for each capture, never reused by anything else.

Kernels on one stream may share it, two streams may not; so it belongs to whoever owns the stream, and a step finds it
when it runs. Its counters are zero between kernels, which is why no other tensor may ever lie there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch

from penstock.errors import Internal


@dataclass(slots=True)
class Needs:
    """The most that any step asked for."""

    floats: int = 0
    counters: int = 0

    def ask(self, floats: int, counters: int) -> None:
        self.floats, self.counters = max(self.floats, floats), max(self.counters, counters)

    def workspace(self, device: torch.device) -> "Workspace":
        return Workspace(
            torch.empty(self.floats, dtype=torch.float32, device=device),
            torch.zeros(self.counters, dtype=torch.int32, device=device),
        )


@dataclass(frozen=True, slots=True)
class Workspace:
    partial_sums: torch.Tensor
    counters: torch.Tensor


_current: ContextVar[Workspace | None] = ContextVar("workspace", default=None)


@contextmanager
def working_in(workspace: Workspace) -> Iterator[None]:
    """Steps that run in here share their sums there."""
    token = _current.set(workspace)
    try:
        yield
    finally:
        _current.reset(token)


def current() -> Workspace:
    workspace = _current.get()
    if workspace is None:
        raise Internal("a step that shares sums ran outside of `working_in`")
    return workspace
