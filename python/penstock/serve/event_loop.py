"""The event loop of a server: one thread, on which the requests of pipelines run and their calls meet the queues.

Made by `Server`, started when the first model that needs it is hosted, stopped after every model was retired.
Everything but `host` and `stop` is for the loop's own thread.
"""

import asyncio
import logging
import threading
from collections.abc import Coroutine
from functools import partial
from typing import Any, Final, Protocol

from penstock import _core
from penstock.backends.base import Concurrent
from penstock.engine import cores
from penstock.errors import Cancelled, Internal, Unavailable
from penstock.serve.circles import Circles
from penstock.serve.step_pool import StepPool
from penstock.serve.trace import Trace

log = logging.getLogger("penstock")

Request = _core.Request

# Requests that are still under way when the loop is stopped get this long to take note of it.
_CANCEL_SECONDS: Final = 1.0


class Call(Protocol):
    """What stands for a call until it is answered."""

    def settle(self, answer: Any, error: BaseException | None, queued: float | None) -> None:
        """With the answer or the exception, and the seconds in the queue where an instance took it."""
        ...


class EventLoop:
    """Requests that run side by side on one thread."""

    exchange: _core.Exchange
    asyncio_loop: asyncio.AbstractEventLoop
    """Both from the first model that is hosted until the end; a server without pipelines pays for neither."""

    def __init__(self, front: _core.Front, trace: Trace | None) -> None:
        self._front = front
        self.trace = trace
        self.circles = Circles()
        self.pool = StepPool(cores.available())
        """For the functions that bodies call in threads."""
        self.tasks: dict[int, asyncio.Task[None]] = {}
        """By request, those that are under way."""
        self.stopping = False
        self._ident = 0  # of the loop's thread
        self._nudging = False
        self._lock = threading.Lock()  # guards starting and stopping
        self._thread: threading.Thread | None = None

    def host(self, name: str, concurrent: Concurrent) -> "partial[Coroutine[Any, Any, None]]":
        """Be ready for the requests of one more model; what begins them, for `_core.Model.run_concurrently`."""
        with self._lock:
            if self.stopping:
                raise Unavailable("server is shutting down")
            self.circles.add(name)
            if self._thread is None:
                self.exchange = _core.Exchange(self._front)
                self.asyncio_loop = asyncio.new_event_loop()
                # A daemon: a program that never stops its server can still end.
                self._thread = threading.Thread(target=self._run, name="penstock-pipelines", daemon=True)
                self._thread.start()
        return partial(concurrent.begin, loop=self)

    @property
    def hosts(self) -> bool:
        """Whether there is a model that needs it."""
        return self._thread is not None

    def is_here(self) -> bool:
        """Whether the caller is on the loop's thread."""
        return threading.get_ident() == self._ident

    def submit(
        self,
        model: str,
        version: str | None,
        row: bool,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        deadline: int | None,
        taken_by: int | None,
        on_device: bool,
        call: Call,
    ) -> int:
        """Queue a request to a model; instances look at it once all that is ready has run. Raises PenstockError."""
        number = self.exchange.submit(model, version, row, args, kwargs, deadline, taken_by, on_device, call)
        if not self._nudging:
            self._nudging = True
            self.asyncio_loop.call_soon(self._nudge)
        return number

    def stop(self) -> None:
        """Cancel what is under way and end the thread."""
        with self._lock:
            self.stopping = True
            thread, self._thread = self._thread, None
        if thread is not None:
            self.asyncio_loop.call_soon_threadsafe(self._cancel_all)
            thread.join(2 * _CANCEL_SECONDS)
            if thread.is_alive():
                log.error("a pipeline holds up its event loop; it is left behind")
            else:
                self.asyncio_loop.close()
                # Closes its sockets now: who refers to this loop may live until the collector comes.
                del self.exchange
        self.pool.close()
        if self.trace is not None:
            self.trace.close()

    def _run(self) -> None:
        self._ident = threading.get_ident()
        asyncio.set_event_loop(self.asyncio_loop)
        self.asyncio_loop.add_reader(self.exchange.fileno(), self._turn)
        while not self.stopping:
            try:
                self.asyncio_loop.run_forever()
            except BaseException:  # a task that raised SystemExit took the loop along, and must not
                log.exception("the event loop of pipelines was interrupted; it goes on")
        self.asyncio_loop.remove_reader(self.exchange.fileno())

    def _turn(self) -> None:
        """Something happened: answers, new requests, clients that left."""
        arrived, answered, gone = self.exchange.turn()
        for call, answer, error, queued in answered:
            call.settle(answer, error, queued)
        for begin, request in arrived:
            task = self.asyncio_loop.create_task(begin(request))
            self.tasks[request.number] = task
            task.add_done_callback(partial(self._done, request))
        for number in gone:
            if under_way := self.tasks.get(number):
                under_way.cancel()

    def _done(self, request: Request, task: "asyncio.Task[None]") -> None:
        del self.tasks[request.number]
        if task.cancelled():  # before it had begun
            request.fail(Cancelled("the client left before the answer was there"))
        elif (error := task.exception()) is not None:
            log.error("a request of a pipeline ended in an unexpected way", exc_info=error)
            request.fail(Internal("the request ended in an unexpected way; the server's log has more"))

    def _nudge(self) -> None:
        self._nudging = False
        self.exchange.nudge()

    def _cancel_all(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        self.asyncio_loop.create_task(self._end())

    async def _end(self) -> None:
        if self.tasks:
            await asyncio.wait(self.tasks.values(), timeout=_CANCEL_SECONDS)
        self.asyncio_loop.stop()
