"""How a request to a pipeline ends early: what it began and nobody wants is never executed, and nothing is left."""

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

import penstock as ps
from penstock.engine import cores
from tests.pipeline.toy import Recogniser, detector, picture, reader, texts
from tests.serve.calls import SECONDS, Array, Client, eventually, infer, serving, waiting
from tests.servers.raw import dumps

IMAGE = picture((1, 0, 0, 0), (2, 0, 0, 0), (3, 0, 0, 0))
BLOCKER = picture((9, 0, 0, 0))
ONE = np.ones(1, np.float32)


def assert_nothing_is_left(server: ps.Server) -> None:
    loop = server._event_loop
    assert loop is not None
    eventually("every task has ended", lambda: loop.tasks == {})
    assert loop.exchange.open_calls == 0


class Held:
    """A server whose recogniser is busy with a request of another client, so that the crops of a picture wait."""

    def __init__(self, server: ps.Server, recogniser: Recogniser, blocker: Client) -> None:
        self.server = server
        self.recogniser = recogniser
        self._blocker = blocker

    def wait_for_crops(self) -> None:
        eventually("the crops wait", lambda: waiting(self.server, "recogniser") == len(IMAGE))

    def assert_crops_are_never_executed(self) -> None:
        # They leave the queue when somebody looks at it, which is when they would be taken.
        assert_nothing_is_left(self.server)
        self.recogniser.release()
        assert self._blocker.answer().status == 200
        # One more, behind which nothing can be.
        infer(self.server, "recogniser", crop=BLOCKER)
        assert {row[0] for row in self.recogniser.seen} == {9}
        assert waiting(self.server, "recogniser") == 0


@pytest.fixture
def held() -> Iterator[Held]:
    recogniser = Recogniser(max_batch_size=8)
    recogniser.hold()
    with (
        serving(detector, recogniser.model, reader(), grpc_port=0, metrics_port=0) as server,
        Client(server) as blocker,
    ):
        blocker.send("recogniser", {"crop": BLOCKER})
        assert recogniser.entered.acquire(timeout=SECONDS)
        try:
            yield Held(server, recogniser, blocker)
        finally:
            recogniser.release()


def test_crops_of_a_client_that_left_are_never_executed(held: Held) -> None:
    with Client(held.server) as client:
        client.send("read", {"image": IMAGE})
        held.wait_for_crops()
    held.assert_crops_are_never_executed()
    statistics = held.server.pipeline_statistics("read")
    assert (statistics.request.count, statistics.request.cancelled) == (0, 1)
    assert {step.name: step.cancelled for step in statistics.steps}["recogniser"] == len(IMAGE)


def test_a_deadline_ends_the_calls(held: Held) -> None:
    client = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{held.server.grpc_port}")
    given = tritonclient.grpc.InferInput("image", list(IMAGE.shape), "UINT8").set_data_from_numpy(IMAGE)
    with pytest.raises(InferenceServerException) as caught:
        client.infer("read", [given], client_timeout=0.5)
    assert "DEADLINE_EXCEEDED" in str(caught.value.status())
    client.close()
    held.assert_crops_are_never_executed()


def test_a_timeout_bounds_the_waits_of_all_queues_together(held: Held) -> None:
    tensor = {"name": "image", "shape": list(IMAGE.shape), "datatype": "UINT8", "data": IMAGE.ravel().tolist()}
    began = time.monotonic()
    with Client(held.server) as client:
        reply = client.ask("POST", "/v2/models/read/infer", dumps(inputs=[tensor], parameters={"timeout": 300_000}))
    assert reply.status == 503
    assert reply.error == "call of 'recogniser': Request timeout expired"
    assert 0.25 < time.monotonic() - began < SECONDS / 2
    held.assert_crops_are_never_executed()


def test_a_timeout_that_is_over_refuses_further_calls() -> None:
    @ps.pipeline
    async def late(image: ps.U8[-1, 4]) -> ps.Bytes[-1]:
        await ps.cpu(time.sleep, 0.05)
        return [await ps.use("recogniser")(image[0])]

    recogniser = Recogniser()
    tensor = {"name": "image", "shape": [1, 4], "datatype": "UINT8", "data": [1, 2, 3, 4]}
    with serving(recogniser.model, late) as server, Client(server) as client:
        reply = client.ask("POST", "/v2/models/late/infer", dumps(inputs=[tensor], parameters={"timeout": 40_000}))
        assert (reply.status, reply.error) == (503, "call of 'recogniser': Request timeout expired")
        assert recogniser.seen == []


def test_a_cpu_step_that_was_not_begun_is_never_begun() -> None:
    """As many requests as there are threads hold them all; the step of one more waits until its client leaves."""
    go_on, entered, begun = threading.Event(), threading.Semaphore(0), []

    def step(x: Array) -> Array:
        begun.append(float(x[0]))
        entered.release()
        assert go_on.wait(SECONDS)
        return x

    @ps.pipeline
    async def body(x: ps.F32[1]) -> ps.F32[1]:
        return await ps.cpu(step, x)

    with serving(body) as server, ThreadPoolExecutor(cores.available()) as pool:
        try:
            holding = [pool.submit(infer, server, "body", x=ONE) for _ in range(cores.available())]
            for _ in holding:
                assert entered.acquire(timeout=SECONDS)
            with Client(server) as client:
                client.send("body", {"x": 2 * ONE})
                loop = server._event_loop
                assert loop is not None
                eventually("it is under way", lambda: len(loop.tasks) == len(holding) + 1)
            eventually("it is cancelled", lambda: server.pipeline_statistics("body").request.cancelled == 1)
        finally:
            go_on.set()
        assert [each.result().status for each in holding] == [200] * len(holding)
        assert infer(server, "body", x=ONE).status == 200
        assert_nothing_is_left(server)
    assert 2.0 not in begun


