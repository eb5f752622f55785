"""The stable: programs kept alive in their processes between turns, a few at a time.

Compiling takes longer than timing, so a program that will be wanted again stays until its place is needed. What is
alive holds memory, so places are few, and the one that was used longest ago leaves first. Called by `race` and
`programs`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from penstock.engine.plan import Shapes, Tactic
from penstock.engine.runtimes.base import Arrays
from penstock.errors import InvalidArgument
from penstock.tactics.candidates import Form
from penstock.tactics.child import Child, Limits, Made
from penstock.tactics.timer import Contender, first_call

# Processes alive at once: three finalists side by side and one more, each with a copy of the weights.
PLACES: Final = 4

ProgramKey = tuple[Tactic, int | None]


def program_key(tactic: Tactic, bucket: int) -> ProgramKey:
    """A dynamic tactic is one program for all buckets, a static one a program for each."""
    return tactic, bucket if tactic.shapes == "static" else None


@dataclass(slots=True)
class _Program:
    child: Child
    made: Made
    contenders: dict[int, Contender] = field(default_factory=dict)


class Stable:
    """Hands out contenders, compiled and loaded. Close it, or use it in `with`: every process ends."""

    def __init__(
        self,
        forms: Mapping[str, Form],
        buckets: Sequence[Shapes],
        sample_inputs: Callable[[Shapes], Arrays],
        limits: Limits,
        places: int = PLACES,
    ) -> None:
        self._forms = forms
        self._buckets = buckets
        self._sample_inputs = sample_inputs
        self._limits = limits
        self._places = places
        self._inputs: dict[int, Arrays] = {}
        self._programs: dict[ProgramKey, _Program] = {}  # in the order of use

    def __enter__(self) -> "Stable":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def process_ids(self) -> tuple[int, ...]:
        return tuple(each.child.process_id for each in self._programs.values() if not each.child.closed)

    def inputs(self, bucket: int) -> Arrays:
        """The bucket's sample, the same for every candidate."""
        if bucket not in self._inputs:
            self._inputs[bucket] = self._sample_inputs(self._buckets[bucket])
        return self._inputs[bucket]

    def alive(self, tactic: Tactic, bucket: int) -> bool:
        program = self._programs.get(program_key(tactic, bucket))
        return program is not None and not program.child.closed

    def made(self, tactic: Tactic, bucket: int) -> Made | None:
        """What compiling the program gave, while it is alive."""
        program = self._programs.get(program_key(tactic, bucket))
        return program.made if program is not None else None

    def compiled(self, tactic: Tactic, bucket: int, seconds: float) -> Child:
        """The program's process, compiled within `seconds` unless it is alive; raises CandidateLost."""
        key = program_key(tactic, bucket)
        program = self._programs.pop(key, None)
        if program is None or program.child.closed:
            form = self._forms.get(tactic.form)
            if form is None:
                raise InvalidArgument(f"{tactic.name}: no such form, there are {', '.join(self._forms)}")
            self._make_place()
            child = Child(tactic, self._limits)
            try:
                made = child.compile(form.path, self._buckets[bucket] if key[1] is not None else None, seconds=seconds)
            except BaseException:
                child.close()
                raise
            program = _Program(child, made)
        self._programs[key] = program
        return program.child

    def contender(self, tactic: Tactic, bucket: int, *, compile_seconds: float, call_seconds: float) -> Contender:
        """The program at this bucket, called once at least; raises CandidateLost."""
        child = self.compiled(tactic, bucket, compile_seconds)
        program = self._programs[program_key(tactic, bucket)]
        if bucket not in program.contenders:
            child.load(bucket, self.inputs(bucket))
            program.contenders[bucket] = first_call(child, bucket, call_seconds)
        return program.contenders[bucket]

    def drop(self, tactic: Tactic, bucket: int) -> None:
        """End the program's process, if it is alive."""
        program = self._programs.pop(program_key(tactic, bucket), None)
        if program is not None:
            program.child.close()

    def close(self) -> None:
        for program in self._programs.values():
            program.child.close()
        self._programs.clear()

    def _make_place(self) -> None:
        for key in [key for key, program in self._programs.items() if program.child.closed]:
            del self._programs[key]
        while len(self._programs) >= self._places:
            oldest = next(iter(self._programs))
            self._programs.pop(oldest).child.close()
