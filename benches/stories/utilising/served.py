"""What a process holds that serves a model: `penstock serve FILE`, asked over gRPC, and /proc."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benches.stories.utilising.memory import Memory, of_process
from benches.stories.utilising.worker import REPOSITORY
from examples.children import end

_ASKED: Final = 6  # times with each batch: what a library keeps of a shape it has by then


@dataclass(frozen=True)
class Held:
    ready: Memory
    """Once the server was ready."""

    asked: Memory
    """After requests."""


def held(model: Path, rows: NDArray[np.float32], batches: Sequence[int]) -> Held:
    """`rows`: FP32 for the input `x`, as many as the largest batch."""
    import tritonclient.grpc as client

    with _server(model) as (process, address):
        ready = of_process(process)
        with client.InferenceServerClient(address) as asked:
            for batch in batches:
                tensor = client.InferInput("x", [batch, *rows.shape[1:]], "FP32")
                tensor.set_data_from_numpy(rows[:batch])
                for _ in range(_ASKED):
                    asked.infer(model.stem, [tensor])
        return Held(ready, of_process(process))


@contextmanager
def _server(model: Path) -> Iterator[tuple[int, str]]:
    """Its process, and where it speaks gRPC."""
    ports = ["--http-port", "0", "--grpc-port", "0", "--allow-metrics", "false"]
    command = [sys.executable, "-c", "from penstock.cli import main; main()", "serve", str(model), *ports, "--json"]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=REPOSITORY)
    assert started.stdout is not None
    try:
        said = started.stdout.readline()
        if not said:
            raise RuntimeError(f"the server of {model.name} ended with status {started.wait()}")
        yield started.pid, f"127.0.0.1:{json.loads(said)['grpc_port']}"
    finally:
        started.terminate()
        end(started)
