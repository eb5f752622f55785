"""Cutting: whatever stands between custom operators, the parts together compute what the whole graph computes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import penstock as ps
from penstock import graph
from penstock.build.custom_ops import write_parts
from penstock.engine import custom, runtimes
from penstock.engine.custom import OpName
from penstock.engine.parts import Call, Part
from penstock.engine.plan import Tactic
from penstock.errors import ModelLoadError, Unsupported
from penstock.graph.cutting import Cut, cut

Array = NDArray[Any]
DOMAIN = "tests.cutting"
ROWS, COLUMNS = 3, 4


@ps.custom_op(DOMAIN, "Neg")
def neg(x: Array) -> Array:
    return -x


@ps.custom_op(DOMAIN, "Sub")
def sub(left: Array, right: Array) -> Array:
    return left - right


@ps.custom_op(DOMAIN, "Clip")
def clip(x: Array, least: Array | None = None, most: Array | None = None) -> Array:
    return np.clip(x, least, most) if least is not None or most is not None else x


@ps.custom_op(DOMAIN, "Split")
def split(x: Array, *, axis: int, num_outputs: int) -> tuple[Array, ...]:
    return tuple(np.split(x, num_outputs, axis))


OPERATORS = frozenset(OpName(DOMAIN, name) for name in ("Neg", "Sub", "Clip", "Split"))
LIKE = Tactic("onnxruntime", "fp32", "source", options=(("graph_optimization_level", "disabled"),))


@st.composite
def graphs(draw: st.DrawFn) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A random graph of FP32 [rows, 4] tensors in standard operators, and the same with some of its nodes custom."""
    values = ["x", "z", "w0", "w1"]
    nodes: list[onnx.NodeProto] = []
    pick = lambda: draw(st.sampled_from(values))  # noqa: E731
    for at in range(draw(st.integers(1, 12))):
        name, out = f"n{at}", f"t{at}"
        kind = draw(
            st.sampled_from(["Neg", "Sub", "Clip", "Split", "Relu", "Add", "MatMul", "Constant", "Shaped", "If"])
        )
        if kind in ("Neg", "Relu"):
            nodes.append(helper.make_node(kind, [pick()], [out], name=name))
        elif kind in ("Sub", "Add"):
            nodes.append(helper.make_node(kind, [pick(), pick()], [out], name=name))
        elif kind == "MatMul":
            nodes.append(helper.make_node(kind, [pick(), "square"], [out], name=name))
        elif kind == "Clip":  # the first limit left out, the second one an initialiser
            nodes.append(helper.make_node(kind, [pick(), "", "limit"], [out], name=name))
        elif kind == "Split":
            halves = [f"{out}_a", f"{out}_b"]
            nodes.append(helper.make_node(kind, [pick()], halves, name=name, axis=1, num_outputs=2))
            nodes.append(helper.make_node("Concat", halves[::-1], [out], name=f"{name}_back", axis=1))
        elif kind == "Constant":  # a row, so that it is broadcast
            row = numpy_helper.from_array(np.full((1, COLUMNS), at, np.float32))
            nodes.append(helper.make_node(kind, [], [f"{out}_row"], name=name, value=row))
            nodes.append(helper.make_node("Add", [pick(), f"{out}_row"], [out], name=f"{name}_add"))
        elif kind == "Shaped":  # a shape that crosses from one part to another
            nodes.append(helper.make_node("Shape", [pick()], [f"{out}_shape"], name=f"{name}_shape"))
            nodes.append(helper.make_node("Expand", [pick(), f"{out}_shape"], [out], name=name))
        else:  # an inner graph that captures
            kept = [helper.make_tensor_value_info(f"{out}_inner", TensorProto.FLOAT, None)]
            branches = {
                branch: helper.make_graph([helper.make_node(op, [pick()], [f"{out}_inner"])], branch, [], kept)
                for branch, op in (("then_branch", "Relu"), ("else_branch", "Identity"))
            }
            nodes.append(helper.make_node("If", ["flag"], [out], name=name, **branches))
        values.append(out)
    made = [value for value in values if value.startswith("t")]
    answers = draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True))
    foreign = {node.name for node in nodes if node.op_type in ("Neg", "Sub", "Clip", "Split") and draw(st.booleans())}
    rng = np.random.default_rng(7)
    weights = {
        "w0": rng.standard_normal((ROWS, COLUMNS)).astype(np.float32),
        "w1": rng.standard_normal((ROWS, COLUMNS)).astype(np.float32),
        "square": rng.standard_normal((COLUMNS, COLUMNS)).astype(np.float32),
        "limit": np.array(0.5, np.float32),
        "flag": np.array(True),
    }
    whole = helper.make_graph(
        nodes,
        "random",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [ROWS, COLUMNS]) for name in ("x", "z")],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [ROWS, COLUMNS]) for name in answers],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    plain = model_of(whole)
    changed = onnx.ModelProto()
    changed.CopyFrom(plain)
    for node in changed.graph.node:
        if node.name in foreign:
            node.domain = DOMAIN
            changed.graph.value_info.extend(
                helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None])
                for name in node.output
                if name not in answers
            )
    return plain, changed


