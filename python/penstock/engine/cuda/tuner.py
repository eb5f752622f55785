"""Chooses an implementation and its configuration for each step, by time, on the tensors of a real run.

Steps that differ only in their names are timed once. A candidate that fails to compile, to run, or to agree with the
reference is lost, never fatal. Our own kernels are compiled in other processes meanwhile, the promising ones of long
steps first, and timed as they come, until the seconds are over; what was not timed by then is not chosen. Called by
tactics and probes.
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Protocol

import torch

from penstock.engine.cuda.choices import Choice
from penstock.engine.cuda.executor import Executor, Tensors
from penstock.engine.cuda.implementations import OURS, add_triton, fitting
from penstock.engine.cuda.kernels.replay import Player, launching
from penstock.engine.cuda.sites import DTYPES, Site
from penstock.engine.cuda.workspace import Needs, working_in

if TYPE_CHECKING:
    from penstock.engine.cuda.ways import Launched

Call = Callable[[], object]
Timer = Callable[[Call], float]
"""Microseconds of one call."""

LIMIT: Final = 8
"""Configurations of one implementation that are timed."""

# Largest difference from the reference, norm-relative, of one step: kernels round differently, but not by this much.
_AGREES: Final[Mapping[torch.dtype, float]] = {torch.float16: 0.02, torch.bfloat16: 0.1, torch.float32: 1e-3}
_AT_ONCE: Final = 1  # configurations compiled before it is known which steps are long
_CLEARLY: Final = 1.4  # times the best: a glance is enough to pass over what is as slow as that
_HOPELESS: Final = 2.0  # times the best: an implementation whose first ideas are no faster is given up
_FIRST_IDEAS: Final = 2
_SAMPLE_SECONDS: Final = 1.5e-3  # of the device in one measurement


class Builds(Protocol):
    """`precompile.Compilers`, which can only be named where there is Triton."""

    def submit(self, launch: "Launched", /) -> Future[str]: ...


@dataclass(slots=True)
class Tuned:
    """What is known of one kind of step; `steps` are those it stands for."""

    site: Site
    operands: tuple[torch.Tensor, ...]
    steps: list[str]
    times: dict[Choice, float] = field(default_factory=dict)
    """Microseconds, the reference first."""

    failed: dict[Choice, str] = field(default_factory=dict)
    reference: tuple[torch.Tensor, ...] = ()

    @property
    def best(self) -> Choice | None:
        """None if there was no time for any."""
        return min(self.times, key=lambda each: self.times[each], default=None)

    @property
    def microseconds(self) -> float:
        """Of one step; infinite if there was no time for it."""
        return min(self.times.values(), default=float("inf"))


@dataclass(frozen=True, slots=True)
class Result:
    choices: dict[str, Choice]
    rows: list[Tuned]
    """Longest first, counting every step they stand for."""

    untimed: int
    """Candidates there was no time for."""

    seconds: float


def tune(
    executor: Executor,
    inputs: Tensors | None = None,
    *,
    seconds: float = 60.0,
    limit: int = LIMIT,
    compilers: Builds | None = None,
    timer: Timer | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Result:
    """Choices for an executor of the same graph, precision and device. `inputs`: typical ones, else random numbers."""
    started = clock()
    add_triton()
    glance = _glance if timer is None and executor.device.type == "cuda" else None
    timer = timer or timer_for(executor.device)
    with torch.no_grad(), executor.arithmetic(search=True):
        rows = observed(executor, inputs if inputs is not None else random_inputs(executor))
        race = _Race(rows, timer, glance, clock, started + seconds, limit)
        untimed = race.run(compilers)
    rows.sort(key=lambda row: -row.microseconds * len(row.steps))
    choices = {name: row.best for row in rows for name in row.steps if row.best is not None}
    return Result(choices, rows, untimed, clock() - started)


def observed(executor: Executor, inputs: Tensors) -> list[Tuned]:
    """The distinct steps with the operands that they get in a run."""
    found: dict[str, Tuned] = {}

    def watch(number: int, operands: Sequence[torch.Tensor]) -> None:
        site = executor.sites[number]
        signed = signature(site)
        if signed in found:
            found[signed].steps.append(site.step.name)
        else:
            found[signed] = Tuned(site, tuple(operands), [site.step.name])

    executor.run(inputs, watch)
    return list(found.values())


def timed_steps(executor: Executor) -> dict[str, float]:
    """Microseconds of each step as the executor runs it, by name."""
    timer, player = timer_for(executor.device), executor.launcher
    launches: list[int] = []

    def watch(number: int, operands: Sequence[torch.Tensor]) -> None:
        del number, operands
        launches.append(player.next if isinstance(player, Player) else 0)

    found: dict[str, float] = {}
    with torch.no_grad(), executor.arithmetic():
        inputs = random_inputs(executor)
        executor.run(inputs, watch)
        for row in observed(executor, inputs):
            number = next(at for at, bound in enumerate(executor.program) if bound.name == row.steps[0])

            def call(row: Tuned = row, number: int = number) -> None:
                with launching(player, launches[number]):
                    executor.program[number].run(row.operands)

            with working_in(executor.needs.workspace(executor.device)):
                microseconds = timer(call)
            found |= dict.fromkeys(row.steps, microseconds)
    return found


def signature(site: Site) -> str:
    """Equal for steps that every implementation executes in the same time."""
    step, graph = site.step, site.graph
    operands = []
    for each in step.inputs:
        stored = graph.stored(each.value)
        dtype = site.weights[each.value].dtype if each.value in site.weights else DTYPES[stored.datatype]
        view = None if each.view is None else [each.view.shape, each.view.strides, each.view.offset % 16]
        operands.append([each.role, stored.shape, view, str(dtype), each.value in site.weights])
    outputs = [[graph.values[each].shape, graph.values[each].datatype] for each in step.outputs]
    # A step that reads one value twice loads it once.
    twice = [step.inputs.index(next(a for a in step.inputs if a.value == each.value)) for each in step.inputs]
    program = [[line.name, *line.arguments] for line in step.program]
    attributes = sorted(step.attributes.items())
    return json.dumps([step.kind, attributes, operands, outputs, twice, program, str(site.device), site.precision])


def random_inputs(executor: Executor) -> Tensors:
    """Normal floats, small whole numbers: zeros would draw less power, and run faster, than anything real."""
    generator = torch.Generator().manual_seed(1)
    found: Tensors = {}
    for each in executor.graph.inputs:
        dtype = DTYPES[each.datatype]
        floats = torch.randn(each.shape, generator=generator)
        found[each.name] = (floats if dtype.is_floating_point else floats > 0).to(dtype).to(executor.device)
    return found


@dataclass(frozen=True, slots=True)
class _Candidate:
    row: Tuned
    choice: Choice
    rank: int
    """Its place among its implementation's configurations."""

    @property
    def size(self) -> int:
        """What the step reads, as often as there are such steps: how long it may take, before anything is timed."""
        return int(len(self.row.steps) * sum(each.numel() * each.element_size() for each in self.row.operands))

    @property
    def promise(self) -> float:
        """Long and frequent steps first, and of each the list's first ideas."""
        spent = self.row.microseconds if self.row.times else 0.0
        return spent * len(self.row.steps) / (self.rank + 1)


