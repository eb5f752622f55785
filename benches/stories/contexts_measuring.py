"""Measures ways to give many callers one tower: threads that call, clients that ask a server, settings in turns.

Promises: every answer is judged against FP32 of PyTorch (or of ONNX Runtime without it); callers begin together and
each calls again once it is answered; settings that are compared take turns, forth and back, so that neither gets the
machine's better minutes. Called by `contexts`.
"""

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benches.stories.contexts_results import Cell, Setting
from benches.stories.contexts_sharing import Call
from examples.clip.asking import Target, Tensor, Turns, asked, at_once
from examples.clip.judging import Answer, Reference, Tally, judged
from examples.clip.preprocessing import Floats
from examples.ocr.servers import Server, child

_TIMEOUT: Final = 120.0
"""Seconds for a process of clients to be ready, and to end."""


@dataclass(frozen=True)
class Subject:
    """What is asked, and how its answers are judged."""

    rows: Floats  # [pictures, 3, 224, 224]
    tensors: Sequence[Tensor]  # the same for a server
    encoded: Sequence[Tensor]  # the same pictures as files
    reference: Reference


@dataclass(frozen=True)
class Effort:
    seconds: float
    """Of one cell, for as long as calls are begun."""

    processes: int = 1
    """That clients of a server are divided among; 1: they are threads of this one."""


# ---- threads that call ----


def called(call: Call, subject: Subject, callers: int, effort: Effort) -> Tally:
    """So many threads call with one row at a time."""

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

    run = at_once(ask, Turns(len(subject.rows), seconds=effort.seconds), callers)
    return judged(subject.reference, run.answers, run.asked, run.seconds)


# ---- clients that ask a server ----


@contextlib.contextmanager
def serving(tower: Path, setting: Setting) -> Iterator[Server]:
    """The tower and the pipeline around it, in a process of their own."""
    flags = [str(tower), "--instances", str(setting.contexts)]
    flags += ["--threads", str(setting.threads)] if setting.threads else []
    with child(f"{setting.contexts} contexts", "examples.clip.service", flags) as found:
        yield found


def served(
    server: Server, model: str, subject: Subject, in_flight: int, effort: Effort, encoded: bool = False
) -> Tally:
    """So many clients ask over HTTP, each on a connection of its own."""
    tensors = subject.encoded if encoded else subject.tensors
    processes = min(effort.processes, in_flight)
    target = Target("http", server.http, model)
    if processes == 1:
        run = asked(target, tensors, Turns(len(tensors), seconds=effort.seconds), in_flight)
        return judged(subject.reference, run.answers, run.asked, run.seconds)
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(processes), context.Queue()
    shares = [in_flight // processes + (number < in_flight % processes) for number in range(processes)]
    workers = [
        context.Process(
            target=_clients, daemon=True,
            args=(target, tensors, subject.reference.embeddings, share, effort.seconds, start, results),
        )
        for share in shares
    ]  # fmt: skip
    for worker in workers:
        worker.start()
    found = [results.get(timeout=_TIMEOUT) for _ in workers]
    for worker in workers:
        worker.join()
    return joined(found)


def _clients(
    target: Target, tensors: Sequence[Tensor], known: Any, in_flight: int, seconds: float, start: Any, results: Any
) -> None:
    """A process with some of the clients."""
    start.wait(_TIMEOUT)
    run = asked(target, tensors, Turns(len(tensors), seconds=seconds), in_flight)
    results.put(judged(Reference(known), run.answers, run.asked, run.seconds))


def joined(tallies: Sequence[Tally], *, at_once: bool = True) -> Tally:
    """Of parts that were measured at once, or one after the other."""
    whole = Tally()
    for each in tallies:
        whole.asked += each.asked
        whole.right += each.right
        whole.wrong += each.wrong
        whole.missing += each.missing
        whole.failed += each.failed
        whole.least = min(whole.least, each.least)
        whole.seconds = max(whole.seconds, each.seconds) if at_once else whole.seconds + each.seconds
        whole.milliseconds += each.milliseconds
        whole.reasons += [reason for reason in each.reasons if reason not in whole.reasons]
    return whole


# ---- settings ----


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
