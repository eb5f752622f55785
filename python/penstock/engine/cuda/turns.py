"""Batches that fill the GPU compute one after the other, while others are copied.

Two such graphs side by side share the GPU and end together; then the host copies for both, and the GPU has nothing to
do. In turns the one that came first ends as early as it can, and its host works while the other computes. Short graphs
leave room on the GPU and gain from each other: they take no turns. Called by contexts and by the timeline.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Final

import torch

from penstock.engine.cuda import costs
from penstock.engine.cuda.executor import Captured
from penstock.engine.lowered import LoweredGraph

LEAST_MILLISECONDS: float = 0.3
"""What a graph has to take at least, by its arithmetic, to be one that fills the GPU."""

# Marks of a call, in their order.
BEGIN, COPIED_IN, TURN, COMPUTED, COPIED_OUT = range(5)
MARKS: Final = 5


def fills(graph: LoweredGraph) -> bool:
    """Whether it is so much work that another beside it would only be in its way."""
    return costs.floor_milliseconds(graph) >= LEAST_MILLISECONDS


class Turns:
    """The order of the graphs of one model on one device."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: torch.cuda.Event | None = None

    def take(self, stream: torch.cuda.Stream, launch: Callable[[], None], done: torch.cuda.Event) -> None:
        """Launches on the stream, behind everything that was launched so before; `done` is the caller's own event."""
        with self._lock:
            if self._last is not None:
                stream.wait_event(self._last)
            launch()
            done.record(stream)
            self._last = done


class InTurns:
    """A call whose graph is computing alone: copies beside it, on the same stream, wait for nobody's turn."""

    def __init__(
        self,
        captured: Captured,
        given: Mapping[str, torch.Tensor],
        answers: Mapping[str, torch.Tensor],
        turns: Turns,
        mark: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`mark` is told the five moments of each call, on its stream."""
        self._captured, self._turns, self._mark = captured, turns, mark
        self._in = [(captured.inputs[name], tensor) for name, tensor in given.items()]
        self._out = [(tensor, captured.outputs[name]) for name, tensor in answers.items()]
        self._computed = torch.cuda.Event()

    def start(self) -> None:
        """Answers lie where they were asked for once the stream is done."""
        with torch.cuda.stream(self._captured.stream):
            self._mark(BEGIN)
            for device, host in self._in:
                device.copy_(host, non_blocking=True)
            self._mark(COPIED_IN)
            self._turns.take(self._captured.stream, self._launch, self._computed)
            for host, device in self._out:
                host.copy_(device, non_blocking=True)
            self._mark(COPIED_OUT)

    def _launch(self) -> None:
        self._mark(TURN)
        self._captured.replay()
        self._mark(COMPUTED)
