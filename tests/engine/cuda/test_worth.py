"""What is tried next: the order that a short time for tuning follows."""

import pytest

pytest.importorskip("torch")

from penstock.engine.cuda import worth
from penstock.engine.cuda.executor import Executor
from tests.engine.cuda.reference import lowered
from tests.graph.small import graph, normal

pytestmark = pytest.mark.torch

FLOOR = 5.0
FIRST = worth.of_ours(20.0, FLOOR, 0, None, first=True)


@pytest.mark.parametrize(
    ("less", "why"),
    [
        (worth.of_ours(20.0, FLOOR, 1, None, first=True), "another idea of the same kernel"),
        (worth.of_ours(40.0, FLOOR, 2, None, first=True), "a third idea of a step twice as long"),
        (worth.of_ours(20.0, FLOOR, 0, None, first=False), "another kernel where one of ours was timed"),
        (worth.of_ours(20.0, FLOOR, 1, 1.0, first=False), "a variant of the best"),
        (worth.of_libraries(20.0, FLOOR, first=False), "a library where something was timed"),
        (worth.of_ours(6.0, FLOOR, 0, None, first=True), "a first idea where little can be saved"),
    ],
)
def test_a_first_idea_is_worth_more_than(less: float, why: str) -> None:
    assert less < FIRST, why


def test_variants_of_what_is_far_behind_are_worth_little() -> None:
    near, far = (worth.of_ours(20.0, FLOOR, 1, behind, first=False) for behind in (1.1, 1.8))
    assert far < near / 4


def test_what_is_as_fast_as_the_chip_is_left_alone() -> None:
    assert worth.of_ours(FLOOR, FLOOR, 1, 1.0, first=False) == 0
    assert worth.of_libraries(FLOOR - 1, FLOOR, first=False) == 0


def test_layers_joined_are_guessed_to_take_libraries_longer_than_one() -> None:
    one = graph("(float[1,8] x) => (float[1,8] y) { y = Gemm (x, w) }", {"w": normal(8, 8)})
    two = graph(
        "(float[1,8] x) => (float[1,8] y) { a = Gemm (x, w) b = Relu(a) y = Gemm (b, v) }",
        {"w": normal(8, 8), "v": normal(8, 8, seed=2)},
    )
    x = {"x": normal(1, 8)}
    guesses = [sum(worth.guess(site) for site in Executor(*lowered(each, x)).sites) for each in (one, two)]
    assert guesses[0] < guesses[1]


def test_the_first_idea_may_come_after_a_later_one() -> None:
    assert worth.of_ours(20.0, FLOOR, 0, 1.1, first=False) == worth.of_ours(20.0, FLOOR, 1, 1.1, first=False)
