"""`Server`: listeners, models and threads with one life.

    server = ps.Server(model_repository="models")
    server.add(double)
    server.run()                    # until SIGTERM; a second signal does not wait

or, inside a program or a test, `with ps.Server(http_port=0) as server: ...`.
"""

import atexit
import gc
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self, runtime_checkable

from penstock import _core, limits
from penstock.backends.function import ModelFunction
from penstock.engine import Runtime, shared_device_memory
from penstock.engine.shared_device_memory import SharedDeviceMemory
from penstock.errors import ConfigError, NotFound, PenstockError
from penstock.repository import Model, Repository, bare, checked_instances, from_function, from_runtime
from penstock.serve.catalogue import Catalogue
from penstock.serve.control import Control
from penstock.serve.engine_cache import EngineCache
from penstock.serve.event_loop import EventLoop
from penstock.serve.settings import Settings
from penstock.serve.signals import Signals
from penstock.serve.trace import Trace

log = logging.getLogger("penstock")

# At least this long answers on their way out may still leave, and models end.
_GRACE_SECONDS: Final = 0.5

PROGRAM: Final[ContextVar[str]] = ContextVar("penstock_serve_program")
"""While `penstock serve` imports a program for its server: what it was asked to serve."""


@runtime_checkable
class Servable(Protocol):
    """What has a name and makes models of itself: a pipeline."""

    @property
    def name(self) -> str: ...

    def served(self) -> list[Model]: ...