def test_what_a_body_leaves_running_ends_with_its_request() -> None:
    recogniser = Recogniser(max_batch_size=1)
    left: list[Any] = []

    @ps.pipeline
    async def careless(crop: ps.U8[4]) -> ps.U8[4]:
        left.append(ps.use("recogniser")(crop))
        left.append(ps.use("recogniser")(crop))
        return crop

    recogniser.hold()
    with serving(recogniser.model, careless) as server:
        assert infer(server, "careless", crop=IMAGE[0]).status == 200
        assert [call.cancelled() for call in left] == [True, True]
        assert_nothing_is_left(server)
        recogniser.release()
        infer(server, "recogniser", crop=BLOCKER)
    assert recogniser.seen.count(tuple(IMAGE[0])) <= 1, "the second waited behind the first"


def test_a_step_begun_after_the_answer_is_refused() -> None:
    errors: list[BaseException] = []
    answered, done = threading.Event(), threading.Event()

    async def straggler(crop: Array) -> None:
        while not answered.is_set():
            await asyncio.sleep(0.001)
        try:
            await ps.use("recogniser")(crop)
        except RuntimeError as error:
            errors.append(error)
        done.set()

    tasks: list[Any] = []

    @ps.pipeline
    async def body(crop: ps.U8[4]) -> ps.U8[4]:
        tasks.append(asyncio.ensure_future(straggler(crop)))
        return crop

    recogniser = Recogniser()
    with serving(recogniser.model, body) as server:
        assert infer(server, "body", crop=IMAGE[0]).status == 200
        assert_nothing_is_left(server)
        answered.set()
        assert done.wait(SECONDS)
    assert "after its request was answered" in str(errors[0])
    assert recogniser.seen == []


def test_many_clients_that_leave_at_any_moment_leave_nothing() -> None:
    rng = np.random.default_rng(20261121)
    pauses = rng.uniform(0, 0.004, 200)
    recogniser = Recogniser()

    def leave(number: int) -> None:
        with Client(server) as client:
            client.send("read", {"image": IMAGE})
            time.sleep(pauses[number])

    with serving(detector, recogniser.model, reader(max_concurrency=4)) as server:
        infer(server, "read", image=IMAGE)
        before = counted()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(leave, range(len(pauses))))
        assert infer(server, "read", image=IMAGE).arrays["output"].tolist() == texts(IMAGE)
        assert_nothing_is_left(server)
        request = server.pipeline_statistics("read").request
        assert request.errors == 0
        assert request.count + request.cancelled <= len(pauses) + 2
        eventually("descriptors and threads are no more than before", lambda: no_more_than(before))


def test_servers_that_were_stopped_leave_no_descriptor_and_no_thread() -> None:
    def once() -> None:
        with serving(detector, Recogniser().model, reader()) as server:
            infer(server, "read", image=IMAGE)

    once()
    before = counted()
    for _ in range(3):
        once()
    gc.collect()
    eventually("descriptors and threads are no more than before", lambda: no_more_than(before))


def counted() -> dict[str, int]:
    """Descriptors and threads of this process, but for the threads of the pool, which come as they are needed."""
    threads = [thread for thread in threading.enumerate() if not thread.name.startswith("penstock-cpu")]
    return {"descriptors": len(list(Path("/proc/self/fd").iterdir())), "threads": len(threads)}


def no_more_than(before: dict[str, int]) -> bool:
    """Fewer may be: a connection that was just closed may still have counted before."""
    return all(now <= before[what] for what, now in counted().items())


# ---- stopping the server ----


def test_stopping_lets_requests_under_way_finish_with_all_their_calls() -> None:
    """The recogniser is called after the server began to drain."""
    inside, go_on = threading.Event(), threading.Event()

    def wait(x: Array) -> Array:
        inside.set()
        assert go_on.wait(SECONDS)
        return x

    @ps.pipeline
    async def body(image: ps.U8[-1, 4]) -> ps.Bytes[-1]:
        image = await ps.cpu(wait, image)
        return await ps.gather(ps.use("recogniser")(row) for row in image)

    server = ps.Server(http_port=0, grpc_port=None, metrics_port=None)
    server.add(Recogniser().model)
    server.add(body)
    server.start()
    front = server._front
    assert front is not None
    with Client(server) as client, ThreadPoolExecutor(1) as pool:
        client.send("body", {"image": IMAGE})
        assert inside.wait(SECONDS)
        stopped = pool.submit(server.stop)
        eventually("it drains", lambda: not front.is_ready)
        go_on.set()
        assert client.answer().arrays["output"].tolist() == texts(IMAGE)
        assert stopped.result() is True
    names = {thread.name for thread in threading.enumerate()}
    assert "penstock-pipelines" not in names


def test_when_the_exit_timeout_passes_what_is_under_way_is_cancelled_and_answered() -> None:
    inside = threading.Event()

    @ps.pipeline
    async def forever(x: ps.F32[1]) -> ps.F32[1]:
        inside.set()
        await asyncio.get_running_loop().create_future()
        return x

    server = ps.Server(http_port=0, grpc_port=None, metrics_port=None, exit_timeout_seconds=0.2)
    server.add(forever)
    server.start()
    with Client(server) as client, ThreadPoolExecutor(1) as pool:
        client.send("forever", {"x": ONE})
        assert inside.wait(SECONDS)
        stopped = pool.submit(server.stop)
        answer = client.answer()
        assert answer.status == 503
        assert "shutting down" in answer.error
        assert stopped.result() is False
