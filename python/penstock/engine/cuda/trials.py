"""Candidates of all steps, compiled and timed in the order of what they may save, until the time is over.

Kernels of ours are compiled in other processes, a few more at a time than there are processes, so that what was timed
meanwhile decides what is compiled next; the GPU times what is ready, and libraries while nothing better is. A candidate
that fails to compile, to run, or to agree with the reference is lost, never fatal. Called by the tuner.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Protocol

import torch

from penstock.engine.cuda import timers, worth
from penstock.engine.cuda.choices import Choice, Choices
from penstock.engine.cuda.implementations import OURS, chosen, fitting
from penstock.engine.cuda.kernels.replay import Recorder, launching
from penstock.engine.cuda.sites import Run, Site, capability, eight_bits
from penstock.engine.cuda.timers import Call, Timer
from penstock.engine.cuda.workspace import Needs, working_in

if TYPE_CHECKING:
    from penstock.engine.cuda.ways import Launched

# Largest difference from the reference, norm-relative, of one step: kernels round differently, but not by this much.
_AGREES: Final = {
    torch.float16: 0.02,
    torch.bfloat16: 0.1,
    torch.float32: 1e-3,
    torch.int8: 0.02,
    torch.float8_e4m3fn: 0.02,
}
_CLEARLY: Final = 1.3  # times the best: a glance is enough to pass over what is as slow as that
_HOPELESS: Final = 2.0  # times the best: an implementation whose first ideas are no faster is given up
_FIRST_IDEAS: Final = 2
_NEW_KERNEL: Final = 0.5  # seconds of a process, about
_TIMING: Final = 0.1  # of the same, for timing what is compiled


class Builds(Protocol):
    """`precompile.Compilers`, which can only be named where there is Triton."""

    @property
    def processes(self) -> int:
        """How many compile at once."""
        ...

    def submit(self, launch: "Launched", /) -> Future[str]: ...


@dataclass(slots=True)
class Tuned:
    """What is known of one kind of step; `steps` are those it stands for."""

    site: Site
    steps: list[str]
    operands: tuple[torch.Tensor, ...] = ()
    times: dict[Choice, float] = field(default_factory=dict)
    """Microseconds."""

    failed: dict[Choice, str] = field(default_factory=dict)
    reference: tuple[torch.Tensor, ...] = ()
    rough: set[Choice] = field(default_factory=set)
    """Those that had no more than a glance."""

    default: Choice | None = None
    """What is chosen if there was no time for any."""

    @property
    def best(self) -> Choice | None:
        return min(self.times, key=lambda each: self.times[each], default=self.default)

    @property
    def microseconds(self) -> float:
        """Of one step; infinite if there was no time for it."""
        return min(self.times.values(), default=float("inf"))

    @property
    def has_ours(self) -> bool:
        """Whether a kernel of ours was timed."""
        return any(choice.implementation.startswith(OURS) for choice in self.times)


@dataclass(eq=False, slots=True)
class _Candidate:
    row: Tuned
    choice: Choice
    rank: int
    """Its place among its implementation's configurations; of libraries the last that was written comes first."""

    floor: float
    guess: float
    launches: "tuple[Launched, ...]" = ()
    kernels: frozenset[object] = frozenset()
    """Of the launches, each once."""

    left: int = 0
    """Kernels that are not compiled yet."""

    _known: int = -1
    _worth: float = 0.0

    @property
    def ours(self) -> bool:
        return self.choice.implementation.startswith(OURS)

    @property
    def is_hopeless(self) -> bool:
        """Whether its implementation's first ideas were far from the best."""
        alike = self._alike()
        return len(alike) >= _FIRST_IDEAS and min(alike) > _HOPELESS * self.row.microseconds

    @property
    def worth(self) -> float:
        """Microseconds of a call that it may save."""
        if self._known != len(self.row.times):
            self._known, self._worth = len(self.row.times), len(self.row.steps) * self._of_one()
        return self._worth

    def _of_one(self) -> float:
        row = self.row
        spent = row.microseconds if row.times else self.guess
        if not self.ours:
            return worth.of_libraries(spent, self.floor, first=not row.times) / (self.rank + 1)
        alike = self._alike()
        behind = min(alike) / row.microseconds if alike else None
        return worth.of_ours(spent, self.floor, self.rank, behind, first=not row.has_ours)

    def _alike(self) -> list[float]:
        name = self.choice.implementation
        return [time for other, time in self.row.times.items() if other.implementation == name]


