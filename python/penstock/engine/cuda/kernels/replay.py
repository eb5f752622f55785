"""Launches taken down in order, and launched again from there without Triton's compiler.

An executor launches the same kernels in the same order every time it runs. A `Recorder` seals each as it passes; a
`Player` holds their machine code on the GPU and launches the next one in its place, with the addresses of now. Kernels
find either through `current()`; without one they are compiled and launched by Triton. Used by the executor and the
runtime; imports neither torch nor triton.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from .driver import LoadedKernel, SealedKernel


class Sealable(Protocol):
    """`launching.Launch`."""

    @property
    def grid(self) -> tuple[int, int, int]: ...

    def seal(self) -> SealedKernel: ...

    def bound(self) -> list[int | float]: ...


class Launcher(Protocol):
    """What launches in Triton's place."""

    def begin(self, at: int) -> None:
        """Another run begins, at this launch of all: 0 is the first step's."""
        ...

    def launch(self, launch: Sealable, stream: int) -> bool:
        """False: Triton launches it after all."""
        ...


class Recorder:
    """Seals what is launched; Triton still launches it."""

    def __init__(self) -> None:
        self.kernels: list[SealedKernel] = []

    def begin(self, at: int) -> None:
        del self.kernels[at:]

    def launch(self, launch: Sealable, stream: int) -> bool:
        del stream
        self.kernels.append(launch.seal())
        return False


class Player:
    """Kernels on the GPU, in the order of their launches; equal ones once. Used by one run at a time."""

    def __init__(self, kernels: Sequence[SealedKernel]) -> None:
        loaded: dict[SealedKernel, LoadedKernel] = {}
        self._kernels = [loaded.setdefault(each, LoadedKernel(each)) if each not in loaded else loaded[each]
                         for each in kernels]  # fmt: skip
        self.next = 0
        """The launch that comes next."""

    def begin(self, at: int) -> None:
        self.next = at

    def launch(self, launch: Sealable, stream: int) -> bool:
        """Raises ValueError where it is not the launch that was taken down at this place."""
        if self.next == len(self._kernels):
            raise ValueError(f"launch {self.next} was not taken down when the kernels were sealed")
        kernel = self._kernels[self.next]
        self.next += 1
        if kernel.sealed.grid != launch.grid:
            raise ValueError(f"{kernel.sealed.symbol} was sealed for {kernel.sealed.grid} blocks, not {launch.grid}")
        kernel.launch(launch.bound(), stream)
        return True


_current: ContextVar[Launcher | None] = ContextVar("launcher", default=None)


def current() -> Launcher | None:
    return _current.get()


@contextmanager
def launching(launcher: Launcher | None, at: int = 0) -> Iterator[None]:
    """One run of all steps, or of those from launch `at` on, launched through this; None: by Triton."""
    if launcher is not None:
        launcher.begin(at)
    token = _current.set(launcher)
    try:
        yield
    finally:
        _current.reset(token)
