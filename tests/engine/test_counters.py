"""Times of a call, told apart from running averages."""

from itertools import accumulate

import pytest

from penstock.engine.runtimes import counters


def readings(times: list[float], parts: list[int]) -> list[tuple[int, float]]:
    """What a library tells after each part of these calls: whole microseconds."""
    return [(calls, float(int(sum(times[:calls]) / calls))) for calls in accumulate(parts)]


@pytest.mark.parametrize("calls", [1, 2, 4, 5, 7, 20, 23])
def test_groups_are_all_calls_in_parts_of_nearly_one_size(calls: int) -> None:
    parts = counters.groups(calls)
    assert sum(parts) == calls
    assert len(parts) == min(calls, 5)
    assert max(parts) - min(parts) <= 1


@pytest.mark.parametrize("held_up", [None, 0, 1, 7, 20])
def test_one_call_that_was_held_up_is_left_out(held_up: int | None) -> None:
    times = [300.0] * 21
    if held_up is not None:
        times[held_up] = 140_000.0
    found = counters.typical(readings(times, [1, *counters.groups(20)]))
    assert found == pytest.approx(300, abs=5)


def test_a_layer_that_was_read_once_is_taken_as_it_is() -> None:
    assert counters.typical([(21, 12.0)]) == 12.0


def test_rounding_makes_no_time_negative() -> None:
    assert counters.typical([(1, 3.0), (5, 0.0), (9, 0.0)]) == 0.0
