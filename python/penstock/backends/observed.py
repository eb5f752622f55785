"""A backend that remembers a few of the batches it ran, and that several owners may hold.

An engine that is to replace a model is compared with it on what clients really send, while the model serves; and it
may keep the model for shapes that it does not take itself. So the model lives until its last owner is gone. What is
kept is bounded: a few batches, in this process's memory only, until `Batches.stop`. Made for models whose configuration
asks for an engine.
"""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from penstock.backends.base import Array, Backend, Instance, input_memory

_KEPT: Final = 4  # batches, each of other shapes: what comes most often, and an idea of the rest
_KEPT_BYTES: Final = 32 << 20  # of one batch; a larger one is not kept
_REFRESH_SECONDS: Final = 1.0  # between copies, so that a fast model does not pay for one with every batch
_COUNTED: Final = 256  # shapes that are counted; sizes of more are still in the range

Shapes = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs as a client sent them, and how many batches of these shapes there were."""

    inputs: Mapping[str, Array]
    count: int


class Batches:
    """What was seen. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._on = True
        self._away = False
        self._total = 0
        self._counts: dict[Shapes, int] = {}
        self._kept: dict[Shapes, dict[str, Array]] = {}
        self._next_copy = 0.0
        self._ranges: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}

    @property
    def total(self) -> int:
        return self._total

    def stop(self) -> None:
        """Let go of everything, and look at nothing any more."""
        with self._lock:
            self._on = False
            self._kept.clear()

    @contextmanager
    def looking_away(self) -> Iterator[None]:
        """While batches are run that no client sent; for one caller at a time."""
        self._away = True
        try:
            yield
        finally:
            self._away = False

    def saw(self, inputs: Mapping[str, Array]) -> None:
        if not self._on or self._away:  # most of a model's life
            return
        shapes: Shapes = tuple((name, array.shape) for name, array in inputs.items())
        with self._lock:
            self._total += 1
            new = shapes not in self._counts
            if not new or len(self._counts) < _COUNTED:
                self._counts[shapes] = self._counts.get(shapes, 0) + 1
            if new:
                self._widen(inputs)
            now = time.monotonic()
            if self._on and (now >= self._next_copy or (new and len(self._kept) < _KEPT)):
                self._next_copy = now + _REFRESH_SECONDS
                self._keep(shapes, inputs)

    def kept(self) -> list[Batch]:
        """The latest few, those of the most frequent shapes first."""
        with self._lock:
            found = [Batch(inputs, self._counts.get(shapes, 1)) for shapes, inputs in self._kept.items()]
        return sorted(found, key=lambda each: -each.count)

    def ranges(self) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
        """By input the smallest sizes seen, the shape seen most often, and the largest sizes."""
        with self._lock:
            if not self._counts:
                return {}
            usual: dict[str, tuple[int, ...]] = dict(max(self._counts.items(), key=lambda each: each[1])[0])
            return {name: (low, usual.get(name, high), high) for name, (low, high) in self._ranges.items()}

    def _widen(self, inputs: Mapping[str, Array]) -> None:
        for name, array in inputs.items():
            low, high = self._ranges.get(name, (array.shape, array.shape))
            if len(low) == array.ndim:
                self._ranges[name] = (
                    tuple(map(min, low, array.shape)),
                    tuple(map(max, high, array.shape)),
                )

    def _keep(self, shapes: Shapes, inputs: Mapping[str, Array]) -> None:
        # What strings hold is not in their array, so its size would say nothing.
        if any(array.dtype.hasobject for array in inputs.values()):
            return
        if sum(array.nbytes for array in inputs.values()) > _KEPT_BYTES:
            return
        self._kept.pop(shapes, None)
        if len(self._kept) >= _KEPT:
            del self._kept[min(self._kept, key=lambda each: self._counts.get(each, 0))]
        self._kept[shapes] = {name: array.copy() for name, array in inputs.items()}


class ObservedBackend:
    """The wrapped backend, its batches seen. Made with one owner; closed by the last."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._owners = 1
        self.batches = Batches()
        self.name = backend.name
        self.platform = backend.platform
        self.inputs = backend.inputs
        self.outputs = backend.outputs

    @property
    def fresh_outputs(self) -> bool:
        return self._backend.fresh_outputs

    def instance(self, index: int, count: int, threads: int | None) -> Instance:
        return _ObservedInstance(self._backend.instance(index, count, threads), self.batches)

    def unseen(self) -> Instance:
        """An instance whose batches are nobody's: for comparing."""
        return self._backend.instance(0, 1, None)

    def hold(self) -> bool:
        """One more owner, who closes; False when the last one has gone already."""
        with self._lock:
            self._owners += 1 if self._owners else 0
            return self._owners > 0

    def close(self) -> None:
        with self._lock:
            self._owners -= 1
            last = self._owners == 0
        if last:
            self.batches.stop()
            self._backend.close()


class _ObservedInstance:
    def __init__(self, instance: Instance, batches: Batches) -> None:
        self._instance = instance
        self._batches = batches

    def input_memory(self) -> Mapping[str, Array]:
        return input_memory(self._instance)

    def execute(self, inputs: dict[str, Array]) -> Mapping[str, Array]:
        self._batches.saw(inputs)
        return self._instance.execute(inputs)

    def close(self) -> None:
        self._instance.close()
