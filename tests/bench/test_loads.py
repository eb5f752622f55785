"""The native generator against a real server: each request is recorded once, answers are right, failures have names."""

import threading
import time

import numpy as np
import pytest

import penstock as ps
from penstock.bench.load import ANSWERED, HTTP, LOST, REFUSED, UNSENT, WRONG, Load, Plan, Request
from penstock.errors import InvalidArgument
from tests.bench.loads import PROTOCOLS, served
from tests.serve.calls import Array


def until(load: Load, count: int, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while len(load.records) < count:
        assert time.monotonic() < end, (len(load.records), load.messages)
        time.sleep(0.005)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_is_recorded_is_what_the_server_answered(protocol: str, threads: int) -> None:
    with served() as target:
        with Load(target.plan(protocol, {"batch": 2}, concurrency=5, threads=threads)) as load:
            until(load, 300)
        records = load.records
        assert np.all(records["outcome"] == ANSWERED), load.messages
        statistics = target.client(protocol).statistics("double", "")
        assert statistics is not None
        assert statistics.counts["success"] == len(records)
        assert statistics.inferences == 2 * len(records)
    assert np.all(records["sent"] <= records["received"])
    assert set(records["item"]) == set(range(16))
    assert load.cpu_seconds() == 0  # its threads have ended


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_answers_are_compared_with_what_was_expected(protocol: str) -> None:
    with served() as target:
        plain = target.requests(protocol, seed=4)
        inputs = np.random.default_rng(4)
        rows = [inputs.standard_normal(4).astype(np.float32) for _ in plain]
        right = [
            Request(each.body, each.json_bytes, (2 * row).tobytes()) for each, row in zip(plain, rows, strict=True)
        ]
        wrong = [Request(each.body, each.json_bytes, b"\x01" * 16) for each in plain]
        for given, expected in ((right, ANSWERED), (wrong, WRONG)):
            plan = target.plan(protocol, concurrency=2)
            with Load(Plan(plan.protocol, plan.address, plan.path, given, concurrency=2)) as load:
                until(load, 40)
            assert set(load.records["outcome"]) == {expected}, load.messages


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_schedule_is_kept_and_each_request_is_sent_once(protocol: str) -> None:
    offsets = np.linspace(1e6, 4e8, 200).astype(np.uint64).tolist()
    with served() as target, Load(target.plan(protocol, schedule_ns=offsets, most_connections=64)) as load:
        until(load, 200)
        load.stop()
        records = np.sort(load.records, order="scheduled")[:200]
    assert np.all(records["outcome"] == ANSWERED), load.messages
    due = records["scheduled"].astype(np.int64)
    assert np.array_equal(due - due[0], np.array(offsets, np.int64) - offsets[0])
    assert np.all(records["sent"] >= records["scheduled"])


def test_a_schedule_comes_again_after_its_last_request() -> None:
    with served() as target, Load(target.plan(HTTP, schedule_ns=[1_000_000, 20_000_000], threads=2)) as load:
        until(load, 10)
        load.stop()
        due = np.sort(load.records["scheduled"]).astype(np.int64)[:10]
    assert np.all(due[2:] - due[:-2] == 20_000_000)


def test_who_is_due_while_the_server_stalls_has_waited_since_then() -> None:
    stalls, calls = threading.Event(), [0]

    @ps.model(name="stalls", max_batch_size=8, outputs={"y": ps.F32[4]})
    def model(x: ps.F32[4]) -> Array:
        calls[0] += 1
        if calls[0] == 20:
            stalls.wait(0.5)  # set by nobody
        return x

    offsets = np.linspace(5e6, 1e9, 200).astype(np.uint64).tolist()
    with served(model) as target, Load(target.plan(HTTP, schedule_ns=offsets, most_connections=1)) as load:
        until(load, 200)
        load.stop()
        records = np.sort(load.records, order="scheduled")[:200]
    since_due = (records["received"] - records["scheduled"]) / 1e9
    since_sent = (records["received"] - records["sent"].astype(np.uint64)) / 1e9
    # Some hundred requests were due in the half second; one connection sent only one of them meanwhile.
    assert np.sum(since_due > 0.1) > 50
    assert np.sum(since_sent > 0.1) == 1
    assert since_due.max() > 0.4


def test_what_was_due_and_never_sent_is_counted() -> None:
    free = threading.Event()

    @ps.model(name="waits", max_batch_size=8, outputs={"y": ps.F32[4]})
    def model(x: ps.F32[4]) -> Array:
        free.wait(10)
        return x

    offsets = np.linspace(1e6, 1e8, 50).astype(np.uint64).tolist()
    with served(model) as target, Load(target.plan(HTTP, schedule_ns=offsets, most_connections=2)) as load:
        time.sleep(0.15)
        threading.Timer(0.1, free.set).start()
        load.stop()
        records = load.records
    assert np.sum(records["outcome"] == ANSWERED) == 2
    assert np.sum(records["outcome"] == UNSENT) >= 48
    assert np.all(records["sent"][records["outcome"] == UNSENT] == 0)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_refusals_are_counted_with_the_servers_words(protocol: str) -> None:
    @ps.model(name="fails", max_batch_size=8, outputs={"y": ps.F32[4]})
    def model(x: ps.F32[4]) -> Array:
        raise ps.PenstockError("no luck today")

    with served(model) as target, Load(target.plan(protocol, concurrency=2)) as load:
        until(load, 10)
        load.stop()
    assert set(load.records["outcome"]) == {REFUSED}
    assert any("no luck today" in message for message in load.messages), load.messages
    assert sum(load.messages.values()) == len(load.records)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_server_that_goes_away_is_losses_and_no_end(protocol: str) -> None:
    with served() as target:
        plan = target.plan(protocol, concurrency=2)
        load = Load(plan).__enter__()
        until(load, 20)
    end = time.monotonic() + 10
    while not any("no connection" in message for message in load.messages):
        assert time.monotonic() < end, load.messages
        time.sleep(0.01)
    load.stop()
    assert set(load.records["outcome"]) <= {ANSWERED, LOST, REFUSED}


def test_an_answer_that_comes_too_late_is_a_loss() -> None:
    free = threading.Event()

    @ps.model(name="late", max_batch_size=8, outputs={"y": ps.F32[4]})
    def model(x: ps.F32[4]) -> Array:
        free.wait(10)
        return x

    with served(model) as target:
        with Load(target.plan(HTTP, concurrency=1, answer_within_seconds=0.05)) as load:
            until(load, 1)
            free.set()
        assert load.records["outcome"][0] == LOST
        assert any("no answer within 50ms" in message for message in load.messages), load.messages


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"concurrency": 0}, "concurrency from 1"),
        ({"concurrency": 1, "threads": 0}, "from 1 to 64 threads"),
        ({"schedule_ns": []}, "the schedule is empty"),
        ({"schedule_ns": [2, 1]}, "does not ascend"),
        ({"concurrency": 1, "requests": []}, "nothing to send"),
        ({"concurrency": 1, "headers": [("a b", "c")]}, "header"),
        ({"concurrency": 1, "protocol": "smtp"}, "expected http, grpc or grpc-stream"),
        ({"concurrency": 1, "sequence_length": 0}, "sequences of one request"),
    ],
)
def test_plans_that_cant_be_meant_are_refused(given: dict[str, object], expected: str) -> None:
    whole: dict[str, object] = {
        "protocol": HTTP, "address": "127.0.0.1:1", "path": "/", "requests": [Request(b"{}")], **given
    }  # fmt: skip
    with pytest.raises(InvalidArgument, match=expected):
        Load(Plan(**whole)).__enter__()  # type: ignore[arg-type]
