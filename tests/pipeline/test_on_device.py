"""Tensors that stay on the GPU between the steps of a pipeline, on torch's CPU device: everything but the streams.

With a GPU, and what that is worth: `tests/gpu/test_pipelines.py`.
"""

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

import penstock as ps
from penstock.engine.engine import Engine
from tests.pipeline.two_engines import CHANNELS, hosting, pair, picture, says_gpu
from tests.serve.calls import SECONDS, Array, Client, batch_sizes, infer, serving

pytestmark = pytest.mark.torch

SIZE = 16
BUCKETS = (1, 4)
detect, score = ps.use("detector"), ps.use("scorer")
Body = Callable[[Array], Awaitable[Any]]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Engine, Engine]:
    return pair(tmp_path_factory.mktemp("engines"), "cpu", SIZE, BUCKETS)


@pytest.fixture
def served(engines: tuple[Engine, Engine]) -> Iterator[ps.Server]:
    with hosting(engines, instances=1) as server:
        yield server


def run(server: ps.Server, body: Body, x: Array, status: int = 200) -> Any:
    """The body as a pipeline of the server: what it returned, or the error's text."""

    @ps.pipeline(name="p", inputs={"x": ps.F32[-1, -1, -1]}, outputs={"y": ps.F32[-1]})
    async def pipeline(x: Array) -> Array:
        return np.asarray(await body(x), np.float32).ravel()

    server.add(pipeline)
    answer = infer(server, "p", x=x)
    assert answer.status == status, answer.reply.body[:500]
    return answer.arrays["y"] if status == 200 else answer.error


def expected(engines: tuple[Engine, Engine], *pictures: Array) -> Array:
    found = [engines[1](x=engines[0](x=each[None])["second_relu"])["scores"] for each in pictures]
    return np.concatenate(found).ravel()


def test_an_answer_that_stays_is_a_tensor_and_the_same(served: ps.Server, engines: tuple[Engine, Engine]) -> None:
    async def body(x: Array) -> Any:
        maps = await detect.on_device(x)
        assert isinstance(maps, torch.Tensor)
        assert maps.shape == (CHANNELS, SIZE, SIZE)
        np.testing.assert_array_equal(maps.numpy(), await detect(x))
        return await score(says_gpu(maps.numpy()))

    x = picture(SIZE)
    np.testing.assert_array_equal(run(served, body, x), expected(engines, x))


def test_several_rows_stay_together(served: ps.Server, engines: tuple[Engine, Engine]) -> None:
    pictures = [picture(SIZE, seed) for seed in range(3)]

    async def body(_: Array) -> Any:
        maps = await detect.on_device.batch(x=np.stack(pictures))
        assert maps.shape == (3, CHANNELS, SIZE, SIZE)
        return await score.batch(says_gpu(maps.numpy()))

    np.testing.assert_allclose(run(served, body, pictures[0]), expected(engines, *pictures), rtol=1e-5)


def test_rows_of_the_host_and_of_the_gpu_share_a_batch(served: ps.Server, engines: tuple[Engine, Engine]) -> None:
    """In the order of the calls, wherever each one's answer goes."""
    pictures = [picture(SIZE, seed) for seed in range(4)]
    maps = [engines[0](x=each[None])["second_relu"][0] for each in pictures]

    async def body(_: Array) -> Any:
        found = await ps.gather(
            [score(maps[0]), score.on_device(says_gpu(maps[1])), score(says_gpu(maps[2])), score.on_device(maps[3])]
        )
        assert [isinstance(each, torch.Tensor) for each in found] == [False, True, False, True]
        return np.stack([np.asarray(each) for each in found])

    np.testing.assert_allclose(run(served, body, pictures[0]), expected(engines, *pictures), rtol=1e-5)
    with Client(served) as client:
        assert max(batch_sizes(client.statistics("scorer"))) > 1


