"""Which graphs take turns on a GPU, by their arithmetic alone; and in which order they launch."""

import threading

import pytest

pytest.importorskip("torch")

import itertools

from penstock.engine.cuda.turns import Turns, fills
from penstock.engine.lowered import Input, LoweredGraph, Operand, Output, Step, Value, Weight

pytestmark = pytest.mark.torch


def products(rows: int, layers: int) -> LoweredGraph:
    """A chain of products with 1024 x 1024 weights."""
    names = [f"v{number}" for number in range(layers + 1)]
    values = {name: Value((rows, 1024), "FP16") for name in names}
    steps = tuple(
        Step(after, "gemm", (Operand(before, "x"), Operand("w", "weight")), (after,))
        for before, after in itertools.pairwise(names)
    )
    ends = (Input(names[0], (rows, 1024), "FP16"),), (Output(names[-1], names[-1], (rows, 1024)),)
    return LoweredGraph(*ends, values, {"w": Weight((1024, 1024), "FP16")}, steps)


@pytest.mark.parametrize(("rows", "layers", "takes"), [(1, 50, False), (64, 50, False), (12800, 50, True)])
def test_graphs_with_much_work_take_turns(rows: int, layers: int, takes: bool) -> None:
    assert fills(products(rows, layers)) is takes


class Stream:
    """Takes down what is asked of it."""

    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name = log, name

    def wait_event(self, event: "Event") -> None:
        self.log.append(f"{self.name} waits for {event.name}")


class Event:
    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name = log, name

    def record(self, stream: Stream) -> None:
        self.log.append(f"{self.name} on {stream.name}")


def test_each_waits_for_the_one_before_it() -> None:
    log: list[str] = []
    turns = Turns()
    for name in "abca":
        turns.take(Stream(log, name), lambda name=name: log.append(f"launch {name}"), Event(log, f"done {name}"))
    assert log == [
        "launch a", "done a on a",
        "b waits for done a", "launch b", "done b on b",
        "c waits for done b", "launch c", "done c on c",
        "a waits for done c", "launch a", "done a on a",
    ]  # fmt: skip


def test_nobody_launches_between_a_wait_and_what_waits() -> None:
    log: list[str] = []
    turns = Turns()
    start = threading.Barrier(8)

    def work(name: str) -> None:
        start.wait()
        for _ in range(50):
            turns.take(Stream(log, name), lambda: log.append(f"launch {name}"), Event(log, f"done {name}"))

    threads = [threading.Thread(target=work, args=(str(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    launched = [each for each in log if each.startswith("launch")]
    assert len(launched) == 400
    assert [each for each in log if "waits" in each] == [
        f"{after[-1]} waits for done {before[-1]}" for before, after in itertools.pairwise(launched)
    ]
