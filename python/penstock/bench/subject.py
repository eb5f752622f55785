"""What a server says of a model: its tensors and batch, and its statistics. Over HTTP or gRPC, of any v2 server.

Called before and after measurements. Everything here is small; loads go through the native generator.
"""

import http.client
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final
from urllib.parse import quote

from penstock import _core
from penstock.bench.load import GRPC, HTTP
from penstock.errors import ExecutionError, NotFound, Unavailable, UsageError

_TIMEOUT_SECONDS: Final = 10.0
_SERVICE: Final = "/inference.GRPCInferenceService/"
_PORTS: Final = {HTTP: 8000}
_GRPC_PORT: Final = 8001
_SPANS: Final = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")


@dataclass(frozen=True, slots=True)
class Tensor:
    name: str
    datatype: str
    shape: tuple[int, ...]
    """Without the batch dimension where the model has one; -1 is free."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model as it is served."""

    name: str
    version: str
    """Empty: the server chooses."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_batch_size: int
    """0: it takes no batches."""

    sequences: bool
    decoupled: bool


@dataclass(frozen=True, slots=True)
class Statistics:
    """Totals of a model, all its versions together."""

    inferences: int
    executions: int
    counts: Mapping[str, int]
    nanoseconds: Mapping[str, int]
    batches: Mapping[int, int]
    """Batch size -> executions."""

    def since(self, before: "Statistics") -> "Statistics":
        return Statistics(
            self.inferences - before.inferences,
            self.executions - before.executions,
            {name: self.counts[name] - before.counts[name] for name in _SPANS},
            {name: self.nanoseconds[name] - before.nanoseconds[name] for name in _SPANS},
            {
                size: count - before.batches.get(size, 0)
                for size, count in self.batches.items()
                if count > before.batches.get(size, 0)
            },
        )


def address(url: str | None, protocol: str) -> str:
    """`host:port`; raises UsageError."""
    text = (url or "localhost").removeprefix("http://").removeprefix("grpc://").rstrip("/")
    default = _PORTS.get(protocol, _GRPC_PORT)
    host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    host, port = (host, port) if colon else (text, str(default))
    if not host or not port.isdigit() or not 0 < int(port) < 65536 or "/" in host:
        raise UsageError.of("url", url, f"host:port, as in localhost:{default}")
    return f"{host}:{port}"


class Server:
    """One that speaks v2."""

    def __init__(self, protocol: str, where: str) -> None:
        """`where`: host:port."""
        self._http, self._where = protocol == HTTP, where

    def subject(self, model: str, version: str) -> Subject:
        """Raises NotFound, Unavailable (no server), ExecutionError (one that answers otherwise)."""
        path = _path(model, version)
        asked = {"name": model, "version": version}
        metadata = self._get(path) if self._http else self._call("ModelMetadata", asked)
        config = self._config(path, asked)
        limit = int(config.get("max_batch_size", 0))

        def tensors(listed: Sequence[Mapping[str, Any]]) -> tuple[Tensor, ...]:
            skipped = 1 if limit else 0
            return tuple(
                Tensor(each["name"], each["datatype"], tuple(int(size) for size in each.get("shape", ()))[skipped:])
                for each in listed
            )

        try:
            return Subject(
                model, version, tensors(metadata["inputs"]), tensors(metadata["outputs"]), limit,
                "sequence_batching" in config,
                bool(config.get("model_transaction_policy", {}).get("decoupled", False)),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise ExecutionError(f"model {model}: its metadata can't be understood ({error!r})") from None

    def _config(self, path: str, asked: Mapping[str, str]) -> Mapping[str, Any]:
        """Empty where the server has no configurations: KServe knows none."""
        try:
            found: Mapping[str, Any] = (
                self._get(f"{path}/config") if self._http else self._call("ModelConfig", asked).get("config", {})
            )
        except (NotFound, ExecutionError):
            return {}
        return found

    def statistics(self, model: str, version: str) -> Statistics | None:
        """None where the server has none."""
        try:
            found = (
                self._get(f"{_path(model, version)}/stats")
                if self._http
                else self._call("ModelStatistics", {"name": model, "version": version})
            )
            return _statistics(found["model_stats"])
        except (NotFound, ExecutionError, KeyError, TypeError, ValueError):
            return None

    def _get(self, path: str) -> Any:
        host, _, port = self._where.rpartition(":")
        connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=_TIMEOUT_SECONDS)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"{self._where}: no v2 server answers there ({error or type(error).__name__})") from None
        finally:
            connection.close()
        text = body[:300].decode(errors="replace")
        if response.status in (400, 404):
            raise NotFound(f"{self._where}{path}: {text}")
        try:
            if response.status != 200:
                raise ValueError(response.status)
            return json.loads(body)
        except ValueError:
            raise ExecutionError(f"{self._where}{path}: HTTP status {response.status}, {text}") from None

    def _call(self, method: str, fields: Mapping[str, str]) -> dict[str, Any]:
        from google.protobuf import json_format

        request = messages()[f"inference.{method}Request"](**fields)
        try:
            answer = _core.grpc_call(self._where, _SERVICE + method, request.SerializeToString(), _TIMEOUT_SECONDS)
        except OSError as error:
            raise Unavailable(f"no v2 server answers there ({error})") from None
        except ValueError as error:
            if "grpc-status 5" in str(error):
                raise NotFound(f"{self._where}: {error}") from None
            raise ExecutionError(f"{self._where}: {error}") from None
        found = messages()[f"inference.{method}Response"].FromString(answer)
        as_dict: dict[str, Any] = json_format.MessageToDict(found, preserving_proto_field_name=True)
        return as_dict


def _path(model: str, version: str) -> str:
    found = f"/v2/models/{quote(model, safe='')}"
    return f"{found}/versions/{quote(version, safe='')}" if version else found


def infer_path(subject: Subject, protocol: str) -> str:
    """Where its requests go."""
    if protocol == HTTP:
        return f"{_path(subject.name, subject.version)}/infer"
    return _SERVICE + ("ModelInfer" if protocol == GRPC else "ModelStreamInfer")


def _statistics(listed: Sequence[Mapping[str, Any]]) -> Statistics:
    def total(key: str) -> int:
        return sum(int(each.get(key, 0)) for each in listed)

    def spent(name: str, key: str) -> int:
        return sum(int(each.get("inference_stats", {}).get(name, {}).get(key, 0)) for each in listed)

    batches: dict[int, int] = {}
    for each in listed:
        for row in each.get("batch_stats", ()):
            size = int(row.get("batch_size", 0))
            batches[size] = batches.get(size, 0) + int(row.get("compute_infer", {}).get("count", 0))
    return Statistics(
        total("inference_count"),
        total("execution_count"),
        {name: spent(name, "count") for name in _SPANS},
        {name: spent(name, "ns") for name in _SPANS},
        batches,
    )


@cache
def messages() -> Mapping[str, Any]:
    """Classes of the protocol's messages, by full name."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    pool = descriptor_pool.DescriptorPool()
    files = descriptor_pb2.FileDescriptorSet.FromString(_core.grpc_descriptors()).file
    for file in files:
        pool.Add(file)
    found: Mapping[str, Any] = message_factory.GetMessageClassesForFiles([file.name for file in files], pool)
    return found
