"""The pool of `ps.cpu` steps: what comes back, what is never begun, and that nothing is kept."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator

import numpy as np
import pytest

from penstock.serve.step_pool import StepPool
from tests.serve.calls import eventually

SECONDS = 20.0


@pytest.fixture
def pool() -> Iterator[StepPool]:
    made = StepPool(2)
    yield made
    made.close()


def test_results_and_exceptions_come_back_to_their_futures(pool: StepPool) -> None:
    async def body() -> list[object]:
        steps = [pool.begin(lambda number=number: 6 // number) for number in (1, 0, 3)]
        return await asyncio.gather(*steps, return_exceptions=True)

    one, failed, three = asyncio.run(body())
    assert (one, three) == (6, 2)
    assert isinstance(failed, ZeroDivisionError)


def test_many_steps_run_on_no_more_threads_than_were_asked_for(pool: StepPool) -> None:
    async def body() -> list[str]:
        return await asyncio.gather(*[pool.begin(lambda: threading.current_thread().name) for _ in range(200)])

    assert set(asyncio.run(body())) <= {"penstock-cpu_0", "penstock-cpu_1"}


def test_a_step_that_was_cancelled_before_its_turn_is_never_called(pool: StepPool) -> None:
    go_on, called = threading.Event(), list[str]()

    async def body() -> None:
        busy = [pool.begin(lambda: go_on.wait(SECONDS)) for _ in range(2)]
        dropped, kept = (pool.begin(lambda name=name: called.append(name)) for name in ("dropped", "kept"))
        dropped.cancel()
        go_on.set()
        await asyncio.gather(*busy, kept)

    asyncio.run(body())
    assert called == ["kept"]


@pytest.mark.parametrize("fails", [False, True])
def test_what_a_step_was_given_is_gone_once_it_has_ended(fails: bool, pool: StepPool) -> None:
    async def body() -> "weakref.ref[np.ndarray]":
        array = np.zeros(1000)

        def step(given: np.ndarray = array) -> int:
            return len(given) // (0 if fails else 1)

        await asyncio.gather(pool.begin(step), return_exceptions=True)
        return weakref.ref(array)

    gc.disable()  # what only the collector finds is kept too long
    try:
        found = asyncio.run(body())
        eventually("the array is gone", lambda: found() is None)
    finally:
        gc.enable()


def test_a_closed_pool_drops_what_was_not_begun_and_takes_nothing_more() -> None:
    pool, go_on, begun, called = StepPool(1), threading.Event(), threading.Event(), list[str]()

    def busy() -> None:
        begun.set()
        go_on.wait(SECONDS)

    async def body() -> None:
        first = pool.begin(busy)
        dropped = pool.begin(lambda: called.append("dropped"))
        assert begun.wait(SECONDS)
        pool.close()
        go_on.set()
        await first
        assert not dropped.done()
        with pytest.raises(RuntimeError):
            pool.begin(busy)

    asyncio.run(body())
    assert called == []
