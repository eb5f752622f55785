"""NVTX ranges: where they are wanted every call and step has one, and they are closed whatever happens inside."""

import pytest

pytest.importorskip("torch")

import torch

from penstock.engine.cuda import ranges
from penstock.engine.cuda.executor import Executor
from tests.engine.cuda.reference import lowered
from tests.graph.small import graph, normal

pytestmark = pytest.mark.torch


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a profiler would be told."""
    found: list[str] = []
    monkeypatch.setattr(ranges, "ON", True)
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", found.append)
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda: found.append("end"))
    return found


def test_off_nothing_is_said() -> None:
    assert not ranges.ON
    with ranges.named("a"):
        pass  # without a GPU torch would raise


def test_every_step_has_a_range_that_ends(said: list[str]) -> None:
    model = graph("(float[2,4] x) => (float[2,3] y) { a = Relu(x) y = MatMul(a, w) }", {"w": normal(4, 3)})
    executor = Executor(*lowered(model, {"x": normal(2, 4)}))
    executor.run({"x": torch.ones(2, 4)})
    names = [bound.name for bound in executor.program]
    assert said == [word for name in names for word in (name, "end")]


def test_a_range_ends_with_an_error(said: list[str]) -> None:
    with pytest.raises(ValueError, match="inside"), ranges.named("a"):
        raise ValueError("inside")
    assert said == ["a", "end"]
