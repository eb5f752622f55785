"""What can be tried for a step: implementations and their configurations, and what each may save.

Called by the tuner: for its trials, and for what is compiled before they begin.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import torch

from penstock.engine.cuda import compile_times, worth
from penstock.engine.cuda.choices import Choice, Choices
from penstock.engine.cuda.implementations import OURS, fitting
from penstock.engine.cuda.sites import Site

if TYPE_CHECKING:
    from penstock.engine.cuda.ways import Launched

_HOPELESS: Final = 2.0  # times the best: an implementation whose first ideas are no faster is given up
_FIRST_IDEAS: Final = 2
_TIMING: Final = 0.1  # seconds of a process that timing what is compiled is worth, about


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
class Candidate:
    row: Tuned
    choice: Choice
    rank: int
    """Its place among its implementation's configurations; of libraries the last that was written comes first."""

    floor: float
    guess: float
    launches: "tuple[Launched, ...]" = ()
    kernels: tuple[int, ...] = ()
    """Of the launches: one number is one kernel, whoever launches it."""

    seconds: float = 0.0
    """Of a process, for the kernels that nobody asked for yet."""

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

    @property
    def worth_a_second(self) -> float:
        """The same for its time, of which kernels that others wait for cost nothing."""
        return self.worth / (_TIMING + self.seconds)

    def _alike(self) -> list[float]:
        name = self.choice.implementation
        return [time for other, time in self.row.times.items() if other.implementation == name]


def promising(rows: Sequence[Tuned], limit: int) -> "list[Launched]":
    """What of our kernels trials of these will have compiled, each once, in the order of what it may save for its time
    while nothing is timed.
    """
    ours = launching_candidates([each for row in rows for each in listed(row, limit, {}) if each.ours])
    ours.sort(key=lambda each: -each.worth_a_second)
    return list(
        {number: launch for each in ours for number, launch in zip(each.kernels, each.launches, strict=True)}.values()
    )


def listed(row: Tuned, limit: int, hints: Choices) -> list[Candidate]:
    # The executor's own choice is in the site, and must not be the only one.
    row.site = replace(row.site, step=replace(row.site.step, implementation=""), config=(), behind=False)
    hint, floor, guess = hints.get(row.steps[0]), worth.least(row.site), worth.guess(row.site)
    found: list[Candidate] = []
    ways = fitting(row.site)
    libraries = [name for name in ways if not name.startswith(OURS)]
    row.default = Choice(next(iter(ways)))
    for name, implementation in ways.items():
        configs = [tuple(config) for config in implementation.configs(row.site)]
        if hint is not None and hint.implementation == name and hint.config in configs:
            configs.sort(key=lambda config: config != hint.config)
        place = len(libraries) - 1 - libraries.index(name) if name in libraries else 0
        choices = [Choice(name, config) for config in configs[:limit]]
        found += [Candidate(row, each, place + rank, floor, guess) for rank, each in enumerate(choices)]
    return found


def launching_candidates(candidates: Sequence[Candidate]) -> list[Candidate]:
    """With what each would launch; those that a kernel refuses are lost."""
    from penstock.engine.cuda.triton_steps import launch

    kept: list[Candidate] = []
    # A key is long: it is made and compared here, and never again.
    numbers: dict[object, int] = {}
    for each in candidates:
        row, choice = each.row, each.choice
        try:
            each.launches = launch(row.site, choice.implementation, choice.config)
        except (ValueError, RuntimeError) as error:
            row.failed[choice] = f"{type(error).__name__}: {error}"[:200]
            continue
        each.kernels = tuple(numbers.setdefault(kernel_key(launch), len(numbers)) for launch in each.launches)
        each.seconds = sum(map(compile_times.seconds, dict(zip(each.kernels, each.launches, strict=True)).values()))
        kept.append(each)
    return kept


def kernel_key(launch: "Launched") -> object:
    """Equal for launches that one compilation serves."""
    from penstock.engine.cuda.kernels.cpp_launching import CppLaunch
    from penstock.engine.cuda.precompile import Recipe

    if isinstance(launch, CppLaunch):
        return launch.source, launch.symbol, tuple(launch.constants.items())
    return Recipe.of(launch) or id(launch)
