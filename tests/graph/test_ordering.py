"""Products that store their result in the order that its reader wants."""

import numpy as np
import pytest

pytest.importorskip("torch")

from tests.engine.cuda.reference import assert_agrees
from tests.graph.small import graph, normal

pytestmark = pytest.mark.torch

INPUTS = {"q": normal(2, 3, 5, 4), "k": normal(2, 3, 4, 7, seed=1)}


def kinds(text: str, out: str, weights: dict[str, np.ndarray] | None = None) -> list[tuple[str, object]]:
    model = graph(f"(float[2,3,5,4] q, float[2,3,4,7] k) => ({out}) {{ {text} }}", weights)
    found = assert_agrees(model, model, INPUTS, 2e-6)
    return [(step.kind, step.attributes.get("order")) for step in found.steps]


def test_heads_that_are_brought_together_again_are_no_copy() -> None:
    shape = {"s": np.array([2, 5, 21], np.int64)}
    text = "m = MatMul(q, k) t = Transpose <perm=[0,2,1,3]> (m) y = Reshape(t, s)"
    assert kinds(text, "float[2,5,21] y", shape) == [("matmul", (0, 2, 1, 3))]
    text = "m = MatMul(q, k) t = Transpose <perm=[0,2,1,3]> (m) r = Reshape(t, s) y = MatMul(r, w)"
    assert kinds(text, "float[2,5,6] y", shape | {"w": normal(21, 6)}) == [("matmul", (0, 2, 1, 3)), ("gemm", None)]


def test_heads_last_for_a_layer_across_them() -> None:
    text = "m = MatMul(q, k) t = Transpose <perm=[0,2,3,1]> (m) y = MatMul(t, w)"
    assert kinds(text, "float[2,5,7,6] y", {"w": normal(3, 6)}) == [("matmul", (0, 2, 3, 1)), ("gemm", None)]


def test_results_that_others_read_stay_as_they_are() -> None:
    text = "m = MatMul(q, k) t = Transpose <perm=[0,2,3,1]> (m) y = MatMul(t, w) z = Exp(m)"
    found = kinds(text, "float[2,5,7,6] y, float[2,3,5,7] z", {"w": normal(3, 6)})
    assert [kind for kind, _ in found] == ["matmul", "copy", "gemm", "pointwise"]
