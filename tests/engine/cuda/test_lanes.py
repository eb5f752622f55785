"""Two lanes: whatever a step reads is over before it begins, in every order that the waits allow."""

import random
from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")

from penstock.engine.cuda.lanes import Lanes, beside, handed_over, plan
from penstock.engine.lowered import LoweredGraph
from penstock.errors import InvalidArgument
from tests.engine.cuda.reference import lowered
from tests.graph.small import graph, normal

pytestmark = pytest.mark.torch

# Pools of four maps that a chain of convolutions makes, and layers of them, added up at the end.
PYRAMID = """(float[1,8,32,32] x) => (float[1,8,32,32] y) {
    a = Conv <pads=[1,1,1,1]> (x, w1) b = Conv <pads=[1,1,1,1]> (a, w2) c = Conv <pads=[1,1,1,1]> (b, w3)
    p = Softmax <axis=1> (a) q = Softmax <axis=1> (b) i = Softmax <axis=2> (p) j = Softmax <axis=2> (q)
    d = Conv <pads=[1,1,1,1]> (c, w4) e = Conv <pads=[1,1,1,1]> (d, w5)
    s = MatMul(i, j) t = MatMul(s, e) y = Softmax <axis=3> (t) }"""
CHAIN = """(float[1,8,32,32] x) => (float[1,8,32,32] y) {
    a = Conv <pads=[1,1,1,1]> (x, w1) b = Conv <pads=[1,1,1,1]> (a, w2) y = Softmax <axis=1> (b) }"""


def network(text: str) -> ir.Model:
    names = [f"w{number}" for number in range(1, 6) if f"w{number}" in text]
    return graph(text, {name: normal(8, 8, 3, 3, seed=number) / 8 for number, name in enumerate(names)})


def steps_of(text: str) -> LoweredGraph:
    found, _ = lowered(network(text), {"x": normal(1, 8, 32, 32)})
    return found


def orders(count: int, lanes: Lanes, tries: int) -> Iterable[list[int]]:
    """Steps in orders of their ends that keep to the lanes and the waits, chosen by lot."""
    lot = random.Random(5)
    for _ in range(tries):
        left = [[n for n in range(count) if (n in lanes.side) == here] for here in (False, True)]
        order: list[int] = []
        while any(left):
            ready = [lane for lane in left if lane and lanes.waits.get(lane[0], -1) in (-1, *order)]
            assert ready, "the lanes wait for each other"
            order.append(lot.choice(ready).pop(0))
        yield order


def test_what_is_read_is_over() -> None:
    found = steps_of(PYRAMID)
    lanes = plan(found)
    assert lanes.side
    for order in orders(len(found.steps), lanes, 50):
        made: set[str] = {each.name for each in found.inputs} | found.weights.keys()
        for number in order:
            assert {each.value for each in found.steps[number].inputs} <= made
            made |= set(found.steps[number].outputs)


@pytest.mark.parametrize("seed", range(20))
def test_any_side_keeps_the_order_of_reads(seed: int) -> None:
    found = steps_of(PYRAMID)
    lot = random.Random(seed)
    side = frozenset(lot.sample(range(len(found.steps)), lot.randint(1, len(found.steps) - 1)))
    lanes = beside(found, side)
    assert lanes.last == max(side)
    for order in orders(len(found.steps), lanes, 5):
        made: set[str] = {each.name for each in found.inputs} | found.weights.keys()
        for number in order:
            assert {each.value for each in found.steps[number].inputs} <= made
            made |= set(found.steps[number].outputs)


def test_a_step_is_behind_the_one_of_its_lane_unless_it_waits() -> None:
    found = steps_of(PYRAMID)
    lanes = plan(found)
    for number in range(len(found.steps)):
        ahead = lanes.behind(number)
        if number in lanes.waits:
            assert ahead is None
        elif ahead is not None:
            assert (ahead in lanes.side) == (number in lanes.side)
            assert not any((each in lanes.side) == (number in lanes.side) for each in range(ahead + 1, number))


def test_what_one_lane_makes_and_the_other_reads_is_handed_over() -> None:
    found = steps_of(CHAIN)
    first, second = (each.outputs[0] for each in found.steps[:2])
    assert handed_over(found, beside(found, frozenset({0}))) == {first}
    assert handed_over(found, beside(found, frozenset({1}))) == {first, second}
    assert handed_over(found, Lanes()) == set()


def test_the_same_graph_gets_the_same_lanes() -> None:
    assert plan(steps_of(PYRAMID)) == plan(steps_of(PYRAMID))


def test_a_step_that_is_not_there_is_refused() -> None:
    found = steps_of(CHAIN)
    assert beside(found, frozenset()) == Lanes()
    with pytest.raises(InvalidArgument, match="beside the others"):
        beside(found, frozenset({len(found.steps)}))


def test_a_chain_has_one_lane() -> None:
    assert plan(steps_of(CHAIN)) == Lanes()


def test_what_fills_the_gpu_has_one_lane() -> None:
    model = network(PYRAMID.replace("1,8,32,32", "1,8,2048,2048"))
    found, _ = lowered(model, {"x": np.broadcast_to(np.float32(0), (1, 8, 2048, 2048))})
    assert plan(found) == Lanes()
