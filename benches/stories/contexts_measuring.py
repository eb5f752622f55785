"""Measures ways to give many callers one tower: threads that call, and settings in turns.

Promises: every answer is judged against FP32 of PyTorch (or of ONNX Runtime without it); callers begin together and
each calls again once it is answered; settings that are compared take turns, forth and back, so that neither gets the
machine's better minutes. Called by `contexts`.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benches.stories.contexts_results import Cell, Setting
from benches.stories.contexts_sharing import Call
from examples.clip.asking import Turns, at_once
from examples.clip.judging import Answer, Reference, Tally, judged
from examples.clip.preprocessing import Floats


@dataclass(frozen=True)
class Subject:
    """What is asked, and how its answers are judged."""

    rows: Floats  # [pictures, 3, 224, 224]
    reference: Reference


def called(call: Call, subject: Subject, callers: int, seconds: float) -> Tally:
    """So many threads call with one row at a time, each again once it is answered, for so long."""

    def ask(number: int, picture: int) -> Answer:
        del number
        began = time.perf_counter()
        try:
            embedding = call(subject.rows[picture])
        except Exception as error:  # whatever a library raises is what its caller gets in place of an answer
            return Answer(
                picture, time.perf_counter() - began, trouble="failed", said=f"{type(error).__name__}: {error}"
            )
        return Answer(picture, time.perf_counter() - began, embedding)

    run = at_once(ask, Turns(len(subject.rows), seconds=seconds, least=callers), callers)
    return judged(subject.reference, run.answers, run.asked, run.seconds)


def in_turns(
    measure: Callable[[Setting], Tally], settings: Sequence[Setting], turns: int
) -> dict[Setting, list[Tally]]:
    """Each setting `turns` times: in order, then in the reverse of it."""
    found: dict[Setting, list[Tally]] = {each: [] for each in settings}
    for turn in range(turns):
        for each in settings if turn % 2 == 0 else settings[::-1]:
            found[each].append(measure(each))
    return found


def settings_of(contexts: Sequence[int], *, on_gpu: bool) -> list[Setting]:
    """With the cores divided among contexts that compute on them."""
    cores = len(os.sched_getaffinity(0))
    return [Setting(count, None if on_gpu else max(1, cores // count)) for count in contexts]


@dataclass
class Table:
    """Cells as they are measured, each said at once."""

    say: Callable[[str], None]
    cells: list[Cell] = field(default_factory=list)

    def add(self, way: str, setting: Setting, in_flight: int, tally: Tally) -> None:
        cell = Cell.of(way, setting, in_flight, tally)
        self.cells.append(cell)
        self.say(str(cell))
