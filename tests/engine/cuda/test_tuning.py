"""The tuner: what it times, what it loses, when it stops; and choices as data."""

from collections.abc import Callable, Iterator, Sequence

import pytest

pytest.importorskip("torch")

import torch

from penstock.engine.cuda.choices import Choice, from_json, to_json
from penstock.engine.cuda.executor import Executor
from penstock.engine.cuda.implementations import IMPLEMENTATIONS, Implementation, register
from penstock.engine.cuda.sites import Run, Site
from penstock.engine.cuda.timers import Call
from penstock.engine.cuda.trials import disagreement
from penstock.engine.cuda.tuner import tune
from penstock.engine.cuda.workspace import Needs, current, working_in
from penstock.engine.lowered import LoweredGraph
from penstock.errors import Internal, InvalidArgument, Unsupported
from penstock.graph.lowering import Weights
from tests.engine.cuda.reference import lowered
from tests.graph.small import graph, normal

pytestmark = pytest.mark.torch

# Two convolutions alike, one that is not, and another kind of step.
NETWORK = """(float[1,6,6,6] x) => (float[1,8] y) {
    a = Conv <pads=[1,1,1,1]> (x, w1) r = Relu(a) b = Conv <pads=[1,1,1,1]> (r, w2) s = Relu(b)
    c = Conv (s, w3) p = GlobalAveragePool(c) y = Flatten(p) }"""
WEIGHTS = {
    "w1": normal(6, 6, 3, 3, seed=1) / 6,
    "w2": normal(6, 6, 3, 3, seed=2) / 6,
    "w3": normal(8, 6, 1, 1, seed=3) / 2,
}
MODEL = graph(NETWORK, WEIGHTS)
X = {"x": normal(1, 6, 6, 6)}

Bind = Callable[[Site], Run]


@pytest.fixture(scope="module")
def small() -> tuple[LoweredGraph, Weights]:
    return lowered(MODEL, X)


class Convolutions:
    """Ways of a convolution that cost what they are told to: the stopwatch is theirs."""

    def __init__(self, costs: dict[Choice, float]) -> None:
        self.costs = costs
        self.timed: list[Choice] = []
        self.last = Choice("")

    def bind(self, name: str) -> Bind:
        def bound(site: Site) -> Run:
            run = IMPLEMENTATIONS["conv"]["cudnn"].bind(site)

            def noted(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
                self.last = Choice(name, site.config)
                return run(operands)

            return noted

        return bound

    def time(self, call: Call) -> float:
        self.last = Choice("")
        call()
        self.timed.append(self.last)
        return self.costs.get(self.last, 50.0)


@pytest.fixture
def ways() -> Iterator[Convolutions]:
    found = Convolutions({Choice("fast", (1,)): 20.0, Choice("fast", (2,)): 10.0, Choice("fast", (3,)): 30.0})
    register("conv", "fast", Implementation(found.bind("fast"), configs=lambda site: ((1,), (2,), (3,))))
    yield found
    del IMPLEMENTATIONS["conv"]["fast"]


def test_choices_read_back_are_the_same() -> None:
    row = Choice("triton_row", (64, 32, 64, 4, 3, 2, 8) * 3)
    choices = {"a/conv": Choice("triton", (64, 32, 64, 4, 3, 2, 8)), "b": Choice("cudnn"), "c": row}
    assert from_json(to_json(choices)) == choices


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"a": 1}', '{"a": ["x"]}', '{"a": ["x", [true]]}', '{"a": ["x", [-1]]}', '{"a": [1, []]}',
     '{"a": ["x", [1e9]]}', '{"a": ["x", [99999999]]}', "[" * 100000],
)  # fmt: skip
def test_choices_nobody_wrote_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="choices can't be read"):
        from_json(text)


def test_the_fastest_is_chosen_and_executed(small: tuple[LoweredGraph, Weights], ways: Convolutions) -> None:
    executor = Executor(*small)
    result = tune(executor, timer=ways.time)
    convolutions = [bound.name for bound in executor.program if bound.kind == "conv"]
    assert {name: result.choices[name] for name in convolutions} == dict.fromkeys(convolutions, Choice("fast", (2,)))
    assert result.choices.keys() == {step.name for step in executor.graph.steps}

    tuned = Executor(*small, choices=from_json(to_json(result.choices)))
    assert [site.config for site in tuned.sites if site.step.kind == "conv"] == [(2,)] * len(convolutions)
    x = {"x": torch.from_numpy(X["x"])}
    assert torch.equal(tuned.run(x)["y"], executor.run(x)["y"])


