"""Squeeze and excitation is named with any pool, layer, activation and gate that models have, and nothing else is."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.graph.patterns import group, recognise
from tests.graph.patterns import formulas
from tests.graph.patterns.drafts import Draft, Drawn, copy
from tests.graph.small import normal, operators

_CHANNELS, _SQUEEZED = 8, 4


@dataclass(frozen=True)
class Form:
    """What a block is made of."""

    pool: str = "GlobalAveragePool"
    layer: str = "conv"
    bias: str = "own"
    activation: str = "Relu"
    gate: str = "Sigmoid"
    kernel: int = 1
    layers: int = 2
    pool_of: str = "x"


def squeeze_excite(draft: Draft, form: Form = Form()) -> str:
    source = "x" if form.pool_of == "x" else draft.add("Neg", "x")
    value = draft.reduce_mean(source, (2, 3)) if form.pool == "ReduceMean" else draft.add(form.pool, source)
    if form.layer == "gemm":
        value = draft.add("Flatten", value)
    sizes = [(_CHANNELS, _SQUEEZED), (_SQUEEZED, _CHANNELS)] if form.layers == 2 else [(_CHANNELS, _CHANNELS)]
    for number, (into, out) in enumerate(sizes):
        value = _layer(draft, form, value, into, out)
        if number + 1 < len(sizes):
            value = _activation(draft, form.activation, value)
    gate = draft.add(form.gate, value)
    if form.layer == "gemm":
        gate = draft.add("Reshape", gate, draft.weight(np.array([-1, _CHANNELS, 1, 1], np.int64)))
    return draft.add("Mul", "x", gate)


def _layer(draft: Draft, form: Form, value: str, into: int, out: int) -> str:
    bias = normal(out, seed=3)
    if form.layer == "gemm":
        own = [draft.weight(bias)] if form.bias == "own" else []
        value = draft.add("Gemm", value, draft.weight(normal(into, out)), *own)
        return value if own else draft.add("Add", value, draft.weight(bias))
    own = [draft.weight(bias)] if form.bias == "own" else []
    pads = {"pads": [form.kernel // 2] * 4}
    kernel = draft.weight(normal(out, into, form.kernel, form.kernel))
    value = draft.add("Conv", value, kernel, *own, attributes=pads)
    return value if own else draft.add("Add", value, draft.weight(bias.reshape(1, out, 1, 1)))


def _activation(draft: Draft, name: str, value: str) -> str:
    if name == "silu":
        return formulas.silu(draft, value)
    if name == "hard_swish":
        return formulas.hard_swish(draft, value)
    return draft.add(name, value)


_FORMS = st.builds(
    Form,
    pool=st.sampled_from(["GlobalAveragePool", "ReduceMean"]),
    layer=st.sampled_from(["conv", "gemm"]),
    bias=st.sampled_from(["own", "added"]),
    activation=st.sampled_from(["Relu", "LeakyRelu", "silu", "hard_swish"]),
    gate=st.sampled_from(["Sigmoid", "HardSigmoid"]),
)


@given(st.data(), _FORMS, st.integers(12, 20))
@settings(deadline=None, max_examples=80)
def test_the_whole_block_is_one_group(data: st.DataObject, form: Form, opset: int) -> None:
    draft = Draft(Drawn(data), opset=opset)
    before = draft.model(("n", _CHANNELS, 5, 5), squeeze_excite(draft, form))
    after = copy(before)
    assert recognise(after)["squeeze_excite"] == 1
    assert {group(node) for node in after.graph if node.op_type != "Constant"} == {"squeeze_excite#0"}
    if form.activation != "hard_swish":
        assert operators(after) == operators(before)
    assert recognise(after)["squeeze_excite"] == 0


@pytest.mark.parametrize(
    "form",
    [
        Form(kernel=3),
        Form(layers=1),
        Form(gate="Tanh"),
        Form(gate="Relu"),
        Form(pool="GlobalMaxPool"),
        Form(pool_of="another value"),
    ],
    ids=str,
)
def test_what_only_looks_like_it_has_no_name(form: Form) -> None:
    draft = Draft()
    model = draft.model((2, _CHANNELS, 5, 5), squeeze_excite(draft, form))
    assert recognise(model)["squeeze_excite"] == 0
