"""`penstock` as a user runs it: a child process, its lines on standard error, its exit code."""

import os
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests import onnx_models

COMMAND = (sys.executable, "-c", "from penstock.cli import main; main()")
# Importing libraries and loading a model; a loaded two-core machine needs a part of it.
SECONDS = 60.0


def run(*arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """To the end; for what ends by itself."""
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env={**os.environ, **(environment or {})},
    )


class Serve:
    """A running `penstock serve`, from its line `ready` on; ports are those it printed. Killed when the block ends.

    free_ports: listeners that are told to take a free port; what says so itself needs none.
    """

    def __init__(
        self,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        free_ports: Sequence[str] = ("http", "grpc", "metrics"),
    ) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "serve", *(f"--{each}-port=0" for each in free_ports), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self.lines: list[str] = []
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.until("penstock: ready")
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._queue.put(line.rstrip("\n"))
        self._queue.put(None)

    def until(self, wanted: str) -> None:
        """Waits for a line; the end of the output instead is an assertion error."""
        while wanted not in self.lines:
            line = self._queue.get(timeout=SECONDS)
            assert line is not None, f"no line {wanted!r}; there were {self.lines}"
            self.lines.append(line)

    def port(self, what: str) -> int:
        (found,) = [match for line in self.lines if (match := re.fullmatch(rf"penstock: {what} on \S+:(\d+)", line))]
        return int(found[1])

    def exit_code(self, seconds: float = SECONDS) -> int:
        """Waits for the end and reads the rest of the output."""
        code = self.process.wait(seconds)
        while (line := self._queue.get(timeout=SECONDS)) is not None:
            self.lines.append(line)
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


def write_counter(path: Path) -> Path:
    """y = how often a loop ran: INT64 [1] -> FP32 [1], no batches. The input says how long it takes, up to for ever."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["count", "one"], ["counted"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("count", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("counted", TensorProto.FLOAT, [1]),
        ],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Squeeze", ["turns"], ["limit"]),
            helper.make_node("Loop", ["limit", "always", "zero"], ["y"], body=body),
        ],
        "counter",
        [helper.make_tensor_value_info("turns", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [
            numpy_helper.from_array(np.array(True), "always"),
            numpy_helper.from_array(np.zeros(1, np.float32), "zero"),
            numpy_helper.from_array(np.ones(1, np.float32), "one"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return onnx_models.save(model, path)
