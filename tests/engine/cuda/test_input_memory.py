"""Inputs that lie where a bucket reads them are not copied by the host; everything else is answered as before."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from penstock.engine.cuda import contexts
from penstock.engine.engine import Engine
from penstock.engine.runtimes.base import Lending
from penstock.errors import InvalidArgument
from tests.engine.cuda.engines import BUCKETS, TACTIC, compiled, of_programs, pictures, written

pytestmark = pytest.mark.torch

ROW = 3 * 64 * 64 * 4


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("form"))


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each copy that a context makes of an input."""
    made: list[int] = []
    copyto = np.copyto

    def counted(target: Any, source: Any) -> None:
        made.append(target.nbytes)
        copyto(target, source)

    monkeypatch.setattr(contexts.np, "copyto", counted)
    return made


@pytest.mark.parametrize("rows", BUCKETS)
def test_a_batch_in_the_memory_is_not_copied(rows: int, path: Path, copies: list[int]) -> None:
    runtime = compiled(path, rows)
    expected = runtime(x=pictures(rows))["fc"]
    assert copies == [rows * ROW]
    instance = runtime.instance()
    memory = instance.input_memory()["x"]
    assert memory.nbytes == rows * ROW
    lent = memory.view(np.float32).reshape(rows, 3, 64, 64)
    lent[:] = pictures(rows)
    np.testing.assert_array_equal(instance.execute({"x": lent})["fc"], expected)
    assert copies == [rows * ROW]


def test_buckets_of_one_instance_read_the_same_memory(path: Path, copies: list[int]) -> None:
    runtime = compiled(path, None)
    instance = runtime.instance()
    memory = instance.input_memory()["x"]
    assert memory.nbytes == max(BUCKETS) * ROW
    for rows in (1, 4, 1, 4):
        x = pictures(rows, rows)
        lent = memory[: rows * ROW].view(np.float32).reshape(x.shape)
        lent[:] = x
        found = instance.execute({"x": lent})["fc"]
        assert not copies
        np.testing.assert_array_equal(found, runtime(x=x)["fc"])
        copies.clear()


def test_programs_share_memory_that_one_of_them_made(path: Path, copies: list[int]) -> None:
    programs = [compiled(path, rows) for rows in BUCKETS]
    assert all(isinstance(program, Lending) for program in programs)
    memory = programs[0].memory({"x": 4 * ROW})
    for rows, program in zip(BUCKETS, programs, strict=True):
        x = pictures(rows, rows)
        lent = memory.bytes["x"][: rows * ROW].view(np.float32).reshape(x.shape)
        lent[:] = x
        found = program.instance(memory).execute({"x": lent})["fc"]
        assert not copies
        np.testing.assert_array_equal(found, program(x=x)["fc"])
        copies.clear()


def test_what_an_execution_returned_stays_when_the_memory_is_written_again(path: Path) -> None:
    instance = compiled(path, 4).instance()
    lent = instance.input_memory()["x"].view(np.float32).reshape(4, 3, 64, 64)
    lent[:] = pictures(4)
    first = instance.execute({"x": lent})["fc"]
    kept = first.copy()
    lent[:] = pictures(4, 1)
    second = instance.execute({"x": lent})["fc"]
    np.testing.assert_array_equal(first, kept)
    assert not np.array_equal(first, second)


def test_memory_of_something_else_is_refused(path: Path) -> None:
    class Other:
        def __init__(self) -> None:
            self.bytes: dict[str, Any] = {}

    with pytest.raises(InvalidArgument, match="memory that this runtime made"):
        compiled(path, 1).instance(Other())


# ---- an engine of several programs ----


@pytest.fixture(scope="module")
def engine(path: Path) -> Engine:
    """The larger bucket costs next to nothing more, so that a batch between them is padded."""
    return of_programs([compiled(path, rows) for rows in BUCKETS], TACTIC)


@pytest.mark.parametrize(
    ("rows", "copied"),
    [(1, []), (4, []), (2, []), (3, []), (5, [1]), (8, [4]), (9, [4, 1])],
    ids=lambda value: str(value) if isinstance(value, int) else "",
)
def test_a_batch_between_buckets_is_filled_up_where_it_lies(
    rows: int, copied: list[int], engine: Engine, copies: list[int]
) -> None:
    """What lies behind the first bucket of a large batch is the only thing that is copied."""
    x = pictures(rows, rows)
    expected = engine(x=x)["fc"]
    copies.clear()
    instance = engine.instance()
    memory = instance.input_memory()["x"]
    assert memory.nbytes == 4 * ROW
    if rows <= 4:
        given = memory[: rows * ROW].view(np.float32).reshape(x.shape)
        given[:] = x
    else:
        given = x  # does not fit: it comes elsewhere, as a whole
        copied = [4, *copied]
    for _ in range(2):
        np.testing.assert_allclose(instance.execute({"x": given})["fc"], expected, rtol=1e-5, atol=1e-6)
    assert copies == [each * ROW for each in copied] * 2


def test_rows_behind_a_batch_are_filled_with_its_first(engine: Engine) -> None:
    instance = engine.instance()
    memory = instance.input_memory()["x"].view(np.float32).reshape(4, 3, 64, 64)
    memory[:] = np.nan
    memory[:2] = pictures(2)
    assert np.isfinite(instance.execute({"x": memory[:2]})["fc"]).all()
    np.testing.assert_array_equal(memory[2:], np.stack([memory[0]] * 2))


def test_memory_is_made_before_any_call_or_not_at_all(engine: Engine) -> None:
    instance = engine.instance()
    instance.execute({"x": pictures(1)})
    assert instance.input_memory() == {}
