"""Batches made of arrays of the host and tensors of the device, on torch's CPU device: everything but streams."""

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from penstock.engine.cuda.device_rows import Rows, joined, lay
from penstock.engine.engine import Engine
from penstock.engine.plan import Reduction
from penstock.errors import InvalidArgument
from penstock.tensors import TensorSpec
from tests.engine.cuda.engines import BUCKETS, TACTIC, compiled, of_programs, pictures, written

pytestmark = pytest.mark.torch

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    path = written(tmp_path_factory.mktemp("form"))
    return of_programs([compiled(path, rows) for rows in BUCKETS], TACTIC)


@pytest.mark.parametrize("host", [False, True])
@pytest.mark.parametrize("sizes", [(1,), (2, 1), (1, 2, 1), (3, 4, 2)])
def test_pieces_are_answered_in_their_order(sizes: tuple[int, ...], host: bool, engine: Engine) -> None:
    """Every other piece lies on the device, and leaves its answer there."""
    x = pictures(sum(sizes))
    ends = np.cumsum((0, *sizes))
    rows = list(itertools.pairwise(ends))
    pieces: list[Any] = [
        x[first:last] if number % 2 else Rows(torch.from_numpy(x[first:last]))
        for number, (first, last) in enumerate(rows)
    ]
    parts = [(int(first), int(last)) for first, last in rows[::2]]
    instance = engine.instance()
    on_host, there = instance.execute_on_device({"x": pieces}, parts, host)
    expected = engine(x=x)["fc"]
    for (first, last), found in zip(parts, there, strict=True):
        assert isinstance(found["fc"], torch.Tensor)
        np.testing.assert_allclose(found["fc"].numpy(), expected[first:last], rtol=1e-5, atol=1e-6)
    assert (on_host is not None) == host
    if on_host is not None:
        np.testing.assert_allclose(on_host["fc"], expected, rtol=1e-5, atol=1e-6)
    instance.close()


def test_rows_without_the_batch_dimension_are_answered_in_their_order(engine: Engine) -> None:
    x = pictures(3)
    instance = engine.instance()
    pieces = [Rows(torch.from_numpy(each), row=True) for each in x]
    for several in (pieces, [pieces[0], x[1:2], pieces[2]], pieces[:1], [*pieces, *pieces]):
        expected = engine(x=np.concatenate([each.on_host() if isinstance(each, Rows) else each for each in several]))
        found, _ = instance.execute_on_device({"x": several}, [], host=True)
        assert found is not None
        np.testing.assert_allclose(found["fc"], expected["fc"], rtol=1e-5, atol=1e-6)
    instance.close()


def test_answers_share_no_memory_with_the_context(engine: Engine) -> None:
    instance = engine.instance()
    (_, (first,)) = instance.execute_on_device({"x": [pictures(4)]}, [None], host=False)
    kept = first["fc"].clone()
    instance.execute_on_device({"x": [pictures(4, 1)]}, [None], host=False)
    assert torch.equal(first["fc"], kept)
    instance.close()


def test_an_engine_that_reduces_its_outputs_answers_on_the_host(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine.answers_on_device
    reduces = dataclasses.replace(engine.manifest, reductions=(Reduction("fc", axis=1),))
    monkeypatch.setattr(engine, "_sealed", dataclasses.replace(engine._sealed, manifest=reduces))
    assert not engine.answers_on_device


def test_an_engine_with_a_program_on_the_host_answers_there(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_programs", {**engine._programs, 9: object()})
    assert not engine.answers_on_device


def test_bfloat16_of_the_host_travels_as_words() -> None:
    spec = TensorSpec("x", "BF16", (-1,))
    x = torch.tensor([1.5, -2.0, 3.0], dtype=torch.bfloat16)
    rows = Rows(x[:1])
    assert (rows.datatype, rows.shape) == ("BF16", (1,))
    pieces = {"x": [rows, x[1:].view(torch.uint16).numpy()]}
    assert torch.equal(joined([spec], pieces, CPU).tensors["x"], x)
    target = torch.zeros(5, dtype=torch.bfloat16)
    lay([spec], pieces, {"x": target})
    assert target.tolist() == [1.5, -2.0, 3.0, 1.5, 1.5]
    assert rows.on_host().tolist() == x[:1].view(torch.uint16).tolist()


def test_rows_say_what_they_are_and_keep_what_was_given() -> None:
    strided = torch.arange(6, dtype=torch.int64).reshape(2, 3).T
    rows = Rows(strided)
    assert (rows.datatype, rows.shape) == ("INT64", (3, 2))
    np.testing.assert_array_equal(rows.on_host(), strided.numpy())
    row = Rows(strided, row=True)
    assert (row.shape, row.on_host().shape) == ((1, 3, 2), (1, 3, 2))
    with pytest.raises(InvalidArgument, match="complex64"):
        Rows(torch.zeros(1, dtype=torch.complex64))
    with pytest.raises(InvalidArgument, match="has to be dense"):
        Rows(torch.eye(2).to_sparse())
    with pytest.raises(InvalidArgument, match="can't be taken"):
        Rows(object())