def promising(rows: Sequence[Tuned], limit: int) -> "list[Launched]":
    """What of our kernels trials of these will have compiled, each once, in the order of what it may save for its time
    while nothing is timed.
    """
    ours = _launching([each for row in rows for each in _candidates(row, limit, {}) if each.ours])
    ours.sort(key=lambda each: -each.worth / (_TIMING + _NEW_KERNEL * len(each.kernels)))
    return list({kernel_key(launch): launch for each in ours for launch in each.launches}.values())


def _candidates(row: Tuned, limit: int, hints: Choices) -> list[_Candidate]:
    # The executor's own choice is in the site, and must not be the only one.
    row.site = replace(row.site, step=replace(row.site.step, implementation=""), config=(), behind=False)
    hint, floor, guess = hints.get(row.steps[0]), worth.least(row.site), worth.guess(row.site)
    found: list[_Candidate] = []
    ways = fitting(row.site)
    libraries = [name for name in ways if not name.startswith(OURS)]
    row.default = Choice(next(iter(ways)))
    for name, implementation in ways.items():
        configs = [tuple(config) for config in implementation.configs(row.site)]
        if hint is not None and hint.implementation == name and hint.config in configs:
            configs.sort(key=lambda config: config != hint.config)
        place = len(libraries) - 1 - libraries.index(name) if name in libraries else 0
        choices = [Choice(name, config) for config in configs[:limit]]
        found += [_Candidate(row, each, place + rank, floor, guess) for rank, each in enumerate(choices)]
    return found


def _launching(candidates: Sequence[_Candidate]) -> list[_Candidate]:
    """With what each would launch; those that a kernel refuses are lost."""
    from penstock.engine.cuda.triton_steps import launch

    kept: list[_Candidate] = []
    for each in candidates:
        row, choice = each.row, each.choice
        try:
            each.launches = launch(row.site, choice.implementation, choice.config)
        except (ValueError, RuntimeError) as error:
            row.failed[choice] = f"{type(error).__name__}: {error}"[:200]
            continue
        each.kernels = frozenset(map(kernel_key, each.launches))
        kept.append(each)
    return kept


