"""The race: real libraries against each other, losers lost with a reason, and a winner at any time."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.engine.plan import Fingerprint, Shapes, Tactic
from penstock.errors import InvalidArgument, ModelLoadError
from penstock.tactics import (
    Form,
    Limits,
    Lost,
    Measurement,
    Progress,
    Race,
    Skipped,
    TimingCache,
    Trying,
    best,
    confirm,
    finalists,
    race,
    ranked,
)
from tests import onnx_models
from tests.tactics.helpers import PATIENCE, ended, fault, sleeps

Forms = Mapping[str, Form]
Run = Callable[..., Race]

ALONE = "PENSTOCK_TEST_ALONE"

SMALL: Shapes = {"x": (1, 3, 32, 32)}
LARGE: Shapes = {"x": (4, 3, 48, 48)}
SAFE = Tactic("onnxruntime", "fp32")
MACHINE = Fingerprint("cpu", "Some CPU", (), 1, {})
PLENTY = 300.0


def noise(shapes: Shapes) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def run(forms: Forms, faulty: Limits) -> Run:
    """A race of these tactics over one bucket, fake libraries included."""

    def go(*tactics: Tactic, buckets: tuple[Shapes, ...] = (SMALL,), budget: float = PLENTY, **more: Any) -> Race:
        settings: dict[str, Any] = {"machine": MACHINE, "limits": faulty} | more
        return race(forms, buckets, noise, allowed=("fp32",), budget_seconds=budget, tactics=tactics, **settings)

    return go


def test_real_libraries_race_at_every_bucket(forms: Forms) -> None:
    events: list[Progress] = []
    machine = replace(MACHINE, cores=2)
    found = race(
        forms, (SMALL, LARGE), noise, allowed=("fp32",), budget_seconds=PLENTY, on_progress=events.append,
        machine=machine,
    )  # fmt: skip
    assert not found.lost
    for bucket in (0, 1):
        timed = {each.tactic for each in found.at(bucket)}
        left = {each.tactic for each in found.skipped if each.bucket_index == bucket}
        assert {SAFE, Tactic("openvino", "fp32")} <= timed | left
        assert SAFE in timed
        assert best(found, bucket) == ranked(found, bucket)[0]
        assert all(each.median_us > 0 and each.samples > 0 for each in found.at(bucket))
        # All but the first were timed in turns with the best there was, or left out of it for being far behind.
        assert sum(each.paired is None for each in found.at(bucket)) >= 1
    assert found.bytes_of(SAFE) > 0
    assert all(each.seconds > 0 for each in found.compiled)
    assert events[0] == Trying(SAFE, 1, 3)
    assert [each for each in events if isinstance(each, Measurement)] != []


def test_the_fastest_wins_by_its_ratio(run: Run) -> None:
    slow, fast, middle = sleeps(40), sleeps(2), sleeps(12)
    found = run(slow, fast, middle)
    assert ranked(found, 0) == (fast, middle, slow)
    paired = found.of(fast, 0)
    assert paired is not None
    assert paired.paired is not None
    assert paired.paired.against == slow
    assert paired.median_us == pytest.approx(found.at(0)[-1].median_us * paired.paired.ratio)


@pytest.mark.parametrize("name", ["crash", "fail", "leave", "forge"])
@pytest.mark.parametrize("when", ["compile", "call"])
def test_a_failing_candidate_is_lost_and_the_race_goes_on(name: str, when: str, run: Run) -> None:
    events: list[Progress] = []
    bad = fault(name, when)
    found = run(sleeps(5), bad, sleeps(1), on_progress=events.append)
    (lost,) = found.lost
    assert (lost.tactic, lost.bucket_index) == (bad, 0)
    assert lost in events
    assert ranked(found, 0) == (sleeps(1), sleeps(5))


def test_a_candidate_that_fails_once_it_was_called_is_lost_too(run: Run) -> None:
    found = run(sleeps(5), fault("crash", "call", calls=4))
    assert [each.tactic for each in found.lost] == [fault("crash", "call", calls=4)]
    assert best(found, 0) == sleeps(5)


@pytest.mark.parametrize("name", ["hang", "stop"])
def test_a_hang_costs_seconds_and_not_the_race(name: str, run: Run) -> None:
    found = run(sleeps(1), fault(name, "call"), sleeps(2))
    assert "was stopped" in found.lost[0].reason
    assert {each.tactic for each in found.at(0)} == {sleeps(1), sleeps(2)}
    assert found.seconds < PATIENCE


def test_a_call_that_takes_forever_beside_the_best_is_left_after_the_first(run: Run) -> None:
    found = run(sleeps(1), sleeps(1200), buckets=(SMALL, LARGE))
    slow = found.of(sleeps(1200), 0)
    assert slow is not None
    assert slow.samples == 1
    assert found.of(sleeps(1200), 1) is None
    assert [each for each in found.skipped if each.tactic == sleeps(1200) and each.bucket_index == 1]


def test_memory_beyond_the_limit_loses_the_candidate(run: Run, faulty: Limits) -> None:
    found = run(sleeps(1), fault("devour"), limits=replace(faulty, memory_bytes=400 * 2**20))
    assert "of memory" in found.lost[0].reason
    assert best(found, 0) == sleeps(1)


def test_the_first_failing_does_not_matter(run: Run) -> None:
    found = run(fault("crash"), sleeps(1))
    assert best(found, 0) == sleeps(1)


def test_when_all_are_lost_the_reasons_are_told(run: Run) -> None:
    found = run(fault("crash"), fault("fail"))
    assert (found.measurements, len(found.lost)) == ((), 2)
    with pytest.raises(ModelLoadError, match=r"no library runs the model at x \[1, 3, 32, 32\]: crash .*Frobnicate"):
        best(found, 0)


def test_without_any_time_the_safe_one_is_timed_everywhere(run: Run) -> None:
    found = run(SAFE, sleeps(1), buckets=(SMALL, LARGE), budget=0.0)
    assert [best(found, bucket) for bucket in (0, 1)] == [SAFE, SAFE]
    assert {(each.tactic, each.reason) for each in found.skipped} == {(sleeps(1), "no time was left")}


def test_a_candidate_that_the_budget_cuts_is_not_lost(run: Run, tmp_path: Path) -> None:
    cache = TimingCache(tmp_path / "timings.json", MACHINE)
    hanging = fault("hang")
    found = run(sleeps(1), hanging, budget=2.0, cache=cache)
    assert not found.lost
    assert {each.tactic for each in found.skipped} == {hanging}
    again = TimingCache(tmp_path / "timings.json", MACHINE)
    assert len(again) == 1


def test_what_is_in_the_cache_starts_no_process(run: Run, tmp_path: Path, faulty: Limits) -> None:
    path = tmp_path / "timings.json"
    tactics = sleeps(1), sleeps(8), fault("crash")
    first = run(*tactics, cache=TimingCache(path, MACHINE))
    assert first.cache_hits == 0
    nothing = replace(faulty, worker="tests.tactics.no_such_worker")
    second = run(*tactics, cache=TimingCache(path, MACHINE), limits=nothing)
    assert second.cache_hits == 3
    assert ranked(second, 0) == ranked(first, 0)
    assert all(each.cached for each in second.measurements)
    assert second.lost == (replace(first.lost[0], cached=True),)
    assert second.bytes_of(sleeps(1)) == first.bytes_of(sleeps(1))


def test_a_new_candidate_is_timed_against_the_best_of_the_cache(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "timings.json"
    run(sleeps(10), cache=TimingCache(path, MACHINE))
    found = run(sleeps(10), sleeps(1), cache=TimingCache(path, MACHINE))
    fast = found.of(sleeps(1), 0)
    assert fast is not None
    assert fast.paired is not None
    assert (fast.paired.against, best(found, 0)) == (sleeps(10), sleeps(1))


def test_a_race_goes_on_from_what_is_known(run: Run) -> None:
    first = run(sleeps(10), fault("crash"))
    second = run(sleeps(10), fault("crash"), sleeps(1), known=first)
    assert set(first.measurements) < set(second.measurements)
    assert second.lost == first.lost
    fast = second.of(sleeps(1), 0)
    assert fast is not None
    assert fast.paired is not None
    assert fast.paired.against == sleeps(10)


def test_a_race_goes_on_at_the_buckets_that_are_not_known(run: Run) -> None:
    first = run(sleeps(10), sleeps(24), sleeps(24, shapes="static"), buckets=(SMALL, LARGE))
    passed_over = {(each.tactic, each.bucket_index) for each in first.skipped}
    assert passed_over == {(sleeps(24, shapes="static"), 0), (sleeps(24, shapes="static"), 1)}
    # Without the fastest, as where it turned out to be wrong, and with one of the others known at one bucket.
    known = replace(first, measurements=tuple(each for each in first.measurements if each.tactic != sleeps(10)))
    static = sleeps(24, shapes="static")
    slow = next(each for each in known.measurements if each.bucket_index == 0)
    known = known.with_measurements([replace(slow, tactic=static)])
    events: list[Progress] = []
    second = run(static, sleeps(24), buckets=(SMALL, LARGE), known=known, on_progress=events.append)
    assert [(each.tactic, each.bucket_index) for each in events if isinstance(each, Measurement)] == [(static, 1)]
    assert {(each.tactic, each.bucket_index) for each in second.skipped} == {(static, 0)}


def test_the_static_sibling_of_a_slow_one_is_left_out(run: Run) -> None:
    found = run(sleeps(1), sleeps(30), sleeps(30, shapes="static"))
    (left,) = found.skipped
    assert left.tactic == sleeps(30, shapes="static")
    assert "dynamic sibling took" in left.reason


def test_fixed_shapes_are_not_compiled_twice(tmp_path: Path) -> None:
    path = onnx_models.double(tmp_path / "fixed.onnx", shape=(2, 4))
    openvino = Tactic("openvino", "fp32")
    found = race(
        {"source": Form(path, "fp32", False)}, [{"x": (2, 4)}], noise, allowed=("fp32",), budget_seconds=PLENTY,
        tactics=[openvino, replace(openvino, shapes="static")], machine=MACHINE,
    )  # fmt: skip
    assert [each.tactic for each in found.measurements] == [openvino]
    assert found.skipped == (
        Skipped(
            replace(openvino, shapes="static"), "the model takes no other shapes: the same as its dynamic sibling", 0
        ),
    )


def test_the_optimum_is_timed_first_and_decides(run: Run) -> None:
    events: list[Progress] = []
    run(sleeps(1), sleeps(20), buckets=(SMALL, LARGE), optimum=1, on_progress=events.append)
    order = [(each.tactic, each.bucket_index) for each in events if isinstance(each, Measurement | Skipped)]
    assert order == [(sleeps(1), 1), (sleeps(1), 0), (sleeps(20), 1), (sleeps(20), 0)]
    assert isinstance(events[-1], Skipped)


def test_short_calls_are_tried_on_one_thread(run: Run) -> None:
    found = run(SAFE, machine=replace(MACHINE, cores=2))
    short = found.of(SAFE, 0)
    assert short is not None
    assert (replace(SAFE, threads=1) in ranked(found, 0)) == (short.median_us < 2000)
    assert run(SAFE).of(replace(SAFE, threads=1), 0) is None  # one core: the same thing


def test_a_tactic_of_an_unknown_form_is_a_mistake_of_the_caller(run: Run) -> None:
    with pytest.raises(InvalidArgument, match="no such form, there are source"):
        run(Tactic("onnxruntime", "fp32", "optimised"))


def test_an_interrupted_race_leaves_no_process(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note = tmp_path / "process"
    monkeypatch.setenv("PENSTOCK_TEST_FILE", str(note))

    def interrupt(event: Progress) -> None:
        if isinstance(event, Measurement):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(fault("breed"), on_progress=interrupt)
    assert ended(int(note.read_text()))


def test_ctrl_c_in_the_middle_of_a_call_leaves_no_process(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """The signal comes while the builder waits for an answer that never comes.

    In a process of its own, as a builder is: of those that have loaded every library of all tests, one had left the
    main thread a stack for signals that was gone, so that any signal ended it.
    """
    if ALONE not in os.environ:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", request.node.nodeid]
        alone = subprocess.run(
            command, cwd=request.config.rootpath, env={**os.environ, ALONE: "1"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert alone.returncode == 0, alone.stdout
        return
    note = tmp_path / "process"
    os.mkfifo(note)
    monkeypatch.setenv("PENSTOCK_TEST_FILE", str(note))
    bred: list[int] = []

    def once_it_runs() -> None:
        bred.append(int(note.read_text()))  # waits for the writer
        os.kill(os.getpid(), signal.SIGINT)

    # Whoever started the tests in the background may have left the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        thread = threading.Thread(target=once_it_runs)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            run(fault("breed"), sleeps(PATIENCE * 1000))
        thread.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended(bred[0])


# ---- confirming ----


def test_the_final_times_the_best_side_by_side(run: Run, forms: Forms, faulty: Limits) -> None:
    found = run(sleeps(8), sleeps(2), sleeps(40))
    assert finalists(found, 0) == (sleeps(2),)
    final = confirm(found, [sleeps(8), sleeps(2)], [0], forms, noise, budget_seconds=PLENTY, limits=faulty)
    assert {each.tactic for each in final.measurements if each.confirmed} == {sleeps(2), sleeps(8)}
    assert ranked(final, 0) == (sleeps(2), sleeps(8), sleeps(40))
    # What was not in the final is brought to its scale, so that times at a bucket can be compared.
    factor = final.at(0)[0].median_us / found.at(0)[0].median_us
    assert final.at(0)[2].median_us == pytest.approx(found.at(0)[2].median_us * factor)


def test_a_wrong_order_is_put_right_by_the_final(run: Run, forms: Forms, faulty: Limits) -> None:
    found = run(sleeps(8), sleeps(2))
    fast, slow = found.at(0)
    swapped = found.with_measurements([fast.scaled(20), slow])
    assert best(swapped, 0) == sleeps(8)
    final = confirm(swapped, ranked(swapped, 0), [0], forms, noise, budget_seconds=PLENTY, limits=faulty)
    assert best(final, 0) == sleeps(2)


def test_more_finalists_than_places_run_in_heats(run: Run, forms: Forms, faulty: Limits) -> None:
    tactics = [sleeps(milliseconds) for milliseconds in (32, 1, 16, 2, 8, 4)]
    found = run(*tactics)
    upside_down = found.with_measurements([each.scaled(1000 / each.median_us**2) for each in found.at(0)])
    final = confirm(upside_down, tactics, [0], forms, noise, budget_seconds=PLENTY, limits=faulty)
    assert all(each.confirmed for each in final.measurements)
    assert best(final, 0) == sleeps(1)


def test_a_finalist_that_fails_now_is_out(run: Run, forms: Forms, faulty: Limits, tmp_path: Path) -> None:
    path = tmp_path / "timings.json"
    found = run(sleeps(5), sleeps(1), cache=TimingCache(path, MACHINE))
    broken = replace(found.at(0)[0], tactic=fault("crash"))
    final = confirm(
        found.with_measurements([broken]), [fault("crash"), sleeps(1), sleeps(5)], [0], forms, noise,
        budget_seconds=PLENTY, limits=faulty, cache=TimingCache(path, MACHINE),
    )  # fmt: skip
    assert ranked(final, 0) == (sleeps(1), sleeps(5))
    assert [each.tactic for each in final.lost] == [fault("crash")]
    # And known to the next build, as are the confirmed times.
    again = run(fault("crash"), sleeps(1), sleeps(5), cache=TimingCache(path, MACHINE))
    assert [each.tactic for each in again.lost] == [fault("crash")]
    assert all(each.confirmed for each in again.measurements)


def test_what_is_confirmed_is_not_confirmed_again(run: Run, forms: Forms, faulty: Limits) -> None:
    found = run(sleeps(5), sleeps(1))
    once = confirm(found, ranked(found, 0), [0], forms, noise, budget_seconds=PLENTY, limits=faulty)
    nothing = replace(faulty, worker="tests.tactics.no_such_worker")
    twice = confirm(once, ranked(once, 0), [0], forms, noise, budget_seconds=PLENTY, limits=nothing)
    assert twice.measurements == once.measurements


def test_without_time_for_a_final_the_race_stays_as_it_is(run: Run, forms: Forms, faulty: Limits) -> None:
    found = run(sleeps(5), sleeps(1))
    final = confirm(found, ranked(found, 0), [0], forms, noise, budget_seconds=0.0, limits=faulty)
    assert final.measurements == found.measurements
    assert final.notes == ("the budget ended before 2 finalists of bucket 0 were confirmed",)


@pytest.mark.parametrize("name", ["crash", "fail"])
def test_a_champion_that_fails_later_does_not_take_the_next_one_with_it(
    name: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    switch = tmp_path / "switch"
    monkeypatch.setenv("PENSTOCK_TEST_FILE", str(switch))
    mortal = fault(name, "file")

    def once_timed(event: Progress) -> None:
        if isinstance(event, Measurement):
            switch.touch()

    found = run(mortal, Tactic("sleeps", "fp32"), on_progress=once_timed)
    assert "timed before, and now" in caplog.text
    fast = found.of(Tactic("sleeps", "fp32"), 0)
    assert fast is not None
    assert fast.paired is None
    assert not found.lost  # what it was timed at stands; the final and the gate will see


# ---- a real model ----


@pytest.mark.slow
def test_the_recogniser_races(recogniser: Path) -> None:
    forms = {"source": Form(recogniser, "fp32", False)}
    bucket = {"x": (1, 3, 48, 320)}
    found = race(forms, [bucket], noise, allowed=("fp32", "bf16", "fp16"), budget_seconds=PLENTY)
    final = confirm(found, finalists(found, 0), [0], forms, noise, budget_seconds=PLENTY)
    assert not final.lost
    assert len(final.at(0)) >= 2
    assert final.of(best(final, 0), 0).confirmed  # type: ignore[union-attr]
    assert all(isinstance(each, Lost) is False for each in final.measurements)
