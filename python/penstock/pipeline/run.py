"""One request to a pipeline: its steps, and what is left of it when it ends.

Made on the event loop for each request; everything here runs on its thread, except the functions of `cpu` steps.
Promises one answer, and that nothing that the body began goes on after it: calls in queues are cancelled, `cpu` steps
that were not begun are dropped.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from penstock.errors import Cancelled, ExecutionError, PenstockError, Unavailable
from penstock.pipeline.answers import Answers
from penstock.pipeline.statistics import Statistics, Step
from penstock.pipeline.steps import CURRENT, Use
from penstock.serve.event_loop import EventLoop, Request

_NS: Final = 1_000_000_000

# Calls are queued a little after their time was worked out, and so expire a little after it is over.
_LATER_SECONDS: Final = 0.001


class Call(asyncio.Future[Any]):
    """A request to a model of the same server. Cancelling it takes it out of the queue."""

    def __init__(self, run: "Run", step: Step) -> None:
        super().__init__(loop=run.loop.asyncio_loop)
        self._run = run
        self._step = step
        self.number = -1

    def settle(self, answer: Any, error: BaseException | None, queued: float | None) -> None:
        """By the event loop, with what came of it."""
        if self.done():
            return
        self._step.queue_ns = None if queued is None else int(queued * _NS)
        if error is None:
            self.set_result(answer)
            self._run.ended(self._step, "ok")
        else:
            self.set_exception(error)
            self._run.ended(self._step, "failed", error)
        self._run.calls.discard(self)

    def cancel(self, msg: Any | None = None) -> bool:
        if not super().cancel(msg):
            return False
        self._run.loop.exchange.cancel(self.number)
        self._run.ended(self._step, "cancelled")
        self._run.calls.discard(self)
        return True


class Run:
    """One request under way."""

    __slots__ = (
        *("_failed", "_id", "_number", "_open", "_over", "_queued", "_statistics", "_steps"),
        *("calls", "loop", "pipeline", "request", "started"),
    )

    def __init__(self, loop: EventLoop, pipeline: str, request: Request, statistics: Statistics) -> None:
        self.loop = loop
        self.pipeline = pipeline
        self.request = request
        self.started = time.perf_counter_ns()
        self.calls: set[Call] = set()
        self._number = request.number
        self._queued = int(request.seconds_queued * _NS)
        self._id = request.id if loop.trace is not None else ""
        self._statistics = statistics
        self._steps: list[Step] | None = [] if loop.trace is not None else None
        """In the order in which they began; kept for a trace only."""
        self._over = False
        """The body has returned, or failed: no step begins any more."""
        self._open: set[asyncio.Future[Any]] = set()
        """Futures of `cpu` steps."""
        self._failed: tuple[BaseException, Step] | None = None
        """The last failure of a step, by which an exception that leaves the body is told to come from there."""

    def call(self, model: Use, row: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Begin a call; `steps.Use` says what it promises."""
        step = self._step(model.name, "call")
        call = Call(self, step)
        request, loop = self.request, self.loop
        try:
            loop.circles.check(self.pipeline, model.name)
            call.number = loop.submit(
                model.name,
                model.version,
                row,
                args,
                kwargs,
                request.deadline,
                request.taken_by,
                model.leaves_on_device,
                call,
            )
        except BaseException as error:
            self.ended(step, "failed", error)
            raise
        self.calls.add(call)
        return call

    def cpu(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> "asyncio.Future[Any]":
        """Begin a step in a thread; `steps.cpu` says what it promises."""
        step = self._step(_name_of(function), "cpu")
        future = self.loop.pool.begin(partial(_work, step, function, args, kwargs))
        self._open.add(future)
        future.add_done_callback(partial(self._worked, step))
        return future

    async def answer(self, body: Callable[..., Any], answers: Answers) -> None:
        """Run the body and answer the request, whatever becomes of it."""
        CURRENT.set(self)
        request = self.request
        left = request.seconds_left
        # Instances refuse what has waited too long when they pull; should all of them be busy then, it is done here.
        timer = (
            None
            if left is None
            else self.loop.asyncio_loop.call_later(left + _LATER_SECONDS, self.loop.exchange.expire)
        )
        status = "failed"
        told: BaseException | None = None
        try:
            request.prepare(answers.arrays(await body(**request.inputs())))
            status = "ok"
        except asyncio.CancelledError:
            status, told = self._cancelled()
        except BaseException as error:  # SystemExit, too: a body must not end the event loop
            told = self._told(error)
        if timer is not None:
            timer.cancel()
        self._close()
        # Before the answer, so that whoever has it finds it counted.
        self._count(status)
        if told is None:
            request.finish()
        else:
            request.fail(told)
        # The traceback of an exception that is held here would hold this frame, and all that the body made.
        told = self._failed = None

    def ended(self, step: Step, status: str, error: BaseException | None = None) -> None:
        """Note the end of a step."""
        step.end(status)
        if error is not None:
            self._failed = error, step
        self._statistics.count(step)

    def _step(self, name: str, kind: str) -> Step:
        if not self.loop.is_here():
            raise RuntimeError(
                f"step {name!r} was begun on another thread; begin steps in the body, and pass results on"
            )
        if self._over:
            raise RuntimeError(f"step {name!r} was begun after its request was answered; await what the body starts")
        step = Step(name, kind)
        if self._steps is not None:
            self._steps.append(step)
        return step

    def _worked(self, step: Step, future: "asyncio.Future[Any]") -> None:
        self._open.discard(future)
        if future.cancelled():
            self.ended(step, "cancelled")
        else:
            error = future.exception()
            self.ended(step, "ok" if error is None else "failed", error)

    def _close(self) -> None:
        """Cancel what the body left running."""
        self._over = True
        for future in (*self.calls, *self._open):
            future.cancel()

    def _cancelled(self) -> tuple[str, PenstockError]:
        task = asyncio.current_task()
        if task is None or not task.cancelling():
            return "failed", ExecutionError("the body awaited a step that it had cancelled itself")
        if self.loop.stopping:
            return "cancelled", Unavailable("server is shutting down")
        return "cancelled", Cancelled("the client left before the answer was there")

    def _told(self, error: BaseException) -> BaseException:
        """What the client is told: our own errors as they are, others with the step that they came from."""
        if isinstance(error, PenstockError):
            return error
        if self._failed is None or self._failed[0] is not error:
            return error
        told = ExecutionError(f"step {self._failed[1].name!r}: {type(error).__name__}: {_text(error)}")
        return told.with_traceback(error.__traceback__)

    def _count(self, status: str) -> None:
        total = time.perf_counter_ns() - self.started
        self._statistics.count_request(status, self._queued, total)
        if self._steps is not None and self.loop.trace is not None:
            self.loop.trace.write(self._record(status, total), len(self._steps))

    def _record(self, status: str, total: int) -> dict[str, Any]:
        return {
            "pipeline": self.pipeline,
            "request": self._id or str(self._number),
            "queue_ms": _milliseconds(self._queued),
            "status": status,
            "ended_epoch_ms": round(time.time() * 1000, 3),
            "total_ms": _milliseconds(total),
            "steps": [
                {
                    "step": step.name,
                    "kind": step.kind,
                    "status": "cancelled" if step.status == "open" else step.status,
                    "start_ms": _milliseconds(step.began - self.started),
                    "end_ms": _milliseconds(total if step.status == "open" else step.ended - self.started),
                    "queue_ms": None if step.queue_ns is None else _milliseconds(step.queue_ns),
                }
                for step in self._steps or ()
            ],
        }


def _work(step: Step, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """In a thread of the pool."""
    step.queue_ns = time.perf_counter_ns() - step.began
    try:
        return function(*args, **kwargs)
    except StopIteration as error:
        # A future takes none, and its request would wait forever.
        raise RuntimeError(f"StopIteration: {error}") from error


def _name_of(function: Callable[..., Any]) -> str:
    while isinstance(function, partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def _text(error: BaseException) -> str:
    try:
        # The text of an OSError from the system holds the path it was about.
        return getattr(error, "strerror", None) or str(error)
    except Exception:
        return "it has no text"


def _milliseconds(nanoseconds: int) -> float:
    return round(nanoseconds / 1e6, 3)
