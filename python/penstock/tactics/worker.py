"""The child process: compiles one candidate and runs it when told to. `python -m penstock.tactics.worker`.

Frames come on standard input and answers go to standard output; whatever a library prints lands on standard error. It
answers every command with one frame, `error` where the command failed; it may also crash, hang or be killed, which is
what it is for. It ends with its builder: the kernel kills it when the thread that started it is gone, and it leaves
when its input ends. Started by `child`.
"""

import contextlib
import ctypes
import gc
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np

from penstock.engine.custom import Imports
from penstock.engine.plan import Shapes, Tactic, tactic_from_json
from penstock.engine.runtimes import compile as compile_runtime
from penstock.engine.runtimes import prepare
from penstock.engine.runtimes.base import Arrays, Compiled, InDeviceMemory, RuntimeInstance
from penstock.errors import PenstockError
from penstock.tactics.frames import Decoder, Frame, encode
from penstock.tactics.memory import resident

_PR_SET_PDEATHSIG: Final = 1  # prctl(2)
_READ_BYTES: Final = 1 << 20
# The kernel's choice when memory runs out: this process before any other (proc_pid_oom_score_adj(5)).
_OOM_FIRST: Final = "1000"

Compile = Callable[[Path, Tactic, Shapes | None], Compiled]


def compile_tactic(path: Path, tactic: Tactic, shapes: Shapes | None) -> Compiled:
    """The one place where a tactic becomes something that runs."""
    return compile_runtime(path, tactic, shapes=shapes, instances=1, threads=tactic.threads or None)


class Channel:
    """The two pipes, out of reach of whatever a library prints or reads."""

    def __init__(self) -> None:
        self._source = os.dup(0)
        self._target = os.dup(1)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)
        self._decoder = Decoder()

    def receive(self) -> Frame | None:
        """The next command; None when the builder has closed the pipe."""
        while (frame := self._decoder.next()) is None:
            data = os.read(self._source, _READ_BYTES)
            if not data:
                return None
            self._decoder.feed(data)
        return frame

    def send(self, frame: Frame) -> None:
        for part in encode(frame):
            view = memoryview(part)
            while view:
                view = view[os.write(self._target, view) :]


@dataclass(frozen=True, slots=True)
class _Program:
    runtime: Compiled
    instance: RuntimeInstance


