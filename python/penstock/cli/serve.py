"""`penstock serve`: flags to a server's settings. Names and defaults are Triton's where it has the flag.

A flag that was given counts, also where a program made the server; one that was not leaves what the program said, or
the default of `Server`, which is the flag's own.
"""

import errno
import json
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from penstock import limits
from penstock.cli.custom_ops import CustomOps
from penstock.engine import RUNTIMES
from penstock.errors import InvalidArgument, ListenError

if TYPE_CHECKING:
    from penstock.serve import Server

_LEVELS: Final = (logging.WARNING, logging.INFO, logging.DEBUG)
_BOOLEANS: Final = {"true": True, "1": True, "false": False, "0": False}

# The environment rather than a flag: other users see a process's arguments.
_ADMIN: Final = "PENSTOCK_ADMIN_TOKEN"


def _boolean(text: str) -> str:
    if text.lower() not in _BOOLEANS:
        raise typer.BadParameter(f"expected true or false, got {text!r}")
    return text.lower()


def _port(text: int) -> int:
    if not 0 <= text <= 65535:
        raise typer.BadParameter(f"expected 0 to 65535, got {text}")
    return text


def _switch(text: str) -> Any:
    """A flag with a value, as Triton's are."""
    return typer.Option(callback=_boolean, metavar="true|false", help=text)


Port = Annotated[int, typer.Option(callback=_port, metavar="PORT", help="0 chooses a free one.")]


def serve(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE|MODULE:NAME",
            help="A model file to serve alone: .engine, .onnx or .xml. Or NAME of a Python module, with the working "
            "directory on the path: a ps.Server, a function that returns one, or a @ps.model or @ps.pipeline function.",
            show_default=False,
        ),
    ] = None,
    model_repository: Annotated[
        list[Path] | None, typer.Option("--model-repository", "--model-store", help="Directory of models; repeatable.")
    ] = None,
    http_port: Port = 8000,
    grpc_port: Port = 8001,
    metrics_port: Port = 8002,
    http_address: Annotated[str, typer.Option(help="IP address to listen on.")] = "127.0.0.1",
    grpc_address: Annotated[str, typer.Option(help="IP address to listen on.")] = "127.0.0.1",
    metrics_address: Annotated[str, typer.Option(help="IP address to listen on.")] = "127.0.0.1",
    allow_http: Annotated[str, _switch("Serve HTTP.")] = "true",
    allow_grpc: Annotated[str, _switch("Serve gRPC.")] = "true",
    allow_metrics: Annotated[str, _switch("Serve the metrics page.")] = "true",
    model_control_mode: Annotated[str, typer.Option(help="none, poll or explicit.")] = "none",
    load_model: Annotated[list[str] | None, typer.Option(help="Explicit mode: load at start; * is all.")] = None,
    repository_poll_secs: Annotated[float, typer.Option(help="Poll mode: how often to look.")] = 15,
    exit_on_error: Annotated[str, _switch("A model that fails to load at start ends the server.")] = "true",
    strict_readiness: Annotated[str, _switch("Ready means that every model is ready.")] = "true",
    exit_timeout_secs: Annotated[
        float, typer.Option(help="How long to wait for requests in flight when stopping.")
    ] = limits.DRAIN_SECONDS,
    allow_client_shm: Annotated[
        str, _switch("Clients may register shared memory of this machine for their tensors.")
    ] = "false",
    batching: Annotated[str, typer.Option(help="auto, or triton to follow Triton's batching to the letter.")] = "auto",
    runtime: Annotated[str | None, typer.Option(help="Of a model file: onnxruntime or openvino.")] = None,
    instances: Annotated[
        int | None, typer.Option(help="Of a model file: batches that run side by side; default: 1, on a GPU 2.")
    ] = None,
    max_body_bytes: Annotated[int, typer.Option(help="Larger requests are refused.")] = limits.BODY_BYTES,
    io_threads: Annotated[int | None, typer.Option(help="Threads of the data plane; default: cores / 4.")] = None,
    engine_cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keeps engines that configurations ask for.")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            help="Of MODULE:NAME: every request to a pipeline adds a line, for penstock inspect. Models that are no "
            "pipelines add none.",
        ),
    ] = None,
    custom_ops: CustomOps = None,
    log_verbose: Annotated[int, typer.Option(min=0, max=2, help="0: problems, 1: events, 2: everything.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the ports as one JSON document once ready.")] = False,
) -> None:
    """Serve models over HTTP and gRPC to clients of KServe v2 and Triton."""
    if (model is None) == (not model_repository):
        raise typer.BadParameter("give one of a model file, MODULE:NAME and --model-repository")
    # Paths have a slash: ./a:b.onnx is a file.
    program = model is not None and ":" in model and "/" not in model
    _check_kind(model, program=program, runtime=runtime, instances=instances, trace=trace)
    logging.basicConfig(level=_LEVELS[log_verbose], format="penstock: %(levelname)s: %(message)s", stream=sys.stderr)
    server = _server(model, program=program, runtime=runtime, instances=instances)
    settings = server.settings
    changes: dict[str, Any] = {
        "http_port": _port_of(context, "http", http_port, allow_http, settings.http_port),
        "grpc_port": _port_of(context, "grpc", grpc_port, allow_grpc, settings.grpc_port),
        "metrics_port": _port_of(context, "metrics", metrics_port, allow_metrics, settings.metrics_port),
    }
    flags = {
        "http_address": ("http_address", http_address),
        "grpc_address": ("grpc_address", grpc_address),
        "metrics_address": ("metrics_address", metrics_address),
        "model_repository": ("model_repository", model_repository),
        "model_control_mode": ("model_control_mode", model_control_mode),
        "load_model": ("load_models", load_model),
        "repository_poll_secs": ("repository_poll_seconds", repository_poll_secs),
        "exit_on_error": ("exit_on_error", _BOOLEANS[exit_on_error]),
        "strict_readiness": ("strict_readiness", _BOOLEANS[strict_readiness]),
        "exit_timeout_secs": ("exit_timeout_seconds", exit_timeout_secs),
        "batching": ("batching", batching),
        "max_body_bytes": ("max_body_bytes", max_body_bytes),
        "io_threads": ("io_threads", io_threads),
        "engine_cache": ("engine_cache", engine_cache),
        "allow_client_shm": ("allow_client_shm", _BOOLEANS[allow_client_shm]),
        "trace": ("trace", trace),
        "log_verbose": ("log_verbose", log_verbose),
    }
    changes |= {setting: value for flag, (setting, value) in flags.items() if _given(context, flag)}
    if _ADMIN in os.environ:
        changes["admin_token"] = os.environ[_ADMIN]
    server.settings = replace(settings, **changes)
    if said := server.settings.log_verbose:
        logging.getLogger("penstock").setLevel(_LEVELS[said])

    def announce() -> None:
        if as_json:
            ports = {"http_port": server.http_port, "grpc_port": server.grpc_port, "metrics_port": server.metrics_port}
            print(json.dumps(ports), flush=True)

    try:
        server.run(on_ready=announce)
    except ListenError as error:
        raise ListenError(f"{error}; choose another with {_flag(error)}", error.listener, error.errno) from None


