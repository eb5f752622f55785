"""Sixteen threads on one engine for as long as asked: every answer has the bits of a call that was alone.

PENSTOCK_SOAK_SECONDS says how long, ten seconds by default; PENSTOCK_SOAK_ENGINE names an engine file with one input
to take, in the place of a small network with buckets of 1, 8 and 64 rows that is built here.
"""

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("torch")

import penstock as ps
from penstock import graph
from tests.quantize import networks

pytestmark = pytest.mark.gpu

SECONDS = float(os.environ.get("PENSTOCK_SOAK_SECONDS", "10"))
GIVEN = os.environ.get("PENSTOCK_SOAK_ENGINE", "")
THREADS = 16
ROWS = (1, 2, 7, 8, 9, 30, 64, 65)
CALLS_OF_A_CONTEXT = 20

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Call:
    rows: int
    inputs: dict[str, Array]
    answers: dict[str, Array]


@dataclass
class Found:
    """What one thread saw."""

    calls: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def compare(self, call: Call, answers: dict[str, Array]) -> None:
        self.calls[call.rows] += 1
        for name, right in call.answers.items():
            if not np.array_equal(answers[name], right):
                self.wrong.append(f"{call.rows} rows: {name} is {distance(answers[name], right):.1e} off")


def distance(found: Array, right: Array) -> float:
    return float(np.linalg.norm(found.astype(np.float64) - right) / np.linalg.norm(right.astype(np.float64)))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> ps.Engine:
    """As whoever serves it has it: from a file."""
    if GIVEN:
        return ps.load(GIVEN)
    folder = tmp_path_factory.mktemp("soak")
    graph.save(networks.residual(), folder / "m.onnx")
    ps.build(
        folder / "m.onnx", device="cuda:0", shapes="x:1x3x64x64,64x3x64x64,64x3x64x64", buckets=(1, 8, 64),
        budget_seconds=20, output=folder / "m.engine",
    ).close()  # fmt: skip
    return ps.load(folder / "m.engine")


def by_calling(engine: ps.Engine, calls: Iterator[Call], found: Found) -> None:
    for call in calls:
        found.compare(call, engine(**call.inputs))


def two_in_flight(engine: ps.Engine, calls: Iterator[Call], found: Found) -> None:
    with engine.context() as first, engine.context() as second:
        for one, two in zip(calls, calls, strict=False):
            futures = first.enqueue(**one.inputs), second.enqueue(**two.inputs)
            for call, future in zip((one, two), futures, strict=True):
                found.compare(call, future.result())


def new_contexts(engine: ps.Engine, calls: Iterator[Call], found: Found) -> None:
    """Captures and what is given back, while the others run; every other one is urgent."""
    for number, call in enumerate(calls):
        with engine.context(priority=-5 * (number % 2)) as context:
            for future in [context.enqueue(**call.inputs) for _ in range(CALLS_OF_A_CONTEXT)]:
                found.compare(call, future.result())


WAYS: tuple[Callable[[ps.Engine, Iterator[Call], Found], None], ...] = (
    by_calling, by_calling, two_in_flight, new_contexts,
)  # fmt: skip


def test_many_threads_on_one_engine_get_their_own_answers(engine: ps.Engine) -> None:
    (spec,) = engine.inputs
    random = np.random.default_rng(5)
    pool = []
    for rows in ROWS:
        inputs = {spec.name: random.standard_normal((rows, *spec.shape[1:])).astype(spec.dtype)}
        pool.append(Call(rows, inputs, engine(**inputs)))
    found = [Found() for _ in range(THREADS)]
    failures: list[Exception] = []
    until = time.monotonic() + SECONDS

    def calls(number: int) -> Iterator[Call]:
        own = np.random.default_rng(number)
        while time.monotonic() < until:
            yield pool[int(own.integers(len(pool)))]

    def work(number: int) -> None:
        try:
            WAYS[number % len(WAYS)](engine, calls(number), found[number])
        except Exception as failure:  # told by the thread that waits
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wrong = [each for one in found for each in one.wrong]
    whole = sum((each.calls for each in found), Counter[int]())
    least = min(each.calls.total() for each in found)
    print(f"{SECONDS:g} s: {whole.total()} calls, {least} of a thread at least; {len(wrong)} wrong, {failures[:2]}")
    assert not failures
    assert not wrong, (len(wrong), wrong[:10])
    assert all(each.calls for each in found)
    assert set(whole) == set(ROWS)