class Server:
    """Serves models over HTTP and gRPC.

    http_port, grpc_port, metrics_port   0: any free port, None: not served. After `start` they are the real ones.
    *_address             what to listen on; loopback unless told otherwise.
    model_repository      directory (or several) in Triton's layout.
    model_control_mode    "none": load everything at start; "poll": follow the files; "explicit": load on request.
    load_models           explicit mode: names to load at start, "*" for all.
    exit_on_error         a model that fails to load at start is an error of `start`; otherwise the server runs without.
    strict_readiness      ready means that every model is ready; otherwise, that the server is up.
    exit_timeout_seconds  how long `stop` waits for requests in flight.
    batching              "auto", or "triton" to follow Triton's batching to the letter.
    max_body_bytes        requests above this are refused (413).
    http_*_timeout_seconds, write_timeout_seconds
                          from the first byte of a head to its last; for a body beyond its minimal rate; between
                          requests; for a client that does not read its answer.
    allow_client_shm      clients may register shared memory of this machine, and of its GPUs, for their tensors.
    admin_token           load and unload then want it as a bearer token.
    io_threads            threads of the data plane; None: one for every four cores.
    engine_cache          where engines that configurations ask for are kept; None: in this user's cache directory.
    trace                 a file to which every request to a pipeline adds a line: its steps, when each began and ended.
    log_verbose           what the server's own threads write to standard error: 0 problems, such as a model's failure
                          with its traceback, 1 events, 2 everything, None nothing. A process has one such log: the
                          first server that starts with one decides. What Python code says goes to `logging`.
    """

    def __init__(
        self,
        *,
        http_port: int | None = 8000,
        grpc_port: int | None = 8001,
        metrics_port: int | None = 8002,
        http_address: str = "127.0.0.1",
        grpc_address: str = "127.0.0.1",
        metrics_address: str = "127.0.0.1",
        model_repository: str | Path | Sequence[str | Path] | None = None,
        model_control_mode: str = "none",
        load_models: Sequence[str] = (),
        repository_poll_seconds: float = 15,
        exit_on_error: bool = True,
        strict_readiness: bool = True,
        exit_timeout_seconds: float = limits.DRAIN_SECONDS,
        batching: str = "auto",
        max_body_bytes: int = limits.BODY_BYTES,
        http_header_timeout_seconds: float = limits.HEADER_SECONDS,
        http_body_timeout_seconds: float = limits.BODY_GRACE_SECONDS,
        http_idle_timeout_seconds: float = limits.IDLE_SECONDS,
        write_timeout_seconds: float = limits.WRITE_SECONDS,
        admin_token: str | None = None,
        allow_client_shm: bool = False,
        io_threads: int | None = None,
        engine_cache: str | Path | None = None,
        trace: str | Path | None = None,
        log_verbose: int | None = 0,
        server_name: str = "penstock",
    ) -> None:
        self._added: dict[str, _Source] = {}
        self._front: _core.Front | None = None
        self._event_loop: EventLoop | None = None
        self._catalogue: Catalogue | None = None
        self._control: Control | None = None
        self.settings = Settings(
            http_port=http_port,
            grpc_port=grpc_port,
            metrics_port=metrics_port,
            http_address=http_address,
            grpc_address=grpc_address,
            metrics_address=metrics_address,
            model_repository=model_repository,
            model_control_mode=model_control_mode,
            load_models=load_models,
            repository_poll_seconds=repository_poll_seconds,
            exit_on_error=exit_on_error,
            strict_readiness=strict_readiness,
            exit_timeout_seconds=exit_timeout_seconds,
            batching=batching,
            max_body_bytes=max_body_bytes,
            http_header_timeout_seconds=http_header_timeout_seconds,
            http_body_timeout_seconds=http_body_timeout_seconds,
            http_idle_timeout_seconds=http_idle_timeout_seconds,
            write_timeout_seconds=write_timeout_seconds,
            admin_token=admin_token,
            allow_client_shm=allow_client_shm,
            io_threads=io_threads,
            engine_cache=engine_cache,
            trace=trace,
            log_verbose=log_verbose,
            server_name=server_name,
        )

    @property
    def settings(self) -> Settings:
        """What the server was told. May be replaced until it runs; what is wrong with it is a UsageError then."""
        return self._settings

    @settings.setter
    def settings(self, settings: Settings) -> None:
        if self.running:
            raise ConfigError("the server is running already; its settings can't be changed any more")
        devices = SharedDeviceMemory() if settings.allow_client_shm and shared_device_memory.available() else None
        listeners, control = settings.listeners(devices=devices is not None), settings.control()
        settings.log()
        self._repository = Repository(control.repositories) if control.repositories else None
        self._settings, self._listeners, self._control_options, self._devices = settings, listeners, control, devices
        self._engines = EngineCache(Path(settings.engine_cache) if settings.engine_cache is not None else None)
        self.http_port, self.grpc_port = listeners.http_port, listeners.grpc_port
        self.metrics_port = listeners.metrics_port

    @property
    def running(self) -> bool:
        """Between `start` and `stop`."""
        return self._front is not None

    def add(
        self,
        model: ModelFunction | Servable | Runtime | str | Path,
        *,
        name: str | None = None,
        instances: int | None = None,
        runtime: str | None = None,
    ) -> None:
        """Serve a `@ps.model` function, a `@ps.pipeline`, a runtime from `ps.load`, or a model file.

        Functions and pipelines carry their name and settings; for others `name` is needed (files: their stem) and
        `instances` counts (None: one; on a GPU two); `runtime` is for files. Raises ConfigError when the name is taken.
        """
        source = _Source(model, name, instances, runtime)
        if source.name in self._added:
            raise ConfigError(f"a model named {source.name!r} was added already")
        if self._catalogue is not None:
            self._catalogue.add(source.name, source.load)
        self._added[source.name] = source

    def pipeline_statistics(self, name: str) -> Any:
        """What the requests and steps of a pipeline took so far: a `penstock.pipeline.statistics.PipelineStatistics`.

        Raises NotFound when no pipeline of that name is in service.
        """
        if self._catalogue is None:
            raise NotFound(f"no pipeline named {name!r} is in service: the server is not running")
        return self._catalogue.concurrent(name).statistics()

    def start(self) -> None:
        """Listen, load every model, become ready. Raises ListenError for a taken port, and what loading raises."""
        if self.running:
            raise ConfigError("the server is running already")
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> bool:
        """Refuse new requests, finish those in flight, end. True when all of them were answered in time.

        Those that were not are refused as well. Peers that send nothing are not waited for.
        """
        front, catalogue, control, event_loop = self._front, self._catalogue, self._control, self._event_loop
        self._front = self._catalogue = self._control = self._event_loop = None
        atexit.unregister(self.stop)
        if front is None:
            return True
        deadline = time.monotonic() + self._control_options.exit_timeout_seconds
        if catalogue is not None:
            catalogue.stop_building()
        left = front.drain(self._control_options.exit_timeout_seconds)
        end = max(deadline, time.monotonic() + _GRACE_SECONDS)
        if control is not None:
            control.stop()
        done = catalogue is None or catalogue.close(max(0.0, end - time.monotonic()))
        if event_loop is not None:
            event_loop.stop()
        # Where requests are left, connections have been ending since the drain gave them up.
        front.stop(max(0.0 if left else _GRACE_SECONDS, end - time.monotonic()))
        if left:
            log.error("%d requests were not answered before the exit timeout", left)
        return done and left == 0

    def run(self, on_ready: Callable[[], None] | None = None) -> None:
        """Start, wait for SIGTERM or SIGINT, stop. A second signal ends the process at once with status 1."""
        if (program := PROGRAM.get(None)) is not None:
            # It would serve without the flags, and once more after the signal that ends it.
            raise ConfigError(
                f"{program}: the program runs its server itself, which penstock serve is to do; put server.run() under "
                'if __name__ == "__main__":, or return the server'
            )
        with Signals() as signals:
            self.start()
            self._announce()
            if on_ready is not None:
                on_ready()
            # What lives now lives to the end: the collector need not look at it again.
            gc.freeze()
            signals.wait()
            print("penstock: stopping", file=sys.stderr, flush=True)
            done: list[bool] = []
            signals.wait_for(lambda: done.append(self.stop()), name="penstock-stop")
            if done != [True]:
                # A thread that hangs in a model can't be ended, and the interpreter must not be torn down under it.
                print(
                    "penstock: the exit timeout passed before every request was answered", file=sys.stderr, flush=True
                )
                os._exit(1)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self) -> None:
        wanted = self._control_options
        if (verbose := self._settings.log()) is not None:
            _core.log_to_stderr(verbose)
        front = self._front = _core.Front(self._listeners, self._devices)
        atexit.register(self.stop)
        self.http_port, self.grpc_port, self.metrics_port = front.http_port, front.grpc_port, front.metrics_port
        path = self._settings.trace
        trace = Trace(Path(path)) if path is not None else None
        event_loop = self._event_loop = EventLoop(front, trace)
        catalogue = self._catalogue = Catalogue(front, self._repository, wanted.batching, self._engines, event_loop)
        poll = wanted.poll_seconds if wanted.mode == "poll" else None
        self._control = Control(front, catalogue, poll)
        self._control.start()
        for source in self._added.values():
            self._load_at_start(lambda source=source: catalogue.add(source.name, source.load))  # type: ignore[misc]
        for name in self._names_at_start():
            self._load_at_start(lambda name=name: catalogue.load(name))  # type: ignore[misc]
        front.set_ready()
        if trace is not None and not event_loop.hosts:
            log.warning("a trace is of pipelines, and this server has none yet: nothing is written to it")

    def _names_at_start(self) -> list[str]:
        if self._repository is None:
            return []
        wanted = self._control_options
        if wanted.mode != "explicit" or "*" in wanted.load:
            return self._repository.names()
        return list(wanted.load)

    def _load_at_start(self, load: Callable[[], None]) -> None:
        try:
            load()
        except PenstockError as error:
            if self._control_options.exit_on_error:
                raise
            log.error("%s", error)

    def _announce(self) -> None:
        listeners = self._listeners
        for what, address, port in (
            ("http", listeners.http_address, self.http_port),
            ("grpc", listeners.grpc_address, self.grpc_port),
            ("metrics", listeners.metrics_address, self.metrics_port),
        ):
            if port is not None:
                host = f"[{address}]" if ":" in address else address
                print(f"penstock: {what} on {host}:{port}", file=sys.stderr)
        print("penstock: ready", file=sys.stderr, flush=True)