def kernel_key(launch: "Launched") -> object:
    """Equal for launches that one compilation serves."""
    from penstock.engine.cuda.kernels.cpp_launching import CppLaunch
    from penstock.engine.cuda.precompile import Recipe

    if isinstance(launch, CppLaunch):
        return launch.source, launch.symbol, tuple(launch.constants.items())
    return Recipe.of(launch) or launch


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
    _waiting: list[_Candidate] = field(default_factory=list)
    _ready: list[_Candidate] = field(default_factory=list)
    _pending: dict[Future[str], list[_Candidate]] = field(default_factory=dict)
    _asked: dict[object, Future[str]] = field(default_factory=dict)

    def begin(self, compilers: Builds | None) -> None:
        """What needs no tensors: compiling."""
        found = [each for row in self.rows for each in _candidates(row, self.limit, self.hints)]
        if compilers is None:
            self._ready = found
            return
        self._ready = [each for each in found if not each.ours]
        self._waiting = _launching([each for each in found if each.ours])
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
        left = {id(each) for some in self._pending.values() for each in some}
        return len(self._waiting) + len(self._ready) + len(left)

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
            best = max(self._waiting, key=self._worth_a_second)
            self._waiting.remove(best)
            if best.is_hopeless:
                continue
            best.left = len(best.kernels)
            for launch in best.launches:
                key = kernel_key(launch)
                if key not in self._asked:
                    self._asked[key] = compilers.submit(launch)
                candidates = self._pending.setdefault(self._asked[key], [])
                if best not in candidates:
                    candidates.append(best)

    def _worth_a_second(self, candidate: _Candidate) -> float:
        kernels = len(candidate.kernels - self._asked.keys())
        return candidate.worth / (_TIMING + _NEW_KERNEL * kernels)

    def _collect(self, done: Iterable[Future[str]]) -> None:
        """Candidates whose last kernel is compiled are ready."""
        for future in done:
            for candidate in self._pending.pop(future):
                candidate.left -= 1
                if why := future.result():
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
            for future in self._pending.keys() - set(futures):
                future.cancel()
            if not futures or not wait(futures, max(0.0, until - self.clock()), FIRST_COMPLETED).done:
                return

    # ---- timing ----

    def time(self, candidate: _Candidate) -> None:
        """Into the row."""
        row, choice = candidate.row, candidate.choice
        try:
            self._refer(row)
            needs = Needs()
            run = _bound(row.site, choice, needs)
            launcher = Recorder(capability(row.site.device)) if row.site.device.type == "cuda" else None

            def call() -> tuple[torch.Tensor, ...]:
                with launching(launcher):
                    return run(row.operands)

            with working_in(needs.workspace(row.site.device)):
                outputs = call()
                if difference := disagreement(outputs, row.reference):
                    row.failed[choice] = difference
                    return
                del outputs
                row.times[choice] = self._timed(candidate, call)
            self._doubt(row)
        except Exception as error:  # whatever a compiler, a library or the driver raises
            row.failed[choice] = f"{type(error).__name__}: {error}"[:200]

    def _refer(self, row: Tuned) -> None:
        if row.reference or row.default is None:
            return
        needs = Needs()
        run = _bound(row.site, row.default, needs)
        with working_in(needs.workspace(row.site.device)):
            row.reference = run(row.operands)

    def _timed(self, candidate: _Candidate, call: Call) -> float:
        """A library's first time is a glance's; it is timed again when it turns out to matter."""
        row, choice = candidate.row, candidate.choice
        if not self.glances:
            return self.timer(call)
        rough = timers.glance(call)
        if choice in row.rough:
            row.rough.remove(choice)
        elif row.times and rough > _CLEARLY * row.microseconds:
            return rough
        elif not row.times and not candidate.ours:
            row.rough.add(choice)
            return rough
        return timers.refined(call, rough)

    def _doubt(self, row: Tuned) -> None:
        """Where others are near the best, it should have had more than a glance."""
        best, near = row.best, _CLEARLY * row.microseconds
        if best is not None and best in row.rough and sum(time < near for time in row.times.values()) > 1:
            self._ready.append(_Candidate(row, best, 0, worth.least(row.site), worth.guess(row.site)))


def _bound(site: Site, choice: Choice, needs: Needs) -> Run:
    step = replace(site.step, implementation=choice.implementation)
    wanted = replace(site, step=step, config=choice.config, needs=needs)
    return chosen(wanted)[1].bind(wanted)


def disagreement(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> str:
    """How a candidate's outputs differ from the reference's; empty where they agree, or the reference is not finite."""
    for one, right in zip(found, expected, strict=True):
        if one.shape != right.shape or one.dtype != right.dtype:
            return f"expected {right.dtype} {list(right.shape)}, got {one.dtype} {list(one.shape)}"
        if not right.dtype.is_floating_point and not eight_bits(right.dtype):
            continue
        wide = right.float()
        if not bool(wide.isfinite().all()):
            continue
        length = float(wide.norm())
        difference = float((one.float() - wide).norm())
        # NaN compares false, so the comparison asks for what is right.
        if not difference <= _AGREES.get(right.dtype, 1e-3) * length + 1e-6:
            return f"differs from the reference by {difference:.2g} of {length:.2g}"
    return ""
