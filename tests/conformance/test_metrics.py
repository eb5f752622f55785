"""The metrics page: a format that Prometheus reads, Triton's names, and counts that rise by what was done."""

import time

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conformance.clients import infer
from tests.conformance.differences import expected
from tests.servers.process import RunningServer
from tests.servers.raw import ask
from tests.servers.zoo import BY_NAME, MODELS, random_inputs

COUNTERS = (
    "nv_inference_request_success",
    "nv_inference_request_failure",
    "nv_inference_count",
    "nv_inference_exec_count",
    "nv_inference_request_duration_us",
    "nv_inference_queue_duration_us",
    "nv_inference_compute_input_duration_us",
    "nv_inference_compute_infer_duration_us",
    "nv_inference_compute_output_duration_us",
)
GAUGES = ("nv_inference_pending_request_count", "nv_cpu_utilization", "nv_cpu_memory_total_bytes")


def page(server: RunningServer) -> str:
    reply = ask(server, "GET", "/metrics", port=server.metrics_port)
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("text/plain")
    return reply.body.decode()


def value(server: RunningServer, name: str, model: str) -> float:
    # By family: the parser calls the samples of a counter NAME_total, whatever the page says.
    families = {family.name: family for family in text_string_to_metric_families(page(server))}
    return sum(sample.value for sample in families[name].samples if sample.labels["model"] == model)


def test_the_page_is_what_prometheus_reads(server: RunningServer) -> None:
    families = list(text_string_to_metric_families(page(server)))
    names = [family.name for family in families]
    assert len(set(names)) == len(names), "a family is written twice"
    assert all(family.documentation for family in families), "a family has no HELP"
    seen = [(s.name, tuple(sorted(s.labels.items()))) for family in families for s in family.samples]
    assert len(set(seen)) == len(seen), "a sample is written twice"


@pytest.mark.parametrize("name", COUNTERS)
def test_counters_have_tritons_names_and_labels(server: RunningServer, name: str) -> None:
    families = {family.name: family for family in text_string_to_metric_families(page(server))}
    assert families[name].type == "counter"
    labels = [sample.labels for sample in families[name].samples]
    assert {label["model"] for label in labels} >= {model.name for model in MODELS}
    assert {label["version"] for label in labels} == {"1"}


@pytest.mark.parametrize("name", GAUGES)
def test_gauges_are_there(server: RunningServer, name: str) -> None:
    families = {family.name: family for family in text_string_to_metric_families(page(server))}
    assert families[name].type == "gauge"
    assert families[name].samples


def test_counters_rise_by_what_was_done(server: RunningServer, rng: np.random.Generator) -> None:
    model = BY_NAME["double_uint8"]
    names = ("nv_inference_request_success", "nv_inference_count", "nv_inference_exec_count")
    before = {name: value(server, name, model.name) for name in names}
    for _ in range(3):
        infer("http", server, model, random_inputs(model, 2, rng))
    wanted = dict(zip(names, (3.0, 6.0, 3.0), strict=True))
    deadline = time.monotonic() + 5
    while True:
        risen = {name: value(server, name, model.name) - before[name] for name in names}
        if risen == wanted or time.monotonic() > deadline:
            break
    assert risen == wanted


@pytest.mark.parametrize("path", ["/", "/v2/health/live"])
def test_the_metrics_port_serves_metrics_only(server: RunningServer, path: str) -> None:
    status = ask(server, "GET", path, port=server.metrics_port).status
    assert str(status) == expected("metrics/other-paths", server.kind)


@pytest.mark.penstock_only
@pytest.mark.parametrize("part", ["request", "queue"])
def test_durations_are_histograms_too(server: RunningServer, part: str) -> None:
    """Averages of averages say nothing; histograms of several servers can be added up."""
    families = {family.name: family for family in text_string_to_metric_families(page(server))}
    found = [family for name, family in families.items() if family.type == "histogram" and part in name]
    assert found, f"no histogram of {part} durations among {sorted(families)}"


@pytest.mark.penstock_only
def test_labels_never_come_from_requests(server: RunningServer) -> None:
    for number in range(50):
        ask(server, "GET", f"/v2/models/label{number}")
        ask(server, "POST", f"/v2/models/label{number}/infer", b"{}")
    assert "label1" not in page(server)
