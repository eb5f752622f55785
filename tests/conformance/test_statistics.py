"""Statistics: counts rise by exactly what was done, and every field that perf_analyzer reads is there."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from tests.conformance.clients import TRANSPORTS, Transport, infer, method
from tests.servers import raw
from tests.servers.process import RunningServer
from tests.servers.zoo import BY_NAME, random_inputs

DURATIONS = (
    "success",
    "fail",
    "queue",
    "compute_input",
    "compute_infer",
    "compute_output",
    "cache_hit",
    "cache_miss",
)


# Triton counts a request shortly after it has answered it.
COUNTED_SECONDS = 5.0


def over_http(server: RunningServer, name: str, rows: int = 0, requests: int = 0) -> Mapping[str, Any]:
    """The model's statistics, as soon as so many rows and successful requests are counted."""
    deadline = time.monotonic() + COUNTED_SECONDS
    while True:
        document = method("http", server, "get_inference_statistics", name)
        assert len(document["model_stats"]) == 1
        statistics: Mapping[str, Any] = document["model_stats"][0]
        counted = statistics["inference_count"] >= rows
        if (counted and statistics["inference_stats"]["success"]["count"] >= requests) or time.monotonic() > deadline:
            return statistics


def test_every_field_is_present_and_a_number(server: RunningServer, rng: np.random.Generator) -> None:
    model = BY_NAME["pair"]
    infer("http", server, model, random_inputs(model, 2, rng))
    statistics = over_http(server, model.name, rows=2)
    assert (statistics["name"], statistics["version"]) == (model.name, "1")
    for field in ("last_inference", "inference_count", "execution_count"):
        assert type(statistics[field]) is int, field
        assert statistics[field] > 0, field
    for field in DURATIONS:
        duration = statistics["inference_stats"][field]
        assert set(duration) == {"count", "ns"}
        assert all(type(value) is int and value >= 0 for value in duration.values()), field
    assert isinstance(statistics["response_stats"], dict)
    for batch in statistics["batch_stats"]:
        assert type(batch["batch_size"]) is int
        for field in ("compute_input", "compute_infer", "compute_output"):
            assert set(batch[field]) == {"count", "ns"}, field


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_counts_rise_by_exactly_what_was_done(
    server: RunningServer, rng: np.random.Generator, transport: Transport
) -> None:
    model = BY_NAME["variable"]
    before = over_http(server, model.name)
    for batch in (1, 3, 8):
        infer(transport, server, model, random_inputs(model, batch, rng))
    succeeded = before["inference_stats"]["success"]["count"] + 3
    after = over_http(server, model.name, before["inference_count"] + 12, succeeded)
    # One after another, so nothing can be batched together: three executions of twelve rows.
    assert after["inference_count"] - before["inference_count"] == 12
    assert after["execution_count"] - before["execution_count"] == 3
    for field in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        assert after["inference_stats"][field]["count"] - before["inference_stats"][field]["count"] == 3, field
    for field in ("fail", "cache_hit", "cache_miss"):
        assert after["inference_stats"][field] == before["inference_stats"][field], field
    assert after["inference_stats"]["success"]["ns"] > before["inference_stats"]["success"]["ns"]
    sizes = {batch["batch_size"]: batch["compute_infer"]["count"] for batch in after["batch_stats"]}
    assert {1, 3, 8} <= set(sizes)
    # Wall clock milliseconds since 1970; a year like 2020 is the sanity of the unit.
    assert after["last_inference"] >= max(before["last_inference"], 1_577_836_800_000)


def test_times_add_up(server: RunningServer) -> None:
    """A request that sleeps 50 ms has at least that in compute_infer, and success covers its parts."""
    model = BY_NAME["slow"]
    first = over_http(server, model.name)
    infer("http", server, model, {"ms": np.array([[50]], dtype=np.int32)})
    last = over_http(server, model.name, 0, first["inference_stats"]["success"]["count"] + 1)
    before, after = first["inference_stats"], last["inference_stats"]
    spent = {field: after[field]["ns"] - before[field]["ns"] for field in DURATIONS}
    assert 50_000_000 <= spent["compute_infer"] < 1_000_000_000
    parts = sum(spent[field] for field in ("queue", "compute_input", "compute_infer", "compute_output"))
    assert parts <= spent["success"]


def test_a_refused_request_is_no_success(server: RunningServer) -> None:
    before = over_http(server, "double_fp32")
    body = raw.dumps(inputs=[{"name": "x", "shape": [1, 15], "datatype": "FP32", "data": [0] * 15}])
    assert raw.ask(server, "POST", "/v2/models/double_fp32/infer", body).status == 400
    after = over_http(server, "double_fp32")
    assert after["inference_count"] == before["inference_count"]
    assert after["inference_stats"]["success"] == before["inference_stats"]["success"]


def test_grpc_tells_the_same_as_http(server: RunningServer, rng: np.random.Generator) -> None:
    model = BY_NAME["reverse"]
    earlier = over_http(server, model.name)["inference_stats"]["success"]["count"]
    infer("grpc", server, model, random_inputs(model, 2, rng))
    http = over_http(server, model.name, 0, earlier + 1)
    grpc = method("grpc", server, "get_inference_statistics", model.name)["model_stats"][0]
    for field in ("inference_count", "execution_count", "last_inference"):
        assert int(grpc[field]) == http[field]
    for field in DURATIONS:
        told = grpc["inference_stats"][field]
        assert {key: int(told.get(key, 0)) for key in ("count", "ns")} == http["inference_stats"][field], field


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_all_models_are_listed_without_a_name(server: RunningServer, transport: Transport) -> None:
    listed = {each["name"] for each in method(transport, server, "get_inference_statistics")["model_stats"]}
    assert listed == set(BY_NAME)
