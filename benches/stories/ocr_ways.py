"""The servers of this story, each in a session of its own: ours four ways, and peers where they are installed.

Promises: all listen on loopback and take the same pictures; whoever is not measured is paused, so that a server that
polls while it waits costs the others nothing; none outlives `serving`. Peers choose the better of one instance with all
cores and one instance a core (`layouts`); so could ours, and has it fixed.
"""

import http.client
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benches.harness.lab import REPOSITORY, Lab, LabError, missing_packages
from benches.harness.processes import Session, wait_until
from benches.stories import ocr_cuda
from benches.stories.ocr_models import BATCHES, CLIENT_ROWS, MODEL

OURS: Final = ("plain", "dynamic batching", "two instances", "engine")
PLAIN, ENGINE = OURS[0], OURS[-1]
_PEERS: Final = REPOSITORY / "benches" / "peers"
_READY_SECONDS: Final = 60.0
_BUILD_SECONDS: Final = 420.0  # an engine that is tuned by its server
_INFER: Final = f"/v2/models/{MODEL}/infer"


@dataclass(frozen=True)
class Way:
    """A server to start."""

    name: str
    words: str
    """What is behind the name, for the table."""

    command: Callable[[int], Sequence[str]]
    """With the port that it is to listen on."""

    v2: bool = True
    env: Mapping[str, str] = field(default_factory=dict)
    ready_seconds: float = _READY_SECONDS

    @property
    def peer(self) -> bool:
        return self.name not in OURS

    @property
    def path(self) -> str:
        return _INFER if self.v2 else "/predict"

    @property
    def health(self) -> str:
        return "/v2/health/ready" if self.v2 else "/docs"


@dataclass(frozen=True)
class Running:
    way: Way
    port: int
    session: Session

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@dataclass(frozen=True)
class Absent:
    name: str
    reason: str


@dataclass(frozen=True)
class Layout:
    instances: int
    threads: int

    def __str__(self) -> str:
        return f"{self.instances} x {self.threads} thread{'s' if self.threads > 1 else ''}"


def layouts(cores: int) -> list[Layout]:
    return [Layout(1, cores), Layout(cores, 1)] if cores > 1 else [Layout(1, 1)]


@contextmanager
def serving(way: Way, logs: Path) -> Iterator[Running]:
    """Started, ready and paused. Raises RuntimeError where it does not get ready."""
    logs.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    log = logs / f"{way.name.replace(' ', '-')}.log"
    session = Session(way.command(port), way.env, REPOSITORY, log)
    try:
        if why := wait_until(way.ready_seconds, session, lambda: _answers(port, way.health)):
            raise RuntimeError(f"{way.name}: {why}")
        session.pause()
        yield Running(way, port, session)
    finally:
        session.stop()


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


# ---- ours ----


def ours(onnx: Path, engine: Path, folder: Path, cores: int) -> list[Way]:
    """As `penstock serve` serves repositories: what changes from one way to the next is its configuration."""
    most, all_cores, one_each = max(BATCHES), Layout(1, cores), Layout(max(2, cores), 1)
    wanted = (
        (onnx, CLIENT_ROWS, all_cores, f"ONNX Runtime FP32, {all_cores}, no batching"),
        (onnx, most, all_cores, f"the same, batches of up to {most}"),
        (onnx, most, one_each, f"the same, {one_each}"),
        (engine, most, one_each, f"the engine, {one_each}, batches of up to {most}"),
    )
    found = []
    for name, (model, rows, layout, words) in zip(OURS, wanted, strict=True):
        repository = _repository(folder / "repositories" / name.replace(" ", "-"), model, rows, layout)
        ports = ("--grpc-port=0", "--allow-metrics=false", f"--model-repository={repository}")
        start = (sys.executable, "-c", "from penstock.cli import main; main()", "serve", *ports)
        found.append(Way(name, words, lambda port, start=start: (*start, f"--http-port={port}")))  # type: ignore[misc]
    return found


def _repository(folder: Path, model: Path, most_rows: int, layout: Layout) -> Path:
    version = folder / MODEL / "1"
    shutil.rmtree(folder, ignore_errors=True)
    version.mkdir(parents=True)
    shutil.copyfile(model, version / f"model{model.suffix}")
    (folder / MODEL / "config.pbtxt").write_text(
        f'name: "{MODEL}"\n'
        f"max_batch_size: {most_rows}\n"
        f"{'dynamic_batching {}' if most_rows > CLIENT_ROWS else ''}\n"
        f"instance_group [ {{ count: {layout.instances} kind: KIND_CPU }} ]\n"
        f'parameters {{ key: "intra_op_thread_count" value {{ string_value: "{layout.threads}" }} }}\n'
    )
    return folder


