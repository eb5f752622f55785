"""Chooses an implementation and its configuration for each step, by time, on the tensors of a real run.

Steps that differ only in their names are timed once. A candidate that fails to compile, to run, or to agree with the
reference is lost, never fatal. Our own kernels are compiled in other processes meanwhile, what may save most for its
time first (`worth`), and timed as they come, until the seconds are over; what was not timed by then is not chosen. Only
a step that has nothing but its reference by then, which may be many times slower, gets a little longer for one kernel
of ours. Called by tactics and probes.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from penstock.engine.cuda import candidates
from penstock.engine.cuda.candidates import Tuned
from penstock.engine.cuda.choices import Choice, Choices
from penstock.engine.cuda.executor import Executor, Tensors
from penstock.engine.cuda.implementations import add_triton
from penstock.engine.cuda.kernels.replay import Player, launching
from penstock.engine.cuda.sites import DTYPES, Site
from penstock.engine.cuda.timers import Timer, timer_for
from penstock.engine.cuda.trials import Builds, Trials
from penstock.engine.cuda.workspace import working_in

if TYPE_CHECKING:
    from penstock.engine.cuda.ways import Launched

LIMIT: Final = 12
"""Configurations of one implementation that are timed."""

_MOST_GRACE: Final = 2.0  # seconds


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
    hints: Choices | None = None,
) -> Result:
    """Choices for an executor of the same graph, precision and device.

    inputs  typical ones, else random numbers.
    hints   what is worth trying first: choices for the same steps at other shapes.
    """
    started = clock()
    add_triton()
    glances = timer is None and executor.device.type == "cuda"
    grace = min(seconds / 2, _MOST_GRACE)
    rows = _distinct(executor)
    chosen = timer or timer_for(executor.device)
    race = Trials(list(rows.values()), chosen, glances, clock, started + seconds, grace, limit, hints or {})
    with torch.no_grad(), executor.arithmetic():
        race.begin(compilers)
        _observe(executor, rows, inputs if inputs is not None else random_inputs(executor))
        untimed = race.run(compilers)
    found = sorted(rows.values(), key=lambda row: -row.microseconds * len(row.steps))
    choices = {name: row.best for row in found for name in row.steps if row.best is not None}
    return Result(choices, found, untimed, clock() - started)


def _distinct(executor: Executor) -> dict[str, Tuned]:
    """By signature, in the order of the steps."""
    found: dict[str, Tuned] = {}
    for site in executor.sites:
        found.setdefault(signature(site), Tuned(site, [])).steps.append(site.step.name)
    return found


def _observe(executor: Executor, rows: Mapping[str, Tuned], inputs: Tensors) -> None:
    """The operands that each row's first step gets in a run."""
    firsts = {row.steps[0]: row for row in rows.values()}

    def watch(number: int, operands: Sequence[torch.Tensor]) -> None:
        row = firsts.get(executor.sites[number].step.name)
        if row is not None:
            row.operands = tuple(operands)

    executor.run(inputs, watch)


def promising(executors: Sequence[Executor], limit: int = LIMIT) -> "list[Launched]":
    """What tuning these will compile of our kernels, in the order in which it is worth having compiled beforehand."""
    add_triton()
    return candidates.promising([row for each in executors for row in _distinct(each).values()], limit)


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
        rows = _distinct(executor)
        _observe(executor, rows, inputs)
        for row in rows.values():
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
