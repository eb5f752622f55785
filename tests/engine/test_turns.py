"""Turns: never more at once than may be, the one that waits longest first, and none lost to whatever is raised."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.engine import Engine, open_engine, turns
from penstock.engine.turns import Turns, _Turn
from tests import onnx_models
from tests.engine.engines import ORT, Plan, profile, seal
from tests.serve.calls import eventually

SECONDS = 30.0


class Interrupted(Exception):
    """What the handler of a signal raises."""


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    """y = 3x for [1..4, 16]; two calls at once at least."""
    shapes = profile("x", (1, 16), (1, 16), (4, 16))
    return open_engine(seal(Plan(onnx_models.scale(tmp_path / "m.onnx", 3, ("n", 16)), shapes, [(ORT, {})]),
                            tmp_path / "m.engine"))  # fmt: skip


def started(work: Callable[..., Any], *given: Any) -> threading.Thread:
    thread = threading.Thread(target=work, args=given, daemon=True)  # one that waits for ever is to fail, not to hang
    thread.start()
    return thread


@contextmanager
def held(turns: Turns) -> Iterator[None]:
    """By another thread, meanwhile."""
    taken, given_back = threading.Event(), threading.Event()

    def hold() -> None:
        taken.set()
        assert given_back.wait(SECONDS)

    thread = started(turns.run, hold)
    assert taken.wait(SECONDS)
    try:
        yield
    finally:
        given_back.set()
        thread.join()


def waiting(turns: Turns, count: int) -> None:
    eventually(f"{count} wait", lambda: len(turns._waiting) == count)


def untouched(turns: Turns, count: int) -> bool:
    """Nobody works, nobody waits."""
    return turns._free == count and not turns._waiting


def test_no_more_work_at_once_than_may() -> None:
    given, guard = Turns(3), threading.Lock()
    inside, most, calls = 0, 0, 0

    def work() -> None:
        nonlocal inside, most, calls
        with guard:
            inside, calls = inside + 1, calls + 1
            most = max(most, inside)
        with guard:
            inside -= 1

    def many() -> None:
        for _ in range(300):
            given.run(work)

    for thread in [started(many) for _ in range(20)]:
        thread.join()
    assert (most <= 3, calls) == (True, 6000)
    assert untouched(given, 3)


def test_those_that_waited_too_long_go_in_the_order_they_came(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "PATIENCE", 0.0)
    given, order = Turns(1), list[int]()
    threads = []
    with held(given):
        for number in range(10):
            threads.append(started(given.run, order.append, number))
            waiting(given, number + 1)
    for thread in threads:
        thread.join()
    assert order == list(range(10))


def test_a_free_turn_is_for_whoever_runs_while_nobody_has_waited_too_long() -> None:
    given = Turns(1)
    woken = _Turn()  # its bell has rung, and it does not run yet
    woken.came = time.monotonic() + SECONDS
    given._waiting.append(woken)
    assert given.run(lambda: "answered") == "answered"


def test_a_free_turn_is_kept_for_one_that_has_waited_too_long() -> None:
    given, order = Turns(1), list[str]()
    woken = _Turn()
    woken.came = time.monotonic() - SECONDS
    given._waiting.append(woken)
    late = started(given.run, order.append, "the one that came late")
    waiting(given, 2)
    order.append("the one that was woken")
    given._leave(woken)
    late.join()
    assert order == ["the one that was woken", "the one that came late"]
    assert untouched(given, 1)


def test_what_work_raises_gives_the_turn_back() -> None:
    given = Turns(1)

    def fail() -> None:
        raise Interrupted

    for _ in range(3):
        with pytest.raises(Interrupted):
            given.run(fail)
    assert given.run(lambda: "answered") == "answered"
    assert untouched(given, 1)


@contextmanager
def alarms() -> Iterator[Callable[[float], object]]:
    """A function that sets the one alarm, which raises `Interrupted` in the main thread; 0 takes it back."""

    def raised(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, raised)
    try:
        yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_an_interrupted_waiter_swallows_no_turn() -> None:
    given = Turns(1)
    answered = threading.Event()
    with alarms() as alarm:
        with held(given):
            alarm(0.05)
            with pytest.raises(Interrupted):
                given.run(pytest.fail, "it was not its turn")
            assert not given._waiting
            behind = started(given.run, answered.set)
            waiting(given, 1)
        assert answered.wait(SECONDS)
    behind.join()
    assert untouched(given, 1)


def test_interruptions_anywhere_lose_no_turn_and_forget_no_waiter() -> None:
    """The main thread is interrupted at two thousand places of waiting, working and leaving, beside three others."""
    given, ended = Turns(2), threading.Event()
    calls = [0, 0, 0]

    def work(number: int) -> None:
        while not ended.is_set():
            given.run(sum, (1, 2))
            calls[number] += 1

    others = [started(work, number) for number in range(3)]
    random = np.random.default_rng(0)
    with alarms() as alarm:
        for pause in random.uniform(1e-6, 1e-3, 2000):
            try:
                alarm(pause)
                while True:
                    given.run(sum, (1, 2))
            except Interrupted:
                continue
    before = list(calls)
    eventually("the others still get turns", lambda: all(now > then for now, then in zip(calls, before, strict=True)))
    ended.set()
    for thread in others:
        thread.join()
    assert untouched(given, 2)


def test_50_threads_on_one_engine_all_get_their_share_and_the_right_answers(engine: Engine) -> None:
    """Ten calls each before the quickest has made 50,000: two threads that only take turns leave the others none."""
    threads, share, too_many = 50, 10, 50_000
    barrier, ended = threading.Barrier(threads), threading.Event()
    behind, calls, wrong = set(range(threads)), [0] * threads, [0] * threads

    def work(number: int) -> None:
        x = np.random.default_rng(number).random((1 + number % 4, 16), np.float32)
        expected = x * np.float32(3)
        barrier.wait()
        while not ended.is_set():
            wrong[number] += not np.array_equal(engine(x=x)["y"], expected)
            calls[number] += 1
            if calls[number] == share:
                behind.discard(number)
            if not behind or calls[number] == too_many:
                ended.set()

    for thread in [started(work, number) for number in range(threads)]:
        thread.join()
    assert (sorted(behind), sum(wrong)) == ([], 0)
    assert untouched(engine._turns, engine._turns._free)
