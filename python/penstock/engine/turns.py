"""Whose turn it is when more threads call than may work at once: quick while nobody waits long, in order after that.

Promises: no more than `count` at once; whoever has waited longer than `PATIENCE` goes next, before all who came later;
no turn is lost, whatever is raised and wherever, an interruption of the main thread included. Used by `Engine` for
calls from users' threads.

Two simpler ways are bad. In strict order every call goes to another thread, which has to be woken first: a free turn
waits for a thread that does not run yet. If whoever comes first goes first, as with `threading.Semaphore`, a thread
that has just finished begins again before the one that it woke gets to run, for ever. So as Go's `sync.Mutex` has it,
with its normal and its starvation mode: a free turn is for whoever runs, until the oldest waiter has waited too long.
"""

import threading
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Final, TypeVar, TypeVarTuple

PATIENCE: Final = 0.010
"""Seconds: twice what the interpreter lets one thread run while others want to (`sys.getswitchinterval`), since in less
a thread that was woken may not have begun. More brought no throughput that could be measured (`benches/NOTES.md`)."""

_Given = TypeVarTuple("_Given")
_Answer = TypeVar("_Answer")


class _Turn:
    """One caller, from when it comes until it has left."""

    __slots__ = ("bell", "came", "taken")

    def __init__(self) -> None:
        self.taken = False
        self.came = 0.0
        """When it began to wait."""

        self.bell = threading.Lock()
        """Held by one that waits; given free to wake it."""


class Turns:
    """`count` may work at once."""

    def __init__(self, count: int) -> None:
        # Held for a few lines, in which nothing is waited for. What it guards obeys one rule: while a turn is free and
        # somebody waits, the bell of the one that waits longest has rung.
        self._lock = threading.Lock()
        self._free = count
        self._waiting: deque[_Turn] = deque()  # by when they came

    def run(self, work: Callable[[*_Given], _Answer], *given: *_Given) -> _Answer:
        """What `work` returns or raises, once it is this caller's turn."""
        turn = _Turn()
        try:
            self._take(turn)
            return work(*given)
        finally:
            # What a signal raises may come as `_leave` begins, before it did anything (so it may in any `__exit__`).
            try:
                self._leave(turn)
            except BaseException:
                self._leave(turn)
                raise

    def _take(self, turn: _Turn) -> None:
        with self._lock:
            if self._free and not self._overdue():
                self._free -= 1
                turn.taken = True
                return
            turn.came = monotonic()
            turn.bell.acquire()
            self._waiting.append(turn)
        while not turn.taken:
            turn.bell.acquire()
            with self._lock:
                if self._free and self._waiting[0] is turn:
                    self._waiting.popleft()
                    self._free -= 1
                    turn.taken = True
                    self._ring()

    def _leave(self, turn: _Turn) -> None:
        """Whether it has its turn, still waits, or has left already."""
        with self._lock:
            if turn.taken:
                turn.taken = False
                self._free += 1
            elif turn in self._waiting:
                self._waiting.remove(turn)
            self._ring()

    def _overdue(self) -> bool:
        return bool(self._waiting) and monotonic() - self._waiting[0].came > PATIENCE

    def _ring(self) -> None:
        """Wake the one that waits longest, unless it has been told already or could not go."""
        if self._free and self._waiting and self._waiting[0].bell.locked():
            self._waiting[0].bell.release()
