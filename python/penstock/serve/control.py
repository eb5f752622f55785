"""Control threads: they carry out what clients ask of the repository, and look after it in poll mode.

The data plane queues operations and waits; one thread here pulls them and starts another for each, so that a slow load
holds up no other.
"""

import logging
import threading
from collections.abc import Callable
from typing import Final

from penstock import _core
from penstock.errors import PenstockError
from penstock.serve.catalogue import Catalogue

log = logging.getLogger("penstock")

# Loads that run side by side: more would compete for the same disk and cores.
_OPERATORS: Final = 4

# How often the idle thread looks whether the server has stopped.
_LOOK_SECONDS: Final = 0.05

_INTERNAL: Final = 13


class Control:
    """The threads of one server."""

    def __init__(self, front: _core.Front, catalogue: Catalogue, poll_seconds: float | None) -> None:
        self._front = front
        self._catalogue = catalogue
        self._poll_seconds = poll_seconds
        self._stop = threading.Event()
        self._free = threading.Semaphore(_OPERATORS)
        targets = [self._operate] + ([self._poll] if poll_seconds is not None else [])
        self._threads = [_thread(target) for target in targets]

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
            if operation is None:
                continue
            while not self._free.acquire(timeout=_LOOK_SECONDS):
                if self._stop.is_set():
                    return  # dropped, which answers it: the server is shutting down
            _thread(self._carry_out, operation).start()

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
        finally:
            self._free.release()

    def _poll(self) -> None:
        problem = ""
        while not self._stop.wait(self._poll_seconds):
            try:
                self._catalogue.poll()
            except PenstockError as error:
                # Once per episode, however long it lasts.
                if error.message != problem:
                    problem = error.message
                    log.error("%s; models in service stay as they are", problem)
            except Exception:
                log.exception("the repository could not be polled")
            else:
                if problem:
                    problem = ""
                    log.warning("the model repository can be read again")


def _thread(target: Callable[..., None], *arguments: _core.Operation) -> threading.Thread:
    """A daemon: a load that hangs must not keep the process."""
    return threading.Thread(target=target, args=arguments, name="penstock-control", daemon=True)
