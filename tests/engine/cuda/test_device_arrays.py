"""Calls whose arrays are tensors of the runtime's device, on torch's CPU device: everything but streams.

With streams, and where the tensors lie on a GPU: `tests/gpu/test_device_arrays.py`.
"""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from penstock.engine.cuda.device_arrays import taken
from penstock.engine.device_calls import DeviceWorker, lies_on_gpu
from penstock.engine.engine import Engine
from penstock.errors import InvalidArgument, Unsupported
from penstock.tensors import TensorSpec
from tests.engine.cuda.engines import BUCKETS, TACTIC, compiled, of_programs, pictures, written

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    path = written(tmp_path_factory.mktemp("form"))
    return of_programs([compiled(path, rows) for rows in BUCKETS], TACTIC)


class OnlyDLPack:
    """A tensor of another library."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def __dlpack__(self, **options: Any) -> Any:
        return self._tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._tensor.__dlpack_device__()


@pytest.mark.parametrize("kind", [torch.from_numpy, lambda x: OnlyDLPack(torch.from_numpy(x)), lambda x: x])
@pytest.mark.parametrize("rows", [1, 2, 4, 5, 9])
def test_tensors_are_answered_with_tensors(rows: int, kind: Any, engine: Engine) -> None:
    x = pictures(rows, rows)
    worker = DeviceWorker(engine)
    found = worker.execute(worker.taken({"x": kind(x)}))["fc"]
    assert isinstance(found, torch.Tensor)
    np.testing.assert_allclose(found.numpy(), engine(x=x)["fc"], rtol=1e-5, atol=1e-6)
    worker.close()


def test_answers_stay_as_they_are(engine: Engine) -> None:
    worker = DeviceWorker(engine)
    call = worker.taken({"x": pictures(4)})
    first = worker.execute(call)["fc"]
    kept = first.clone()
    worker.execute(worker.taken({"x": pictures(4, 1)}))
    assert torch.equal(first, kept)


def test_a_context_leaves_answers_where_they_were_asked_for(engine: Engine) -> None:
    x = pictures(2)
    expected = engine(x=x)["fc"]
    with engine.context(outputs="device") as context:
        found = context.enqueue(x=x).result()["fc"]
    assert isinstance(found, torch.Tensor)
    np.testing.assert_array_equal(found.numpy(), expected)
    with engine.context() as context:
        answer = context.enqueue(x=torch.from_numpy(x)).result()["fc"]
    assert isinstance(answer, np.ndarray)
    np.testing.assert_array_equal(answer, expected)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, "missing"),
        ({"x": torch.zeros(1, 3, 64, 64), "y": torch.zeros(1)}, "unexpected input 'y'"),
        ({"x": torch.zeros(1, 3, 64, 64, dtype=torch.float16)}, "FP32, got a tensor of torch.float16"),
        ({"x": torch.zeros(1, 3, 64, 65)}, "shape"),
        ({"x": torch.zeros(3, 64, 64)}, "shape"),
        ({"x": object()}, "can't be taken"),
    ],
)
def test_what_does_not_fit_is_refused_at_once(arrays: dict[str, Any], words: str, engine: Engine) -> None:
    with engine.context(outputs="device") as context, pytest.raises(InvalidArgument, match=words):
        context.enqueue(**arrays)


def test_bfloat16_is_taken_as_tensor_and_as_it_travels() -> None:
    spec = (TensorSpec("x", "BF16", (-1,)),)
    x = torch.tensor([1.5, -2.0], dtype=torch.bfloat16)
    for given in (x, x.view(torch.uint16).numpy()):
        assert torch.equal(taken(spec, {"x": given}, torch.device("cpu")).tensors["x"], x)


def test_arrays_say_where_they_lie() -> None:
    class OnGpu:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

    assert lies_on_gpu(OnGpu())
    assert not any(map(lies_on_gpu, (np.zeros(1), torch.zeros(1), [1], 1)))


def test_an_engine_without_a_gpu_says_so(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGpu:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

    class Elsewhere:
        name = "openvino"

    monkeypatch.setattr(engine, "_programs", {0: Elsewhere()})
    monkeypatch.setattr(engine, "_available", frozenset({0}))
    worker = DeviceWorker(engine)
    with pytest.raises(Unsupported, match="runs on the CPU"):
        worker.taken({"x": OnGpu()})
