"""GELU, hard swish, hard sigmoid and SiLU are found in every way of writing them, and nothing like them is."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.graph import sources
from penstock.graph.patterns import group, recognise
from tests.graph.patterns import formulas
from tests.graph.patterns.drafts import Draft, Drawn, copy
from tests.graph.small import assert_same, normal, operators, run

Formula = Callable[[Draft], str]

# What is written, the operator that it becomes.
BECOMES: dict[str, tuple[Formula, str]] = {
    "gelu-erf": (formulas.gelu_erf, "Gelu"),
    "gelu-tanh": (formulas.gelu_tanh, "Gelu"),
    "hard-swish": (formulas.hard_swish, "HardSwish"),
    "hard-swish-of-gate": (formulas.hard_swish_of_gate, "HardSwish"),
    "hard-sigmoid": (formulas.hard_sigmoid, "HardSigmoid"),
}

NEAR_MISSES: dict[str, Formula] = {
    "gelu with 0.6": partial(formulas.gelu_erf, half=0.6),
    "gelu without the half": partial(formulas.gelu_erf, half=1.0),
    "gelu with another root": partial(formulas.gelu_erf, root=1.5),
    "gelu with a rounded root": partial(formulas.gelu_erf, root=1.4142),
    "gelu with two in place of one": partial(formulas.gelu_erf, one=2.0),
    "tanh gelu with another half": partial(formulas.gelu_tanh, half=0.4999),
    "tanh gelu with another factor": partial(formulas.gelu_tanh, factor=0.8),
    "tanh gelu with another cubic term": partial(formulas.gelu_tanh, cubic=0.0447),
    "hard swish with shift 2": partial(formulas.hard_swish, shift=2.0),
    "hard swish clipped at 5": partial(formulas.hard_swish, top=5.0),
    "hard swish divided by 5": partial(formulas.hard_swish, sixth=0.2),
    "hard swish with Paddle's slope": partial(formulas.hard_swish_of_gate, alpha=0.2),
    "hard swish with beta 0.4": partial(formulas.hard_swish_of_gate, beta=0.4),
    "hard sigmoid clipped at 5": partial(formulas.hard_sigmoid, top=5.0),
    "silu with slope 2": partial(formulas.silu, slope=2.0),
    "gelu of another value": lambda draft: draft.product(
        0.5,
        draft.add("Neg", "x"),
        draft.add("Add", draft.add("Erf", draft.scaled("x", math.sqrt(0.5))), draft.number(1.0)),
    ),
    "a gate of another value": lambda draft: draft.add("Mul", draft.add("Neg", "x"), draft.add("Sigmoid", "x")),
}


@pytest.mark.parametrize("name", BECOMES)
@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_every_way_of_writing_it_becomes_the_operator(name: str, data: st.DataObject) -> None:
    formula, operator = BECOMES[name]
    draft = Draft(Drawn(data), opset=data.draw(st.integers(12, 20)))
    before = draft.model(("n", 4, 8), formula(draft))
    after = copy(before)
    assert sum(recognise(after).values()) == 1
    assert operators(after) == {operator: 1}
    assert_same(before, after, {"x": 4 * normal(3, 4, 8)})
    assert sum(recognise(after).values()) == 0


def test_erf_stays_erf_and_tanh_stays_tanh() -> None:
    for formula, expected in ((formulas.gelu_erf, "none"), (formulas.gelu_tanh, "tanh")):
        draft = Draft()
        model = draft.model((2, 8), formula(draft))
        recognise(model)
        (node,) = model.graph
        assert node.attributes["approximate"].as_string() == expected


@pytest.mark.parametrize("name", NEAR_MISSES)
@given(data=st.data())
@settings(deadline=None, max_examples=15)
def test_what_only_looks_like_it_stays(name: str, data: st.DataObject) -> None:
    draft = Draft(Drawn(data), opset=data.draw(st.integers(12, 20)))
    before = draft.model((2, 4, 8), NEAR_MISSES[name](draft))
    after = copy(before)
    assert sum(recognise(after).values()) == 0
    assert operators(after) == operators(before)
    assert after.opset_imports == before.opset_imports


@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_silu_is_named_and_left(data: st.DataObject) -> None:
    slope, kind = data.draw(st.sampled_from([(1.0, "silu"), (1.702, "quick_gelu")]))
    draft = Draft(Drawn(data), opset=data.draw(st.integers(11, 20)))
    before = draft.model((2, 4, 8), formulas.silu(draft, slope=slope))
    after = copy(before)
    assert recognise(after)["silu"] == 1
    assert operators(after) == operators(before)
    assert {group(node) for node in after.graph if node.op_type != "Constant"} == {f"{kind}#0"}
    assert recognise(after)["silu"] == 0


def test_groups_are_numbered_on() -> None:
    draft = Draft()
    model = draft.model((2, 8), formulas.silu(draft, formulas.silu(draft)))
    assert recognise(model)["silu"] == 2
    assert {group(node) for node in model.graph} == {"silu#0", "silu#1"}


def test_a_constant_that_adds_a_dimension_is_no_number() -> None:
    """x has three dimensions, what is computed has four: no Gelu answers that."""
    draft = Draft()
    wide = draft.weight(np.full((1, 1, 1, 1), 0.5, np.float32))
    inner = draft.add("Add", draft.add("Erf", draft.scaled("x", math.sqrt(0.5))), draft.number(1.0))
    model = draft.model((2, 4, 8), draft.add("Mul", draft.add("Mul", "x", inner), wide))
    assert sum(recognise(model).values()) == 0


def test_numbers_of_half_precision_are_read_as_such() -> None:
    draft = Draft(dtype=np.float16)
    model = draft.model((2, 8), formulas.gelu_erf(draft))
    assert recognise(model)["gelu"] == 1
    draft = Draft(dtype=np.float16)
    model = draft.model((2, 8), formulas.gelu_erf(draft, root=1.42))
    assert recognise(model)["gelu"] == 0


def test_outside_the_numbers_nan_and_infinity_come_out_alike() -> None:
    draft = Draft()
    before = draft.model((4,), formulas.gelu_erf(draft))
    after = copy(before)
    recognise(after)
    x = np.array([np.nan, np.inf, -1e30, 1e30], np.float32)
    (expected,), (found,) = run(before, {"x": x}).values(), run(after, {"x": x}).values()
    assert np.array_equal(expected, found, equal_nan=True)
    assert np.isnan(found[0])


def test_a_layer_scale_next_to_it_stays() -> None:
    draft = Draft()
    before = draft.model((2, 8), draft.add("Mul", formulas.gelu_erf(draft), draft.weight(normal(8))))
    after = copy(before)
    assert recognise(after)["gelu"] == 1
    assert operators(after) == {"Gelu": 1, "Mul": 1}
    assert_same(before, after, {"x": normal(2, 8)})


def test_the_new_node_stands_for_all_it_replaced() -> None:
    draft = Draft()
    model = draft.model((2, 8), formulas.gelu_erf(draft))
    names = [node.name for node in model.graph]
    recognise(model)
    (node,) = model.graph
    assert list(sources(node)) == names
    assert [value.name for value in model.graph.outputs] == [node.outputs[0].name]


def test_names_of_outputs_stay() -> None:
    draft = Draft()
    result = formulas.gelu_erf(draft)
    model: ir.Model = draft.model((2, 8), result)
    recognise(model)
    assert [value.name for value in model.graph.outputs] == [result]