def on_gpu(
    prepared: Path, device: str, contexts: int, tune_seconds: float, most_rows: int
) -> tuple[list[Way], list[Absent]]:
    """The same four, with ONNX Runtime's CUDA provider and our engine in FP16. Without the provider: the engine."""
    most = most_rows
    wanted = (
        ((ocr_cuda.ONNXRUNTIME, 1, CLIENT_ROWS), f"ONNX Runtime {device.upper()} FP32, one instance, no batching"),
        ((ocr_cuda.ONNXRUNTIME, 1, most), f"the same, batches of up to {most}"),
        ((ocr_cuda.ONNXRUNTIME, 2, most), "the same, two instances"),
        (
            (ocr_cuda.ENGINE, contexts, most),
            f"our engine in {'FP16' if device == 'cuda' else 'FP32'}, {contexts} contexts, batches of up to {most}",
        ),
    )
    why = ocr_cuda.missing(device)
    found, absent = [], []
    for name, ((kind, instances, rows), words) in zip(OURS, wanted, strict=True):
        if why and kind == ocr_cuda.ONNXRUNTIME:
            absent.append(Absent(name, why))
            continue
        start = (
            sys.executable, "-m", "benches.stories.ocr_cuda", kind, f"--folder={prepared}", f"--instances={instances}",
            f"--most-rows={rows}", f"--device={device}", f"--tune-seconds={tune_seconds:g}",
        )  # fmt: skip
        found.append(Way(name, words, lambda port, start=start: (*start, f"--http-port={port}"),  # type: ignore[misc]
                         ready_seconds=_BUILD_SECONDS))  # fmt: skip
    return found, absent


# ---- peers ----


def peers(onnx: Path, layout: Layout, folder: Path, *, install: bool) -> tuple[list[Way], list[Absent]]:
    """In `.peers`, where `make bench` has its own; `install` fetches what is missing there."""
    lab = Lab(REPOSITORY / ".peers")
    found: list[Way] = []
    absent: list[Absent] = []
    for name, make in (("FastAPI", _fastapi), ("LitServe", _litserve), ("Triton", _triton)):
        try:
            found.append(make(lab, onnx, layout, folder, install=install))
        except LabError as error:
            absent.append(Absent(name, str(error)))
    return found, absent


def _web(lab: Lab, script: str, onnx: Path, layout: Layout, *, install: bool) -> Sequence[str]:
    python = lab.web() if install else lab.python("ocr_web")
    if python is None:
        raise LabError("not installed; --peers installs it")
    return (
        str(python), str(_PEERS / "ocr_web" / script), f"--model={onnx}", f"--batch={max(BATCHES)}",
        f"--instances={layout.instances}", f"--threads={layout.threads}",
    )  # fmt: skip


def _fastapi(lab: Lab, onnx: Path, layout: Layout, folder: Path, *, install: bool) -> Way:
    del folder
    start = _web(lab, "serve_fastapi.py", onnx, layout, install=install)
    words = f"uvicorn, an asyncio batcher, ONNX Runtime FP32, {layout}"
    return Way("FastAPI", words, lambda port: (*start, f"--port={port}"), v2=False)


def _litserve(lab: Lab, onnx: Path, layout: Layout, folder: Path, *, install: bool) -> Way:
    del folder
    start = (*_web(lab, "serve_litserve.py", onnx, layout, install=install), f"--rows={CLIENT_ROWS}")
    words = f"its batching and fast queue, ONNX Runtime FP32, {layout}"
    return Way("LitServe", words, lambda port: (*start, f"--port={port}"), v2=False)


def _triton(lab: Lab, onnx: Path, layout: Layout, folder: Path, *, install: bool) -> Way:
    if not install and lab.python("ocr_triton") is None:
        raise LabError("not installed; --peers installs it")
    if install and missing_packages():
        lab.tools()
    there = lab.triton("ocr_triton")
    repository = folder / "repositories" / f"triton-{layout.instances}"
    shutil.rmtree(repository, ignore_errors=True)
    shutil.copytree(_PEERS / "ocr_triton" / MODEL, repository / MODEL)
    config = repository / MODEL / "config.pbtxt"
    config.write_text(
        config.read_text()
        .replace("max_batch_size: 8", f"max_batch_size: {max(BATCHES)}")
        .replace("count: 1", f"count: {layout.instances}")
    )

    def command(port: int) -> Sequence[str]:
        return (
            str(there.binary), f"--model-repository={repository}", f"--backend-directory={there.backends}",
            "--http-address=127.0.0.1", f"--http-port={port}", "--allow-grpc=false", "--allow-metrics=false",
        )  # fmt: skip

    env = {
        "PATH": f"{there.scripts}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONPATH": str(there.packages),
        "LD_LIBRARY_PATH": str(there.packages / "nvidia_pytriton.libs"),
        "MODEL": str(onnx),
        "THREADS": str(layout.threads),
    }
    words = f"python backend, dynamic batching, ONNX Runtime FP32, {layout}"
    return Way("Triton", words, command, env=env)
