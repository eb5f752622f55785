"""What open loops say of their records, and what is sent to: models of known cost under every policy."""

import argparse

import numpy as np
import pytest

import open_loop
import serve_costs
from penstock.bench.load import RECORD

MILLISECOND = 1_000_000


def records(*latencies_ms: int) -> np.ndarray:
    found = np.zeros(len(latencies_ms), RECORD)
    found["scheduled"] = 5
    found["received"] = 5 + MILLISECOND * np.array(latencies_ms)
    return found


def test_percentiles_are_of_each_turn_from_when_requests_were_due() -> None:
    assert open_loop.percentiles([records(*range(101)), records(7)], 99).tolist() == [99, 7]


def test_turns_that_agree_have_a_narrow_interval_and_one_hiccup_does_not_decide() -> None:
    assert open_loop.interval(np.full(6, 1.25)) == (1.25, 1.25)
    low, high = open_loop.interval(np.array([1.0] * 11 + [40.0]))
    assert low == high == 1.0


def test_the_best_delay_of_a_turn_is_told_by_the_other_half_of_the_turns() -> None:
    ours = np.full(8, 10.0)
    lucky_in_the_first = np.array([5.0, 5, 20, 20, 5, 5, 20, 20])
    lucky_in_the_second = np.array([16.0, 16, 8, 8, 16, 16, 8, 8])
    ratios, best = open_loop.beside_the_best(ours, {"0us": lucky_in_the_first, "500us": lucky_in_the_second})
    assert best == ["500us", "0us"]
    assert ratios.tolist() == [10 / 16, 10 / 16, 0.5, 0.5] * 2


@pytest.mark.parametrize("text", ["4", "10", "0", "-8"])
def test_halves_of_the_turns_are_alike(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected 8, 12, 16"):
        open_loop.rounds_of_two_halves(text)
    assert open_loop.rounds_of_two_halves("16") == 16


def test_full_batches_take_five_milliseconds_whatever_the_cost() -> None:
    assert {name: cost(serve_costs.MOST) for name, cost in serve_costs.COSTS.items()} == {
        name: pytest.approx(open_loop.FULL_SECONDS) for name in serve_costs.COSTS
    }


def test_a_delay_of_nothing_is_a_policy_of_its_own() -> None:
    policies = serve_costs.policies()
    assert policies[serve_costs.AUTO] is None
    delays = [policy.max_queue_delay_us for policy in policies.values() if policy is not None]
    assert delays == list(serve_costs.DELAYS_US)
    fixed = serve_costs.model("m", serve_costs.COSTS["constant"], 8, policies["0us"])
    assert fixed.parameters == {"batching": "triton"}


def test_a_model_that_stalls_stops_once_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(serve_costs.time, "monotonic", lambda: now)
    seconds = serve_costs.stalling()
    taken = []
    for tick in range(250):
        now = tick / 10
        taken.append(seconds(1))
    assert sum(each > 1 for each in taken) == 2
    assert min(taken) == serve_costs.ROW_SECONDS
