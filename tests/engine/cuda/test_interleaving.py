"""What is computed of pieces that are put together for it alone: computed piece by piece, with the same answers."""

import pytest

pytest.importorskip("torch")

from tests.engine.cuda.reference import error, execute, lowered
from tests.graph.small import graph, normal, run

pytestmark = pytest.mark.torch

PAIRS = """e = Slice(x, zero, eight, last, two) o = Slice(x, one, eight, last, two) n = Neg(o)
    n1 = Unsqueeze(n, last) e1 = Unsqueeze(e, last) s = Concat <axis=-1> (n1, e1) r = Reshape(s, whole)"""
HALVES = """a = Slice(x, zero, four, last) b = Slice(x, four, eight, last) n = Neg(b) r = Concat <axis=-1> (n, a)"""
ROTATED = "rs = Mul(r, sin) xc = Mul(x, cos) y0 = Add(rs, xc)"


def _weights(shape: tuple[int, ...]) -> dict[str, object]:
    import numpy as np

    numbers = {"zero": [0], "one": [1], "two": [2], "four": [4], "eight": [8], "last": [-1], "whole": shape}
    return {
        **{name: np.array(each, np.int64) for name, each in numbers.items()},
        "sin": normal(shape[-2], shape[-1], seed=3),
        "cos": normal(shape[-2], shape[-1], seed=4),
        "first": normal(shape[0], shape[1], 1, shape[3], seed=5),
    }


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("fp16", 2e-3)])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("turned", "after", "pieces"),
    [
        (PAIRS, "y = Relu(y0)", 2),
        (HALVES, "y = Relu(y0)", 2),
        (PAIRS, "y1 = Concat <axis=2> (first, y0) y = Relu(y1)", 3),
        (HALVES, "y1 = Concat <axis=2> (first, y0) y = Relu(y1)", 3),
        (PAIRS, "t = Transpose <perm=[0,2,1,3]> (y0) y = Relu(t)", 2),
        (HALVES, "y = Mul(y0, r)", 0),
    ],
)
def test_rotated_rows_are_one_step(
    turned: str, after: str, pieces: int, batch: int, precision: str, tolerance: float
) -> None:
    shape = (batch, 3, 5, 8)
    text = f"(float[{batch},3,5,8] i) => (float y) {{ x = Relu(i) {turned} {ROTATED} {after} }}"
    model, inputs = graph(text, _weights(shape), opset=20), {"i": normal(*shape)}
    found, weights = lowered(model, inputs)
    assert error(execute(found, weights, inputs, precision)["y"], run(model, inputs)["y"]) < tolerance
    steps = [step for step in found.steps if step.kind == "pieces"]
    if pieces:
        assert len(steps) == 1
        assert "concat" not in {step.kind for step in found.steps}
        numbers = steps[0].attributes["pieces"]
        assert isinstance(numbers, tuple)
        count, at = 0, 0
        while at < len(numbers):
            count, at = count + 1, at + 3 + 2 * numbers[at + 1]
        assert count == pieces
