"""A server inside the test's own process, met over the wire like any other: for models that a test must hold or watch.

`serving` hands out a `RunningServer`, so that every helper of `tests/servers` works on it. `Gate` is a model function
that says when it runs and waits until the test lets it go on.
"""

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import penstock as ps
from tests.servers.process import RunningServer
from tests.servers.zoo import Array

# A model that is not let go on for this long belongs to a test that has failed.
GATE_SECONDS = 60.0


def address(server: ps.Server) -> RunningServer:
    """Where a started server listens. It has no process of its own, so nothing may be asked about that."""
    assert server.http_port is not None
    assert server.grpc_port is not None
    nobody = cast("subprocess.Popen[bytes]", None)
    return RunningServer("penstock", nobody, server.http_port, server.grpc_port, 0, Path(os.devnull))


@contextlib.contextmanager
def serving(*models: ps.ModelFunction, **options: Any) -> Iterator[RunningServer]:
    """HTTP and gRPC on free ports; `options` are further keyword arguments of `penstock.Server`."""
    server = ps.Server(http_port=0, grpc_port=0, metrics_port=None, **options)
    for model in models:
        server.add(model)
    with server:
        yield address(server)


class Gate:
    """Answers x, one call at a time and only while open. Leaving the context opens it for good."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.calls = 0
        self._opened = threading.Event()

    def __enter__(self) -> "Gate":
        return self

    def __exit__(self, *_: object) -> None:
        self.open()

    def open(self) -> None:
        self._opened.set()

    def __call__(self, x: Array) -> Array:
        self.calls += 1
        self.entered.release()
        assert self._opened.wait(GATE_SECONDS), "nobody opened the gate"
        return x

    def model(self, **settings: Any) -> ps.ModelFunction:
        """As `gate`: FP32 [1, 4] in and out, never more than one row in a batch."""
        made = ps.model(name="gate", max_batch_size=1, inputs={"x": ps.F32[4]}, outputs={"y": ps.F32[4]}, **settings)
        return made(lambda x: self(x))  # noqa: PLW0108  (the signature is read: one argument x)
