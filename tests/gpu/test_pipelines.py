"""Tensors stay on the GPU between the steps of a pipeline: in order, apart from each other, and given back."""

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

import penstock as ps
from penstock.engine.device_calls import rows
from penstock.engine.engine import Engine
from penstock.errors import ResourceExhausted
from tests.pipeline.two_engines import CHANNELS, hosting, pair, picture
from tests.serve.calls import Array, Client, at_once, batch_sizes, eventually, infer

pytestmark = pytest.mark.gpu

SIZE = 64
BUCKETS = (1, 4)
WIDE = 8192
"""Of a product that keeps the GPU busy for some milliseconds."""

detect, score = ps.use("detector"), ps.use("scorer")
Body = Callable[[Array], Awaitable[Any]]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Engine, Engine]:
    return pair(tmp_path_factory.mktemp("engines"), "cuda:0", SIZE, BUCKETS)


@pytest.fixture
def served(engines: tuple[Engine, Engine]) -> Iterator[ps.Server]:
    with hosting(engines, instances=2) as server:
        yield server


def add(server: ps.Server, body: Body, **settings: Any) -> None:
    @ps.pipeline(name="p", inputs={"x": ps.F32[-1, -1, -1]}, outputs={"y": ps.F32[-1]}, **settings)
    async def pipeline(x: Array) -> Array:
        return np.asarray(await body(x), np.float32).ravel()

    server.add(pipeline)


def run(server: ps.Server, body: Body, x: Array) -> Array:
    add(server, body)
    return infer(server, "p", x=x).arrays["y"]


def through_the_host(engines: tuple[Engine, Engine], x: Array) -> Array:
    return engines[1](x=engines[0](x=x[None])["second_relu"])["scores"].ravel()


