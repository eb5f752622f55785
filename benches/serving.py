"""A server with one engine, in a process of its own, for the benches that ask it. Needs nothing but the package."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

COMMAND: Final = (sys.executable, "-c", "from penstock.cli import main; main()")


@contextmanager
def serving(engine: Path, wire: str = "grpc") -> Iterator[int]:
    """The port for a wire of a server with the engine."""
    ports = [f"--{each}-port=0" for each in ("http", "grpc", "metrics")]
    command = [*COMMAND, "serve", str(engine), *ports, "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(json.loads(process.stdout.readline())[f"{wire}_port"])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
