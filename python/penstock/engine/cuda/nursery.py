"""Processes that compile kernels, forked from one that imported what they need: Triton and kernels, but no torch.

They can be started before anybody else has imported torch, and wait for whoever wants them. Imports nothing that takes
long. Called by `precompile`, and by who knows early that kernels will be compiled.
"""

import importlib
import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Final

from penstock.engine import cores
from penstock.engine.cuda import without_torch

MOST: Final = 16
"""Processes that compile at once."""

_PROGRAM: Final = f"from {__name__} import main; main()"
_WITH_TORCH: Final = "torch"
_NICE: Final = 5  # whoever launches, times or runs a reference meanwhile comes first

Started = tuple["subprocess.Popen[bytes]", "list[Process]"]

_early: "list[Started]" = []
_starting: Final = threading.Lock()


def count() -> int:
    """As many as there are cores but one."""
    return min(MOST, max(1, cores.available() - 1))


def start() -> None:
    """So many now, for whoever takes them."""
    with _starting:
        if not _early:
            _early.append(_started(count()))


def taken(wanted: int) -> Started:
    """The ones that were started if they are as many, else new ones."""
    with _starting:
        if _early and len(_early[0][1]) == wanted:
            return _early.pop()
    return _started(wanted)


@dataclass(frozen=True, slots=True)
class Process:
    """The two pipes of one; it ends when they are closed."""

    questions: IO[str]
    answers: IO[str]

    def close(self) -> None:
        for stream in (self.questions, self.answers):
            with suppress(BrokenPipeError):  # it is gone already
                stream.close()


def _started(wanted: int) -> Started:
    """Processes forked from one that has imported what takes seconds, and that one, which waits for them."""
    theirs: list[tuple[int, int]] = []
    ours: list[Process] = []
    for _ in range(wanted):
        (asked, ask), (hear, answer) = os.pipe(), os.pipe()
        theirs.append((asked, answer))
        ours.append(Process(os.fdopen(ask, "w"), os.fdopen(hear)))
    handles = [each for pair in theirs for each in pair]
    # Threads of libraries would not survive the fork, and each process has one thing to do.
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    nursery = subprocess.Popen(  # noqa: S603  (our own interpreter and program)
        [sys.executable, "-P", "-c", _PROGRAM, json.dumps(theirs)],
        stdin=subprocess.DEVNULL,
        pass_fds=handles,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | one_thread,
    )
    for each in handles:
        os.close(each)
    return nursery, ours


def import_compiler() -> None:
    """What each process would do with its first kernel: read the compiler, and all of it once more for a digest."""
    with suppress(ImportError, AttributeError):
        importlib.import_module("triton.compiler.code_generator")
        importlib.import_module("triton.runtime.cache").triton_key()


def main() -> None:
    """The one that is forked."""
    if sys.argv[2:] != [_WITH_TORCH]:
        try:
            without_torch.import_kernels()
        except Exception:  # a kernel's module that wants more of torch than its names
            program = [sys.executable, "-P", "-c", _PROGRAM, sys.argv[1], _WITH_TORCH]
            os.execv(sys.executable, program)  # noqa: S606  (itself)
    from penstock.engine.cuda.kernels import nvrtc
    from penstock.engine.cuda.precompile import serve

    import_compiler()
    nvrtc.available()  # loaded once for all
    # Whatever else writes to standard output must not end up where the builder's does.
    os.dup2(2, 1)
    os.nice(_NICE)
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
            serve(os.fdopen(own[0]), os.fdopen(own[1], "w"))
        os._exit(0)
    for asked, answer in pairs:
        os.close(asked)
        os.close(answer)
    for child in children:
        os.waitpid(child, 0)
