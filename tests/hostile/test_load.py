"""More than fits: a full queue refuses with a hint when to come back, a deadline in the queue is kept, gone is gone."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2_grpc

from tests.conformance.clients import method
from tests.hostile.grpc_cases import request
from tests.servers.cases import assert_clean_error
from tests.servers.process import RunningServer
from tests.servers.raw import Reply, ask, dumps

SECONDS = 20.0
CLIENTS = 8


def sleep_body(milliseconds: int, **parameters: int) -> bytes:
    tensor = {"name": "ms", "shape": [1, 1], "datatype": "INT32", "data": [milliseconds]}
    return dumps(inputs=[tensor], parameters=parameters)


def test_a_full_queue_refuses_over_http(server: RunningServer) -> None:
    """One runs, one waits, one may be on its way between the two; the rest is refused at once."""

    def send(_: int) -> tuple[Reply, float]:
        start = time.monotonic()
        return ask(server, "POST", "/v2/models/full/infer", sleep_body(400)), time.monotonic() - start

    with ThreadPoolExecutor(CLIENTS) as pool:
        replies = list(pool.map(send, range(CLIENTS)))
    refused = [(reply, seconds) for reply, seconds in replies if reply.status != 200]
    assert 1 <= len(replies) - len(refused) <= 3
    for reply, seconds in refused:
        assert reply.status == 503
        assert "Exceeds maximum queue size" in reply.error
        assert seconds < 0.4, "the refusal waited for the queue"
        if server.kind == "penstock":
            assert int(reply.headers["retry-after"]) >= 1
            assert_clean_error(reply)


def test_a_full_queue_refuses_over_grpc(server: RunningServer) -> None:
    message = request(struct.pack("<i", 400), name="ms", model="full", datatype="INT32", shape=[1, 1])
    with grpc.insecure_channel(server.grpc_address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        futures = [stub.ModelInfer.future(message, timeout=SECONDS) for _ in range(CLIENTS)]
        statuses = [future.code() for future in futures]
        details = {future.details() for future in futures if future.code() is not grpc.StatusCode.OK}
    assert set(statuses) == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    assert 1 <= statuses.count(grpc.StatusCode.OK) <= 3
    assert all("Exceeds maximum queue size" in (each or "") for each in details)


def executed(server: RunningServer, name: str) -> int:
    document = method("http", server, "get_inference_statistics", name)
    return int(document["model_stats"][0]["inference_count"])


@pytest.mark.penstock_only
def test_a_timeout_in_the_queue_is_kept_and_the_job_never_run(server: RunningServer) -> None:
    before = executed(server, "late")
    with busy(server, 500):
        late = ask(server, "POST", "/v2/models/late/infer", sleep_body(500, timeout=50_000))
        assert late.status == 503
        assert "timeout" in late.error.lower()
    assert ask(server, "POST", "/v2/models/late/infer", sleep_body(1)).status == 200
    assert executed(server, "late") - before == 3


@contextlib.contextmanager
def busy(server: RunningServer, milliseconds: int) -> Iterator[None]:
    """The one instance of `late` runs a request and another waits behind it; both are answered at the end."""
    with ThreadPoolExecutor(2) as pool:
        body = sleep_body(milliseconds)
        sent = [pool.submit(ask, server, "POST", "/v2/models/late/infer", body) for _ in range(2)]
        deadline = time.monotonic() + milliseconds / 1000
        while pending(server) < 1:
            assert time.monotonic() < deadline, "no request is pending behind one that runs"
        yield
        assert [each.result().status for each in sent] == [200, 200]


def pending(server: RunningServer) -> float:
    """Requests to `late` that wait: the one that runs is not among them."""
    page = ask(server, "GET", "/metrics", port=server.metrics_port).body.decode()
    lines = [line for line in page.splitlines() if line.startswith("nv_inference_pending_request_count{")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if 'model="late"' in line)


@pytest.mark.penstock_only
def test_a_timeout_in_the_queue_is_answered_when_it_passes(server: RunningServer) -> None:
    """A client that gave 50 ms is not kept for the 800 ms that the queue takes."""
    with busy(server, 400):
        start = time.monotonic()
        assert ask(server, "POST", "/v2/models/late/infer", sleep_body(1, timeout=50_000)).status == 503
        waited = time.monotonic() - start
    assert waited < 0.25, f"answered after {waited * 1000:.0f} ms"


@pytest.mark.penstock_only
def test_clients_that_go_away_leave_nothing_in_the_queue(server: RunningServer) -> None:
    """Twenty requests are sent behind one that sleeps, and their clients hang up: none of them is executed."""
    before = executed(server, "late")
    body = sleep_body(300)
    head = f"POST /v2/models/late/infer HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with busy(server, 400):
        gone = [socket.create_connection(("127.0.0.1", server.http_port)) for _ in range(20)]
        for connection in gone:
            connection.sendall(head + body)
        while pending(server) < 21:
            assert ask(server, "GET", "/v2/health/live").status == 200
        for connection in gone:
            # A reset, as from a process that was killed.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
    assert ask(server, "POST", "/v2/models/late/infer", sleep_body(1)).status == 200
    assert executed(server, "late") - before == 3


@pytest.mark.penstock_only
def test_one_model_that_is_busy_holds_up_no_other(server: RunningServer, rng: np.random.Generator) -> None:
    done = threading.Event()

    def sleep() -> None:
        while not done.is_set():
            ask(server, "POST", "/v2/models/slow/infer", sleep_body(50))

    threads = [threading.Thread(target=sleep) for _ in range(10)]
    for thread in threads:
        thread.start()
    try:
        x = {"name": "x", "shape": [1, 16], "datatype": "FP32", "data": rng.standard_normal(16).tolist()}
        body = dumps(inputs=[x])
        times = []
        for _ in range(30):
            start = time.monotonic()
            assert ask(server, "POST", "/v2/models/double_fp32/infer", body).status == 200
            times.append(time.monotonic() - start)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert sorted(times)[len(times) // 2] < 0.05
