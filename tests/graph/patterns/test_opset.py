"""A model's opset is raised as a whole, keeps what it computes, or is left alone."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import onnx
import pytest

from penstock.graph import to_bytes
from penstock.graph.editing import Edit
from penstock.graph.patterns import group, opset, recognise
from penstock.graph.patterns.opset import raise_opset
from tests.graph.patterns import formulas
from tests.graph.patterns.drafts import Draft, copy
from tests.graph.small import assert_same, graph, normal, operators

_X = "(float[2,4,6,8] x) => "

# From 11 to 20, one operator whose definition changed on the way.
FOLLOWED = {
    "softmax over the last axis": "(float[2,4,6,8] y) { y = Softmax<axis = 3>(x) }",
    "softmax over axis -1": "(float[2,4,6,8] y) { y = LogSoftmax<axis = -1>(x) }",
    "squeeze": "(float[2,4,6,8] y) { a = Unsqueeze<axes = [0, 2]>(x) y = Squeeze<axes = [0, 2]>(a) }",
    "squeeze without axes": "(float[2,4,6,8] y) { a = Unsqueeze<axes = [0]>(x) y = Squeeze(a) }",
    "sum": "(float[2,4,1,1] y) { y = ReduceSum<axes = [2, 3]>(x) }",
    "sum without axes": "(float[1,1,1,1] y) { y = ReduceSum(x) }",
    "mean": "(float[2,4,6,1] y) { y = ReduceMean<axes = [-1]>(x) }",
    "largest": "(float[2,4,6] y) { y = ReduceMax<axes = [3], keepdims = 0>(x) }",
    "norm": "(float[2,4,1,1] y) { y = ReduceL2<axes = [2, 3]>(x) }",
    "split in sizes": "(float[2,1,6,8] y, float[2,3,6,8] z) { y, z = Split<axis = 1, split = [1, 3]>(x) }",
    "split in halves": "(float[2,2,6,8] y, float[2,2,6,8] z) { y, z = Split<axis = 1>(x) }",
    "dropout": "(float[2,4,6,8] y) { y = Dropout<ratio = 0.3>(x) }",
    "batch norm": "(float[2,4,6,8] y) { y = BatchNormalization(x, four, four, four, ones) }",
    "clip": "(float[2,4,6,8] y) { y = Clip(x, low, high) }",
    "pad": "(float[2,4,8,10] y) { y = Pad(x, pads) }",
    "resize": '(float[2,4,12,16] y) { y = Resize<mode = "linear", '
    'coordinate_transformation_mode = "half_pixel">(x, none, scales) }',
    "nearest": '(float[2,4,12,16] y) { y = Resize<mode = "nearest", coordinate_transformation_mode = "asymmetric", '
    'nearest_mode = "floor">(x, none, scales) }',
    "pools": "(float[2,4,3,4] y, float[2,4,1,1] z) { y = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(x) "
    "z = GlobalAveragePool(x) }",
    "reshape": "(float[2,24,8] y) { y = Reshape(x, shape) }",
}
WEIGHTS = {
    "four": normal(4),
    "ones": np.ones(4, np.float32),
    "low": np.array(-0.5, np.float32),
    "high": np.array(0.5, np.float32),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
    "none": np.zeros(0, np.float32),
    "scales": np.array([1, 1, 2, 2], np.float32),
    "shape": np.array([0, -1, 8], np.int64),
}

# Meanings that changed, and changes that nobody looked at.
LEFT = {
    "softmax over all dimensions from the first": "(float[2,4,6,8] y) { y = Softmax<axis = 1>(x) }",
    "softmax with its old default": "(float[2,4,6,8] y) { y = Softmax(x) }",
    "dropout whose mask is wanted": "(float[2,4,6,8] y, bool[2,4,6,8] z) { y, z = Dropout(x) }",
    "an operator in no table": "(float[2,4,5,7] y) { y = LpPool<kernel_shape = [2, 2]>(x) }",
}


@pytest.mark.parametrize("name", FOLLOWED)
@pytest.mark.parametrize("target", [13, 14, 17, 18, 20])
def test_what_can_follow_computes_the_same(name: str, target: int) -> None:
    text = _X + FOLLOWED[name]
    before = graph(text, {key: array for key, array in WEIGHTS.items() if key in text}, opset=11)
    after = copy(before)
    assert raise_opset(Edit(after), target)
    assert after.opset_imports[""] == target
    onnx.checker.check_model(onnx.ModelProto.FromString(to_bytes(after)), full_check=True)
    assert_same(before, after, {"x": normal(2, 4, 6, 8)})


@pytest.mark.parametrize("name", LEFT)
def test_what_can_not_follow_keeps_the_model_as_it_is(name: str) -> None:
    model = graph(_X + LEFT[name], opset=11)
    before = to_bytes(model)
    assert not raise_opset(Edit(model), 20)
    assert to_bytes(model) == before


def test_nothing_is_raised_from_before_the_tables() -> None:
    model = graph("(float[2,4] x) => (float[2,4] y) { y = Relu(x) }", opset=10)
    assert not raise_opset(Edit(model), 14)


def test_nothing_is_raised_beyond_the_tables() -> None:
    model = graph("(float[2,4] x) => (float[2,4] y) { y = Relu(x) }", opset=17)
    assert not raise_opset(Edit(model), 21)


def test_newer_models_stay() -> None:
    model = graph("(float[2,4] x) => (float[2,4] y) { y = Relu(x) }", opset=21)
    assert raise_opset(Edit(model), 20)
    assert model.opset_imports[""] == 21


def test_where_the_model_can_not_be_raised_the_nodes_are_named() -> None:
    draft = Draft(opset=11)
    activated = formulas.gelu_erf(draft)
    before = draft.model((2, 4, 8), draft.add("Softmax", activated, attributes={"axis": 1}))
    after = copy(before)
    assert recognise(after)["gelu"] == 1
    assert operators(after) == operators(before)
    assert {group(node) for node in after.graph} == {"gelu#0", None}
    assert recognise(after)["gelu"] == 0
    assert_same(before, after, {"x": normal(2, 4, 8)})


def _gained() -> Iterator[tuple[str, onnx.defs.OpSchema, onnx.defs.OpSchema]]:
    histories: dict[str, list[onnx.defs.OpSchema]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "" and schema.name in opset._GAINED:
            histories.setdefault(schema.name, []).append(schema)
    for name, schemas in histories.items():
        schemas.sort(key=lambda schema: int(schema.since_version))
        for old, new in pairwise(schemas):
            if 11 < new.since_version <= 20:
                yield name, old, new


@pytest.mark.parametrize(
    ("name", "old", "new"), [pytest.param(*row, id=f"{row[0]}-{row[2].since_version}") for row in _gained()]
)
def test_operators_that_only_gained_have_all_they_had(
    name: str, old: onnx.defs.OpSchema, new: onnx.defs.OpSchema
) -> None:
    """Attributes with their defaults, inputs in their order, outputs, types; what is new may be left out."""
    for key, attribute in old.attributes.items():
        assert new.attributes[key].type == attribute.type
        assert new.attributes[key].default_value == attribute.default_value
        assert new.attributes[key].required <= attribute.required
    assert not any(new.attributes[key].required for key in new.attributes.keys() - old.attributes.keys())
    assert [each.option for each in old.outputs] == [each.option for each in new.outputs]
    assert all(
        each.option == onnx.defs.OpSchema.FormalParameterOption.Optional for each in new.inputs[len(old.inputs) :]
    )
    for before, after in zip(old.inputs, new.inputs, strict=False):
        loosened = after.option == onnx.defs.OpSchema.FormalParameterOption.Optional
        assert before.option == after.option or loosened
        assert before.types <= after.types


def test_every_table_names_operators_that_exist() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    assert known >= opset._GAINED
    assert all(set(row[0]) <= known for row in opset._REWRITES)


def test_what_was_only_named_is_rewritten_once_the_model_can_follow() -> None:
    draft = Draft(opset=11)
    model = draft.model((2, 4, 8), draft.add("Softmax", formulas.gelu_erf(draft), attributes={"axis": 1}))
    recognise(model)
    assert "Gelu" not in operators(model)
    softmax = next(node for node in model.graph if node.op_type == "Softmax")
    Edit(model).set_attributes(softmax, {"axis": 2})
    assert recognise(model)["gelu"] == 1
    assert operators(model) == {"Gelu": 1, "Softmax": 1}
    assert {group(node) for node in model.graph} == {None}
