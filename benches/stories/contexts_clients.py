"""Clients of a server, in processes that live as long as the story: one interpreter can't keep a GPU busy.

Promises: all clients of a level begin together, and every answer is judged where it arrives. With no processes the
clients are threads of the caller. Called by `contexts`.
"""

import multiprocessing
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Literal, Self

from benches.stories.contexts_results import joined
from examples.clip.asking import Target, Tensor, Turns, asked
from examples.clip.judging import Reference, Tally, judged

Kind = Literal["rows", "files"]
_TIMEOUT: Final = 120.0
"""Seconds for a process to be ready, and to answer after its time."""


class Clients:
    """`tensors`: the pictures, as rows for the tower and as files for the pipeline."""

    def __init__(self, tensors: Mapping[Kind, Sequence[Tensor]], reference: Reference, processes: int) -> None:
        self._tensors, self._reference = tensors, reference
        context = multiprocessing.get_context("spawn")
        self._tasks = [context.SimpleQueue() for _ in range(processes)]
        self._results = context.Queue()
        self._start = context.Barrier(processes) if processes else None
        self._workers = [
            context.Process(
                target=_work, args=(tensors, reference.embeddings, tasks, self._start, self._results), daemon=True
            )
            for tasks in self._tasks
        ]
        for worker in self._workers:
            worker.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for tasks in self._tasks:
            tasks.put(None)
        for worker in self._workers:
            worker.join(_TIMEOUT)

    def ask(self, target: Target, in_flight: int, seconds: float, kind: Kind = "rows") -> Tally:
        """So many ask, each again once it is answered, for so long."""
        if not self._workers:
            return _asked(target, self._tensors[kind], self._reference, in_flight, seconds)
        count = len(self._workers)
        for number, tasks in enumerate(self._tasks):
            tasks.put((target, kind, in_flight // count + (number < in_flight % count), seconds))
        return joined([self._results.get(timeout=seconds + _TIMEOUT) for _ in self._workers])


def _work(tensors: Mapping[Kind, Sequence[Tensor]], known: Any, tasks: Any, start: Any, results: Any) -> None:
    """A process with some of the clients."""
    reference = Reference(known)
    while (task := tasks.get()) is not None:
        target, kind, in_flight, seconds = task
        start.wait(_TIMEOUT)
        results.put(_asked(target, tensors[kind], reference, in_flight, seconds))


def _asked(target: Target, tensors: Sequence[Tensor], reference: Reference, in_flight: int, seconds: float) -> Tally:
    if not in_flight:
        return Tally()
    run = asked(target, tensors, Turns(len(tensors), seconds=seconds, least=in_flight), in_flight)
    return judged(reference, run.answers, run.asked, run.seconds)
