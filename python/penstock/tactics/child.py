"""A candidate in a process of its own, seen from the builder: commands with a limit on time and on memory.

Every way in which the process can fail (an exception, a crash, a hang, too much memory, garbage instead of an answer)
ends as CandidateLost with the reason in plain words, and with the process and everything it started gone. Nothing
runs in the process between commands. Used by one thread, the one that made it: the process does not outlive that
thread. Called by `race`, `timer` and `programs`.
"""

import contextlib
import json
import os
import select
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from penstock.engine import parts
from penstock.engine.custom import Imports
from penstock.engine.plan import CUDA, Region, Shapes, Tactic, tactic_to_json
from penstock.engine.roofline import Ceilings
from penstock.engine.runtimes.base import Array, Arrays, DeviceMemory, library_message
from penstock.errors import ExecutionError
from penstock.tactics.frames import Decoder, Frame, FrameError, encode
from penstock.tactics.memory import available, resident
from penstock.tactics.results import Lost

WORKER: Final = "penstock.tactics.worker"

_TICK_SECONDS: Final = 0.05  # how often memory is looked at: a process fills some 200 MB in that time
_READ_BYTES: Final = 1 << 20
_KEPT_BYTES: Final = 8192  # of standard error: the last lines say why
_LINE_CHARS: Final = 200
_GRACE_SECONDS: Final = 5.0  # for a process that ended or closed its pipes to be reaped

# Of the memory that is there, what one candidate may take before it is stopped: the rest is for the other processes
# that are alive and for the page cache the files are read from.
_MEMORY_SHARE: Final = 0.6