def _flag(error: ListenError) -> str:
    """What sets the part of an address that is wrong."""
    return f"--{error.listener}-{'address' if error.errno == errno.EADDRNOTAVAIL else 'port'}"


def _check_kind(
    model: str | None, *, program: bool, runtime: str | None, instances: int | None, trace: Path | None
) -> None:
    """Raises for flags that don't go with what is served."""
    if program:
        for flag, value in (("--runtime", runtime), ("--instances", instances)):
            if value is not None:
                raise typer.BadParameter("it is of a model file, and the program says it itself", param_hint=flag)
        if model is not None and Path(model).exists():
            raise InvalidArgument(f"{model!r} is a file and reads as MODULE:NAME, too; write ./{model} for the file")
        return
    if runtime is not None and runtime not in RUNTIMES:
        raise typer.BadParameter(f"expected one of {', '.join(RUNTIMES)}, got {runtime!r}", param_hint="--runtime")
    if trace is not None:
        raise typer.BadParameter("traces are of pipelines, which only MODULE:NAME can have", param_hint="--trace")


def _server(model: str | None, *, program: bool, runtime: str | None, instances: int | None) -> "Server":
    """The program's, or one with the model file, or with none."""
    from penstock.serve import Server, server_of

    if program and model is not None:
        return server_of(model)
    server = Server()
    if model is not None:
        server.add(model, runtime=runtime, instances=instances)
    return server


def _given(context: typer.Context, flag: str) -> bool:
    """On the command line; a default counts only where nobody else said anything."""
    source = context.get_parameter_source(flag)
    # By its name: which package the enumeration comes from depends on the version of typer.
    return source is not None and source.name == "COMMANDLINE"


def _port_of(context: typer.Context, what: str, port: int, allowed: str, said: int | None) -> int | None:
    """`said`: by whoever made the server; None: no such listener."""
    if not _BOOLEANS[allowed]:
        return None
    if _given(context, f"{what}_port") or (said is None and _given(context, f"allow_{what}")):
        return port
    return said
