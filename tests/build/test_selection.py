"""Which programs an engine holds: small worlds of timings, each with the one right choice."""

import pytest

from penstock.build.selection import Candidate, select, untried_siblings
from penstock.engine.plan import Tactic
from penstock.tactics import Lost, Measurement, Race

SAFE = Tactic("onnxruntime", "fp32")
WIDE = Tactic("openvino", "fp32")
HALF = Tactic("openvino", "bf16")
FIXED = Tactic("openvino", "bf16", shapes="static")


def chosen(*candidates: Candidate, free_shapes: bool = False, workspace_bytes: int | None = None) -> list[Tactic]:
    buckets = len(candidates[0].microseconds)
    selection = select(candidates, buckets, free_shapes=free_shapes, workspace_bytes=workspace_bytes)
    assert selection is not None
    return list(selection.tactics)


def test_the_fastest_of_one_bucket() -> None:
    assert chosen(Candidate(SAFE, (30.0,)), Candidate(HALF, (10.0,)), Candidate(WIDE, (20.0,))) == [HALF]


def test_each_bucket_takes_its_own_where_one_tactic_loses() -> None:
    assert chosen(Candidate(WIDE, (10.0, 90.0)), Candidate(HALF, (20.0, 40.0))) == [WIDE, HALF]


def test_one_program_is_enough_within_the_tolerance() -> None:
    assert chosen(Candidate(WIDE, (10.0, 90.0)), Candidate(HALF, (10.1, 40.0))) == [HALF, HALF]


def test_beyond_the_tolerance_time_comes_before_memory() -> None:
    assert chosen(Candidate(WIDE, (10.0, 90.0)), Candidate(HALF, (10.5, 40.0))) == [WIDE, HALF]


def test_shapes_between_the_buckets_need_a_dynamic_program() -> None:
    candidates = [Candidate(FIXED, (10.0, 20.0)), Candidate(HALF, (11.0, 22.0))]
    for free_shapes, rest in ((False, None), (True, HALF)):
        selection = select(candidates, 2, free_shapes=free_shapes)
        assert selection is not None
        assert (selection.tactics, selection.rest) == ((FIXED, FIXED), rest)
    assert select(candidates[:1], 2, free_shapes=True) is None


def test_what_does_not_fit_is_not_chosen() -> None:
    """A static tactic is held once for every bucket."""
    candidates = [Candidate(FIXED, (10.0, 20.0), bytes=60), Candidate(HALF, (15.0, 30.0), bytes=100)]
    assert chosen(*candidates, workspace_bytes=120) == [FIXED, FIXED]
    assert chosen(*candidates, workspace_bytes=110) == [HALF, HALF]
    assert select(candidates, 2, free_shapes=False, workspace_bytes=50) is None


@pytest.mark.parametrize("times", [(None, None), (10.0, None)])
def test_a_bucket_that_nothing_runs_has_no_choice(times: tuple[float | None, ...]) -> None:
    assert select([Candidate(SAFE, times)], 2, free_shapes=False) is None


def test_a_tactic_that_runs_some_buckets_only_serves_those() -> None:
    assert chosen(Candidate(SAFE, (30.0, 30.0)), Candidate(HALF, (10.0, None))) == [HALF, SAFE]


FIXED_WIDE = Tactic("openvino", "fp32", shapes="static")


def race(*timed: tuple[Tactic, int, float], lost: tuple[Tactic, ...] = ()) -> Race:
    measurements = tuple(Measurement(tactic, bucket, us, 0.1, 20) for tactic, bucket, us in timed)
    return Race(
        ({"x": (1, 4)}, {"x": (8, 4)}), measurements, tuple(Lost(each, "crashed while compiling") for each in lost)
    )


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (race((HALF, 0, 10), (HALF, 1, 80), (WIDE, 0, 20), (WIDE, 1, 95)), [FIXED]),
        (race((HALF, 0, 10), (HALF, 1, 80), (WIDE, 0, 20), (WIDE, 1, 90)), [FIXED, FIXED_WIDE]),
        (race((HALF, 0, 10), (HALF, 1, 80), (FIXED, 0, 9)), [FIXED]),
        (race((HALF, 0, 10), (HALF, 1, 80), (FIXED, 1, 70)), [FIXED]),
        (race((HALF, 0, 10), (HALF, 1, 95), (WIDE, 0, 20), (WIDE, 1, 90)), [FIXED, FIXED_WIDE]),
        (race((FIXED, 0, 10), (FIXED, 1, 80), (WIDE, 0, 20), (WIDE, 1, 95)), [HALF]),
        (race((HALF, 0, 10), (HALF, 1, 80), (FIXED, 0, 11), (FIXED, 1, 81)), []),
        (race((HALF, 0, 10), (HALF, 1, 80), lost=(FIXED,)), []),
        (race((SAFE, 0, 10), (SAFE, 1, 80), (HALF, 0, 20)), []),
        (race(), []),
    ],
)
def test_the_other_program_of_what_would_be_chosen_is_tried(known: Race, expected: list[Tactic]) -> None:
    wanted = [SAFE, HALF, WIDE, FIXED, FIXED_WIDE, Tactic("openvino", "fp16", shapes="static")]
    assert untried_siblings(wanted, known) == expected
