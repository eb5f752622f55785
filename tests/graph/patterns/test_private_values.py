"""A value that anything else sees is never taken away: one more reader, or an output, blocks the pattern."""

from collections.abc import Callable

import pytest

from penstock.graph.patterns import recognise
from tests.graph.patterns import formulas
from tests.graph.patterns.drafts import Choices, Draft, also_answer, also_read, copy, intermediate
from tests.graph.patterns.test_attention import attention
from tests.graph.patterns.test_squeeze_excite import squeeze_excite
from tests.graph.small import assert_same, normal, operators

FORMULAS: dict[str, tuple[Callable[[Draft], str], tuple[int, ...]]] = {
    "gelu-erf": (formulas.gelu_erf, (2, 4, 8)),
    "gelu-tanh": (formulas.gelu_tanh, (2, 4, 8)),
    "hard-swish": (formulas.hard_swish, (2, 4, 8)),
    "hard-swish-of-gate": (formulas.hard_swish_of_gate, (2, 4, 8)),
    "silu": (formulas.silu, (2, 4, 8)),
    "squeeze-excite": (squeeze_excite, (2, 8, 5, 5)),
}
ALSO = {"answered": also_answer, "read": also_read}


@pytest.mark.parametrize("how", ALSO)
@pytest.mark.parametrize("name", FORMULAS)
def test_no_intermediate_value_may_be_seen(name: str, how: str) -> None:
    formula, shape = FORMULAS[name]
    draft = Draft(Choices())
    plain = draft.model(shape, formula(draft))
    values = intermediate(plain)
    assert values
    for value in values:
        before = copy(plain)
        ALSO[how](before, value)
        after = copy(before)
        assert sum(recognise(after).values()) == 0, value
        assert operators(after) == operators(before)
        assert_same(before, after, {"x": normal(*shape)})


@pytest.mark.parametrize("how", ALSO)
def test_of_a_layer_norm_only_what_is_not_seen_is_replaced(how: str) -> None:
    """Seen before the scale, the rest may still be a LayerNormalization; seen inside, nothing is."""
    draft = Draft(Choices())
    plain = draft.model((2, 4, 8), formulas.layer_norm(draft))
    for value in intermediate(plain):
        before = copy(plain)
        ALSO[how](before, value)
        after = copy(before)
        outer = value.startswith(("div", "mul"))
        assert sum(recognise(after).values()) == (1 if outer else 0), value
        assert_same(before, after, {"x": normal(2, 4, 8)})


@pytest.mark.parametrize("how", ALSO)
def test_scores_and_probabilities_that_are_seen_make_no_attention(how: str) -> None:
    draft = Draft(Choices())
    plain = draft.model((2, 6, 16), attention(draft))
    for value in intermediate(plain):
        if value.startswith(("softmax", "add", "div")):
            model = copy(plain)
            ALSO[how](model, value)
            assert recognise(model)["attention"] == 0, value