@dataclass(slots=True)
class _Compiling:
    """A candidate whose kernels are not all compiled yet."""

    candidate: _Candidate
    left: int


@dataclass(slots=True)
class _Race:
    rows: list[Tuned]
    timer: Timer
    glance: Timer | None
    """A quicker timer, for what is clearly slower than the best."""

    clock: Callable[[], float]
    deadline: float
    limit: int

    def run(self, compilers: Builds | None) -> int:
        """The number of candidates that were not timed."""
        candidates = [each for row in self.rows for each in self._candidates(row)]
        ours = [each for each in candidates if each.choice.implementation.startswith(OURS)]
        pending: dict[Future[str], _Compiling] = {}
        with ExitStack() as stack:
            stack.callback(lambda: [future.cancel() for future in pending])
            if compilers is not None:  # the compilers need not wait for what others take
                early = [each for each in ours if each.rank < _AT_ONCE]
                pending |= self._submitted(sorted(early, key=lambda each: -each.size), compilers)
            untimed = 0
            for each in candidates:
                if each.choice.implementation.startswith(OURS):
                    continue
                if self.over() and each.row.times:
                    untimed += 1
                else:
                    self.time(each.row, each.choice)
            ours.sort(key=lambda each: -each.promise)
            if compilers is None:
                return untimed + self._one_by_one(ours)
            pending |= self._submitted([each for each in ours if each.rank >= _AT_ONCE], compilers)
            self._as_they_come(pending)
            return untimed + len({id(each) for each in pending.values()})

    def _candidates(self, row: Tuned) -> list[_Candidate]:
        # The executor's own choice is in the site, and must not be the only one.
        row.site = replace(row.site, step=replace(row.site.step, implementation=""), config=())
        return [
            _Candidate(row, Choice(name, tuple(config)), rank)
            for name, implementation in fitting(row.site).items()
            for rank, config in enumerate(implementation.configs(row.site)[: self.limit])
        ]

    def over(self) -> bool:
        return self.clock() >= self.deadline

    def time(self, row: Tuned, choice: Choice) -> None:
        """Into the row."""
        try:
            needs = Needs()
            step = replace(row.site.step, implementation=choice.implementation)
            site = replace(row.site, step=step, config=choice.config, needs=needs)
            run = fitting(site)[choice.implementation].bind(site)
            with working_in(needs.workspace(site.device)):
                outputs = run(row.operands)
                if not row.reference:
                    row.reference = outputs
                elif difference := disagreement(outputs, row.reference):
                    row.failed[choice] = difference
                    return
                del outputs
                row.times[choice] = self._timed(row, lambda: run(row.operands))
        except Exception as error:  # whatever a compiler, a library or the driver raises
            row.failed[choice] = f"{type(error).__name__}: {error}"[:200]

    def _timed(self, row: Tuned, call: Call) -> float:
        if self.glance is not None and row.times:
            rough = self.glance(call)
            if rough > _CLEARLY * row.microseconds:
                return rough
        return self.timer(call)

    def _one_by_one(self, candidates: Sequence[_Candidate]) -> int:
        for number, each in enumerate(candidates):
            if self.over():
                return len(candidates) - number
            self.time(each.row, each.choice)
        return 0

    def _submitted(self, candidates: Sequence[_Candidate], compilers: Builds) -> dict[Future[str], "_Compiling"]:
        from penstock.engine.cuda.triton_steps import launch

        found: dict[Future[str], _Compiling] = {}
        for each in candidates:
            try:
                built = launch(each.row.site, each.choice.implementation, each.choice.config)
            except (ValueError, RuntimeError) as error:
                each.row.failed[each.choice] = f"{type(error).__name__}: {error}"[:200]
                continue
            compiling = _Compiling(each, len(built))
            found |= {compilers.submit(one): compiling for one in built}
        return found

    def _as_they_come(self, pending: dict[Future[str], "_Compiling"]) -> None:
        """Times what is compiled, and takes it out of `pending`, until that is empty or the time over."""
        while pending and not self.over():
            done, _ = wait(pending, self.deadline - self.clock(), FIRST_COMPLETED)
            for future in done:
                if self.over():
                    return
                compiling = pending.pop(future)
                compiling.left -= 1
                row, choice = compiling.candidate.row, compiling.candidate.choice
                if why := future.result():
                    row.failed[choice] = why
                elif compiling.left == 0 and choice not in row.failed and not self._hopeless(row, choice):
                    self.time(row, choice)
                    self._give_up(row, choice, pending)

    def _hopeless(self, row: Tuned, choice: Choice) -> bool:
        """Whether its implementation's first ideas were far from the best."""
        alike = [time for other, time in row.times.items() if other.implementation == choice.implementation]
        return len(alike) >= _FIRST_IDEAS and min(alike) > _HOPELESS * row.microseconds

    def _give_up(self, row: Tuned, choice: Choice, pending: dict[Future[str], "_Compiling"]) -> None:
        """What is no longer worth compiling; what is being compiled stays, and is passed over."""
        if not self._hopeless(row, choice):
            return
        name = choice.implementation
        for future, each in list(pending.items()):
            candidate = each.candidate
            if candidate.row is row and candidate.choice.implementation == name and future.cancel():
                del pending[future]