_SIGNALS: Final[Mapping[int, str]] = {
    signal.SIGSEGV: "segmentation fault",
    signal.SIGBUS: "bus error",
    signal.SIGABRT: "the library gave up",
    signal.SIGILL: "an instruction that this processor does not have",
    signal.SIGFPE: "arithmetic error",
    signal.SIGKILL: "killed by the system, as it does when memory runs out",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What one candidate may take."""

    memory_bytes: int | None = None
    """Resident memory of its process; None: a share of what the machine has free when the process starts."""

    start_seconds: float = 60.0
    """Until the process runs and has its library: minutes on a cold disk would be strange, a second is usual."""

    compile_seconds: float = 180.0
    """Large models take most of a minute in OpenVINO; ten minutes would be a hang."""

    call_seconds: float = 60.0
    """For any command that runs the model. The race asks for less once it knows what is usual."""

    worker: str = WORKER
    """Module that is run as the process."""


class CandidateLost(ExecutionError):  # noqa: N818  (a candidate is lost; the race has no error)
    """A candidate's process failed at a command and is gone."""

    def __init__(self, lost: Lost, *, out_of_time: bool = False) -> None:
        super().__init__(f"{lost.tactic.name} {lost.reason}")
        self.lost = lost
        self.out_of_time = out_of_time
        """Stopped for time, which a shorter limit than usual may have caused."""


@dataclass(frozen=True, slots=True)
class Made:
    """What compilation gave."""

    seconds: float
    bytes: int
    """Memory the process gained."""

    fixed: bool
    """Every input has one shape only: static and dynamic are the same thing."""


@dataclass(frozen=True, slots=True)
class Timed:
    """Times of single calls, in nanoseconds, and the memory the process has gained since before it compiled."""

    nanoseconds: tuple[int, ...]
    bytes: int


class Child:
    """One process. Close it, or use it in `with`.

    A process holds one program, number 0; one for a GPU may hold more, of the same tactic at other shapes.
    """

    def __init__(self, tactic: Tactic, limits: Limits, path: Path | None = None) -> None:
        """It imports its library at once, whether anybody waits for it or not, and prepares what it can for `path`."""
        self.tactic = tactic
        self.limits = limits
        self._path = Path("model")  # whose name is taken out of messages, once known
        self._errors = bytearray()
        self._decoder = Decoder()
        self._closed = False
        free = available()
        share = int(_MEMORY_SHARE * free) if free is not None else None
        self._memory = limits.memory_bytes if limits.memory_bytes is not None else share
        # -P: neither the working directory nor a script's folder may put modules in front of the libraries'.
        self._process = subprocess.Popen(  # noqa: S603  (our own interpreter and module)
            [
                *(sys.executable, "-P", "-m", limits.worker, str(os.getpid()), json.dumps(tactic_to_json(tactic))),
                *([str(path.resolve())] if path is not None else []),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
        )
        assert self._process.stdin
        assert self._process.stdout
        assert self._process.stderr
        self._stdin = self._process.stdin.fileno()
        self._stdout = self._process.stdout.fileno()
        self._stderr = self._process.stderr.fileno()
        self._selector = selectors.DefaultSelector()
        for pipe in (self._stdin, self._stdout, self._stderr):
            os.set_blocking(pipe, False)
        self._selector.register(self._stdout, selectors.EVENT_READ)
        self._selector.register(self._stderr, selectors.EVENT_READ)

    @property
    def process_id(self) -> int:
        return self._process.pid

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def resident_bytes(self) -> int:
        return 0 if self._closed else resident(self._process.pid)

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- commands ----

    def compile(
        self, path: Path, shapes: Shapes | None = None, *, seconds: float | None = None, program: int = 0
    ) -> Made:
        """Compile the file for these shapes (static tactics) or for any."""
        self._path = path
        whole = self.tactic.runtime == CUDA and not shapes  # of every bucket at once, in whatever process knows one
        tactic = replace(self.tactic, shapes="dynamic") if whole else self.tactic
        limit = self.limits.start_seconds + self.limits.compile_seconds if seconds is None else seconds
        fields = {
            "path": str(path.resolve()),
            "program": program,
            "tactic": tactic_to_json(tactic),
            "shapes": {name: list(shape) for name, shape in shapes.items()} if shapes else None,
            "imports": Imports.of(parts.read(path).operators).to_json() if parts.beside(path) else None,
        }
        answer = self._command(Frame("compile", fields), limit, "compiling").fields
        return Made(float(answer["seconds"]), int(answer["bytes"]), bool(answer["fixed"]))

    def load(self, bucket: int, inputs: Arrays, program: int = 0) -> None:
        """Hand over the inputs that `time` and `regions` use for a bucket, and say which program runs them."""
        frame = Frame("load", {"bucket": bucket, "program": program}, inputs)
        self._command(frame, self.limits.call_seconds, "taking its inputs")

    def time(self, bucket: int, *, calls: int, seconds: float, warm: int = 0, limit: float | None = None) -> Timed:
        """Time up to `calls` calls for about `seconds`, one at least; the process is stopped after `limit` seconds."""
        fields = {"bucket": bucket, "calls": calls, "seconds": seconds, "warm": warm}
        answer = self._command(Frame("time", fields), self.limits.call_seconds if limit is None else limit, "running")
        return Timed(tuple(int(each) for each in answer.tensors["ns"]), int(answer.fields["bytes"]))

    def run(self, inputs: Arrays, program: int = 0) -> dict[str, Array]:
        """One call with these inputs; its outputs."""
        frame = Frame("run", {"program": program}, inputs)
        return dict(self._command(frame, self.limits.call_seconds, "running").tensors)

    def regions(self, bucket: int, repeats: int) -> tuple[Region, ...]:
        """What the library executes at a bucket whose inputs are loaded, by its own profile."""
        frame = Frame("regions", {"bucket": bucket, "repeats": repeats})
        limit = self.limits.compile_seconds + self.limits.call_seconds  # some libraries compile anew to profile
        answer = self._command(frame, limit, "being profiled")
        return tuple(_region(each) for each in answer.fields["regions"])

    def export(self, path: Path, program: int = 0) -> int:
        """Write the artifact that makes the program loadable without compiling; its bytes."""
        frame = Frame("export", {"path": str(path.resolve()), "program": program})
        return int(self._command(frame, self.limits.compile_seconds, "being exported").fields["bytes"])

    def memory(self, program: int = 0) -> DeviceMemory:
        """What a program for a GPU takes there."""
        answer = self._command(Frame("memory", {"program": program}), self.limits.call_seconds, "being asked").fields
        return DeviceMemory(int(answer["weights"]), int(answer["program"]), int(answer["context"]))

    def ceilings(self, program: int = 0) -> Ceilings:
        """What the device of a program could do."""
        answer = self._command(
            Frame("ceilings", {"program": program}), self.limits.call_seconds, "being measured"
        ).fields
        return Ceilings(
            float(answer["flops_per_second"]), float(answer["bytes_per_second"]), float(answer["launch_us"])
        )

    def close(self) -> None:
        """End the process and all it started. Nothing is waited for: it holds nothing worth keeping."""
        if self._closed:
            return
        self._closed = True
        self._kill()
        self._selector.close()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe
            pipe.close()

    # ---- the exchange ----

    def _command(self, frame: Frame, seconds: float, doing: str) -> Frame:
        if self._closed:
            raise self._lost(f"was asked for more after its process had ended ({doing})")
        complete = False
        try:
            answer = self._exchange(frame, seconds, doing)
            if answer.kind == "error":
                raise self._lost(f"failed while {doing}: {self._clean(str(answer.fields['message']))}")
            complete = True
            return answer
        except FrameError as error:
            raise self._lost(f"answered nonsense while {doing}: {error}") from None
        finally:
            if not complete:  # after Ctrl-C in the middle of an answer, too: the pipes are out of step
                self.close()

    def _exchange(self, frame: Frame, seconds: float, doing: str) -> Frame:
        deadline = time.monotonic() + seconds
        self._check_memory(doing)
        pending = [memoryview(part) for part in encode(frame) if len(part)]
        self._selector.register(self._stdin, selectors.EVENT_WRITE)
        writing = True
        look = time.monotonic() + _TICK_SECONDS
        while True:
            now = time.monotonic()
            if now >= deadline:
                raise self._lost(f"took more than {seconds:.3g} s {doing} and was stopped", out_of_time=True)
            if now >= look:
                self._check_memory(doing)
                look = now + _TICK_SECONDS
            for key, _ in self._selector.select(min(look, deadline) - now):
                if key.fd == self._stderr:
                    self._read_errors()
                elif key.fd == self._stdin:
                    if not self._write(pending):
                        pending.clear()
                elif not self._read_answer():
                    raise self._ended(doing)
            if writing and not pending:
                self._selector.unregister(self._stdin)
                writing = False
            # An answer may come before everything was taken: then it is no answer to this.
            if not writing and (answer := self._decoder.next()) is not None:
                return answer

    def _write(self, pending: list[memoryview]) -> bool:
        """Write what the pipe takes; False when nobody reads it any more (its end is then seen on the other pipe)."""
        try:
            while pending:
                written = os.write(self._stdin, pending[0])
                pending[0] = pending[0][written:]
                if not pending[0]:
                    pending.pop(0)
        except BlockingIOError:
            return True
        except BrokenPipeError:
            return False
        return True

    def _read_answer(self) -> bool:
        try:
            data = os.read(self._stdout, _READ_BYTES)
        except BlockingIOError:
            return True
        self._decoder.feed(data)
        return bool(data)

    def _read_errors(self) -> None:
        try:
            data = os.read(self._stderr, _READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._selector.unregister(self._stderr)
        self._errors += data
        del self._errors[:-_KEPT_BYTES]

    def _check_memory(self, doing: str) -> None:
        held = resident(self._process.pid)
        if self._memory is not None and held > self._memory:
            raise self._lost(f"took {_size(held)} of memory {doing}, more than the {_size(self._memory)} allowed")

    # ---- the end ----

    def _ended(self, doing: str) -> CandidateLost:
        """Why the process closed its pipe."""
        if not _ends(self._process.pid, _GRACE_SECONDS):
            return self._lost(f"closed its pipe while {doing}, which no command asks for")
        if self._stderr in self._selector.get_map():
            self._read_errors()
        code = self._kill()
        if code < 0:
            why = _SIGNALS.get(-code, f"signal {-code}")
            return self._lost(f"crashed while {doing} ({why}){self._last_words()}")
        return self._lost(f"ended by itself while {doing} (exit code {code}){self._last_words()}")

    def _last_words(self) -> str:
        lines = [line.strip() for line in self._errors.decode("utf-8", "replace").splitlines()]
        last = next((line for line in reversed(lines) if line), "")
        return f": {self._clean(last)[:_LINE_CHARS]}" if last else ""

    def _clean(self, text: str) -> str:
        return library_message(Exception(text), self._path)

    def _lost(self, reason: str, *, out_of_time: bool = False) -> CandidateLost:
        return CandidateLost(Lost(self.tactic, reason), out_of_time=out_of_time)

    def _kill(self) -> int:
        """End the whole group, since a library may have started processes; the exit code of the first one.

        The group's number can't have been given to others: it belongs to a process that nobody has waited for yet.
        """
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.wait()


def _ends(process: int, seconds: float) -> bool:
    """Whether the process ends within this time; it is left to be waited for (pidfd_open(2))."""
    handle = os.pidfd_open(process)
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    finally:
        os.close(handle)


def _region(fields: Mapping[str, Any]) -> Region:
    return Region(
        name=str(fields["name"]),
        kind=str(fields["kind"]),
        nodes=tuple(map(str, fields["nodes"])),
        precision=str(fields["precision"]),
        microseconds=float(fields["microseconds"]),
        tactic=str(fields["tactic"]),
        flops=float(fields["flops"]),
        bytes=float(fields["bytes"]),
    )


def _size(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"
