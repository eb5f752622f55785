"""Tensors on the GPU go into an engine and come out of it there, in the order of the streams that use them."""

import threading

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from penstock.engine.cuda.contexts import InputMemory
from penstock.engine.engine import Engine
from tests.engine.cuda.engines import BUCKETS, TACTIC, compiled, of_programs, pictures, written

pytestmark = pytest.mark.gpu

# Of a product that keeps the GPU busy for some milliseconds.
WIDE = 8192


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no NVIDIA GPU")
    path = written(tmp_path_factory.mktemp("form"))
    return of_programs([compiled(path, rows, "cuda:0") for rows in BUCKETS], TACTIC)


def close(found: object, expected: np.ndarray) -> None:
    assert isinstance(found, torch.Tensor)
    assert found.is_cuda
    np.testing.assert_allclose(found.cpu().numpy(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 2, 4, 5, 9])
def test_tensors_are_answered_with_tensors(rows: int, engine: Engine) -> None:
    x = pictures(rows, rows)
    expected = engine(x=x)["fc"]
    with engine.context(outputs="device") as context:
        close(context.enqueue(x=torch.from_numpy(x).cuda()).result()["fc"], expected)
    with engine.context() as context:
        answer = context.enqueue(x=torch.from_numpy(x).cuda()).result()["fc"]
    assert isinstance(answer, np.ndarray)
    np.testing.assert_allclose(answer, expected, rtol=1e-3, atol=1e-4)


def test_a_call_waits_for_what_makes_its_inputs(engine: Engine) -> None:
    """The tensor is not there yet when it is handed over: only its place is."""
    x = pictures(4, 3)
    expected = engine(x=x)["fc"]
    source = torch.from_numpy(x).cuda()
    busy = torch.randn(WIDE, WIDE, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with engine.context(outputs="device") as context:
        context.enqueue(x=source).result()  # captures, which waits for the device
        torch.cuda.synchronize()
        for stream in (torch.cuda.current_stream(), side):
            with torch.cuda.stream(stream):
                late = torch.zeros_like(source)
                for _ in range(5):
                    busy = busy @ busy * 1e-4
                late.copy_(source)
                future = context.enqueue(x=late)
            close(future.result()["fc"], expected)


def test_answers_may_be_used_on_any_stream_and_outlive_the_context(engine: Engine) -> None:
    arrays = [pictures(4, seed) for seed in range(8)]
    expected = [engine(x=x)["fc"] for x in arrays]
    with engine.context(outputs="device") as context:
        futures = [context.enqueue(x=torch.from_numpy(x).cuda()) for x in arrays]
        answers = [future.result()["fc"] for future in futures]
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        doubled = [answer * 2 for answer in answers]
    side.synchronize()
    for found, right in zip(doubled, expected, strict=True):
        close(found / 2, right)


def test_threads_with_contexts_of_their_own_don_t_mix_answers(engine: Engine) -> None:
    arrays = [pictures(rows, rows) for rows in (1, 3, 4, 6)]
    expected = [engine(x=x)["fc"] for x in arrays]
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream), engine.context(outputs="device") as context:
                x = torch.from_numpy(arrays[number]).cuda()
                for _ in range(50):
                    close(context.enqueue(x=x).result()["fc"], expected[number])
        except BaseException as failure:  # told by the thread that waits
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(arrays))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_lent_memory_is_pinned_and_read_by_the_graph(engine: Engine) -> None:
    instance = engine.instance()
    memory = instance.input_memory()["x"]
    assert torch.from_numpy(memory).is_pinned()
    for rows in (4, 1, 3, 4):
        x = pictures(rows, 10 + rows)
        lent = memory[: x.nbytes].view(np.float32).reshape(x.shape)
        lent[:] = x
        np.testing.assert_array_equal(instance.execute({"x": lent})["fc"], engine(x=x)["fc"])
    assert isinstance(instance._memory, InputMemory)