def disagreement(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> str:
    """How a candidate's outputs differ from the reference's; empty where they agree, or the reference is not finite."""
    for one, right in zip(found, expected, strict=True):
        if one.shape != right.shape or one.dtype != right.dtype:
            return f"expected {right.dtype} {list(right.shape)}, got {one.dtype} {list(one.shape)}"
        if not right.dtype.is_floating_point:
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


def timer_for(device: torch.device) -> Timer:
    return _in_a_graph if device.type == "cuda" else _by_the_clock


_LAUNCH: Final = 10.0  # microseconds of launching a graph, of which a few calls show more than many


def _glance(call: Call) -> float:
    """Within a fifth or so."""
    from penstock.engine.cuda.kernels.tuning import microseconds

    _make_room()
    calls = 8
    return microseconds(call, calls=calls, replays=2) - _LAUNCH / calls


def _make_room() -> None:
    free, total = torch.cuda.mem_get_info()
    if free < total // 2:  # graphs that are gone leave their pools behind, and a capture can't give them back
        torch.cuda.empty_cache()


def _in_a_graph(call: Call) -> float:
    """As it will be run; as many calls as make a measurement, and no more."""
    from penstock.engine.cuda.kernels.tuning import microseconds

    _make_room()
    rough = microseconds(call, calls=2, replays=2)
    calls = max(3, min(50, int(_SAMPLE_SECONDS * 1e6 / max(rough, 1.0))))
    return microseconds(call, calls=calls, replays=5)


def _by_the_clock(call: Call) -> float:
    times = []
    for _ in range(3):
        started = time.perf_counter()
        call()
        times.append((time.perf_counter() - started) * 1e6)
    return statistics.median(times)
