"""`service` as a child process, so that clients and server don't share an interpreter.

Promises: it is ready when it is handed out, and ends when this process does, however that ends. Needs the package and
Pillow alone. Called by the demo and by the stories of the benches.
"""

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from examples.children import child
from examples.clip.asking import Wire


@dataclass(frozen=True, slots=True)
class Hosted:
    http: str  # HOST:PORT
    grpc: str

    def address(self, wire: Wire) -> str:
        return self.grpc if wire == "grpc" else self.http


@contextlib.contextmanager
def hosted(tower: Path, *, instances: int = 1, threads: int | None = None) -> Iterator[Hosted]:
    """A server of this engine or ONNX file on free ports of 127.0.0.1. Raises RuntimeError when it does not start."""
    command = [sys.executable, "-m", "examples.clip.service", str(tower.resolve()), "--instances", str(instances)]
    command += ["--threads", str(threads)] if threads is not None else []
    with child(command) as started:
        assert started.stdout is not None
        line = started.stdout.readline()
        if not line:
            raise RuntimeError(f"the server ended with status {started.wait()} before it was ready; see above")
        ports = json.loads(line)
        yield Hosted(f"127.0.0.1:{ports['http_port']}", f"127.0.0.1:{ports['grpc_port']}")
