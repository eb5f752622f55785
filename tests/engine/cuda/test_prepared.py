"""An instance that a server takes has its contexts before the first batch; what a program makes for itself waits."""

from typing import Any

import pytest

pytest.importorskip("torch")

from penstock.backends.engine import BorrowedEngineBackend
from penstock.engine.cuda import buckets
from penstock.engine.engine import Engine
from penstock.errors import ResourceExhausted
from penstock.repository.models import from_runtime
from tests.engine.cuda.engines import BUCKETS, TACTIC, compiled, of_programs, pictures, written

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    path = written(tmp_path_factory.mktemp("form"))
    return of_programs([compiled(path, rows) for rows in BUCKETS], TACTIC)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each context as it is made."""
    found: list[int] = []

    class Counted(buckets.HostContext):
        def __init__(self, executor: Any, memory: Any) -> None:
            found.append(executor.graph.inputs[0].shape[0])
            super().__init__(executor, memory)

    monkeypatch.setattr(buckets, "HostContext", Counted)
    return found


def test_the_contexts_of_a_served_instance_are_there_before_its_first_batch(engine: Engine, made: list[int]) -> None:
    instance = BorrowedEngineBackend(engine).instance(0, 1, None)
    assert made == sorted(BUCKETS, reverse=True)  # the largest first
    for rows in (1, 2, 4, 9):
        instance.execute({"x": pictures(rows)})
    assert len(made) == len(BUCKETS)


def test_instances_do_not_share_contexts(engine: Engine, made: list[int]) -> None:
    backend = BorrowedEngineBackend(engine)
    for number in range(3):
        backend.instance(number, 3, None)
    assert len(made) == 3 * len(BUCKETS)


def test_memory_is_lent_after_preparing(engine: Engine) -> None:
    instance = engine.instance()
    instance.prepare()
    assert instance.input_memory()["x"].nbytes == pictures(max(BUCKETS)).nbytes


def test_an_instance_of_a_program_makes_contexts_as_they_are_called_for(engine: Engine, made: list[int]) -> None:
    engine.instance().execute({"x": pictures(1)})
    assert made == [1]


def test_a_device_that_has_no_memory_for_all_refuses_the_instance(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(executor: Any, memory: Any) -> Any:
        if executor.graph.inputs[0].shape[0] == min(BUCKETS):
            raise RuntimeError("CUDA error: out of memory")
        return buckets.HostContext

    monkeypatch.setattr(buckets, "HostContext", full)
    with pytest.raises(ResourceExhausted, match="serve fewer instances or smaller buckets"):
        BorrowedEngineBackend(engine).instance(0, 1, None)


def test_an_engine_on_a_gpu_has_two_instances_unless_told_otherwise(engine: Engine) -> None:
    assert from_runtime(engine, "m").config.instance_count == 2
    assert from_runtime(engine, "m", instances=1).config.instance_count == 1
    assert from_runtime(engine, "m", instances=3).config.instance_count == 3
