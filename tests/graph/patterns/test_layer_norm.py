"""Layer normalization is found as torch, timm and Paddle write it, and only where LayerNormalization means the same."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.graph.patterns import group, recognise
from tests.graph.patterns.drafts import Draft, Drawn, copy
from tests.graph.patterns.formulas import Norm, layer_norm
from tests.graph.small import assert_same, normal, operators

WHOLE = {
    "last axis": Norm(),
    "last axis, counted from the front": Norm(axes=(2,)),
    "no offset": Norm(offset=None),
    "no scale": Norm(scale=None, offset=None),
    "offset alone": Norm(scale=None),
    "scale with leading ones": Norm(scale=(1, 1, 8), offset=(1, 8)),
    "scale of one number": Norm(scale=(1,), offset=()),
    "two axes": Norm(axes=(1, 2), scale=(4, 8), offset=(4, 8)),
    "two axes, scale along one": Norm(axes=(-2, -1), scale=(4, 1), offset=(8,)),
}

# How many nodes besides LayerNormalization stay, where the scale or the offset is none of the normalized shape.
PARTLY = {
    "scale along another axis": (Norm(scale=(4, 1), offset=None), {"LayerNormalization": 1, "Mul": 1}),
    "offset along another axis": (Norm(offset=(4, 1)), {"LayerNormalization": 1, "Add": 1}),
}

NEVER = {
    "variance along another axis": Norm(second_axes=(1,), scale=None, offset=None),
    "cube in place of square": Norm(exponent=3.0),
}


@pytest.mark.parametrize("name", WHOLE)
@given(data=st.data())
@settings(deadline=None, max_examples=25)
def test_it_becomes_the_operator(name: str, data: st.DataObject) -> None:
    draft = Draft(Drawn(data), opset=data.draw(st.integers(11, 20)))
    before = draft.model(("n", 4, 8), layer_norm(draft, norm=WHOLE[name]))
    after = copy(before)
    assert recognise(after)["layer_norm"] == 1
    assert {operator: n for operator, n in operators(after).items() if operator != "Constant"} == {
        "LayerNormalization": 1
    }
    assert_same(before, after, {"x": 3 * normal(3, 4, 8) + 5})
    assert sum(recognise(after).values()) == 0


@pytest.mark.parametrize("name", PARTLY)
def test_what_is_not_of_the_normalized_shape_stays_outside(name: str) -> None:
    norm, expected = PARTLY[name]
    draft = Draft()
    before = draft.model((2, 4, 8), layer_norm(draft, norm=norm))
    after = copy(before)
    assert recognise(after)["layer_norm"] == 1
    assert operators(after) == expected
    assert_same(before, after, {"x": normal(2, 4, 8)})


@pytest.mark.parametrize("name", NEVER)
@given(data=st.data())
@settings(deadline=None, max_examples=15)
def test_what_only_looks_like_it_stays(name: str, data: st.DataObject) -> None:
    draft = Draft(Drawn(data), opset=data.draw(st.integers(11, 20)))
    before = draft.model((2, 4, 8), layer_norm(draft, norm=NEVER[name]))
    after = copy(before)
    assert sum(recognise(after).values()) == 0
    assert operators(after) == operators(before)


def test_over_the_channels_of_an_image_it_is_named() -> None:
    draft = Draft()
    before = draft.model((2, 4, 8), layer_norm(draft, norm=Norm(axes=(1,), scale=None, offset=None)))
    after = copy(before)
    assert recognise(after)["layer_norm"] == 1
    assert operators(after) == operators(before)
    assert {group(node) for node in after.graph} == {"layer_norm#0"}


def test_a_free_size_is_that_of_the_scale() -> None:
    draft = Draft()
    before = draft.model((2, 4, "width"), layer_norm(draft))
    after = copy(before)
    assert recognise(after)["layer_norm"] == 1
    assert operators(after) == {"LayerNormalization": 1}
    assert_same(before, after, {"x": normal(2, 4, 8)})


def test_where_the_size_is_free_and_nothing_says_it_the_nodes_are_named() -> None:
    """A LayerNormalization would need a scale of that size."""
    draft = Draft()
    model = draft.model((2, 4, "width"), layer_norm(draft, norm=Norm(scale=None, offset=None)))
    assert recognise(model)["layer_norm"] == 1
    assert "LayerNormalization" not in operators(model)


def test_double_precision_is_left_alone() -> None:
    draft = Draft(dtype=np.float64)
    model = draft.model((2, 4, 8), layer_norm(draft))
    assert sum(recognise(model).values()) == 0


def test_epsilon_is_kept() -> None:
    draft = Draft()
    model = draft.model((2, 4, 8), layer_norm(draft, norm=Norm(epsilon=1e-3)))
    recognise(model)
    (node,) = model.graph
    assert node.attributes["epsilon"].as_float() == pytest.approx(1e-3)
