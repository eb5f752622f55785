"""Kernels compiled before they are launched: Triton's in other processes, into the cache where this one looks them up.

A kernel takes up to seconds to compile and a tuner wants hundreds; the processes know neither the model nor the GPU,
only what a launch is made of: a line of JSON in, a line of JSON out. Called by the tuner; needs Triton.
"""

import importlib
import json
import math
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import astuple, dataclass
from types import TracebackType
from typing import IO, Self

import torch

from penstock.engine.cuda.kernels import written
from penstock.engine.cuda.kernels.cpp_launching import CppLaunch
from penstock.engine.cuda.kernels.driver import HOPPER
from penstock.engine.cuda.kernels.launching import Argument, Launch, Tiled

_ALIGNMENT = 16  # of an address that Triton makes use of


@dataclass(frozen=True, slots=True)
class Recipe:
    """A launch without its tensors."""

    module: str
    kernel: str
    arguments: tuple["str | float | tuple[str, int, int] | None", ...]
    """A tensor is its type's name, a matrix that is read by blocks has their size with it."""

    constants: tuple[tuple[str, int | float | str | bool], ...]
    num_warps: int
    num_stages: int
    pdl: bool
    most_registers: int = 0
    text: str = ""
    """Of a kernel that was written for one step; empty: it stands in its module."""

    @staticmethod
    def of(launch: Launch) -> "Recipe | None":
        """None where an address is not aligned: that one compiles when it is first launched."""
        arguments: list[str | float | tuple[str, int, int] | None] = []
        for each in launch.arguments:
            if isinstance(each, Tiled):
                arguments.append((_name(each.tensor), *each.block))
            elif isinstance(each, torch.Tensor):
                if each.data_ptr() % _ALIGNMENT:
                    return None
                arguments.append(_name(each))
            else:
                arguments.append(each)
        kernel = launch.kernel
        return Recipe(
            kernel.__module__, kernel.__name__, tuple(arguments), tuple(launch.constants.items()), launch.num_warps,
            launch.num_stages, launch.pdl, launch.most_registers, written.text_of(kernel),
        )  # fmt: skip

    def launch(self) -> Launch:
        arguments = tuple(map(_argument, self.arguments))
        module = importlib.import_module(self.module)
        kernel = written.function(self.module, self.text) if self.text else getattr(module, self.kernel)
        return Launch(
            kernel, (1, 1, 1), arguments, dict(self.constants), self.num_warps, self.num_stages, self.pdl,
            self.most_registers,
        )  # fmt: skip


def _name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _argument(each: str | float | tuple[str, int, int] | None) -> Argument:
    if isinstance(each, str):
        return torch.empty(1, dtype=getattr(torch, each), device="meta")
    if isinstance(each, tuple | list):
        name, high, wide = each
        return Tiled(torch.empty((high, _ALIGNMENT), dtype=getattr(torch, name), device="meta"), (high, wide))
    return each


def _build(launch: Callable[[], Launch | CppLaunch], capability: int) -> str:
    """Why it does not compile; empty if it does."""
    try:
        launch().build(capability)
    except Exception as error:  # whatever the compiler raises
        return f"{type(error).__name__}: {error}"[:200]
    return ""


def _serve(questions: IO[str], answers: IO[str]) -> None:
    """What a process does until its input ends."""
    for line in questions:
        capability, (module, kernel, arguments, constants, *options) = json.loads(line)
        pairs = tuple((name, value) for name, value in constants)
        recipe = Recipe(module, kernel, tuple(arguments), pairs, *options)
        print(json.dumps(_build(recipe.launch, capability)), file=answers, flush=True)


@dataclass(frozen=True, slots=True)
class _Process:
    """The two pipes of one; it ends when they are closed."""

    questions: IO[str]
    answers: IO[str]

    def close(self) -> None:
        for stream in (self.questions, self.answers):
            with suppress(BrokenPipeError):  # it is gone already
                stream.close()


