"""The stable: programs kept alive in their processes between turns, a few at a time.

Compiling takes longer than timing, so a program that will be wanted again stays until its place is needed. What is
alive holds memory, so places are few, and the one that was used longest ago leaves first. Programs of one tactic for a
GPU share a process, its library and the weights, and a process may be started before it is asked for anything. Called
by `race` and `confirming`, and by `build` where one stable serves all of a build.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from penstock.engine.cuda.tuning import Tuning
from penstock.engine.plan import CUDA, TUNED_STEPS, Shapes, Tactic
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


def program_number(bucket: int | None) -> int:
    """In a process that holds several: 0 takes every shape."""
    return 0 if bucket is None else bucket + 1


@dataclass(slots=True)
class _Program:
    child: Child
    made: Made
    number: int = 0
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
        self._waiting: dict[Tactic, Child] = {}  # started, and not asked for anything yet

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

    def number(self, tactic: Tactic, bucket: int) -> int:
        """Of the program in its process."""
        return self._programs[program_key(tactic, bucket)].number

    def made(self, tactic: Tactic, bucket: int) -> Made | None:
        """What compiling the program gave, while it is alive."""
        program = self._programs.get(program_key(tactic, bucket))
        return program.made if program is not None else None

    def knows(self, tactic: Tactic, bucket: int) -> bool:
        """Whether a time of this program that was measured earlier is one of the program as it would be made now.

        Steps that were tuned are what was chosen then: they are another program without the choices.
        """
        if tactic.options != TUNED_STEPS:
            return True
        return Tuning(self._forms[tactic.form].path).knows(self._buckets[bucket], tactic.precision)

    def expect(self, tactic: Tactic) -> None:
        """Start the process of a tactic for a GPU now: its library is imported by the time that it is wanted."""
        if tactic.runtime == CUDA and tactic not in self._waiting and self._shared(tactic) is None:
            form = self._forms.get(tactic.form)
            self._waiting[tactic] = Child(tactic, self._limits, form.path if form is not None else None)

    def take(self, child: Child) -> None:
        """A process that was started elsewhere, for its tactic, and was not asked for anything yet."""
        self._waiting[child.tactic] = child

    def compiled(self, tactic: Tactic, bucket: int, seconds: float) -> Child:
        """The program's process, compiled within `seconds` unless it is alive; raises CandidateLost."""
        return self._compiled(tactic, program_key(tactic, bucket), seconds).child

    def whole(self, tactic: Tactic, seconds: float) -> Child:
        """The process of a tactic for a GPU, with a program (number 0) that takes every bucket's shapes."""
        return self._compiled(tactic, (tactic, None), seconds).child

    def _compiled(self, tactic: Tactic, key: ProgramKey, seconds: float) -> _Program:
        program = self._programs.pop(key, None)
        if program is None or program.child.closed:
            form = self._forms.get(tactic.form)
            if form is None:
                raise InvalidArgument(f"{tactic.name}: no such form, there are {', '.join(self._forms)}")
            child = self._process(tactic)
            number = program_number(key[1]) if tactic.runtime == CUDA else 0
            shapes = self._buckets[key[1]] if key[1] is not None else None
            try:
                made = child.compile(form.path, shapes, seconds=seconds, program=number)
            except BaseException:
                child.close()
                raise
            program = _Program(child, made, number)
        self._programs[key] = program
        return program

    def _process(self, tactic: Tactic) -> Child:
        """One that lives and may take another program, one that waits for its first, or a new one."""
        found = self._shared(tactic) or self._waiting.pop(tactic, None)
        if found is None or found.closed:
            self._make_place()
            found = Child(tactic, self._limits)
        return found

    def _shared(self, tactic: Tactic) -> Child | None:
        if tactic.runtime != CUDA:
            return None
        alive = (each.child for (other, _), each in self._programs.items() if other == tactic)
        return next((child for child in alive if not child.closed), None)

    def contender(self, tactic: Tactic, bucket: int, *, compile_seconds: float, call_seconds: float) -> Contender:
        """The program at this bucket, called once at least; raises CandidateLost."""
        child = self.compiled(tactic, bucket, compile_seconds)
        program = self._programs[program_key(tactic, bucket)]
        if bucket not in program.contenders:
            child.load(bucket, self.inputs(bucket), program.number)
            program.contenders[bucket] = first_call(child, bucket, call_seconds)
        return program.contenders[bucket]

    def drop(self, tactic: Tactic, bucket: int) -> None:
        """End the program's process, if it is alive and holds no other."""
        program = self._programs.get(program_key(tactic, bucket))
        if program is not None and tactic.runtime != CUDA:
            del self._programs[program_key(tactic, bucket)]
            program.child.close()

    def close(self) -> None:
        for program in self._programs.values():
            program.child.close()
        for child in self._waiting.values():
            child.close()
        self._programs.clear()
        self._waiting.clear()

    def _make_place(self) -> None:
        for key in [key for key, program in self._programs.items() if program.child.closed]:
            del self._programs[key]
        while len({id(each.child) for each in self._programs.values()}) >= self._places:
            oldest = next(iter(self._programs.values())).child
            oldest.close()
            self._programs = {key: each for key, each in self._programs.items() if each.child is not oldest}
