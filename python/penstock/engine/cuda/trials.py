"""Candidates of all steps, compiled and timed in the order of what they may save, until the time is over.

Kernels of ours are compiled in other processes, a few more at a time than there are processes, so that what was timed
meanwhile decides what is compiled next; the GPU times what is ready, and libraries while nothing better is. A candidate
that fails to compile, to run, or to agree with the reference is lost, never fatal. Called by the tuner.
"""

import heapq
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Protocol

import torch

from penstock.engine.cuda import compile_times, timers, worth
from penstock.engine.cuda.candidates import Candidate, Tuned, launching_candidates, listed
from penstock.engine.cuda.choices import Choice, Choices
from penstock.engine.cuda.implementations import chosen
from penstock.engine.cuda.kernels.replay import Recorder, launching
from penstock.engine.cuda.sites import Run, Site, capability, eight_bits
from penstock.engine.cuda.timers import Call, Timer
from penstock.engine.cuda.workspace import Needs, working_in

if TYPE_CHECKING:
    from penstock.engine.cuda.ways import Launched

# Largest difference from the reference, norm-relative, of one step: kernels round differently, but not by this much.
_TIES: Final = ("top_1", "gemm_top_1", "arg_max")
_MOST_UNEQUAL: Final = 1e-3
_SHARES_AGREE: Final = 1e-2
"""Of their softmax, which the reference makes of products that were rounded."""
_AGREES: Final = {
    torch.float16: 0.02,
    torch.bfloat16: 0.1,
    torch.float32: 1e-3,
    torch.int8: 0.02,
    torch.float8_e4m3fn: 0.02,
}
_LONG: Final = 50.0  # microseconds, of which launching a graph of a few is little
_CLEARLY: Final = 1.3  # times the best: a glance is enough to pass over what is as slow as that
_WINS_ELSEWHERE: Final = 2.0  # times the worth of a cut that is the best of another step


class Builds(Protocol):
    """`precompile.Compilers`, which can only be named where there is Triton."""

    @property
    def processes(self) -> int:
        """How many compile at once."""
        ...

    def submit(self, launch: "Launched", /) -> Future[str]: ...


