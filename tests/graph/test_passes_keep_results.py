"""Every pass, alone and with all others, computes what the graph computed: random graphs, run before and after."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.graph import FOR_CPU, bind, optimize, sources
from penstock.graph.binding import prepare
from penstock.graph.optimizing import run_pass
from penstock.graph.passes import PASSES, Pass
from tests.graph import random_graphs as steps
from tests.graph.random_graphs import Chain, graphs
from tests.graph.small import Array, assert_same

Step = Callable[[Chain], None]

# What to build graphs of so that a pass finds something to do, and something that only looks like it.
LOOKED_FOR: dict[str, tuple[Step, ...]] = {
    "fold-constants": (steps.constants, steps.reshape, steps.unary),
    "remove-no-ops": (steps.no_op, steps.unary, steps.arithmetic, steps.reshape, steps.pad),
    "merge-transposes": (steps.transpose, steps.unary),
    "merge-reshapes": (steps.reshape, steps.unary),
    "remove-dead": (steps.no_op, steps.reshape, steps.pool),
    "merge-duplicates": (steps.repeated, steps.constants, steps.reshape, steps.arithmetic),
    "recognise-patterns": (steps.arithmetic, steps.unary, steps.product),
    "make-pads-explicit": (steps.conv, steps.pool, steps.unary),
    "fold-pad": (steps.pad, steps.lowest_pad, steps.conv, steps.pool, steps.unary),
    "fold-batch-norm": (steps.batch_norm, steps.conv, steps.conv_transpose, steps.unary),
    "fold-affine": (steps.arithmetic, steps.conv, steps.conv_transpose, steps.product),
    "merge-parallel-convolutions": (steps.parallel, steps.unary),
    "merge-bias": (steps.product, steps.arithmetic),
    "spread-deconvolutions": (steps.conv_transpose, steps.unary, steps.conv),
    "sink-depth-to-space": (steps.spread, steps.unary, steps.conv),
    "merge-residual-gates": (steps.gated, steps.residual, steps.arithmetic),
}
EVERYTHING: tuple[Step, ...] = (*{step: None for group in LOOKED_FOR.values() for step in group}, steps.residual)
_SETTINGS = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def test_every_pass_has_its_graphs() -> None:
    assert LOOKED_FOR.keys() == {name for name, _ in (*PASSES, *FOR_CPU)}


@pytest.mark.parametrize("name", LOOKED_FOR)
@given(data=st.data())
@_SETTINGS
def test_a_pass_alone_keeps_the_results(name: str, data: st.DataObject) -> None:
    rank = data.draw(st.sampled_from([4, 4, 2])) if name in ("fold-affine", "merge-bias", "merge-reshapes") else 4
    model, inputs = data.draw(graphs(*LOOKED_FOR[name], rank=rank))
    changed = prepare(model)
    lifted = dict((*PASSES, *FOR_CPU))
    run_pass(changed, "fold-constants", lifted["fold-constants"])
    run_pass(changed, name, lifted[name])
    assert_same(model, changed, inputs)


@given(graphs(*EVERYTHING), st.booleans(), st.sampled_from([(), FOR_CPU]))
@settings(_SETTINGS, max_examples=150)
def test_all_passes_keep_results_and_signature(
    made: tuple[ir.Model, dict[str, Array]], bound: bool, then: tuple[Pass, ...]
) -> None:
    model, inputs = made
    shapes = {"x": inputs["x"].shape} if bound else None
    optimized = optimize(model, shapes=shapes, then=then)
    assert_same(model, optimized.model, inputs)
    assert [value.name for value in optimized.model.graph.inputs] == ["x"]
    assert [value.name for value in optimized.model.graph.outputs] == [value.name for value in model.graph.outputs]
    known = {node.name for node in model.graph}
    for node in optimized.model.graph:
        assert node.name
        assert set(sources(node)) <= known


@given(graphs(*EVERYTHING))
@settings(_SETTINGS, max_examples=40)
def test_bound_graphs_have_numbers_for_shapes(made: tuple[ir.Model, dict[str, Array]]) -> None:
    model, inputs = made
    fixed = bind(model, {"x": inputs["x"].shape})
    assert all(isinstance(size, int) for node in fixed.graph for value in node.outputs for size in value.shape or ["?"])
    assert not any(node.op_type in ("Shape", "ConstantOfShape", "Range") for node in fixed.graph)
    assert_same(model, fixed, inputs)


def test_the_judge_finds_a_wrong_number_and_a_number_that_is_none() -> None:
    right, inputs = _scaled(1.0), {"x": np.ones(3, np.float32)}
    assert_same(right, right, inputs)
    for wrong in (1.0001, np.nan, np.inf):
        with pytest.raises(AssertionError):
            assert_same(right, _scaled(wrong), inputs)
    with pytest.raises(AssertionError):
        assert_same(_scaled(np.nan), _scaled(np.nan), inputs)


def _scaled(factor: float) -> ir.Model:
    from tests.graph.small import graph

    return graph("(float[N] x) => (float[N] y) { y = Mul(x, c) }", {"c": np.array([factor], np.float32)})
