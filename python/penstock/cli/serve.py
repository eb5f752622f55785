"""`penstock serve`: flags to `Server` arguments. Names and defaults are Triton's where it has the flag."""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from penstock import limits
from penstock.cli.custom_ops import CustomOps
from penstock.engine import RUNTIMES

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
    model: Annotated[
        Path | None, typer.Argument(help="A model file to serve alone: .engine, .onnx or .xml.", show_default=False)
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
    custom_ops: CustomOps = None,
    log_verbose: Annotated[int, typer.Option(help="0: problems, 1: events, 2: everything.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the ports as one JSON document once ready.")] = False,
) -> None:
    """Serve models over HTTP and gRPC to clients of KServe v2 and Triton."""
    from penstock import _core
    from penstock.serve import Server

    if (model is None) == (not model_repository):
        raise typer.BadParameter("give either a model file or --model-repository")
    if runtime is not None and runtime not in RUNTIMES:
        raise typer.BadParameter(f"expected one of {', '.join(RUNTIMES)}, got {runtime!r}", param_hint="--runtime")
    levels = (logging.WARNING, logging.INFO, logging.DEBUG)
    logging.basicConfig(
        level=levels[max(0, min(log_verbose, 2))], format="penstock: %(levelname)s: %(message)s", stream=sys.stderr
    )
    _core.log_to_stderr(max(0, min(log_verbose, 2)))
    server = Server(
        http_port=http_port if _BOOLEANS[allow_http] else None,
        grpc_port=grpc_port if _BOOLEANS[allow_grpc] else None,
        metrics_port=metrics_port if _BOOLEANS[allow_metrics] else None,
        http_address=http_address,
        grpc_address=grpc_address,
        metrics_address=metrics_address,
        model_repository=model_repository,
        model_control_mode=model_control_mode,
        load_models=load_model or (),
        repository_poll_seconds=repository_poll_secs,
        exit_on_error=_BOOLEANS[exit_on_error],
        strict_readiness=_BOOLEANS[strict_readiness],
        exit_timeout_seconds=exit_timeout_secs,
        batching=batching,
        max_body_bytes=max_body_bytes,
        io_threads=io_threads,
        engine_cache=engine_cache,
        allow_client_shm=_BOOLEANS[allow_client_shm],
        admin_token=os.environ.get(_ADMIN),
    )
    if model is not None:
        server.add(model, runtime=runtime, instances=instances)

    def announce() -> None:
        if as_json:
            ports = {"http_port": server.http_port, "grpc_port": server.grpc_port, "metrics_port": server.metrics_port}
            print(json.dumps(ports), flush=True)

    server.run(on_ready=announce)