@dataclass(slots=True)
class Trials:
    rows: list[Tuned]
    timer: Timer
    """Of what takes part; on a GPU a glance decides whether it does."""

    glances: bool
    clock: Callable[[], float]
    deadline: float
    grace: float
    """Seconds beyond it for steps that were not timed at all, or without any kernel of ours."""

    limit: int
    hints: Choices
    _waiting: list[Candidate] = field(default_factory=list)
    _ready: list[Candidate] = field(default_factory=list)
    _pending: dict[Future[str], list[Candidate]] = field(default_factory=dict)
    _asked: dict[int, Future[str]] = field(default_factory=dict)
    _users: dict[int, list[Candidate]] = field(default_factory=dict)
    """Of each kernel."""

    _winning: set[Choice] = field(default_factory=set)
    """What was the best of some step, at some time."""

    def begin(self, compilers: Builds | None) -> None:
        """What needs no tensors: compiling."""
        found = [each for row in self.rows for each in listed(row, self.limit, self.hints)]
        if compilers is None:
            self._ready = found
            return
        self._ready = [each for each in found if not each.ours]
        self._waiting = launching_candidates([each for each in found if each.ours])
        for each in self._waiting:
            for kernel in set(each.kernels):
                self._users.setdefault(kernel, []).append(each)
        self._submit(compilers)

    def run(self, compilers: Builds | None) -> int:
        """What needs the operands of the rows; the number of candidates that were not timed."""
        try:
            while (self._waiting or self._ready or self._pending) and not self.over():
                self._turn(compilers)
            self._catch_up()
        finally:
            for future in self._pending:
                future.cancel()
        compiling = [each for some in self._pending.values() for each in some]
        return len({id(each) for each in (*self._waiting, *self._ready, *compiling)})

    def over(self) -> bool:
        return self.clock() >= self.deadline

    def _turn(self, compilers: Builds | None) -> None:
        """Times one candidate, or waits for the next."""
        self._collect([future for future in self._pending if future.done()])
        if compilers is not None:
            self._submit(compilers)
        best = max(self._ready, key=lambda each: each.worth, default=None)
        if best is not None:
            self._ready.remove(best)
            if not best.is_hopeless:
                self.time(best)
        elif self._pending:
            self._collect(wait(self._pending, max(0.0, self.deadline - self.clock()), FIRST_COMPLETED).done)

    # ---- compiling ----

    def _submit(self, compilers: Builds) -> None:
        """What is worth most for its time, as long as processes would have nothing to do."""
        most = compilers.processes + max(2, compilers.processes // 2)
        while self._waiting and len(self._pending) < most:
            # Several at a time: looking at all that wait takes a while, and meanwhile nothing is timed.
            for best in heapq.nlargest(most - len(self._pending), self._waiting, key=self._worth_a_second):
                if len(self._pending) >= most:
                    return
                self._waiting.remove(best)
                if not best.is_hopeless:
                    self._ask(best, compilers)

    def _ask(self, candidate: Candidate, compilers: Builds) -> None:
        """For its kernels, as far as nobody has."""
        kernels = dict(zip(candidate.kernels, candidate.launches, strict=True))
        candidate.left = len(kernels)
        for kernel, launch in kernels.items():
            if kernel not in self._asked:
                self._asked[kernel] = compilers.submit(launch)
                for each in self._users[kernel]:
                    each.seconds -= compile_times.seconds(launch)
            self._pending.setdefault(self._asked[kernel], []).append(candidate)

    def _worth_a_second(self, candidate: Candidate) -> float:
        hope = _WINS_ELSEWHERE if candidate.choice in self._winning else 1.0
        return hope * candidate.worth_a_second

    def _collect(self, done: Iterable[Future[str]]) -> None:
        """Candidates whose last kernel is compiled are ready."""
        for future in done:
            for candidate in self._pending.pop(future):
                candidate.left -= 1
                error = future.exception()
                if why := future.result() if error is None else f"{type(error).__name__}: {error}":
                    candidate.row.failed.setdefault(candidate.choice, why)
                elif not candidate.left and candidate.choice not in candidate.row.failed:
                    self._ready.append(candidate)

    def _catch_up(self) -> None:
        """After the time: steps that nothing was timed for, and the first kernels of those without any of ours."""
        until = self.deadline + self.grace
        for each in sorted(self._ready, key=lambda each: -each.worth):
            if not each.row.times and self.clock() < until:
                self._ready.remove(each)
                self.time(each)
        while self.clock() < until:
            self._collect([future for future in self._pending if future.done()])
            wanted = [each for each in self._ready if each.rank == 0 and not each.row.has_ours]
            if wanted:
                self._ready.remove(wanted[0])
                self.time(wanted[0])
                continue
            futures = [
                future
                for future, some in self._pending.items()
                if any(each.rank == 0 and not each.row.has_ours for each in some)
            ]
            for future in [each for each in self._pending if each not in futures and each.cancel()]:
                self._waiting += self._pending.pop(future)
            if not futures or not wait(futures, max(0.0, until - self.clock()), FIRST_COMPLETED).done:
                return

    # ---- timing ----

    def time(self, candidate: Candidate) -> None:
        """Into the row."""
        row, choice = candidate.row, candidate.choice
        try:
            self._refer(row)
            needs = Needs()
            run = bound(row.site, choice, needs)
            launcher = Recorder(capability(row.site.device)) if row.site.device.type == "cuda" else None

            def call() -> tuple[torch.Tensor, ...]:
                with launching(launcher):
                    return run(row.operands)

            with working_in(needs.workspace(row.site.device)):
                outputs = call()
                exact = row.site.step.kind not in _TIES
                if difference := disagreement(outputs, row.reference, exact=exact):
                    row.failed[choice] = difference
                    return
                del outputs
                row.times[choice] = self._timed(candidate, call)
            if row.best is not None and row.has_ours:
                self._winning.add(row.best)
            self._doubt(row)
        except Exception as error:  # whatever a compiler, a library or the driver raises
            row.failed[choice] = f"{type(error).__name__}: {error}"[:200]

    def _refer(self, row: Tuned) -> None:
        if row.reference or row.default is None:
            return
        needs = Needs()
        run = bound(row.site, row.default, needs)
        with working_in(needs.workspace(row.site.device)):
            row.reference = run(row.operands)

    def _timed(self, candidate: Candidate, call: Call) -> float:
        """A library's first time is a glance's, unless the step is short: a glance is off by a microsecond. It is timed
        again when it turns out to matter.
        """
        row, choice = candidate.row, candidate.choice
        if not self.glances:
            return self.timer(call)
        rough = timers.glance(call)
        if choice in row.rough:
            row.rough.remove(choice)
        elif row.times and rough > _CLEARLY * row.microseconds:
            return rough
        elif not row.times and not candidate.ours and rough > _LONG:
            row.rough.add(choice)
            return rough
        return timers.refined(call, rough)

    def _doubt(self, row: Tuned) -> None:
        """Where others are near the best, it should have had more than a glance."""
        best, near = row.best, _CLEARLY * row.microseconds
        if best is not None and best in row.rough and sum(time < near for time in row.times.values()) > 1:
            self._ready.append(Candidate(row, best, 0, worth.least(row.site), worth.guess(row.site)))


def bound(site: Site, choice: Choice, needs: Needs) -> Run:
    step = replace(site.step, implementation=choice.implementation)
    wanted = replace(site, step=step, config=choice.config, needs=needs)
    return chosen(wanted)[1].bind(wanted)


def disagreement(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], *, exact: bool = True) -> str:
    """How a candidate's outputs differ from the reference's where that is finite; empty where they agree.

    exact  whether whole numbers have to be the same: not where ties may fall to either side.
    """
    for one, right in zip(found, expected, strict=True):
        if one.shape != right.shape or one.dtype != right.dtype:
            return f"expected {right.dtype} {list(right.shape)}, got {one.dtype} {list(one.shape)}"
        if not right.dtype.is_floating_point and not eight_bits(right.dtype):
            # Of what comes of rounding numbers a few fall to the other side.
            if exact and not float((one != right).float().mean()) <= _MOST_UNEQUAL:
                return "differs from the reference in whole numbers or truths"
            continue
        agrees = _AGREES.get(right.dtype, 1e-3) if exact else _SHARES_AGREE
        known = right.float().isfinite()
        wide, seen = right.float()[known], one.float()[known]
        length = float(wide.norm())
        difference = float((seen - wide).norm())
        # NaN compares false, so the comparison asks for what is right.
        if not difference <= agrees * length + 1e-6:
            return f"differs from the reference by {difference:.2g} of {length:.2g}"
    return ""
