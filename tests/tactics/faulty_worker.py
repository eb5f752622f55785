"""A worker whose libraries misbehave in every way a real one has: `python -m tests.tactics.faulty_worker BUILDER`.

A tactic's runtime names what happens (`crash`, `hang`, ...), its option `when` at which step: `compile`, `call`
(after so many), or `file`, a call once the test has made that file. `sleeps` is a library that takes the milliseconds
of option `ms` for a call and answers its inputs. Anything else is the real thing.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from penstock.engine.plan import Shapes, Tactic
from penstock.engine.runtimes.base import Array, Arrays, Compiled
from penstock.tactics import worker
from penstock.tensors import TensorSpec

hoard: list[bytearray] = []


def crash() -> None:
    ctypes.string_at(0)


def hang() -> None:
    threading.Event().wait()


def spin() -> None:
    """Never lets another thread of the process in: only the kernel can end it."""
    ctypes.PyDLL(None).pause()


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def devour() -> None:
    while True:
        hoard.append(bytearray(b"x" * 2**20) * 16)
        time.sleep(0.001)


def fail() -> None:
    raise RuntimeError("no kernel for Frobnicate at /opt/build/secret/plugin.cpp:12")


def leave() -> None:
    print("out of licences", file=sys.stderr, flush=True)
    os._exit(3)


def babble() -> None:
    """What libraries do: print to standard output, from Python and from C, and a lot to standard error."""
    print("garbage " * 100, flush=True)
    os.write(1, b"\xff" * 5000)
    os.write(2, b"warning\n" * 100_000)


def forge() -> None:
    """Garbage in the pipe itself, which a library can't reach without effort."""
    for handle in range(3, 20):
        try:
            if str(Path(f"/proc/self/fd/{handle}").readlink()).startswith("pipe:"):
                os.write(handle, b"this is no frame")
        except OSError:
            continue


def breed() -> None:
    """A process of its own, whose id the test finds in a file."""
    child = subprocess.Popen(["sleep", "600"])
    Path(os.environ["PENSTOCK_TEST_FILE"]).write_text(str(child.pid))


FAULTS: dict[str, Callable[[], None]] = {
    each.__name__: each for each in (crash, hang, spin, stop, devour, fail, leave, babble, forge, breed)
}


class Fake:
    """A runtime and its only instance."""

    name = "fake"
    inputs = (TensorSpec("x", "FP32", (-1, 4)),)
    outputs = (TensorSpec("x", "FP32", (-1, 4)),)

    def __init__(self, tactic: Tactic) -> None:
        options = dict(tactic.options)
        self._fault = FAULTS.get(tactic.runtime)
        self._when = options.get("when", "compile")
        self._calls_left = int(options.get("calls", "0"))
        self._seconds = float(options.get("ms", "0")) / 1000
        if self._when == "compile" and self._fault is not None:
            self._fault()

    def instance(self) -> "Fake":
        return self

    def execute(self, inputs: Arrays) -> dict[str, Array]:
        if self._fault is not None and self._when == "call":
            if self._calls_left == 0:
                self._fault()
            self._calls_left -= 1
        if self._fault is not None and self._when == "file" and Path(os.environ["PENSTOCK_TEST_FILE"]).exists():
            self._fault()
        if self._seconds:
            time.sleep(self._seconds)
        return dict(inputs)

    def views(self, inputs: Arrays) -> dict[str, Array]:
        return self.execute(inputs)

    def __call__(self, **arrays: Array) -> dict[str, Array]:
        return self.execute(arrays)

    def export(self) -> bytes:
        return b"artifact"

    def regions(self, inputs: Arrays, repeats: int = 20) -> tuple[()]:
        return ()

    def close(self) -> None:
        """Nothing is held."""


def compile_fake(path: Path, tactic: Tactic, shapes: Shapes | None) -> Compiled:
    if tactic.runtime in FAULTS or tactic.runtime == "sleeps":
        return Fake(tactic)
    return worker.compile_tactic(path, tactic, shapes)


if __name__ == "__main__":
    worker.serve(compile_fake)
