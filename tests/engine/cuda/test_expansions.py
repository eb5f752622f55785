"""Two layers of integers as one step: which are joined, and that the answers are those of both apart."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from penstock.engine import eight_bits  # noqa: E402
from penstock.engine.cuda.executor import Executor  # noqa: E402
from penstock.engine.lowered import LoweredGraph  # noqa: E402
from tests.engine.cuda.narrowing import Network  # noqa: E402

pytestmark = pytest.mark.torch

STRIDED = Network(
    "strided",
    """(float[2,32,9,8] x) => (float[2,24,5,4] y) {
    z = Conv(x, zero) a = Conv(z, one, shift) b = Clip(a, low, high)
    c = Conv <group=96, pads=[1,1,1,1], strides=[2,2]> (b, two, bias) d = Clip(c, low, high) y = Conv(d, three) }""",
    (2, 32, 9, 8),
    {
        "zero": (24, 32, 1, 1), "one": (96, 24, 1, 1), "two": (96, 1, 3, 3), "bias": (96,), "shift": (96,),
        "three": (24, 96, 1, 1), "low": (), "high": (),
    },
    frozenset(),
    (),
)  # fmt: skip


def unstrided(text: str) -> Network:
    return replace(STRIDED, text=text.replace(", strides=[2,2]", "").replace("[2,24,5,4]", "[2,24,9,8]"))


def as_they_are(graph: LoweredGraph) -> LoweredGraph:
    return graph


def test_layers_of_integers_are_one_step_and_answer_as_two_do(monkeypatch: pytest.MonkeyPatch) -> None:
    joined, weights, _ = STRIDED.narrowed()
    (step,) = (each for each in joined.steps if each.kind == "expand_depthwise")
    assert [each.role for each in step.inputs] == ["x", "first", "first_bias", "scale", "weight", "bias"]
    monkeypatch.setattr(eight_bits, "join_expansions_of_integers", as_they_are)
    apart, others, _ = STRIDED.narrowed()
    assert len(apart.steps) == len(joined.steps) + 1
    x = STRIDED.inputs()
    for precision in ("fp16", "fp32"):
        (found,) = Executor(joined, weights, "cpu", precision).run(x).values()
        (right,) = Executor(apart, others, "cpu", precision).run(x).values()
        assert float((found - right).norm()) <= 2e-3 * float(right.norm())


@pytest.mark.parametrize(
    "network",
    [
        unstrided(STRIDED.text),
        replace(STRIDED, text=STRIDED.text.replace("Clip(c, low, high)", "Relu(c)")),
        replace(STRIDED, weights=STRIDED.weights | {"zero": (72, 32, 1, 1), "one": (96, 72, 1, 1)}),
    ],
    ids=["without strides", "another activation", "not narrow"],
)
def test_others_stay_apart(network: Network) -> None:
    assert all(step.kind != "expand_depthwise" for step in network.narrowed()[0].steps)