def model_of(whole: onnx.GraphProto) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(whole, opset_imports=opsets, ir_version=9)


def run_parts(model: ir.Model, inputs: Mapping[str, Array], folder: Path) -> dict[str, Array]:
    """As a build writes them and an engine runs them."""
    path = folder / "source.onnx"
    graph.save(model, path)
    write_parts(model, path)
    return runtimes.compile(path, LIKE)(**inputs)


def steps_follow(found: Cut) -> None:
    """Everything that a step reads is there when its turn comes."""
    there = {spec.name for spec in found.chain.inputs} | set(found.constants)
    for step in found.chain.steps:
        names = step.inputs if isinstance(step, Part) else [spec.name for spec in step.inputs if spec]
        assert there.issuperset(names), step
        there.update(step.outputs if isinstance(step, Part) else [spec.name for spec in step.outputs if spec])
    assert there.issuperset(spec.name for spec in found.chain.outputs)


def longest(model: onnx.ModelProto) -> int:
    """Custom nodes on the longest way through the graph."""
    depth: dict[str, int] = {}
    for node in model.graph.node:
        read = [*node.input, *(name for each in node.attribute for inner in each.g.node for name in inner.input)]
        behind = max((depth.get(name, 0) for name in read), default=0) + (node.domain == DOMAIN)
        depth |= dict.fromkeys(node.output, behind)
    return max(depth.values())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=graphs())
def test_parts_compute_what_the_whole_graph_computes(
    made: tuple[onnx.ModelProto, onnx.ModelProto], tmp_path: Path
) -> None:
    plain, changed = made
    model = ir.from_proto(changed)
    found = cut(model, OPERATORS)
    if all(node.domain == "" for node in changed.graph.node):
        assert found is None
        return
    assert found is not None
    steps_follow(found)
    assert len(found.models) <= longest(changed) + 1
    called = [step.node for step in found.chain.steps if isinstance(step, Call)]
    assert sorted(called) == sorted(node.name for node in changed.graph.node if node.domain == DOMAIN)
    for part in found.models.values():
        onnx.checker.check_model(ir.to_proto(part))
    rng = np.random.default_rng(11)
    inputs = {name: rng.standard_normal((ROWS, COLUMNS)).astype(np.float32) for name in ("x", "z")}
    expected = ReferenceEvaluator(plain).run(None, inputs)
    answers = run_parts(model, inputs, tmp_path)
    for output, array in zip(plain.graph.output, expected, strict=True):
        np.testing.assert_allclose(answers[output.name], array, rtol=1e-5, atol=1e-5)


# ---- single rules ----


def small(nodes: list[onnx.NodeProto], outputs: list[str], inputs: tuple[str, ...] = ("x",)) -> ir.Model:
    info = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", COLUMNS])  # noqa: E731
    made = helper.make_graph(
        nodes,
        "small",
        [info(name) for name in inputs],
        [info(name) for name in outputs],
        [numpy_helper.from_array(np.eye(COLUMNS, dtype=np.float32), "w")],
        value_info=[info(name) for node in nodes if node.domain for name in node.output if name not in outputs],
    )
    return ir.from_proto(model_of(made))


def test_parallel_branches_of_one_depth_are_one_part() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="a"),
        helper.make_node("Neg", ["a"], ["b"], name="b", domain=DOMAIN),
        helper.make_node("Neg", ["a"], ["c"], name="c", domain=DOMAIN),
        helper.make_node("Relu", ["b"], ["d"], name="d"),
        helper.make_node("Relu", ["c"], ["e"], name="e"),
        helper.make_node("Add", ["d", "e"], ["y"], name="y"),
    ]
    found = cut(small(nodes, ["y"]), OPERATORS)
    assert found is not None
    order = [step.name if isinstance(step, Part) else step.node for step in found.chain.steps]
    assert order == ["part0", "b", "c", "part1"]
    assert {node.name for node in found.models["part1"].graph} == {"d", "e", "y"}


