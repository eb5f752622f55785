"""The servers that can be compared, and how each is started for each workload.

It promises every server at its own defaults but for what the comparison fixes: one instance, batches of up to 64 (16
for the image), loopback, free ports where it takes any. Called by the plan of measurement.
"""

import os
import shlex
import shutil
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.dialects import V2, Dialect, Echo, MosecRoutes
from harness.lab import BENCHES, REPOSITORY, Lab, LabError, Triton
from harness.workload import Workload

DELAY_0 = "max_queue_delay_microseconds: 0"
TRITON_DELAYS_US = {"triton": 0, "triton 0.5 ms": 500, "triton 2 ms": 2000}
"""Delay 0 is measured in both tables; the others only where batches take time."""

FIXED_HTTP_PORT, FIXED_GRPC_PORT = 8000, 8001
"""Where a server given as NAME=COMMAND listens unless its command has {http_port} and {grpc_port}."""


@dataclass(frozen=True)
class Ports:
    http: int
    grpc: int
    metrics: int


@dataclass(frozen=True)
class Launch:
    """One server, ready to be started."""

    command: list[str]
    dialect: Dialect
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Server:
    name: str
    workloads: frozenset[Workload]
    launch: Callable[[Workload, Ports], Launch]
    ports: Callable[[], Ports]


@dataclass(frozen=True)
class Absent:
    """A server that was asked for and can't be measured."""

    name: str
    reason: str


def free_ports() -> Ports:
    """Three ports that nobody has now. All are held at once, so that they differ."""
    sockets = [socket.socket() for _ in range(3)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return Ports(*(int(one.getsockname()[1]) for one in sockets))
    finally:
        for one in sockets:
            one.close()


def taken(ports: Ports) -> list[int]:
    """The ports where somebody listens already: a stranger there would be measured for the server."""
    found = []
    for port in (ports.http, ports.grpc):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                found.append(port)
    return found


def penstock() -> Server:
    python = REPOSITORY / ".venv" / "bin" / "python"
    if not python.exists():
        raise LabError("penstock: .venv/bin/python is missing; run `make setup`")

    def launch(workload: Workload, ports: Ports) -> Launch:
        command = [str(python), str(BENCHES / "serve_double.py")]
        command += ["--http-port", str(ports.http), "--grpc-port", str(ports.grpc)]
        if workload is Workload.IMAGE:
            command.append("--big")
        if workload.sleep_seconds:
            command += ["--sleep", str(workload.sleep_seconds)]
        return Launch(command, V2())

    return Server("penstock", frozenset(Workload), launch, free_ports)


def floor(lab: Lab) -> Server:
    binary = lab.floor()

    def launch(workload: Workload, ports: Ports) -> Launch:
        command = [str(binary), "--http-port", str(ports.http), "--grpc-port", str(ports.grpc)]
        command += ["--sleep", str(workload.sleep_seconds)]
        reply_bytes = None
        if workload is Workload.IMAGE:
            reply_bytes = 4 * len(workload.question.expected)
            command += ["--reply-bytes", str(reply_bytes)]
        return Launch(command, Echo(reply_bytes))

    return Server("floor", frozenset(Workload), launch, free_ports)


def mosec(lab: Lab) -> Server:
    python = lab.mosec()

    def launch(workload: Workload, ports: Ports) -> Launch:
        command = [str(python), str(BENCHES / "peers" / "mosec" / "serve_ident.py")]
        command += ["--address", "127.0.0.1", "--port", str(ports.http)]
        return Launch(command, MosecRoutes(), {"SLEEP": str(workload.sleep_seconds)})

    return Server("mosec", frozenset(Workload), launch, free_ports)


def triton(lab: Lab, name: str, found: Triton) -> Server:
    delay = TRITON_DELAYS_US[name]

    def launch(workload: Workload, ports: Ports) -> Launch:
        repository = triton_repository(lab.folder / "triton" / "repositories", workload, delay)
        command = [str(found.binary), f"--model-repository={repository}", f"--backend-directory={found.backends}"]
        for listener in ("http", "grpc", "metrics"):
            command.append(f"--{listener}-address=127.0.0.1")
        command += [f"--http-port={ports.http}", f"--grpc-port={ports.grpc}", f"--metrics-port={ports.metrics}"]
        env = {
            # The backend's Python finds its home by the first python on the path.
            "PATH": f"{found.scripts}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "PYTHONPATH": str(found.packages),
            "LD_LIBRARY_PATH": str(found.packages / "nvidia_pytriton.libs"),
            "SLEEP": str(workload.sleep_seconds),
        }
        return Launch(command, V2(), env)

    workloads = frozenset(Workload) if delay == 0 else frozenset({Workload.SLEEP})
    return Server(name, workloads, launch, free_ports)


def triton_repository(folder: Path, workload: Workload, delay_us: int) -> Path:
    """A copy of the repository in `peers/` with the delay written into it."""
    model = "image" if workload is Workload.IMAGE else "double"
    repository = folder / f"{model}-{delay_us}"
    shutil.copytree(BENCHES / "peers" / "triton" / model, repository, dirs_exist_ok=True)
    config = repository / "ident" / "config.pbtxt"
    text = config.read_text()
    if DELAY_0 not in text:
        raise LabError(f"triton: {model}/ident/config.pbtxt has no `{DELAY_0}` to replace")
    config.write_text(text.replace(DELAY_0, f"max_queue_delay_microseconds: {delay_us}"))
    return repository


def custom(name: str, command: str) -> Server:
    """Any v2 server. Its command may name {http_port}, {grpc_port}, {workload}; else 8000, 8001 and `double` alone."""
    own_ports = "{http_port}" in command
    workloads = frozenset(Workload) if "{workload}" in command else frozenset({Workload.DOUBLE})

    def launch(workload: Workload, ports: Ports) -> Launch:
        values = {"http_port": str(ports.http), "grpc_port": str(ports.grpc), "workload": workload.value}
        words = shlex.split(command)
        for key, value in values.items():
            words = [word.replace(f"{{{key}}}", value) for word in words]
        return Launch(words, V2())

    def fixed_ports() -> Ports:
        return Ports(FIXED_HTTP_PORT, FIXED_GRPC_PORT, 0)

    return Server(name, workloads, launch, free_ports if own_ports else fixed_ports)


def resolve(words: list[str], lab: Lab) -> tuple[list[Server], list[Absent]]:
    """The servers of --servers, installed; those that can't be, with the reason. An unknown name raises ValueError."""
    servers: list[Server] = []
    absent: list[Absent] = []
    for word in words:
        name, equals, command = word.partition("=")
        try:
            if equals:
                servers.append(custom(name, command))
            elif name == "penstock":
                servers.append(penstock())
            elif name == "floor":
                servers.append(floor(lab))
            elif name == "mosec":
                servers.append(mosec(lab))
            elif name == "triton":
                found = lab.triton()
                servers += [triton(lab, variant, found) for variant in TRITON_DELAYS_US]
            else:
                raise ValueError(f"{name}: not a server; expected penstock, floor, mosec, triton or NAME=COMMAND")
        except LabError as error:
            absent.append(Absent(name, str(error)))
    return servers, absent
