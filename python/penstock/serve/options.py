"""What a server can be told, checked once, at construction. Flag names and defaults are Triton's where it has them."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from penstock import limits
from penstock.engine.cores import available
from penstock.errors import UsageError

ControlMode = Literal["none", "poll", "explicit"]
Batching = Literal["auto", "triton"]

# One thread of the data plane serves tens of thousands of requests a second; models need the other cores more.
_CORES_PER_IO_THREAD: Final = 4

_LAST_PORT: Final = 65535

# The parts of the protocol that work.
EXTENSIONS: Final = (
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
)

SYSTEM_SHARED_MEMORY: Final = "system_shared_memory"
CUDA_SHARED_MEMORY: Final = "cuda_shared_memory"


def extensions(*, client_shared_memory: bool, devices: bool) -> list[str]:
    """What the metadata lists: `devices` says that memory of GPUs can be shared, too."""
    found = list(EXTENSIONS)
    if client_shared_memory:
        found.append(SYSTEM_SHARED_MEMORY)
        found += [CUDA_SHARED_MEMORY] if devices else []
    return found


@dataclass(frozen=True, slots=True)
class Listeners:
    """What the data plane needs to know, read by `_core` attribute by attribute. None as a port: not served."""

    http_address: str
    http_port: int | None
    grpc_address: str
    grpc_port: int | None
    metrics_address: str
    metrics_port: int | None
    io_threads: int
    max_body_bytes: int
    http_header_timeout_seconds: float
    http_body_timeout_seconds: float
    http_idle_timeout_seconds: float
    write_timeout_seconds: float
    strict_readiness: bool
    model_control: bool
    admin_token: str | None
    client_shared_memory: bool
    server_name: str
    server_version: str
    extensions: list[str]


@dataclass(frozen=True, slots=True)
class Control:
    """Which models, and who may change that."""

    repositories: tuple[Path, ...]
    mode: ControlMode
    load: tuple[str, ...]
    """Models to load at start in explicit mode; "*" is all."""
    poll_seconds: float
    exit_on_error: bool
    exit_timeout_seconds: float
    batching: Batching


def io_threads(wanted: int | None) -> int:
    """Threads of the data plane: as told, or one for every four cores."""
    if wanted is None:
        return max(1, available() // _CORES_PER_IO_THREAD)
    return _whole("io_threads", wanted, 1, limits.IO_THREADS)


def port(what: str, value: int | None) -> int | None:
    """A TCP port; 0 lets the system choose, None switches the listener off."""
    return None if value is None else _whole(what, value, 0, _LAST_PORT, ", or None for none")


def address(what: str, value: str) -> str:
    """What to listen on: an IP address, or localhost. Names are not looked up: which of their addresses is meant?"""
    try:
        return value if value == "localhost" else str(ipaddress.ip_address(value))
    except ValueError:
        raise UsageError.of(what, value, "an IP address such as 127.0.0.1, or localhost") from None


def seconds(what: str, value: float) -> float:
    """A time-out."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value <= limits.LONGEST_SECONDS:
        expected = f"more than 0 seconds and at most {limits.LONGEST_SECONDS} (a year)"
        raise UsageError.of(what, value, expected)
    return float(value)


def body_bytes(value: int) -> int:
    more = f" (the default is {limits.BODY_BYTES})"
    return _whole("max_body_bytes", value, 1, limits.LARGEST_BODY_BYTES, more)


def log_verbose(value: int | None) -> int | None:
    more = " (problems, events, everything), or None for no log"
    return None if value is None else _whole("log_verbose", value, 0, 2, more)


def _whole(what: str, value: int, low: int, high: int, more: str = "") -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UsageError.of(what, value, f"an integer from {low} to {high}{more}")
    return value


def control(
    model_repository: str | Path | Sequence[str | Path] | None,
    mode: str,
    load: Sequence[str],
    poll_seconds: float,
    exit_on_error: bool,
    exit_timeout_seconds: float,
    batching: str,
) -> Control:
    roots = [model_repository] if isinstance(model_repository, str | Path) else list(model_repository or ())
    if mode not in get_args(ControlMode):
        raise UsageError.of("model_control_mode", mode, "none, poll or explicit")
    if batching not in get_args(Batching):
        raise UsageError.of("batching", batching, "auto or triton")
    if load and mode != "explicit":
        raise UsageError.of("load_models", list(load), f"none in the control mode {mode}; only explicit loads by name")
    return Control(
        repositories=tuple(map(Path, roots)),
        mode=mode,  # type: ignore[arg-type]  # checked against the literal above
        load=tuple(load),
        poll_seconds=seconds("repository_poll_seconds", poll_seconds),
        exit_on_error=exit_on_error,
        exit_timeout_seconds=seconds("exit_timeout_seconds", exit_timeout_seconds),
        batching=batching,  # type: ignore[arg-type]
    )
