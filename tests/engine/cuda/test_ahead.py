"""Kernels compiled before tuning asks for them: they make room for it, and none is compiled twice."""

import time
from concurrent.futures import Future

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

from penstock.engine.cuda.kernels.launching import Launch
from penstock.engine.cuda.tuning import Ahead

pytestmark = pytest.mark.torch


class Compilers:
    """They begin what they are told to, and no more."""

    def __init__(self) -> None:
        self.asked: list[tuple[Launch, Future[str]]] = []

    def submit(self, launch: Launch, until: float) -> Future[str]:
        assert until > time.monotonic()
        self.asked.append((launch, Future()))
        return self.asked[-1][1]

    def begin(self, count: int) -> None:
        for _, future in self.asked[:count]:
            assert future.set_running_or_notify_cancel()


def launches(count: int) -> list[Launch]:
    return [Launch(None, (number, 1, 1), (), {}, 4) for number in range(count)]


def test_what_has_begun_is_finished_and_the_rest_waits_until_there_is_time_again() -> None:
    compilers, wanted = Compilers(), launches(5)
    ahead = Ahead(compilers, wanted, time.monotonic() + 60)  # type: ignore[arg-type]
    ahead.go_on()
    compilers.begin(2)
    ahead.pause()
    assert [future.cancelled() for _, future in compilers.asked] == [False, False, True, True, True]
    ahead.pause()  # twice is once
    compilers.asked.clear()
    ahead.go_on()
    assert [launch for launch, _ in compilers.asked] == wanted[2:]


def test_nothing_is_asked_for_before_it_is_told_to() -> None:
    compilers = Compilers()
    ahead = Ahead(compilers, launches(2), time.monotonic() + 60)  # type: ignore[arg-type]
    ahead.pause()
    assert not compilers.asked
    ahead.go_on()
    assert len(compilers.asked) == 2