def brighter(maps: torch.Tensor) -> torch.Tensor:
    """A step on the GPU: cut out and made larger again."""
    cut = maps[None, :, SIZE // 4 : 3 * SIZE // 4, SIZE // 4 : 3 * SIZE // 4]
    return torch.nn.functional.interpolate(cut, size=(SIZE, SIZE), mode="nearest")[0] * 2


async def _until_it_is_full(held: list[Any], x: Array) -> None:
    for _ in range(1 << 14):
        held.append(await detect.on_device.batch(x=x))


async def kept(x: Array) -> Any:
    return await score(await detect.on_device(x))


def test_what_stays_on_the_gpu_has_the_bits_of_what_does_not(served: ps.Server, engines: tuple[Engine, Engine]) -> None:
    async def body(x: Array) -> Any:
        maps = await detect.on_device(x)
        assert isinstance(maps, torch.Tensor)
        assert maps.is_cuda
        assert maps.shape == (CHANNELS, SIZE, SIZE)
        found = [await score(maps), await score(maps.cpu().numpy()), (await score.on_device(maps)).cpu().numpy()]
        assert found[0].tobytes() == found[1].tobytes() == found[2].tobytes()
        return found[0]

    x = picture(SIZE)
    np.testing.assert_array_equal(run(served, body, x), through_the_host(engines, x))


def test_steps_in_between_run_on_the_gpu(served: ps.Server, engines: tuple[Engine, Engine]) -> None:
    async def body(x: Array) -> Any:
        crop = await ps.cpu(brighter, await detect.on_device(x))
        assert crop.is_cuda
        return await score(crop)

    x = picture(SIZE)
    maps = torch.from_numpy(engines[0](x=x[None])["second_relu"][0])
    expected = engines[1](x=brighter(maps).numpy()[None])["scores"].ravel()
    np.testing.assert_allclose(run(served, body, x), expected, rtol=1e-3, atol=1e-4)


def test_a_call_waits_for_what_makes_its_tensor(served: ps.Server, engines: tuple[Engine, Engine]) -> None:
    """The tensor is not there yet when it is passed: only its place is."""
    busy = torch.randn(WIDE, WIDE, device="cuda")

    def late(maps: torch.Tensor) -> torch.Tensor:
        found = torch.zeros_like(maps)
        product = busy
        for _ in range(5):
            product = product @ busy * 1e-4
        return found.copy_(maps)

    async def body(x: Array) -> Any:
        maps = await detect.on_device(x)
        await score(maps)  # captures
        found = []
        for use in (score, score.on_device, ps.use("sum")):
            made = await ps.cpu(late, maps)
            found.append(await use(made))
        assert found[2] == pytest.approx(float(maps.sum()), rel=1e-3)
        np.testing.assert_array_equal(found[1].cpu().numpy(), found[0])
        return found[0]

    @ps.model(name="sum")
    def total(x: ps.F32[CHANNELS, SIZE, SIZE]) -> ps.F32:
        assert type(x) is np.ndarray
        return x.sum(axis=(1, 2, 3), dtype=np.float64).astype(np.float32)

    served.add(total)
    x = picture(SIZE)
    np.testing.assert_array_equal(run(served, body, x), through_the_host(engines, x))


def test_a_call_waits_for_the_stream_that_it_is_made_on(served: ps.Server, engines: tuple[Engine, Engine]) -> None:
    busy = torch.randn(WIDE, WIDE, device="cuda")
    side = torch.cuda.Stream()

    async def body(x: Array) -> Any:
        maps = await detect.on_device(x)
        await score(maps)  # captures
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            product = busy
            for _ in range(5):
                product = product @ busy * 1e-4
            late = torch.zeros_like(maps).copy_(maps)
            call = score(late)
        return await call

    x = picture(SIZE)
    np.testing.assert_array_equal(run(served, body, x), through_the_host(engines, x))


def test_more_rows_than_a_bucket_are_joined_and_split(engines: tuple[Engine, Engine]) -> None:
    x = np.stack([picture(SIZE, seed) for seed in range(9)])
    instance = engines[0].instance()
    there = rows(torch.from_numpy(x[2:7]).cuda(), row=False)
    on_host, (found,) = instance.execute_on_device({"x": [x[:2], there, x[7:]]}, [(1, 8)], host=True)
    expected = engines[0](x=x)["second_relu"]
    assert on_host is not None
    np.testing.assert_allclose(on_host["second_relu"], expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(found["second_relu"].cpu().numpy(), on_host["second_relu"][1:8])
    instance.close()


def test_many_requests_share_batches_and_mix_nothing(served: ps.Server, engines: tuple[Engine, Engine]) -> None:
    """Half of them by the host, half on the GPU, with one kept while the next is under way."""
    pictures = [picture(SIZE, seed) for seed in range(8)]
    expected = [through_the_host(engines, x) for x in pictures]

    async def body(x: Array) -> Any:
        maps = await ps.gather([detect.on_device(x), detect(x), detect.on_device(x)])
        answers = await ps.gather([score(each) for each in maps])
        for each in answers[1:]:
            np.testing.assert_allclose(each, answers[0], rtol=1e-3, atol=1e-4)
        return answers[0]

    def work(client: Client, number: int) -> None:
        for turn in range(20):
            which = (number + turn) % len(pictures)
            found = client.infer("p", x=pictures[which]).arrays["y"]
            np.testing.assert_allclose(found, expected[which], rtol=1e-3, atol=1e-4)

    add(served, body)
    at_once(served, work, 16)
    with Client(served) as client:
        for name in ("detector", "scorer"):
            assert max(batch_sizes(client.statistics(name))) > 1


def test_what_was_cancelled_is_given_back(served: ps.Server, engines: tuple[Engine, Engine]) -> None:
    """Calls that wait, calls under way and answers that nobody took: no memory of the GPU is left with any of them."""
    del engines

    async def body(x: Array) -> Any:
        maps = await detect.on_device(x)
        dropped = [asyncio.ensure_future(score.on_device(maps * number)) for number in range(12)]
        dropped += [asyncio.ensure_future(detect.on_device(x)) for _ in range(12)]
        found = await score(maps)
        for each in dropped[::2]:
            each.cancel()
        await asyncio.sleep(0)
        return found  # the others are cancelled with the request

    x = picture(SIZE)
    add(served, body)
    expected = infer(served, "p", x=x).arrays["y"]
    before = _allocated()
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: infer(served, "p", x=x).arrays["y"], range(64)):
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    eventually("what was cancelled is given back", lambda: _allocated() <= before + (1 << 20))


def test_a_gpu_that_is_full_refuses_the_call_and_serves_the_next(
    served: ps.Server, engines: tuple[Engine, Engine]
) -> None:
    async def body(x: Array) -> Any:
        held: list[Any] = []
        with pytest.raises(ResourceExhausted, match="no memory left"):
            await _until_it_is_full(held, np.stack([x] * 4))
        assert len(held) > 10
        held.clear()
        return await kept(x)

    x = picture(SIZE)
    add(served, body)
    expected = through_the_host(engines, x)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (1 << 28)) / total)
    try:
        np.testing.assert_array_equal(infer(served, "p", x=x).arrays["y"], expected)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def _allocated() -> int:
    gc.collect()
    return int(torch.cuda.memory_allocated())
