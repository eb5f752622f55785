"""Control threads: they carry out what clients ask of the repository, and look after it in poll mode.

The data plane queues operations and waits; a few threads here pull them, so that a slow load holds up no other.
"""

import logging
import threading
from typing import Final

from penstock import _core
from penstock.errors import PenstockError
from penstock.serve.catalogue import Catalogue

log = logging.getLogger("penstock")

# Loads that run side by side: more would compete for the same disk and cores.
_OPERATORS: Final = 4

# How often an idle thread looks whether the server has stopped.
_LOOK_SECONDS: Final = 0.1

_INTERNAL: Final = 13


class Control:
    """The threads of one server."""

    def __init__(self, front: _core.Front, catalogue: Catalogue, poll_seconds: float | None) -> None:
        self._front = front
        self._catalogue = catalogue
        self._poll_seconds = poll_seconds
        self._stop = threading.Event()
        targets = [self._operate] * _OPERATORS + ([self._poll] if poll_seconds is not None else [])
        self._threads = [threading.Thread(target=target, name="penstock-control", daemon=True) for target in targets]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=2 * _LOOK_SECONDS)

    def _operate(self) -> None:
        while not self._stop.is_set():
            operation = self._front.next_operation(_LOOK_SECONDS)
            if operation is not None:
                self._carry_out(operation)

    def _carry_out(self, operation: _core.Operation) -> None:
        try:
            match operation.kind, operation.model:
                case "load", str(model):
                    self._catalogue.load(model, operation.config, dict(operation.files))
                    operation.done()
                case "unload", str(model):
                    self._catalogue.unload(model)
                    operation.done()
                case _:
                    operation.index(self._catalogue.index(ready_only=operation.ready_only))
        except PenstockError as error:
            operation.fail(error.grpc_code, error.message)
        except Exception:
            log.exception("an operation on the repository failed")
            operation.fail(_INTERNAL, "the operation failed; the server's log has more")

    def _poll(self) -> None:
        while not self._stop.wait(self._poll_seconds):
            try:
                self._catalogue.poll()
            except Exception:
                log.exception("the repository could not be polled")
