"""Trials of our kernels among libraries: what is compiled first, what is lost, and what is waited for."""

import threading
from collections import Counter
from concurrent.futures import Future

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

from penstock.engine.cuda import candidates
from penstock.engine.cuda.candidates import Candidate, kernel_key
from penstock.engine.cuda.executor import Executor
from penstock.engine.cuda.implementations import IMPLEMENTATIONS, fitting
from penstock.engine.cuda.kernels.launching import Launch
from penstock.engine.cuda.triton_steps import launch
from penstock.engine.cuda.tuner import promising, tune
from tests.engine.cuda.kernels.test_steps import MODELS, WIDE, X
from tests.engine.cuda.reference import lowered
from tests.graph.small import graph, normal

pytestmark = pytest.mark.torch


def test_every_kernel_of_a_candidate_is_compiled_before_it_is_timed(device: str) -> None:
    text, weights, inputs, _ = MODELS["two layers"]
    lowered_, found_weights = lowered(graph(text, weights, opset=20), inputs)
    compilers = Answers(failing=0)
    result = tune(
        Executor(lowered_, found_weights, device, "fp16"), timer=lambda call: 1.0, compilers=compilers, limit=2
    )
    row = next(row for row in result.rows if row.site.step.kind == "mlp")
    timed = {choice.implementation for choice in row.times}
    assert timed == {"cublas", "triton", "triton_pair"}, row.failed
    assert compilers.asked["implicit_gemm_kernel"] == 4
    failing = tune(
        Executor(lowered_, found_weights, device, "fp16"), timer=lambda call: 1.0, compilers=Answers(4), limit=2
    )
    row = next(row for row in failing.rows if row.site.step.kind == "mlp")
    assert "triton_pair" not in {choice.implementation for choice in row.times}


def test_what_tuning_will_compile_is_known_before(device: str) -> None:
    text, weights, inputs, _ = MODELS["two layers"]
    lowered_, found_weights = lowered(graph(text, weights, opset=20), inputs)
    executor, compilers = Executor(lowered_, found_weights, device, "fp16"), Answers(failing=0)
    known = Counter(each.kernel.__name__ for each in promising([executor], limit=2) if isinstance(each, Launch))
    tune(executor, timer=lambda call: 1.0, compilers=compilers, limit=2)
    assert known == compilers.asked
    assert known["implicit_gemm_kernel"] > 0


class OneByOne:
    """Compilers that are asked for a kernel at a time, and remember what is asked for."""

    processes = 1

    def __init__(self) -> None:
        self.asked: list[object] = []

    def submit(self, launch: Launch, /) -> Future[str]:
        self.asked.append(kernel_key(launch))
        future: Future[str] = Future()
        future.set_result("")
        return future


def test_every_step_has_a_first_idea_compiled_before_any_has_a_third(device: str) -> None:
    text = "(float[1,16,6,6] x) => (float[1,16,6,6] y) { a = Conv (x, v) y = Conv <pads=[1,1,1,1]> (a, w, b) }"
    lowered_, weights = lowered(graph(text, {**WIDE, "v": normal(16, 16, 1, 1) / 4}), X)
    executor, compilers = Executor(lowered_, weights, device, "fp16"), OneByOne()
    tune(executor, timer=lambda call: 1000.0, compilers=compilers, limit=3)
    ideas = [
        [kernel_key(each) for each in launch(site, name, tuple(implementation.configs(site)[rank]))]
        for site in executor.sites if site.step.kind == "conv"
        for name, implementation in fitting(site).items() if name == "triton"
        for rank in (0, 2)
    ]  # fmt: skip
    firsts, thirds = ([compilers.asked.index(each) for keys in ideas[at::2] for each in keys] for at in (0, 1))
    assert len(firsts) == 2
    assert max(firsts) < min(thirds)


class Looks:
    """Compilers with room for everything at once."""

    processes = 1000

    def submit(self, launch: Launch, /) -> Future[str]:
        done: Future[str] = Future()
        done.set_result("")
        return done


