"""A contender's process, seen from the bench: load, run, time, each within a limit; LostError when it can't.

The process is ended when the block is left, and by itself when the bench ends. Called by `contest`.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benches.engines.contenders import Contender

Arrays = Mapping[str, npt.NDArray[Any]]
ROOT = Path(__file__).parents[2]
LOAD_SECONDS, RUN_SECONDS = 240.0, 180.0


class LostError(Exception):
    """The contender failed, hung or crashed; the message says how."""


class Child:
    """One process with one loaded model."""

    def __init__(self, contender: Contender, folder: Path) -> None:
        self.contender = contender
        self._folder = folder
        self._errors = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  closed with the child
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benches.engines.worker"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            assert pipe
            pipe.close()

    def load(self, inputs: Path) -> str:
        """Load the model for inputs of these shapes and call it once; what the library says of itself."""
        one = self.contender
        command = {
            "do": "load", "library": one.library, "path": str(one.path.resolve()), "hint": one.hint,
            "optimised": one.optimised, "inputs": str(inputs),
        }  # fmt: skip
        return str(self._ask(command, LOAD_SECONDS)["detail"])

    def run(self, inputs: Arrays) -> list[npt.NDArray[Any]]:
        """One call; outputs in the model's order."""
        given, answered = self._folder / "given.npz", self._folder / "answered.npz"
        named: dict[str, Any] = dict(inputs)
        np.savez(given, **named)
        self._ask({"do": "run", "inputs": str(given), "outputs": str(answered)}, RUN_SECONDS)
        with np.load(answered, allow_pickle=False) as archive:
            return [archive[name] for name in sorted(archive.files)]

    def time(self, seconds: float, least: int) -> Sequence[int]:
        """Nanoseconds of each call, for about `seconds` and at least `least` calls, with the inputs of `load`."""
        answer = self._ask({"do": "time", "seconds": seconds, "least": least}, RUN_SECONDS)
        return [int(each) for each in answer["ns"]]

    def _ask(self, command: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise LostError(self._end()) from None
        line = self._line(self._process.stdout.fileno(), command["do"], seconds)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise LostError(str(answer["error"]))
        return answer

    def _line(self, descriptor: int, doing: str, seconds: float) -> bytes:
        deadline, found = time.monotonic() + seconds, b""
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while not found.endswith(b"\n"):
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    raise LostError(f"{doing} took more than {seconds:.0f} s")
                part = os.read(descriptor, 1 << 16)
                if not part:
                    raise LostError(self._end())
                found += part
        return found

    def _end(self) -> str:
        code = self._process.wait(10)
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        how = f"crashed ({signal.Signals(-code).name})" if code < 0 else f"ended with code {code}"
        return f"{how}: {lines[-1][:200]}" if lines else how
