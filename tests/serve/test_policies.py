"""How requests of one model meet: what waited is batched as the policy says, and a full queue refuses.

A gate in the model makes it certain what waits: the first call is held until the others are in the queue.
"""

import http.client
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import penstock as ps
from tests.serve.calls import SECONDS, Answer, Array, Client, at_once, batch_sizes, eventually, infer, serving
from tests.servers.onnx_files import write_scale

X = np.arange(4, dtype=np.float32)[None]
PENDING = re.compile(r"^nv_inference_pending_request_count\{[^}]*model=\"m\"[^}]*\} (\d+)", re.MULTILINE)
EMPTY = ps.DynamicBatching()
DELAYED = ps.DynamicBatching(max_queue_delay_us=1)


class Gate:
    """What a model does: answers its input, but holds the first call until the test opens it."""

    def __init__(self) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()
        self.calls: list[int] = []

    def call(self, x: Array) -> Array:
        self.calls.append(len(x))
        if len(self.calls) == 1:
            self.entered.set()
            assert self.opened.wait(SECONDS)
        return x


def gated(gate: Gate, batching: ps.DynamicBatching | None = None) -> ps.ModelFunction:
    model = ps.model(
        name="m", max_batch_size=8, inputs={"x": ps.F32[4]}, outputs={"y": ps.F32[4]}, dynamic_batching=batching
    )
    return model(gate.call)


def pending(server: ps.Server) -> int:
    """Requests in the model's queue, as the metrics page says."""
    connection = http.client.HTTPConnection("127.0.0.1", server.metrics_port or 0, timeout=SECONDS)
    try:
        connection.request("GET", "/metrics")
        found = PENDING.search(connection.getresponse().read().decode())
        assert found is not None
        return int(found[1])
    finally:
        connection.close()


def pile_up(server: ps.Server, gate: Gate, count: int) -> list[Answer]:
    """One request in the model and `count` behind it; then the gate opens. The answers of those behind."""
    with ThreadPoolExecutor(count + 1) as pool:
        first = pool.submit(infer, server, "m", x=X)
        try:
            assert gate.entered.wait(SECONDS)
            rest = [pool.submit(infer, server, "m", x=X) for _ in range(count)]
            eventually("all others wait or are refused", lambda: pending(server) + sum(r.done() for r in rest) == count)
        finally:
            gate.opened.set()
        assert first.result().status == 200
        return [each.result() for each in rest]


@pytest.mark.parametrize("block", [None, EMPTY, DELAYED], ids=["no block", "empty block", "delay"])
@pytest.mark.parametrize("batching", ["auto", "triton"])
def test_what_waited_goes_in_one_batch(batching: str, block: ps.DynamicBatching | None) -> None:
    """A function without a block batches under either policy: clients read an empty block in its configuration."""
    gate = Gate()
    with serving(gated(gate, block), batching=batching, metrics_port=0) as server, Client(server) as client:
        assert [answer.status for answer in pile_up(server, gate, 6)] == [200] * 6
        assert batch_sizes(client.statistics("m")) == {1: 1, 6: 1}
    assert gate.calls == [1, 6]


def test_no_batch_is_larger_than_the_model_takes() -> None:
    gate = Gate()
    with serving(gated(gate), metrics_port=0) as server:
        assert [answer.status for answer in pile_up(server, gate, 20)] == [200] * 20
    assert max(gate.calls) == 8
    assert sum(gate.calls) == 21


@pytest.mark.parametrize("parameter", [True, False], ids=["of the model", "of the server"])
def test_to_the_letter_a_file_without_a_block_is_never_batched(tmp_path: Path, parameter: bool) -> None:
    write_scale(tmp_path / "m/1/model.onnx", 2)
    letter = 'parameters { key: "batching" value { string_value: "triton" } }'
    (tmp_path / "m/config.pbtxt").write_text("max_batch_size: 8 " + (letter if parameter else ""))

    def ask(client: Client, _: int) -> None:
        for _ in range(10):
            np.testing.assert_array_equal(client.infer("m", x=X).arrays["y"], X * 2)

    batching = "auto" if parameter else "triton"
    with serving(model_repository=tmp_path, batching=batching) as server, Client(server) as client:
        at_once(server, ask, 16)
        statistics = client.statistics("m")
    assert batch_sizes(statistics) == {1: 160}
    assert (statistics["inference_count"], statistics["execution_count"]) == (160, 160)


@pytest.mark.parametrize("batching", ["auto", "triton"])
def test_a_delay_that_is_configured_is_waited_out(batching: str) -> None:
    gate = Gate()
    gate.opened.set()
    block = ps.DynamicBatching(max_queue_delay_us=150_000)
    with serving(gated(gate, block), batching=batching) as server, Client(server) as client:
        client.infer("m", x=X).arrays  # noqa: B018  (asserts that it is good)
        queued = client.statistics("m")["inference_stats"]["queue"]["ns"]
    assert queued >= 150_000_000


def test_a_lone_request_never_waits_under_the_automatic_policy() -> None:
    gate = Gate()
    gate.opened.set()
    with serving(gated(gate)) as server, Client(server) as client:
        for _ in range(50):
            client.infer("m", x=X).arrays  # noqa: B018  (asserts that it is good)
        statistics = client.statistics("m")
    assert batch_sizes(statistics) == {1: 50}
    # Far above what waking a thread takes on a loaded machine, far below any wait for company that makes sense.
    assert statistics["inference_stats"]["queue"]["ns"] / 50 < 20_000_000


@pytest.mark.parametrize("batching", ["auto", "triton"])
def test_a_full_queue_refuses_what_is_too_much(batching: str) -> None:
    gate = Gate()
    block = ps.DynamicBatching(default_queue_policy=ps.QueuePolicy(max_queue_size=2))
    with serving(gated(gate, block), batching=batching, metrics_port=0) as server:
        answers = pile_up(server, gate, 5)
        assert infer(server, "m", x=X).status == 200
    assert sorted(answer.status for answer in answers) == [200, 200, 503, 503, 503]
    for answer in answers:
        if answer.status == 503:
            assert "Exceeds maximum queue size" in answer.error
            assert int(answer.reply.headers["retry-after"]) >= 1
