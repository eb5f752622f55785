"""What a server was told: the arguments of `Server`, and what its parts make of them.

Values stand as they were given and are checked where parts are made, so `dataclasses.replace` gives the settings of
another server. Made by `Server`; the command line replaces what its flags say.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import penstock
from penstock.serve import options


@dataclass(frozen=True, slots=True)
class Settings:
    """Names, meanings and defaults are those of `Server`."""

    http_port: int | None
    grpc_port: int | None
    metrics_port: int | None
    http_address: str
    grpc_address: str
    metrics_address: str
    model_repository: str | Path | Sequence[str | Path] | None
    model_control_mode: str
    load_models: Sequence[str]
    repository_poll_seconds: float
    exit_on_error: bool
    strict_readiness: bool
    exit_timeout_seconds: float
    batching: str
    max_body_bytes: int
    http_header_timeout_seconds: float
    http_body_timeout_seconds: float
    http_idle_timeout_seconds: float
    write_timeout_seconds: float
    admin_token: str | None = field(repr=False)
    allow_client_shm: bool
    io_threads: int | None
    engine_cache: str | Path | None
    trace: str | Path | None
    log_verbose: int | None
    server_name: str

    def control(self) -> options.Control:
        """Raises UsageError."""
        return options.control(
            self.model_repository,
            self.model_control_mode,
            self.load_models,
            self.repository_poll_seconds,
            self.exit_on_error,
            self.exit_timeout_seconds,
            self.batching,
        )

    def log(self) -> int | None:
        """None: none. Raises UsageError."""
        return options.log_verbose(self.log_verbose)

    def listeners(self, *, devices: bool) -> options.Listeners:
        """`devices`: memory of GPUs can be shared. Raises UsageError."""
        seconds = options.seconds
        return options.Listeners(
            http_address=options.address("http_address", self.http_address),
            http_port=options.port("http_port", self.http_port),
            grpc_address=options.address("grpc_address", self.grpc_address),
            grpc_port=options.port("grpc_port", self.grpc_port),
            metrics_address=options.address("metrics_address", self.metrics_address),
            metrics_port=options.port("metrics_port", self.metrics_port),
            io_threads=options.io_threads(self.io_threads),
            max_body_bytes=options.body_bytes(self.max_body_bytes),
            http_header_timeout_seconds=seconds("http_header_timeout_seconds", self.http_header_timeout_seconds),
            http_body_timeout_seconds=seconds("http_body_timeout_seconds", self.http_body_timeout_seconds),
            http_idle_timeout_seconds=seconds("http_idle_timeout_seconds", self.http_idle_timeout_seconds),
            write_timeout_seconds=seconds("write_timeout_seconds", self.write_timeout_seconds),
            strict_readiness=self.strict_readiness,
            model_control=self.model_control_mode == "explicit",
            admin_token=self.admin_token,
            server_name=self.server_name,
            server_version=penstock.__version__,
            client_shared_memory=self.allow_client_shm,
            extensions=options.extensions(client_shared_memory=self.allow_client_shm, devices=devices),
        )
