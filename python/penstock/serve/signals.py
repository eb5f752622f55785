"""SIGTERM and SIGINT, for a main thread that waits for them.

The kernel gives a signal to any thread of the process. Python runs its handlers in the main thread, but does not wake
that where it waits for a lock while another thread was interrupted: the signal would be seen when the next one comes.
So the main thread waits for a byte here, which the interpreter writes whichever thread the signal met. Called by
server.
"""

import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Final, Self

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_DONE: Final = b"\0"  # no signal has this number, which is what the interpreter writes


class Signals:
    """While it is entered, the first of both signals ends `wait`, and a second one the process, with status 1."""

    def __enter__(self) -> Self:
        self._seen = False
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        self._previous = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._receiver.close()
        self._sender.close()

    def wait(self) -> None:
        """Until a signal came."""
        while not self._seen:
            self._receiver.recv(1)

    def wait_for(self, work: Callable[[], object], *, name: str) -> None:
        """Until work is done, by a thread of its own: this one is free to see a second signal meanwhile."""

        def run() -> None:
            try:
                work()
            finally:
                self._sender.send(_DONE)

        threading.Thread(target=run, name=name, daemon=True).start()
        while self._receiver.recv(1) != _DONE:
            pass

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._seen:
            os._exit(1)
        self._seen = True