def test_a_weight_of_several_parts_is_in_each_of_them() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="a"),
        helper.make_node("Neg", ["a"], ["b"], name="b", domain=DOMAIN),
        helper.make_node("MatMul", ["b", "w"], ["y"], name="y"),
    ]
    found = cut(small(nodes, ["y"]), OPERATORS)
    assert found is not None
    assert [set(part.graph.initializers) for part in found.models.values()] == [{"w"}, {"w"}]
    assert found.constants == {}
    assert all(part.inputs == (name,) for part, name in zip(found.chain.steps[::2], ("x", "b"), strict=True))


def test_a_weight_that_only_a_function_reads_is_a_constant() -> None:
    found = cut(small([helper.make_node("Sub", ["x", "w"], ["y"], name="s", domain=DOMAIN)], ["y"]), OPERATORS)
    assert found is not None
    assert found.models == {}
    np.testing.assert_array_equal(found.constants["w"], np.eye(COLUMNS, dtype=np.float32))


def test_attributes_arrive_as_python_has_them() -> None:
    tensor = numpy_helper.from_array(np.array([[1.5]], np.float32))
    node = helper.make_node(
        "Neg", ["x"], ["y"], name="n", domain=DOMAIN,
        i=3, f=0.5, s="text", ints=[1, 2], floats=[0.5, float("inf")], strings=["a", "b"], t=tensor,
    )  # fmt: skip
    found = cut(small([node], ["y"]), OPERATORS)
    assert found is not None
    (call,) = found.chain.steps
    assert isinstance(call, Call)
    given = dict(call.attributes)
    np.testing.assert_array_equal(given.pop("t"), np.array([[1.5]], np.float32))
    assert given == {
        "i": 3,
        "f": 0.5,
        "s": "text",
        "ints": [1, 2],
        "floats": [0.5, float("inf")],
        "strings": ["a", "b"],
    }


def test_a_function_of_the_model_itself_is_not_custom() -> None:
    body = [helper.make_node("Relu", ["v"], ["o"])]
    function = helper.make_function(DOMAIN, "Neg", ["v"], ["o"], body, [helper.make_opsetid("", 18)])
    model = small([helper.make_node("Neg", ["x"], ["y"], name="n", domain=DOMAIN)], ["y"])
    proto = ir.to_proto(model)
    proto.functions.append(function)
    assert cut(ir.from_proto(proto), OPERATORS) is None


def test_custom_operators_inside_a_function_are_found() -> None:
    body = [
        helper.make_node("Relu", ["v"], ["inner"]),
        helper.make_node("Neg", ["inner"], ["o"], name="hidden", domain=DOMAIN),
    ]
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    function = helper.make_function("local", "Both", ["v"], ["o"], body, imports)
    proto = ir.to_proto(small([helper.make_node("Both", ["x"], ["y"], name="n", domain="local")], ["y"]))
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("local", 1))
    found = cut(ir.from_proto(proto), OPERATORS)
    assert found is not None
    assert [step.operator.name for step in found.chain.steps if isinstance(step, Call)] == ["Neg"]


def test_inside_a_branch_the_graph_is_not_cut() -> None:
    kept = [helper.make_tensor_value_info("o", TensorProto.FLOAT, ["n", COLUMNS])]
    inner = helper.make_graph([helper.make_node("Neg", ["x"], ["o"], name="deep", domain=DOMAIN)], "b", [], kept)
    condition = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(True)))
    branch = helper.make_node("If", ["c"], ["y"], name="if", then_branch=inner, else_branch=inner)
    with pytest.raises(Unsupported, match=r"tests\.cutting::Neg \(node 'deep'\) stands inside an If"):
        cut(small([condition, branch], ["y"]), OPERATORS)


def test_a_type_that_nothing_tells_is_said() -> None:
    nodes = [
        helper.make_node("Neg", ["x"], ["a"], name="a", domain=DOMAIN),
        helper.make_node("Relu", ["a"], ["y"], name="y"),
    ]
    proto = ir.to_proto(small(nodes, ["y"]))
    del proto.graph.value_info[:]
    with pytest.raises(ModelLoadError, match="'a'"):
        cut(ir.from_proto(proto), OPERATORS)


def test_every_operator_of_these_tests_is_registered() -> None:
    assert all(custom.find(name) is not None for name in OPERATORS)
