"""Folding of constants agrees with ONNX Runtime, operator by operator, and stays within its bounds."""

import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest

from penstock import limits
from penstock.graph import optimize
from penstock.graph.passes.constants import FOLDED
from tests.graph.small import Array, graph, normal, operators, run


@dataclass(frozen=True)
class Case:
    """An expression of constants a, b, c, d and e."""

    expression: str
    constants: tuple[Array, ...]
    opset: int = 18


def ints(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


F, G = normal(3, 4), normal(3, 4, seed=1)
POSITIVE, UNIT = np.abs(F) + 0.1, np.tanh(F)
TRUE, FALSE = F > 0, G > 0
SIGNED, DIVISOR = ints(-7, 7, -8, 8, 0), ints(2, -2, 3, -3, 5)

CASES = [
    *(Case(f"{name}(a)", (F,)) for name in ("Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "Identity", "Neg", "NonZero")),
    *(Case(f"{name}(a)", (F,)) for name in ("Relu", "Sigmoid", "Sign", "Sin", "Tanh", "Transpose", "Trilu")),
    *(Case(f"{name}(a)", (POSITIVE,)) for name in ("Log", "Reciprocal", "Sqrt")),
    *(
        Case(f"{name}(a, b)", (F, G))
        for name in ("Add", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
    ),
    *(Case(f"{name}(a, b)", (F, G)) for name in ("Max", "Min", "Mul", "Sub", "Sum")),
    *(Case(f"{name}(a, b)", (SIGNED, DIVISOR)) for name in ("Add", "Div", "Mod", "Mul", "Sub", "Max", "Min")),
    *(Case(f"{name}(a, b)", (SIGNED.astype(np.int32), DIVISOR.astype(np.int32))) for name in ("Div", "Mod")),
    *(Case(f"{name}(a, b)", (TRUE, FALSE)) for name in ("And", "Or", "Xor")),
    Case("Not(a)", (TRUE,)),
    Case("Mod<fmod=1>(a, b)", (F, G)),
    Case("Mod<fmod=1>(a, b)", (SIGNED, DIVISOR)),
    Case("Pow(a, b)", (POSITIVE, G)),
    Case("Pow(a, b)", (F, ints(3))),
    Case("MatMul(a, b)", (F, normal(4, 2))),
    Case("ArgMax<axis=1>(a)", (F,)),
    Case("ArgMin<axis=0, keepdims=0>(a)", (F,)),
    Case("BatchNormalization(a, b, c, d, e)", (F, normal(4), normal(4, seed=2), normal(4, seed=3), POSITIVE[0])),
    Case("Cast<to=7>(a)", (F * 3,)),
    Case("Cast<to=6>(a)", (SIGNED,)),
    Case("Cast<to=1>(a)", (SIGNED,)),
    Case("Cast<to=9>(a)", (SIGNED,)),
    Case("Cast<to=10>(a)", (F,)),
    Case("Cast<to=1>(a)", (F.astype(np.float16),)),
    Case("Clip(a, b, c)", (F, np.float32(-0.5), np.float32(0.5))),
    Case("Concat<axis=-1>(a, b)", (F, G)),
    Case("ConstantOfShape(a)", (ints(2, 3),)),
    Case("ConstantOfShape<value = int64[1] {7}>(a)", (ints(2, 3),)),
    Case("CumSum(a, b)", (F, np.array(1, np.int64))),
    Case("Expand(a, b)", (F, ints(2, 1, 4))),
    Case("Flatten<axis=1>(a)", (normal(2, 3, 4),)),
    Case("Gather<axis=1>(a, b)", (F, ints(0, -1, 2))),
    Case("GatherElements<axis=1>(a, b)", (F, np.array([[0, 1], [2, 3], [1, 0]], np.int64))),
    Case("GatherND(a, b)", (F, np.array([[0, 1], [2, 3]], np.int64))),
    Case("Pad(a, b)", (F, ints(0, 1, 2, 0))),
    Case("Range(a, b, c)", tuple(np.array(number, np.int64) for number in (2, 11, 3))),
    Case("Range(a, b, c)", tuple(np.array(number, np.float32) for number in (2, 0, -0.5))),
    Case("ReduceL2(a, b)", (F, ints(0))),
    Case("ReduceMax(a, b)", (F, ints(1))),
    Case("ReduceMean<keepdims=0>(a, b)", (F, ints(-1))),
    Case("ReduceMin(a)", (F,)),
    Case("ReduceProd<keepdims=0>(a)", (ints(2, 3, 4),)),
    Case("ReduceSum(a, b)", (F, ints(0))),
    Case("ReduceMax<axes=[1]>(a)", (F,), 13),
    Case("Reshape(a, b)", (F, ints(2, -1))),
    Case("Reshape(a, b)", (F, ints(0, 2, -1))),
    Case("ScatterND(a, b, c)", (F, np.array([[1]], np.int64), normal(1, 4, seed=2))),
    Case("Slice(a, b, c, d)", (F, ints(3), ints(-9), ints(1))),
    Case("Slice(a, b, c)", (F, ints(0, 1), ints(2, 2**62))),
    Case("Split<axis=1, num_outputs=1>(a)", (F,)),
    Case("Squeeze(a, b)", (normal(1, 3, 1), ints(0))),
    Case("Tile(a, b)", (F, ints(2, 1))),
    Case("Unsqueeze(a, b)", (F, ints(0, -1))),
    Case("Where(a, b, c)", (TRUE, F, G)),
]


def test_every_folded_operator_is_compared() -> None:
    assert {case.expression.partition("(")[0].partition("<")[0] for case in CASES} == FOLDED


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.expression}-{case.constants[0].dtype}")
def test_a_folded_operator_agrees_with_onnx_runtime(case: Case) -> None:
    weights = dict(zip("abcde", case.constants, strict=False))
    probe = graph(f"(float[1] x) => (float[1] y) {{ k = {case.expression} y = Identity(x) }}", weights, case.opset)
    # The result goes through an operator that takes every type and hangs on an input, so that an output remains.
    text = f"(float[1] x) => (double[?] y) {{ k = {case.expression} f = Cast<to=11>(k) r = Reshape(f, all) "
    text += "z = Cast<to=11>(x) s = ReduceSum(z) o = Mul(s, nothing) y = Add(r, o) }"
    model = graph(text, weights | {"all": ints(-1), "nothing": np.zeros(1)}, case.opset)
    optimized = optimize(model).model
    assert set(operators(optimized)) <= {"Cast", "ReduceSum", "Mul", "Add"}, "not folded"
    inputs = {"x": np.ones(1, np.float32)}
    expected, got = run(model, inputs)["y"], run(optimized, inputs)["y"]
    assert expected.shape == got.shape
    assert np.allclose(got, expected, rtol=1e-6, atol=1e-6)
    assert np.isfinite(expected).all()
    assert len(optimize(probe).model.graph.initializers) == 0


@pytest.mark.parametrize(
    ("expression", "weights"),
    [
        ("Expand(a, b)", {"a": np.float32(1), "b": ints(1 << 20, 1 << 10)}),
        ("ConstantOfShape(a)", {"a": ints(1 << 20, 1 << 10)}),
        ("Tile(a, b)", {"a": F, "b": ints(1 << 20, 1 << 10)}),
        ("Range(a, b, c)", {"a": np.array(0), "b": np.array(1 << 40), "c": np.array(1)}),
        ("Range(a, b, c)", {"a": np.array(0), "b": np.array(9), "c": np.array(0)}),
        ("Pad(a, b)", {"a": F, "b": ints(0, 1 << 40, 0, 0)}),
    ],
)
def test_a_constant_that_would_be_huge_is_not_made(expression: str, weights: dict[str, Array]) -> None:
    text = f"(float[1] x) => (int64[?] y) {{ k = {expression} s = Shape(k) d = Shape(x) y = Concat<axis=0>(s, d) }}"
    model = graph(text, weights, 18)
    tracemalloc.start()
    optimized = optimize(model).model
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20
    assert sum(value.const_value.nbytes for value in optimized.graph.initializers.values()) < 1 << 20


def test_a_constant_that_is_answered_stays_a_node() -> None:
    model = graph("(float[1] x) => (float[1] y, float[?,?] z) { y = Relu(x) z = Neg(a) }", {"a": F})
    optimized = optimize(model).model
    assert [value.name for value in optimized.graph.outputs] == ["y", "z"]
    assert np.array_equal(run(optimized, {"x": np.ones(1, np.float32)})["z"], -F)


@pytest.mark.parametrize("text", ["Div(a, b)", "Mod(a, b)"])
def test_division_by_zero_is_left_to_the_runtime(text: str) -> None:
    model = graph(f"(int64[1] x) => (int64[?] y) {{ k = {text} y = Add(k, x) }}", {"a": SIGNED, "b": SIGNED * 0})
    assert len(optimize(model).model.graph) == 2


@pytest.mark.parametrize("number", [np.nan, np.inf, 1e30])
def test_a_cast_that_no_integer_holds_is_left_to_the_runtime(number: float) -> None:
    model = graph("(int64[1] x) => (int64[?] y) { k = Cast<to=7>(a) y = Add(k, x) }", {"a": np.float32(number)})
    assert len(optimize(model).model.graph) == 2


def test_quantized_weights_stay_quantized() -> None:
    weights = {"w": np.ones((4, 3), np.int8), "s": np.float32(0.1), "z": np.int8(0)}
    text = "(float[N,4] x) => (float[?,3] y) { d = DequantizeLinear(w, s, z) y = MatMul(x, d) }"
    assert operators(optimize(graph(text, weights)).model) == {"DequantizeLinear": 1, "MatMul": 1}


@pytest.mark.parametrize("text", ["Add(k, x)", "Concat<axis=0>(k, x)"])
def test_constant_nodes_of_every_kind_become_initialisers(text: str) -> None:
    for value, kind in (
        ("value_ints = [1, 2]", "int64"),
        ("value_floats = [1.0, 2.0]", "float"),
        ("value = float[2] {3, 4}", "float"),
    ):
        model = graph(f"({kind}[2] x) => ({kind}[?] y) {{ k = Constant<{value}>() y = {text} }}")
        assert "Constant" not in operators(optimize(model).model)


def test_many_constants_together_stay_under_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FOLDED_TOTAL_BYTES", 100_000)
    lines = "".join(f"e{n} = Expand(a{n}, size) t{n} = Mul(e{n}, x) " for n in range(8))
    text = f"(float[1] x) => (float[10000] y) {{ {lines} y = Sum({', '.join(f't{n}' for n in range(8))}) }}"
    numbers = {f"a{n}": np.full(1, n, np.float32) for n in range(8)}
    optimized = optimize(graph(text, {**numbers, "size": ints(10000)}, 18)).model
    assert 40_000 < sum(value.const_value.nbytes for value in optimized.graph.initializers.values()) < 101_000
    assert np.array_equal(run(optimized, {"x": np.ones(1, np.float32)})["y"], np.full(10000, 28, np.float32))
