"""Attention is named in the forms in which torch, timm and Paddle write it, and nothing else is."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.graph.patterns import group, recognise
from tests.graph.patterns.drafts import Choices, Draft, Drawn, copy
from tests.graph.small import Array, normal, operators

_HEADS, _SIZE, _LENGTH, _WIDTH = 2, 8, 6, 16


@dataclass(frozen=True)
class Form:
    """How an exporter writes it."""

    cut: str = "slice"
    """q, k and v out of the fused projection: slice, split, gather, or separate projections."""

    scale: str = "after"
    """before, after, both, or none."""

    mask: bool = False
    guard: bool = False
    unit: bool = False
    """Rows of q and k are divided by their lengths."""

    axis: int = -1
    constant_keys: bool = False


def _cut(draft: Draft, form: Form) -> list[str]:
    """q, k, v of shape [2, heads, length, size]."""
    if form.cut == "separate":
        parts = []
        for seed in range(3):
            made = draft.add("MatMul", "x", draft.weight(_weight(_WIDTH, seed)))
            shaped = draft.add("Reshape", made, draft.weight(np.array([0, 0, _HEADS, _SIZE], np.int64)))
            parts.append(draft.add("Transpose", shaped, attributes={"perm": [0, 2, 1, 3]}))
        return parts
    fused = draft.add("MatMul", "x", draft.weight(_weight(3 * _WIDTH, 0)))
    shaped = draft.add("Reshape", fused, draft.weight(np.array([0, 0, 3, _HEADS, _SIZE], np.int64)))
    whole = draft.add("Transpose", shaped, attributes={"perm": [2, 0, 3, 1, 4]})
    if form.cut == "gather":
        return [
            draft.add("Gather", whole, draft.weight(np.array(n, np.int64)), attributes={"axis": 0}) for n in range(3)
        ]
    if form.cut == "split":
        parts = draft.add_many("Split", whole, outputs=3, attributes={"axis": 0, **_parts(draft)})
    else:
        edges = [draft.weight(np.array([n], np.int64)) for n in range(4)]
        axis = draft.weight(np.array([0], np.int64))
        parts = [draft.add("Slice", whole, edges[n], edges[n + 1], axis) for n in range(3)]
    if draft.opset < 13:
        return [draft.add("Squeeze", part, attributes={"axes": [0]}) for part in parts]
    return [draft.add("Squeeze", part, draft.weight(np.array([0], np.int64))) for part in parts]


def _parts(draft: Draft) -> dict[str, int]:
    return {"num_outputs": 3} if draft.opset >= 18 else {}


def _weight(width: int, seed: int) -> Array:
    return 0.2 * normal(_WIDTH, width, seed=seed)


def _unit(draft: Draft, rows: str) -> str:
    if draft.opset < 18:
        length = draft.add("ReduceL2", rows, attributes={"axes": [-1]})
    else:
        length = draft.add("ReduceL2", rows, draft.weight(np.array([-1], np.int64)))
    return draft.add("Div", rows, draft.add("Clip", length, draft.weight(np.array(1e-12, np.float32))))


def attention(draft: Draft, form: Form = Form(mask=True)) -> str:
    q, k, v = _cut(draft, form)
    if form.unit:
        q, k = _unit(draft, q), _unit(draft, k)
    keys = draft.add("Transpose", k, attributes={"perm": [0, 1, 3, 2]})
    if form.constant_keys:
        keys = draft.weight(normal(2, _HEADS, _SIZE, _LENGTH))
    scale = 1 / math.sqrt(_SIZE)
    if form.scale == "before":
        q = draft.scaled(q, scale)
    if form.scale == "both":
        q, keys = draft.scaled(q, math.sqrt(scale)), draft.scaled(keys, math.sqrt(scale))
    scores = draft.add("MatMul", q, keys)
    if form.scale == "after":
        scores = draft.add("Div", scores, draft.number(math.sqrt(_SIZE)))
    if form.mask:
        scores = draft.add("Add", scores, draft.weight(np.triu(np.full((_LENGTH, _LENGTH), -1e4, np.float32), 1)))
    weights = draft.add("Softmax", scores, attributes={"axis": form.axis})
    if form.guard:
        missing = draft.add("IsNaN", weights)
        weights = draft.add("Where", missing, draft.weight(np.zeros((), np.float32)), weights)
    joined = draft.add("Transpose", draft.add("MatMul", weights, v), attributes={"perm": [0, 2, 1, 3]})
    joined = draft.add("Reshape", joined, draft.weight(np.array([0, 0, _WIDTH], np.int64)))
    return draft.add("MatMul", joined, draft.weight(_weight(_WIDTH, 9)))


_FORMS = st.builds(
    Form,
    cut=st.sampled_from(["slice", "split", "gather", "separate"]),
    scale=st.sampled_from(["before", "after", "both", "none"]),
    mask=st.booleans(),
    guard=st.booleans(),
    unit=st.booleans(),
    axis=st.sampled_from([-1, 3]),
)


@given(st.data(), _FORMS, st.integers(11, 20))
@settings(deadline=None, max_examples=120)
def test_all_between_the_projections_is_one_group(data: st.DataObject, form: Form, opset: int) -> None:
    draft = Draft(Drawn(data), opset=opset)
    before = draft.model((2, _LENGTH, _WIDTH), attention(draft, form))
    after = copy(before)
    assert recognise(after)["attention"] == 1
    assert operators(after) == operators(before)
    outside = [node for node in after.graph if group(node) is None and node.op_type != "Constant"]
    # The projections alone: one or three in, one out.
    assert [node.op_type for node in outside] == ["MatMul"] * (4 if form.cut == "separate" else 2)
    assert {group(node) for node in after.graph if group(node)} == {"attention#0"}
    assert recognise(after)["attention"] == 0


@pytest.mark.parametrize("form", [Form(axis=2), Form(axis=1), Form(constant_keys=True)])
def test_what_only_looks_like_it_has_no_name(form: Form) -> None:
    draft = Draft(Choices())
    model = draft.model((2, _LENGTH, _WIDTH), attention(draft, form))
    assert recognise(model)["attention"] == 0


def test_probabilities_on_the_right_are_no_attention() -> None:
    draft = Draft()
    scores = draft.add("MatMul", "x", draft.add("Transpose", "x", attributes={"perm": [0, 2, 1]}))
    model = draft.model((2, 6, 6), draft.add("MatMul", "x", draft.add("Softmax", scores)))
    assert recognise(model)["attention"] == 0


def test_a_cut_that_something_else_reads_stays_outside() -> None:
    """Relative positions computed from q: what q comes from is no longer the group's own."""
    draft = Draft()
    q = draft.scaled("x", 0.25)
    bias = draft.add("MatMul", q, draft.weight(normal(16, 6)))
    scores = draft.add("Add", draft.add("MatMul", q, draft.add("Transpose", "x", attributes={"perm": [0, 2, 1]})), bias)
    model = draft.model((2, 6, 16), draft.add("MatMul", draft.add("Softmax", scores, attributes={"axis": -1}), "x"))
    assert recognise(model)["attention"] == 1
    assert [node.op_type for node in model.graph if group(node) is None] == ["Mul", "MatMul"]
