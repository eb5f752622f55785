"""The timer: medians, paired ratios, turns, and who is dropped when."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.plan import Tactic
from penstock.tactics import Child, Limits
from penstock.tactics.timer import (
    CONFIRMING,
    QUALIFYING,
    Contender,
    Effort,
    compare,
    first_call,
    interval,
    ratios,
    warm,
)
from tests.tactics.helpers import PATIENCE, fault, sleeps

QUICK = Effort(warm_seconds=0.05, turn_seconds=0.02, rounds=4, drop_ratio=1.5, close_ratio=0.02)


@pytest.fixture
def ready(faulty: Limits, network: Path) -> Iterator["_Ready"]:
    made = _Ready(faulty, network)
    yield made
    for child in made.children:
        child.close()


class _Ready:
    """Makes contenders of tactics."""

    def __init__(self, limits: Limits, path: Path) -> None:
        self.limits = limits
        self.path = path
        self.children: list[Child] = []

    def __call__(self, tactic: Tactic) -> Contender:
        child = Child(tactic, self.limits)
        self.children.append(child)
        child.compile(self.path)
        child.load(0, {"x": np.ones((1, 4), np.float32)})
        return first_call(child, 0, PATIENCE)


def _always() -> bool:
    return True


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=60))
def test_the_interval_holds_the_median(values: list[float]) -> None:
    low, high = interval(values)
    assert min(values) <= low <= median(values) <= high <= max(values)


@pytest.mark.parametrize(
    ("count", "expected"),
    # Ranks of the 95 % interval of a median, as tables of order statistics give them.
    [(5, (1, 5)), (6, (1, 6)), (8, (1, 8)), (9, (2, 8)), (10, (2, 9)), (15, (4, 12)), (20, (6, 15)), (25, (8, 18))],
)
def test_the_interval_is_that_of_order_statistics(count: int, expected: tuple[int, int]) -> None:
    assert interval([float(each) for each in range(count, 0, -1)]) == expected


def test_ratios_pair_turns_of_the_same_round() -> None:
    # The machine is three times slower in the second round: the ratio does not see it.
    assert ratios([(10, 12, 11), (33,)], [(22,), (60, 66, 72), (5,)]) == [0.5, 0.5]


def test_the_slower_is_seen_and_left_after_few_rounds(ready: _Ready) -> None:
    fast, slow = ready(sleeps(1)), ready(sleeps(30))
    compared = compare([fast, slow], replace(CONFIRMING, turn_seconds=0.02), _always)
    one, other = compared.measurements
    assert (one.tactic, other.tactic) == (fast.tactic, slow.tactic)
    assert one.median_us < other.median_us
    assert one.paired is None
    assert other.paired is not None
    assert other.paired.against == fast.tactic
    assert other.paired.rounds == 2  # certain, and not timed further
    assert 1.5 < other.paired.low <= other.paired.ratio <= other.paired.high


def test_the_reference_may_be_the_slower_one(ready: _Ready) -> None:
    slow, fast = ready(sleeps(30)), ready(sleeps(1))
    compared = compare([slow, fast], QUICK, _always)
    assert compared.measurements[1].paired is not None
    assert compared.measurements[1].paired.high < 0.5


def test_the_clear_loser_of_three_is_left_and_the_others_go_on(ready: _Ready) -> None:
    contenders = [
        ready(tactic) for tactic in (sleeps(2), sleeps(60), Tactic("sleeps", "fp32", options=(("ms", "2.0"),)))
    ]
    compared = compare(contenders, replace(QUICK, rounds=8, drop_ratio=4.0, close_ratio=1e-9), _always)
    first, loser, last = compared.measurements
    assert loser.paired is not None
    assert last.paired is not None
    assert loser.paired.rounds == 2
    assert last.paired.rounds > 2
    assert first.samples > loser.samples


def test_whose_process_fails_is_lost_and_the_others_go_on(ready: _Ready) -> None:
    good, bad = ready(sleeps(1)), ready(fault("crash", "call", calls=1))
    compared = compare([good, bad], QUICK, _always)
    assert [each.lost.tactic for each in compared.lost] == [bad.tactic]
    assert [each.tactic for each in compared.measurements] == [good.tactic]


def test_a_lost_reference_leaves_what_was_measured_until_then(ready: _Ready) -> None:
    # Calls: one at the start, then in each turn one to wake up and at least one that counts.
    bad, good = ready(fault("crash", "call", calls=1)), ready(sleeps(1))
    compared = compare([bad, good], QUICK, _always)
    assert [each.lost.tactic for each in compared.lost] == [bad.tactic]
    assert [(each.tactic, each.paired) for each in compared.measurements] == [(good.tactic, None)]


def test_no_round_begins_once_it_may_not_go_on(ready: _Ready) -> None:
    asked: list[bool] = []
    contender = ready(sleeps(5))

    def once() -> bool:
        asked.append(True)
        return len(asked) < 2

    compared = compare([contender], replace(QUICK, turn_seconds=0.0), once)
    assert len(asked) == 2
    assert compared.measurements[0].samples == 2


def test_warm_ends_when_calls_get_no_faster(ready: _Ready) -> None:
    contender = ready(sleeps(2))
    warm(contender, PATIENCE)
    assert contender.call_us >= 2000


def test_two_real_programs_that_are_the_same_are_close(ready: _Ready) -> None:
    ready.limits = Limits()
    one = ready.__class__(Limits(), ready.path)
    contenders = []
    for threads in (1, 1):
        child = Child(Tactic("onnxruntime", "fp32", threads=threads), one.limits)
        ready.children.append(child)
        child.compile(ready.path)
        child.load(0, {"x": np.ones((4, 3, 64, 64), np.float32)})
        contenders.append(first_call(child, 0, PATIENCE))
        warm(contenders[-1], QUALIFYING.warm_seconds)
    compared = compare(contenders, CONFIRMING, _always)
    assert compared.measurements[1].paired is not None
    # Side by side a busy machine disturbs both: the median of the ratios stays near 1 whatever the times do.
    assert 0.5 < compared.measurements[1].paired.ratio < 2