def test_steps_that_differ_in_name_alone_are_timed_once(
    small: tuple[LoweredGraph, Weights], ways: Convolutions
) -> None:
    result = tune(Executor(*small), timer=ways.time)
    assert sorted(len(row.steps) for row in result.rows if row.site.step.kind == "conv") == [1, 2]
    assert ways.timed.count(Choice("fast", (2,))) == 2  # one for each kind of convolution


def test_only_so_many_configurations_are_timed(small: tuple[LoweredGraph, Weights], ways: Convolutions) -> None:
    result = tune(Executor(*small), timer=ways.time, limit=1)
    assert {choice for choice in result.choices.values() if choice.implementation == "fast"} == {Choice("fast", (1,))}


def test_when_the_time_is_over_every_step_still_has_its_reference(
    small: tuple[LoweredGraph, Weights], ways: Convolutions
) -> None:
    ticks = iter(range(1000))
    result = tune(Executor(*small), timer=ways.time, seconds=0, clock=lambda: float(next(ticks)))
    assert result.untimed >= 6
    assert not any(choice.implementation == "fast" for choice in result.choices.values())
    assert all(row.best is not None for row in result.rows)


def _raises(site: Site) -> Run:
    raise RuntimeError("no such tile")


def _wrong(site: Site) -> Run:
    run = IMPLEMENTATIONS["conv"]["cudnn"].bind(site)
    return lambda operands: (run(operands)[0] * 1.1,)


@pytest.mark.parametrize(("bind", "why"), [(_raises, "no such tile"), (_wrong, "differs from the reference")])
def test_a_candidate_that_fails_is_lost_whatever_it_costs(
    small: tuple[LoweredGraph, Weights], bind: Bind, why: str
) -> None:
    register("conv", "broken", Implementation(bind))
    try:
        result = tune(Executor(*small), timer=lambda call: 1.0)
        for row in (row for row in result.rows if row.site.step.kind == "conv"):
            assert row.best == Choice("cudnn")
            assert why in row.failed[Choice("broken")]
    finally:
        del IMPLEMENTATIONS["conv"]["broken"]


def test_not_a_number_is_no_agreement() -> None:
    right = torch.ones(4)
    assert disagreement([right], [right]) == ""
    assert "differs" in disagreement([torch.full((4,), float("nan"))], [right])
    assert "expected" in disagreement([right.half()], [right])
    gaps = torch.tensor([float("nan"), 2.0, 3.0])
    assert disagreement([torch.tensor([7.0, 2.0, 3.0])], [gaps]) == ""  # nobody says what is right there
    assert "differs" in disagreement([torch.tensor([7.0, 2.0, 4.0])], [gaps])


def test_whole_numbers_and_truths_agree_but_for_ties() -> None:
    right = torch.arange(4096)
    assert disagreement([right], [right]) == ""
    assert disagreement([right + (right == 7)], [right]) == ""  # a rounding that fell to the other side
    assert "whole numbers" in disagreement([right + (right < 70)], [right])
    assert disagreement([right + (right < 70)], [right], exact=False) == ""
    assert "truths" in disagreement([right < 0], [right > 5])


def test_a_choice_that_nothing_here_executes_is_refused(small: tuple[LoweredGraph, Weights]) -> None:
    name = next(step.name for step in small[0].steps if step.kind == "conv")
    with pytest.raises(Unsupported, match="wants 'elsewhere'"):
        Executor(*small, choices={name: Choice("elsewhere")})
    with pytest.raises(Unsupported, match="wants 'triton'"):
        Executor(*small, choices={name: Choice("triton")})  # FP32


def test_a_workspace_is_as_large_as_the_largest_need_and_zero_where_it_counts() -> None:
    needs = Needs()
    needs.ask(100, 3)
    needs.ask(20, 7)
    workspace = needs.workspace(torch.device("cpu"))
    assert workspace.partial_sums.numel() == 100
    assert workspace.counters.tolist() == [0] * 7
    with working_in(workspace):
        assert current() is workspace
    with pytest.raises(Internal):
        current()
