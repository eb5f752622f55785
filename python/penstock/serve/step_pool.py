"""The threads for `ps.cpu` steps: functions in, futures of the event loop out.

Promises: a function whose future was cancelled before its turn is never called; one that runs, runs to its end; nothing
of a step is kept once it has ended. As `run_in_executor`, whose two futures tell each other what they know through the
loop, for four fifths of what that costs. Made by `EventLoop`, called on its thread.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any


class StepPool:
    """Up to `threads`, begun as they are needed."""

    def __init__(self, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="penstock-cpu")

    def begin(self, function: Callable[[], Any]) -> "asyncio.Future[Any]":
        """Its result or exception. Raises RuntimeError once the pool is closed."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._threads.submit(_take, [(future, function)])
        return future

    def close(self) -> None:
        """Drop what was not begun. Threads end with what they do; nobody waits for them."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _take(step: list[tuple["asyncio.Future[Any]", Callable[[], Any]]]) -> None:
    """One step, out of the list: the frames of an exception's traceback go on to the pool's, which hold the list."""
    future, function = step.pop()
    if future.cancelled():
        return
    answer: Any = None
    failure: BaseException | None = None
    try:
        answer = function()
    except BaseException as error:  # SystemExit, too: it is the step's end, not the thread's
        failure = error
    with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
        future.get_loop().call_soon_threadsafe(_settle, future, answer, failure)
    del future, function, failure  # which hold this frame, too


def _settle(future: "asyncio.Future[Any]", answer: Any, failure: BaseException | None) -> None:
    """On the loop."""
    if future.done():  # cancelled meanwhile
        return
    if failure is None:
        future.set_result(answer)
    else:
        future.set_exception(failure)