def _started(count: int) -> "tuple[subprocess.Popen[bytes], list[_Process]]":
    """Processes forked from one that has imported what takes seconds, and that one, which waits for them."""
    theirs: list[tuple[int, int]] = []
    ours: list[_Process] = []
    for _ in range(count):
        (asked, ask), (hear, answer) = os.pipe(), os.pipe()
        theirs.append((asked, answer))
        ours.append(_Process(os.fdopen(ask, "w"), os.fdopen(hear)))
    handles = [each for pair in theirs for each in pair]
    # Threads of libraries would not survive the fork, and each process has one thing to do.
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    nursery = subprocess.Popen(  # noqa: S603  (our own interpreter and program)
        [sys.executable, "-c", f"from {__name__} import main; main()", json.dumps(theirs)],
        stdin=subprocess.DEVNULL,
        pass_fds=handles,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | one_thread,
    )
    for each in handles:
        os.close(each)
    return nursery, ours


def main() -> None:
    """The one that is forked."""
    from penstock.engine.cuda.implementations import add_triton

    add_triton()  # every kernel of ours
    # Whatever else writes to standard output must not end up where the builder's does.
    os.dup2(2, 1)
    pairs: list[tuple[int, int]] = [(asked, answer) for asked, answer in json.loads(sys.argv[1])]
    children: list[int] = []
    for own in pairs:
        if child := os.fork():
            children.append(child)
            continue
        for pair in pairs:  # else nobody would see that another one has ended
            if pair is not own:
                os.close(pair[0])
                os.close(pair[1])
        with suppress(BrokenPipeError):
            _serve(os.fdopen(own[0]), os.fdopen(own[1], "w"))
        os._exit(0)
    for asked, answer in pairs:
        os.close(asked)
        os.close(answer)
    for child in children:
        os.waitpid(child, 0)


class Compilers:
    """Some processes that compile; a context. They start with the first launch and serve any number of models."""

    def __init__(self, processes: int, capability: int = HOPPER) -> None:
        self._capability, self._processes = capability, processes
        self._threads = ThreadPoolExecutor(processes)
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        self._nurseries: list[subprocess.Popen[bytes]] = []
        self._starting = threading.Lock()

    def start(self) -> None:
        """All processes now, and not with the first launches: they import for seconds before they compile."""
        with self._starting:
            if not self._nurseries:
                self._more(self._processes)

    def _more(self, count: int) -> None:
        nursery, found = _started(count)
        self._nurseries.append(nursery)
        for each in found:
            self._idle.put(each)

    def submit(self, launch: Launch | CppLaunch, until: float = math.inf) -> Future[str]:
        """The answer says why it does not compile; empty if it does. `until`: on the monotonic clock, to begin by."""
        if isinstance(launch, CppLaunch):  # its compiler is a library that lets other threads run
            return self._threads.submit(_build, lambda: launch, self._capability)
        recipe = Recipe.of(launch)
        if recipe is None:
            done: Future[str] = Future()
            done.set_result("")
            return done
        self.start()
        return self._threads.submit(self._ask, recipe, until)

    def _ask(self, recipe: Recipe, until: float) -> str:
        if time.monotonic() > until:
            return "there was no time"
        process = self._idle.get()
        try:
            process.questions.write(json.dumps([self._capability, astuple(recipe)]) + "\n")
            process.questions.flush()
            answer = process.answers.readline()
        except OSError:
            answer = ""
        if not answer:
            process.close()
            self._more(1)  # there are as many as threads that ask, always
            return "the compiler's process ended"
        self._idle.put(process)
        return str(json.loads(answer))

    def build(self, launches: Sequence[Launch | CppLaunch], seconds: float) -> None:
        """All of them, as far as the time goes."""
        futures = [self.submit(each) for each in launches]
        try:
            for future in futures:
                future.result(timeout=seconds)
        except TimeoutError:
            for future in futures:
                future.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(cancel_futures=True)
        while not self._idle.empty():
            self._idle.get_nowait().close()
        for nursery in self._nurseries:
            nursery.wait()
