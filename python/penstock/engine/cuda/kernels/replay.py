"""Launches taken down in order, and launched again from there without Triton's compiler.

An executor launches the same kernels in the same order every time it runs. A `Player` holds their machine code on the
GPU and launches the next one in its place, with the addresses of now; a `Recorder` is one that seals what it does not
have yet. Kernels find either through `current()`; without one they are launched by Triton, whose launchers a C compiler
makes, a quarter of a second for each kernel's list of parameters. Used by the executor, the tuner and the runtime;
imports neither torch nor triton.
"""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from typing import Protocol

from .driver import DriverError, LoadedKernel, LoadedModule, SealedKernel


class Sealable(Protocol):
    """`launching.Launch`."""

    @property
    def grid(self) -> tuple[int, int, int]: ...

    @property
    def symbol(self) -> str: ...

    def seal(self, capability: int) -> SealedKernel: ...

    def bound(self) -> list[int | float]: ...


class Launcher(Protocol):
    """What launches in Triton's place."""

    def begin(self, at: int, *, all_early: bool = False) -> None:
        """Another run begins, at this launch of all: 0 is the first step's. `all_early`: none of its launches waits for
        the kernel ahead that could be early, whatever its step says.
        """
        ...

    def step(self, apart: Sequence[int]) -> None:
        """Another step begins, of whose launches these, by their numbers, wait for the kernel ahead to end."""
        ...

    def launch(self, launch: Sealable, stream: int) -> bool:
        """False: Triton launches it after all."""
        ...

    def end(self) -> None:
        """All steps have run."""
        ...


class Player:
    """Kernels on the GPU, in the order of their launches; machine code once. Used by one run at a time.

    The code leaves the GPU when nobody holds the player; a captured graph must hold it.
    """

    def __init__(self, kernels: Sequence[SealedKernel]) -> None:
        self._modules: dict[bytes, LoadedModule] = {}
        self._kernels: list[LoadedKernel] = []
        self._apart: frozenset[int] = frozenset()
        self._all_early = False
        self.next = 0
        """The launch that comes next."""
        weakref.finalize(self, _unload, self._modules).atexit = False
        for each in kernels:
            self._add(each)

    @property
    def kernels(self) -> tuple[SealedKernel, ...]:
        return tuple(each.sealed for each in self._kernels)

    def begin(self, at: int, *, all_early: bool = False) -> None:
        self.next, self._all_early = at, all_early

    def step(self, apart: Sequence[int]) -> None:
        self._apart = frozenset(self.next + number for number in apart)

    def relaunch(self, early: Sequence[bool]) -> None:
        """From now on these are launched before the kernel ahead has ended, where they were prepared for it."""
        for number, (kernel, now) in enumerate(zip(self._kernels, early, strict=True)):
            if kernel.sealed.pdl != now:
                sealed = replace(kernel.sealed, pdl=now)
                self._kernels[number] = LoadedKernel(sealed, self._modules[sealed.cubin])

    def launch(self, launch: Sealable, stream: int) -> bool:
        """Raises ValueError where it is not the launch that was taken down at this place."""
        if self.next == len(self._kernels):
            raise ValueError(f"launch {self.next} was not taken down when the kernels were sealed")
        kernel = self._kernels[self.next]
        sealed = kernel.sealed
        early = sealed.pdl or (self._all_early and self.next in self._apart)
        self.next += 1
        if sealed.grid != launch.grid or not sealed.symbol.startswith(launch.symbol):
            raise ValueError(
                f"{sealed.symbol} of {sealed.grid} blocks was sealed, not {launch.symbol} of {launch.grid}"
            )
        kernel.launch(launch.bound(), stream, early=early)
        return True

    def end(self) -> None:
        if self.next != len(self._kernels):
            raise ValueError(f"{self.next} kernels were launched, {len(self._kernels)} were sealed")

    def _add(self, sealed: SealedKernel) -> None:
        if sealed.cubin not in self._modules:
            self._modules[sealed.cubin] = LoadedModule(sealed.cubin)
        self._kernels.append(LoadedKernel(sealed, self._modules[sealed.cubin]))


class Recorder(Player):
    """Seals a launch when it comes for the first time, for GPUs of this compute capability, and plays it then, too."""

    def __init__(self, capability: int) -> None:
        super().__init__(())
        self._capability = capability

    def launch(self, launch: Sealable, stream: int) -> bool:
        if self.next == len(self._kernels):
            sealed = launch.seal(self._capability)
            self._add(replace(sealed, pdl=False) if self.next in self._apart else sealed)
        return super().launch(launch, stream)


def _unload(modules: Mapping[bytes, LoadedModule]) -> None:
    for module in modules.values():
        with suppress(DriverError):  # of a process that is ending, or a GPU that failed
            module.close()


_current: ContextVar[Launcher | None] = ContextVar("launcher", default=None)


def current() -> Launcher | None:
    return _current.get()


@contextmanager
def launching(launcher: Launcher | None, at: int | None = None, *, all_early: bool = False) -> Iterator[None]:
    """One run of all steps, or of some whose first launch is number `at`, launched through this; None: by Triton.

    `all_early`: as `Launcher.begin` has it.
    """
    if launcher is not None:
        launcher.begin(at or 0, all_early=all_early)
    token = _current.set(launcher)
    try:
        yield
    finally:
        _current.reset(token)
    if launcher is not None and at is None:
        launcher.end()