class _Source:
    """Something that was added, and how to make models of it."""

    def __init__(
        self,
        model: ModelFunction | Servable | Runtime | str | Path,
        name: str | None,
        instances: int | None,
        runtime: str | None,
    ) -> None:
        self._model = model
        self._runtime = runtime
        self._instances = checked_instances(instances)
        if isinstance(model, ModelFunction | Servable):
            if name not in (None, model.name):
                raise ConfigError(f"{model.name!r} has its own name; it can't be added as {name!r}")
            self.name = model.name
        elif isinstance(model, str | Path):
            self.name = name if name is not None else Path(model).stem
        elif not isinstance(model, Runtime):
            raise ConfigError(_nothing_to_serve(model))
        elif name is None:
            raise ConfigError("a runtime is added under a name: server.add(runtime, name='resnet')")
        else:
            self.name = name

    def load(self) -> list[Model]:
        if isinstance(self._model, ModelFunction):
            return [from_function(self._model)]
        if isinstance(self._model, Servable):
            return self._model.served()
        if isinstance(self._model, str | Path):
            return [bare(self._model, name=self.name, runtime=self._runtime, instances=self._instances)]
        return [from_runtime(self._model, self.name, instances=self._instances)]


def _nothing_to_serve(given: object) -> str:
    if callable(given):
        return f"{given!r} is a function as it is: decorate it with @ps.model, or @ps.pipeline, and add what that makes"
    return (
        f"a value of type {type(given).__name__} is nothing to serve: expected a @ps.model or @ps.pipeline function, a "
        "runtime of ps.load, or the path of a model file"
    )
