"""Kernels compiled before they are launched, in other processes: Triton's into the cache where this one looks them up.

A kernel takes up to seconds to compile and a tuner wants hundreds; the processes know neither the model nor the GPU,
only what a launch is made of: a line of JSON in, a line of JSON out. NVRTC compiles one kernel after the other within
a process, so kernels in C++ go the same way and their machine code comes back in the line. Called by the tuner; needs
Triton.
"""

import base64
import importlib
import json
import math
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass
from types import TracebackType
from typing import IO, Any, Final, Self

import torch

from penstock.engine.cuda.kernels import written
from penstock.engine.cuda.kernels.cpp_launching import CppLaunch, compiled
from penstock.engine.cuda.kernels.driver import HOPPER
from penstock.engine.cuda.kernels.launching import Argument, Launch, Tiled
from penstock.engine.cuda.kernels.nvrtc import Compiled, CompilerError
from penstock.engine.cuda.nursery import Process, import_compiler, taken

_ALIGNMENT: Final = 16  # of an address that Triton makes use of
_LAST_SECONDS: Final = 20.0  # for what is being compiled when nobody wants it any more
_MOST_SAID: Final = 200  # of a compiler's complaint


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
        return _said(error)
    return ""


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:_MOST_SAID]


def serve(questions: IO[str], answers: IO[str]) -> None:
    """What a process does until its input ends."""
    for line in questions:
        capability, asked = json.loads(line)
        made = _cpp(capability, **asked) if isinstance(asked, dict) else _triton(capability, *asked)
        print(json.dumps(made), file=answers, flush=True)


def _triton(capability: int, module: str, kernel: str, arguments: list[Any], constants: list[Any], *rest: Any) -> str:
    recipe = Recipe(module, kernel, tuple(arguments), tuple((name, value) for name, value in constants), *rest)
    return _build(recipe.launch, capability)


def _cpp(capability: int, source: str, options: list[str]) -> str | tuple[str, int, int]:
    """Why it does not compile, or its machine code and what it takes."""
    try:
        made = compiled(source, tuple(options), capability)
    except Exception as error:  # as above
        return _said(error)
    return base64.b64encode(made.cubin).decode(), made.registers, made.spilled_bytes


def _done() -> Future[str]:
    done: Future[str] = Future()
    done.set_result("")
    return done


class Compilers:
    """Some processes that compile; a context. They start with the first launch and serve any number of models."""

    def __init__(self, processes: int, capability: int = HOPPER) -> None:
        self._capability, self.processes = capability, processes
        self._threads = ThreadPoolExecutor(processes)
        self._idle: queue.SimpleQueue[Process] = queue.SimpleQueue()
        self._nurseries: list[subprocess.Popen[bytes]] = []
        self._starting = threading.Lock()

    def start(self) -> None:
        """All processes now, and not with the first launches: they import for seconds before they compile."""
        with self._starting:
            if not self._nurseries:
                self._more(self.processes)
                # This process reads what was compiled, by the same digest.
                threading.Thread(target=import_compiler, name="penstock-import", daemon=True).start()

    def _more(self, count: int) -> None:
        nursery, found = taken(count)
        self._nurseries.append(nursery)
        for each in found:
            self._idle.put(each)

    def submit(self, launch: Launch | CppLaunch, until: float = math.inf) -> Future[str]:
        """The answer says why it does not compile; empty if it does. `until`: on the monotonic clock, to begin by."""
        if isinstance(launch, CppLaunch):
            if launch.is_compiled(self._capability):
                return _done()
            self.start()
            return self._threads.submit(self._build_cpp, launch, until)
        recipe = Recipe.of(launch)
        if recipe is None:
            return _done()
        self.start()
        return self._threads.submit(lambda: str(self._ask(astuple(recipe), until)))

    def _build_cpp(self, launch: CppLaunch, until: float) -> str:
        answer = self._ask({"source": launch.source, "options": launch.options}, until)
        if isinstance(answer, str):
            # What loads beside torch may not load without it, so a complaint is heard here once more.
            return _build(lambda: launch, self._capability) if answer.startswith(CompilerError.__name__) else answer
        code, registers, spilled = answer
        launch.remember(Compiled(base64.b64decode(code), registers, spilled), self._capability)
        return ""

    def _ask(self, what: object, until: float) -> Any:
        """A process's answer; a text if there is none."""
        if time.monotonic() > until:
            return "there was no time"
        process = self._idle.get()
        try:
            process.questions.write(json.dumps([self._capability, what]) + "\n")
            process.questions.flush()
            answer = process.answers.readline()
        except (OSError, ValueError):  # a closed pipe is the latter
            answer = ""
        if not answer.endswith("\n"):
            process.close()
            self._replace(process)
            return "the compiler's process ended"
        self._idle.put(process)
        return json.loads(answer)

    def _replace(self, process: Process) -> None:
        """There are as many as threads that ask, always: where none can be started, the closed one says so again."""
        try:
            self._more(1)
        except OSError:
            self._idle.put(process)

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
            try:
                nursery.wait(timeout=_LAST_SECONDS)
            except subprocess.TimeoutExpired:  # a compiler that hangs ends with whoever asked
                nursery.kill()
