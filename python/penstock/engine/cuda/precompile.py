"""Kernels compiled before they are launched: Triton's in other processes, into the cache where this one looks them up.

A kernel takes up to seconds to compile and a tuner wants hundreds; the processes know neither the model nor the GPU,
only what a launch is made of: a line of JSON in, a line of JSON out. Called by the tuner; needs Triton.
"""

import importlib
import json
import os
import queue
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import astuple, dataclass
from types import TracebackType
from typing import IO, Self

import torch

from penstock.engine.cuda.kernels.cpp_launching import CppLaunch
from penstock.engine.cuda.kernels.driver import HOPPER
from penstock.engine.cuda.kernels.launching import Launch

_ALIGNMENT = 16  # of an address that Triton makes use of


@dataclass(frozen=True, slots=True)
class Recipe:
    """A launch without its tensors."""

    module: str
    kernel: str
    arguments: tuple[str | float | None, ...]
    """A tensor is its type's name."""

    constants: tuple[tuple[str, int | float | str | bool], ...]
    num_warps: int
    num_stages: int
    pdl: bool

    @staticmethod
    def of(launch: Launch) -> "Recipe | None":
        """None where an address is not aligned: that one compiles when it is first launched."""
        arguments: list[str | float | None] = []
        for each in launch.arguments:
            if isinstance(each, torch.Tensor):
                if each.data_ptr() % _ALIGNMENT:
                    return None
                arguments.append(str(each.dtype).removeprefix("torch."))
            else:
                arguments.append(each)
        kernel = launch.kernel
        return Recipe(
            kernel.__module__, kernel.__name__, tuple(arguments), tuple(launch.constants.items()), launch.num_warps,
            launch.num_stages, launch.pdl,
        )  # fmt: skip

    def launch(self) -> Launch:
        arguments = tuple(
            torch.empty(1, dtype=getattr(torch, each), device="meta") if isinstance(each, str) else each
            for each in self.arguments
        )
        kernel = getattr(importlib.import_module(self.module), self.kernel)
        return Launch(kernel, (1, 1, 1), arguments, dict(self.constants), self.num_warps, self.num_stages, self.pdl)


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


def _start() -> "subprocess.Popen[str]":
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(  # noqa: S603  (our own interpreter and program)
        [sys.executable, "-c", f"from {__name__} import main; main()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def main() -> None:
    # Whatever else writes to standard output must not end up among the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _serve(sys.stdin, answers)


class Compilers:
    """Some processes that compile; a context. They start with the first launch and serve any number of models."""

    def __init__(self, processes: int, capability: int = HOPPER) -> None:
        self._capability = capability
        self._threads = ThreadPoolExecutor(processes)
        self._idle: queue.SimpleQueue[subprocess.Popen[str]] = queue.SimpleQueue()

    def submit(self, launch: Launch | CppLaunch) -> Future[str]:
        """The answer says why it does not compile; empty if it does."""
        if isinstance(launch, CppLaunch):  # its compiler is a library that lets other threads run
            return self._threads.submit(_build, lambda: launch, self._capability)
        recipe = Recipe.of(launch)
        if recipe is None:
            done: Future[str] = Future()
            done.set_result("")
            return done
        return self._threads.submit(self._ask, recipe)

    def _ask(self, recipe: Recipe) -> str:
        try:
            process = self._idle.get_nowait()
        except queue.Empty:
            process = _start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps([self._capability, astuple(recipe)]) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except OSError:
            answer = ""
        if not answer:
            _end(process)
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
            _end(self._idle.get_nowait())


def _end(process: "subprocess.Popen[str]") -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(BrokenPipeError):  # it is gone already
                stream.close()
    process.kill()
    process.wait()