class Worker:
    """One candidate, from compilation to its last call; of a GPU's, a program for each bucket."""

    def __init__(self, compiler: Compile) -> None:
        self._compile = compiler
        self._programs: dict[int, _Program] = {}
        self._inputs: dict[int, tuple[int, Arrays]] = {}
        """By bucket: the program that runs it, and what it is called with."""
        self._before = 0
        self._commands: Mapping[str, Callable[[Frame], Frame]] = {
            "compile": self._on_compile,
            "load": self._on_load,
            "time": self._on_time,
            "run": self._on_run,
            "regions": self._on_regions,
            "export": self._on_export,
            "memory": self._on_memory,
            "ceilings": self._on_ceilings,
        }

    def answer(self, frame: Frame) -> Frame:
        try:
            return self._commands[frame.kind](frame)
        except PenstockError as error:
            return Frame("error", {"message": error.message})
        except MemoryError:
            return Frame("error", {"message": "no memory was left"})
        except Exception as error:  # a library may raise anything
            return Frame("error", {"message": f"{type(error).__name__}: {error}"})

    def _on_compile(self, frame: Frame) -> Frame:
        fields = frame.fields
        tactic = tactic_from_json(fields["tactic"])
        shapes = {name: tuple(shape) for name, shape in fields["shapes"].items()} if fields["shapes"] else None
        # Before memory and time are looked at, so that they don't count as the candidate's.
        prepare(tactic)
        if fields["imports"]:
            Imports.from_json(fields["imports"]).carry_out()
        self._before = resident(os.getpid())
        start = time.perf_counter()
        runtime = self._compile(Path(fields["path"]), tactic, shapes)
        program = self._programs[int(fields["program"])] = _Program(runtime, runtime.instance())
        gc.collect()
        gc.freeze()  # libraries' own objects, which every collection before a measurement would look at for 0.1 s
        seconds = time.perf_counter() - start
        fixed = all(size >= 0 for spec in runtime.inputs for size in spec.shape)
        return Frame("ok", {"seconds": seconds, "bytes": self._held(program), "fixed": fixed})

    def _on_load(self, frame: Frame) -> Frame:
        self._inputs[int(frame.fields["bucket"])] = int(frame.fields["program"]), frame.tensors
        return Frame("ok")

    def _on_time(self, frame: Frame) -> Frame:
        """Per-call times in nanoseconds, after `warm` calls that are not among them; one call at least."""
        fields = frame.fields
        number, inputs = self._inputs[int(fields["bucket"])]
        program = self._program(number)
        instance = program.instance
        calls, limit = int(fields["calls"]), int(fields["seconds"] * 1e9)
        samples = np.empty(calls, np.int64)
        clock = time.perf_counter_ns
        gc.collect()
        gc.disable()
        try:
            for _ in range(int(fields["warm"])):
                instance.execute(inputs)
            begun = now = clock()
            made = 0
            while made < calls and (made == 0 or now - begun < limit):
                start = clock()
                instance.execute(inputs)
                now = clock()
                samples[made] = now - start
                made += 1
        finally:
            gc.enable()
        return Frame("ok", {"bytes": self._held(program)}, {"ns": samples[:made]})

    def _on_run(self, frame: Frame) -> Frame:
        return Frame("ok", {}, self._program(int(frame.fields["program"])).instance.execute(frame.tensors))

    def _on_regions(self, frame: Frame) -> Frame:
        number, inputs = self._inputs[int(frame.fields["bucket"])]
        regions = self._program(number).runtime.regions(inputs, int(frame.fields["repeats"]))
        return Frame("ok", {"regions": [asdict(each) for each in regions]})

    def _on_export(self, frame: Frame) -> Frame:
        data = self._program(int(frame.fields["program"])).runtime.export()
        Path(frame.fields["path"]).write_bytes(data)
        return Frame("ok", {"bytes": len(data)})

    def _on_memory(self, frame: Frame) -> Frame:
        return Frame("ok", asdict(self._on_device(frame).device_memory()))

    def _on_ceilings(self, frame: Frame) -> Frame:
        return Frame("ok", asdict(self._on_device(frame).ceilings()))

    def _on_device(self, frame: Frame) -> InDeviceMemory:
        runtime = self._program(int(frame.fields["program"])).runtime
        if not isinstance(runtime, InDeviceMemory):
            raise RuntimeError("it lies in no device's memory")
        return runtime

    def _program(self, number: int) -> _Program:
        if number not in self._programs:
            raise RuntimeError("nothing is compiled yet")
        return self._programs[number]

    def _held(self, program: _Program) -> int:
        """Of the device's memory where the program lies there, else what this process gained."""
        if isinstance(program.runtime, InDeviceMemory):
            return program.runtime.device_memory().total
        _give_back_free_memory()
        return max(0, resident(os.getpid()) - self._before)


def _give_back_free_memory() -> None:
    """What compilation needed for a moment is not what a program holds (malloc_trim(3); not in every C library)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def guard(builder: int) -> None:
    """Bind this process's life to the builder's, and keep its accidents small."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != builder:  # it ended before the line above
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the builder's to handle
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is expected here and leaves no dump
    try:
        Path("/proc/self/oom_score_adj").write_text(_OOM_FIRST)
    except OSError:
        return  # not allowed in some containers, and only a courtesy


def serve(compiler: Compile) -> None:
    """Take the pipes and answer commands until told to quit or until the builder is gone."""
    channel = Channel()
    guard(int(sys.argv[1]))
    if len(sys.argv) > 2:  # what it will be asked for: while nobody waits yet
        with contextlib.suppress(Exception):  # whatever a library raises, compiling raises again and is answered
            prepare(tactic_from_json(json.loads(sys.argv[2])), *map(Path, sys.argv[3:4]))
    worker = Worker(compiler)
    while (frame := channel.receive()) is not None and frame.kind != "quit":
        channel.send(worker.answer(frame))
    # Not through the libraries' own endings, some of which hang or crash.
    os._exit(0)


if __name__ == "__main__":
    serve(compile_tactic)
