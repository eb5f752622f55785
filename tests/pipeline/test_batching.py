"""Calls join the batches of the model that they call, across requests, and count in its statistics as any others do."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import penstock as ps
from tests.pipeline.toy import PATIENT_US, Recogniser, detector, picture, reader, texts
from tests.serve.calls import SECONDS, Array, Client, at_once, batch_sizes, eventually, infer, serving, waiting

FIRST, SECOND = picture((1, 0, 0, 0), (2, 0, 0, 0), (3, 0, 0, 0)), picture((4, 0, 0, 0), (5, 0, 0, 0), (6, 0, 0, 0))


def together(count: int) -> ps.DynamicBatching:
    return ps.DynamicBatching(max_queue_delay_us=PATIENT_US, preferred_batch_sizes=(count,))


def test_crops_of_different_requests_share_a_batch() -> None:
    """Neither request alone has the six crops that the recogniser waits for."""
    recogniser = Recogniser(dynamic_batching=together(6))
    images = [FIRST, SECOND]

    def work(client: Client, number: int) -> None:
        assert client.infer("read", image=images[number]).arrays["output"].tolist() == texts(images[number])

    with serving(detector, recogniser.model, reader()) as server, Client(server) as client:
        at_once(server, work, 2)
        statistics = client.statistics("recogniser")
    assert batch_sizes(statistics) == {6: 1}
    assert sorted(row[0] for row in recogniser.seen) == [1, 2, 3, 4, 5, 6]
    assert statistics["inference_count"] == 6
    assert statistics["inference_stats"]["success"]["count"] == 6


def test_calls_and_requests_from_outside_share_a_batch() -> None:
    recogniser = Recogniser(dynamic_batching=together(4))
    with serving(detector, recogniser.model, reader()) as server, Client(server) as outside, Client(server) as client:
        outside.send("recogniser", {"crop": picture((9, 0, 0, 0))})
        assert client.infer("read", image=FIRST).arrays["output"].tolist() == texts(FIRST)
        assert outside.answer().arrays["text"].tolist() == [b"9"]
        assert batch_sizes(client.statistics("recogniser")) == {4: 1}


def test_what_waits_when_an_instance_comes_back_is_one_batch() -> None:
    recogniser = Recogniser(dynamic_batching=ps.DynamicBatching(max_queue_delay_us=0, preferred_batch_sizes=(64,)))
    recogniser.hold()
    with serving(detector, recogniser.model, reader(), metrics_port=0) as server, Client(server) as client:
        # One is held, so that the machine's speed does not matter: what comes behind it is taken as it lies there.
        client.send("recogniser", {"crop": picture((9, 0, 0, 0))})
        assert recogniser.entered.acquire(timeout=SECONDS)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(infer, server, "read", image=FIRST)
            eventually("three crops wait", lambda: waiting(server, "recogniser") == len(FIRST))
            recogniser.release()
            assert answer.result().arrays["output"].tolist() == texts(FIRST)
        client.answer()
        assert batch_sizes(client.statistics("recogniser")) == {1: 1, 3: 1}


def test_the_padding_rule_of_a_model_holds_for_calls() -> None:
    shapes: list[tuple[int, ...]] = []
    padding = {
        "inputs": {"x": {"axis": 1, "multiple": 4, "value": -1}},
        "outputs": {"output": {"axis": 1, "divisor": 1}},
    }

    @ps.model(name="m", padding=padding, dynamic_batching=together(2))
    def model(x: ps.F32[-1]) -> ps.F32[-1]:
        shapes.append(x.shape)
        return x * 2

    @ps.pipeline(outputs={"a": ps.F32[-1], "b": ps.F32[-1]})
    async def body(x: ps.F32[-1]) -> dict[str, Array]:
        a, b = await ps.gather(ps.use("m")(part) for part in (x, x[:-1]))
        return {"a": a, "b": b}

    x = np.arange(1, 8, dtype=np.float32)
    with serving(model, body) as server:
        arrays = infer(server, "body", x=x).arrays
    assert shapes == [(2, 8)]
    np.testing.assert_array_equal(arrays["a"], x * 2)
    np.testing.assert_array_equal(arrays["b"], x[:-1] * 2)


def test_a_slow_picture_holds_up_no_other() -> None:
    go_on = threading.Event()

    def decode(x: Array) -> Array:
        if x[0] == 1:
            assert go_on.wait(SECONDS)
        return x

    @ps.pipeline
    async def body(x: ps.F32[1]) -> ps.F32[1]:
        return await ps.cpu(decode, x)

    with serving(body) as server, Client(server) as slow:
        slow.send("body", {"x": np.ones(1, np.float32)})
        for value in range(2, 12):
            x = np.full(1, value, np.float32)
            np.testing.assert_array_equal(infer(server, "body", x=x).arrays["output"], x)
        go_on.set()
        np.testing.assert_array_equal(slow.answer().arrays["output"], [1])


def test_no_more_than_max_concurrency_are_under_way_and_the_others_wait_in_the_queue() -> None:
    recogniser = Recogniser()
    recogniser.hold()
    under_way, most = 0, 0

    @ps.pipeline(max_concurrency=2)
    async def body(crop: ps.U8[4]) -> ps.Bytes[1]:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        text = await ps.use("recogniser")(crop)
        under_way -= 1
        return [text.item()]

    def work(client: Client, number: int) -> None:
        assert client.infer("body", crop=picture((number, 0, 0, 0))[0]).arrays["output"].tolist() == [b"%d" % number]

    with serving(recogniser.model, body) as server, ThreadPoolExecutor(1) as pool:
        done = pool.submit(at_once, server, work, 8)
        assert recogniser.entered.acquire(timeout=SECONDS)
        recogniser.release()
        done.result()
    assert most == 2
