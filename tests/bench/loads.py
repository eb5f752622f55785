"""A model behind a server in this process, and loads for it that last as long as a test may."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import penstock as ps
from penstock.bench import requests, subject
from penstock.bench.load import GRPC, GRPC_STREAM, HTTP, Plan, Request
from tests.serve.calls import Array, serving

PROTOCOLS = (HTTP, GRPC, GRPC_STREAM)


@ps.model(name="double", max_batch_size=8, outputs={"y": ps.F32[4]})
def double(x: ps.F32[4]) -> Array:
    return x * 2


@dataclass(frozen=True)
class Target:
    server: ps.Server
    model: str

    def address(self, protocol: str) -> str:
        port = self.server.http_port if protocol == HTTP else self.server.grpc_port
        return f"127.0.0.1:{port}"

    def client(self, protocol: str) -> subject.Server:
        return subject.Server(HTTP if protocol == HTTP else GRPC, self.address(protocol))

    def requests(self, protocol: str, **wanted: Any) -> list[Request]:
        found = self.client(protocol).subject(self.model, "")
        return requests.requests(found, requests.Wanted(**wanted), HTTP if protocol == HTTP else GRPC)

    def plan(self, protocol: str, wanted: Mapping[str, Any] | None = None, **plan: Any) -> Plan:
        path = subject.infer_path(self.client(protocol).subject(self.model, ""), protocol)
        given = {"answer_within_seconds": 20.0, **plan}
        return Plan(protocol, self.address(protocol), path, self.requests(protocol, **wanted or {}), **given)


@contextmanager
def served(model: ps.ModelFunction = double, **options: Any) -> Iterator[Target]:
    with serving(model, **{"grpc_port": 0, **options}) as server:
        yield Target(server, model.name)