def test_many_are_asked_for_in_one_look_at_what_waits(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looked, keys, worth_a_second = Counter[Candidate](), Counter[int](), Candidate.worth_a_second

    def look(candidate: Candidate) -> float:
        looked[candidate] += 1
        return worth_a_second.__get__(candidate)

    def key(made: Launch) -> object:
        keys[id(made)] += 1
        return kernel_key(made)

    monkeypatch.setattr(Candidate, "worth_a_second", property(look))
    monkeypatch.setattr(candidates, "kernel_key", key)
    lowered_, weights = lowered(graph(MODELS["gemm"][0], MODELS["gemm"][1]), MODELS["gemm"][2])
    tune(Executor(lowered_, weights, device, "fp16"), timer=lambda call: 1.0, compilers=Looks(), limit=4)
    assert len(looked) > 4
    assert set(looked.values()) == {1}
    assert set(keys.values()) == {1}


def test_the_tuner_times_ours_among_the_others(device: str) -> None:
    lowered_, weights = lowered(graph(MODELS["gemm"][0], MODELS["gemm"][1]), MODELS["gemm"][2])
    costs = iter(range(1000, 0, -1))  # whatever is timed later is faster, and ours come last
    result = tune(Executor(lowered_, weights, device, "fp16"), timer=lambda call: float(next(costs)), limit=2)
    row = next(row for row in result.rows if row.site.step.kind == "gemm")
    assert row.best is not None
    assert row.best.implementation == "triton", row.failed
    assert next(iter(row.times)).implementation == next(iter(IMPLEMENTATIONS["gemm"]))


class Answers:
    """Compilers that say of every launch what they are told to say of its number of warps."""

    processes = 4

    def __init__(self, failing: int) -> None:
        self.failing = failing
        self.asked: Counter[str] = Counter()

    def submit(self, launch: Launch, /) -> Future[str]:
        future: Future[str] = Future()
        self.asked[launch.kernel.__name__] += 1
        if launch.num_warps != NEVER:
            future.set_result("no registers left" if launch.num_warps == self.failing else "")
        return future


NEVER = 2


def test_what_does_not_compile_is_lost_and_what_is_not_compiled_in_time_is_not_timed(device: str) -> None:
    # Depthwise cuts have 1, 2 and 4 warps.
    lowered_, weights = lowered(graph(MODELS["depthwise"][0], MODELS["depthwise"][1]), X)
    result = tune(
        Executor(lowered_, weights, device, "fp16"), timer=lambda call: 1.0, compilers=Answers(4), seconds=2.0
    )
    row = next(row for row in result.rows if row.site.step.kind == "conv")
    assert {choice.config[-1] for choice in row.failed} == {4}
    assert set(row.failed.values()) == {"no registers left"}
    assert {choice.config[-1] for choice in row.times if choice.implementation == "triton_depthwise"} == {1}
    assert result.untimed > 0


class Late:
    """Compilers whose first kernels are done after the time is over, one after the other; the others never begin."""

    processes = 4

    def __init__(self, seconds: float) -> None:
        self.asked: list[Future[str]] = []
        self.timers = [threading.Timer(seconds + 0.1 * number, self._done, [number]) for number in range(2)]
        for each in self.timers:
            each.start()

    def submit(self, launch: Launch, /) -> Future[str]:
        future: Future[str] = Future()
        if len(self.asked) < len(self.timers):
            assert future.set_running_or_notify_cancel()
        self.asked.append(future)
        return future

    def _done(self, number: int) -> None:
        self.asked[number].set_result("")


def test_what_is_waited_for_beyond_the_time_is_timed_and_what_was_given_up_is_not_asked(device: str) -> None:
    text = "(float[1,16,6,6] x) => (float[1,16,6,6] y) { a = Conv (x, v) y = Conv <pads=[1,1,1,1]> (a, w, b) }"
    lowered_, weights = lowered(graph(text, {**WIDE, "v": normal(16, 16, 1, 1) / 4}), X)
    compilers = Late(1.1)
    executor = Executor(lowered_, weights, device, "fp16")
    result = tune(executor, timer=lambda call: 1000.0, compilers=compilers, seconds=1.0, limit=2)
    assert all(future.cancelled() for future in compilers.asked[2:])
    assert sum(row.has_ours for row in result.rows) == 2
    assert result.untimed > 0


def test_a_step_with_nothing_but_its_reference_waits_a_little_for_a_kernel(device: str) -> None:
    lowered_, weights = lowered(graph(MODELS["gemm"][0], MODELS["gemm"][1]), MODELS["gemm"][2])
    clock = iter((*(0.0,) * 2, *(9.0,) * 1000))  # over as soon as the reference is timed
    result = tune(
        Executor(lowered_, weights, device, "fp16"),
        timer=lambda call: 1.0,
        compilers=Answers(failing=0),
        seconds=8.0,
        clock=lambda: next(clock),
    )
    row = next(row for row in result.rows if row.site.step.kind == "gemm")
    ours = [choice for choice in row.times if choice.implementation.startswith("triton")]
    assert len(ours) == 1, row.failed
    assert result.untimed
