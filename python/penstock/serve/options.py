"""What a server can be told, checked once, at construction. Flag names and defaults are Triton's where it has them."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from penstock import limits
from penstock.engine.cores import available
from penstock.errors import ConfigError

ControlMode = Literal["none", "poll", "explicit"]
Batching = Literal["auto", "triton"]

# One thread of the data plane serves tens of thousands of requests a second; models need the other cores more.
_CORES_PER_IO_THREAD: Final = 4

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
    if wanted < 1:
        raise ConfigError(f"io_threads is {wanted}, expected at least 1")
    return wanted


def port(what: str, value: int | None) -> int | None:
    """A TCP port; 0 lets the system choose, None switches the listener off."""
    if value is not None and not 0 <= value <= 65535:
        raise ConfigError(f"{what} is {value}, expected 0 to 65535, or None for none")
    return value


def address(what: str, value: str) -> str:
    """What to listen on: an IP address, or localhost. Names are not looked up: which of their addresses is meant?"""
    try:
        return value if value == "localhost" else str(ipaddress.ip_address(value))
    except ValueError:
        raise ConfigError(f"{what} is {value!r}, expected an IP address such as 127.0.0.1, or localhost") from None


def positive(what: str, value: float) -> float:
    if not 0 < value < float("inf"):
        raise ConfigError(f"{what} is {value}, expected more than 0 seconds")
    return float(value)


def body_bytes(value: int) -> int:
    if value < 1:
        raise ConfigError(f"max_body_bytes is {value}, expected at least 1; the default is {limits.BODY_BYTES}")
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
        raise ConfigError(f"model_control_mode is {mode!r}, expected none, poll or explicit")
    if batching not in get_args(Batching):
        raise ConfigError(f"batching is {batching!r}, expected auto or triton")
    if load and mode != "explicit":
        raise ConfigError("models to load are named, which needs model_control_mode explicit")
    return Control(
        repositories=tuple(map(Path, roots)),
        mode=mode,  # type: ignore[arg-type]  # checked against the literal above
        load=tuple(load),
        poll_seconds=positive("repository_poll_seconds", poll_seconds),
        exit_on_error=exit_on_error,
        exit_timeout_seconds=positive("exit_timeout_seconds", exit_timeout_seconds),
        batching=batching,  # type: ignore[arg-type]
    )
