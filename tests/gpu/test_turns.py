"""Graphs that take turns: the same answers, and no two of them compute at once, however many threads call."""

import itertools
import threading

import numpy as np
import pytest

pytest.importorskip("torch")

from penstock.engine.cuda.contexts import GraphContext, InputMemory
from penstock.engine.cuda.executor import Executor
from penstock.engine.cuda.timeline import timeline
from penstock.engine.cuda.turns import Turns
from tests.engine.cuda.reference import lowered
from tests.gpu.conftest import DEVICE
from tests.graph.residual_network import resnet34
from tests.graph.small import normal

pytestmark = [pytest.mark.gpu, pytest.mark.torch]

CONTEXTS = 3
CALLS = 20


@pytest.fixture(scope="module")
def executor() -> Executor:
    return Executor(*lowered(resnet34(), {"x": normal(2, 3, 64, 64)}), DEVICE, "fp16")


def test_only_one_computes_and_others_copy(executor: Executor) -> None:
    spans = timeline(executor, {"x": normal(2, 3, 64, 64)}, CONTEXTS, CALLS, Turns())
    computing = sorted((each.begin, each.end) for each in spans if each.part == "compute")
    assert len(computing) == CONTEXTS * CALLS
    # Events are told apart to half a microsecond, in milliseconds of single precision.
    assert all(first[1] <= second[0] + 2e-3 for first, second in itertools.pairwise(computing))
    of_one = [each for each in spans if (each.context, each.call) == (1, CALLS - 1)]
    assert [each.part for each in of_one] == ["host copy in", "copy in", "compute", "copy out", "host copy out"]
    assert all(before.end <= after.begin for before, after in itertools.pairwise(of_one[1:4]))


def test_threads_get_their_own_answers_with_the_bits_of_a_graph_that_waits_for_nobody(executor: Executor) -> None:
    turns = Turns()
    pictures = [{"x": normal(2, 3, 64, 64, seed=seed)} for seed in range(CONTEXTS)]
    alone = GraphContext(executor, InputMemory.of([executor]))
    right = [alone.run(each)["y"].copy() for each in pictures]
    contexts = [GraphContext(executor, InputMemory.of([executor]), turns=turns) for _ in pictures]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(CALLS):
            if not np.array_equal(contexts[number].run(pictures[number])["y"], right[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(CONTEXTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