def test_answers_of_one_batch_are_not_those_of_the_next(served: ps.Server) -> None:
    async def body(x: Array) -> Any:
        first = await detect.on_device(x)
        kept = first.clone()
        second = await detect.on_device(-x)
        assert not torch.equal(first, second)
        assert torch.equal(first, kept)
        return [0.0]

    run(served, body, picture(SIZE))


def test_a_model_on_the_host_gets_a_copy(served: ps.Server) -> None:
    @ps.model(name="sum")
    def total(x: ps.F32[-1]) -> ps.F32:
        assert type(x) is np.ndarray
        return x.sum(axis=1, dtype=np.float32)

    served.add(total)

    async def body(x: Array) -> Any:
        found = await ps.gather(ps.use("sum")(each) for each in (x[0, 0], says_gpu(x[0, 1]), x[0, 2]))
        return np.array(found)

    x = picture(SIZE)
    np.testing.assert_array_equal(run(served, body, x), x[0, :3].sum(axis=1, dtype=np.float32))


def test_a_pipeline_gets_a_copy(served: ps.Server) -> None:
    @ps.pipeline(name="inner")
    async def inner(x: ps.F32[-1]) -> ps.F32[-1]:
        assert type(x) is np.ndarray
        return x * 2

    served.add(inner)

    async def body(x: Array) -> Any:
        return await ps.use(inner)(says_gpu(x[0, 0]))

    x = picture(SIZE)
    np.testing.assert_array_equal(run(served, body, x), x[0, 0] * 2)


@ps.model(name="double")
def double(x: ps.F32[-1]) -> ps.F32[-1]:
    return x * 2


async def _of_a_function(x: Array) -> Any:
    return await ps.use(double).on_device(x[0, 0])


async def _a_tensor_returned(x: Array) -> Any:
    return says_gpu(x[0, 0])


async def _of_another_type(x: Array) -> Any:
    return await score(says_gpu(np.zeros((CHANNELS, SIZE, SIZE), np.float64)))


async def _of_another_shape(x: Array) -> Any:
    return await score(says_gpu(np.zeros((CHANNELS, SIZE, SIZE + 1), np.float32)))


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (_of_a_function, 501, "model 'double' answers in memory of the host"),
        (_of_another_type, 400, "expected datatype FP32, got FP64"),
        (_of_another_shape, 400, "got shape"),
    ],
)
def test_what_can_not_be_is_refused_with_the_reason(served: ps.Server, body: Body, status: int, words: str) -> None:
    served.add(double)
    assert words in run(served, body, picture(SIZE), status)


def test_a_tensor_that_a_body_returns_is_refused() -> None:
    @ps.pipeline(name="p")
    async def pipeline(x: ps.F32[-1]) -> ps.F32[-1]:
        return says_gpu(x)

    with serving(pipeline) as server:
        answer = infer(server, "p", x=np.zeros(3, np.float32))
    assert answer.status == 500
    assert "lies on a GPU" in answer.error


def test_a_call_that_is_cancelled_lets_go_of_its_tensor() -> None:
    """While it waits: nothing is left of it when the request is answered."""
    import threading

    entered, opened = threading.Semaphore(0), threading.Event()
    left: list[weakref.ref[Any]] = []

    @ps.model(name="held", max_batch_size=1)
    def held(x: ps.F32[-1]) -> ps.F32[-1]:
        entered.release()
        assert opened.wait(SECONDS)
        return x

    @ps.pipeline(name="p")
    async def pipeline(x: ps.F32[-1]) -> ps.F32[-1]:
        use = ps.use(held)
        running = asyncio.ensure_future(use(x))
        await ps.cpu(entered.acquire)
        tensor = says_gpu(x)
        left.append(weakref.ref(tensor))
        waiting = use(tensor)
        del tensor
        waiting.cancel()
        opened.set()
        return await running

    with serving(held, pipeline) as server:
        x = np.arange(1 << 16, dtype=np.float32)
        np.testing.assert_array_equal(infer(server, "p", x=x).arrays["output"], x)
        gc.collect()
        assert left[0]() is None
