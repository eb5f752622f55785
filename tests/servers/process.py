"""Starts a server as a child process on ports of its own and stops it: Penstock, or a real Triton 2.51 to compare with.

A `RunningServer` is ready when it is handed over. Nothing here imports Penstock: the tests meet it over the wire only.
A Triton is looked for in the folder that PENSTOCK_LAB names, else in `.peers/` of the checkout.
"""

import contextlib
import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

CHECKOUT = Path(__file__).resolve().parents[2]
MODELS_SCRIPT = Path(__file__).with_name("models.py")
# Importing libraries and binding three ports; a loaded two-core machine needs most of it.
START_SECONDS = 60.0
STOP_SECONDS = 35.0

Kind = Literal["penstock", "triton"]
Option = str | int | float | bool


@dataclass(frozen=True)
class RunningServer:
    """Where a server that is ready listens, and the process that it is."""

    kind: Kind
    process: subprocess.Popen[bytes]
    http_port: int
    grpc_port: int
    metrics_port: int
    log: Path

    @property
    def http_address(self) -> str:
        return f"127.0.0.1:{self.http_port}"

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def resident_bytes(self) -> int:
        """Resident memory of the process (for Triton without its stub processes)."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError(f"process {self.process.pid} has no VmRSS: it has ended")

    def log_tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


class ServerPanickedError(AssertionError):
    """The server's log tells of a panic; one that was caught and answered is a defect all the same."""


class ServerDidNotStartError(RuntimeError):
    """The child ended, or did not become ready in time; the message carries the end of its log."""


def _failed(process: subprocess.Popen[bytes], log: Path, why: str) -> ServerDidNotStartError:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-40:])
    return ServerDidNotStartError(f"{why} (exit {process.returncode}); the end of its log:\n{tail}")


def _await_ready(server: RunningServer, deadline: float) -> None:
    while time.monotonic() < deadline and server.process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=2)
        try:
            connection.request("GET", "/v2/health/ready")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.05)
    raise _failed(server.process, server.log, "the server never answered /v2/health/ready with 200")


def _first_line(process: subprocess.Popen[bytes], log: Path, deadline: float) -> bytes:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
    line = process.stdout.readline() if ready else b""
    if not line:
        raise _failed(process, log, "the server script printed no ports")
    return line


@contextlib.contextmanager
def penstock_server(log: Path, options: Mapping[str, Option]) -> Iterator[RunningServer]:
    """`options` are keyword arguments of penstock.Server; with a `model_repository` the zoo of functions stays out."""
    deadline = time.monotonic() + START_SECONDS
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, str(MODELS_SCRIPT), json.dumps(dict(options))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=CHECKOUT,
            start_new_session=True,
        )
    ports = json.loads(_first_line(process, log, deadline))
    server = RunningServer("penstock", process, ports["http"], ports["grpc"], ports["metrics"], log)
    _await_ready(server, deadline)
    try:
        yield server
    finally:
        # The script stops its server when its standard input closes; so it does when the tests die.
        assert process.stdin is not None
        process.stdin.close()
        _end(process)
        if process.stdout is not None:
            process.stdout.close()
    everything = log.read_text(encoding="utf-8", errors="replace")
    if "panicked" in everything:
        raise ServerPanickedError(everything[everything.index("panicked") - 200 :][:4000])


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise


def triton_folder() -> Path | None:
    """The folder with envs/pytriton and triton/backends, or None where no Triton is installed."""
    folder = Path(os.environ.get("PENSTOCK_LAB") or CHECKOUT / ".peers")
    return folder if (folder / "triton/backends/python/triton_python_backend_stub").exists() else None


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


@contextlib.contextmanager
def triton_server(folder: Path, log: Path, repository: Path, *arguments: str) -> Iterator[RunningServer]:
    environment = folder / "envs/pytriton"
    packages = next(environment.glob("lib/python3*/site-packages"))
    http_port, grpc_port, metrics_port = _free_ports(3)
    command = [
        str(packages / "pytriton/tritonserver/bin/tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={folder / 'triton/backends'}",
        *(f"--{listener}-address=127.0.0.1" for listener in ("http", "grpc", "metrics")),
        f"--http-port={http_port}",
        f"--grpc-port={grpc_port}",
        f"--metrics-port={metrics_port}",
        *arguments,
    ]
    variables = dict(
        os.environ,
        PATH=f"{environment / 'bin'}:{os.environ['PATH']}",
        PYTHONPATH=str(packages),
        LD_LIBRARY_PATH=str(packages / "nvidia_pytriton.libs"),
    )
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=variables, start_new_session=True)
    server = RunningServer("triton", process, http_port, grpc_port, metrics_port, log)
    _await_ready(server, time.monotonic() + START_SECONDS)
    try:
        yield server
    finally:
        process.terminate()
        _end(process)
