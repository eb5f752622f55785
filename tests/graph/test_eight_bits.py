"""Q/DQ forms as steps in eight bits: against ONNX Runtime's execution of the same form, and what is stored how."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")

from penstock import quantize
from penstock.engine.lowered import LoweredGraph, from_json, to_json, validate
from penstock.errors import Unsupported
from penstock.graph import optimize, signature
from penstock.graph.eight_bits import in_fp8, in_int8, unquantized
from tests.engine.cuda.reference import error, execute
from tests.graph.residual_network import resnet34
from tests.graph.small import graph, normal, run

pytestmark = pytest.mark.torch

Arrays = dict[str, Any]


def quantized(model: ir.Model, shape: tuple[int, ...], scheme: quantize.Scheme = quantize.GPU) -> ir.Model:
    samples = [{"x": normal(*shape, seed=seed)} for seed in range(3)]
    data = quantize.load(samples, signature(model)[0], allow_random=True)
    (recipe,) = quantize.recipes(model, data, schemes=[scheme], methods=["minmax"])
    return recipe.model


def lowered(model: ir.Model, shape: tuple[int, ...]) -> tuple[LoweredGraph, Arrays]:
    float_ = unquantized(model)
    found, weights = in_int8(optimize(float_.model, shapes={"x": shape}).model, float_)
    validate(found)
    assert from_json(to_json(found)) == found
    return found, dict(weights)


@dataclass(frozen=True)
class Case:
    name: str
    text: str
    shape: tuple[int, ...]
    weights: dict[str, tuple[int, ...]]
    stored: set[str]
    """Values in eight bits, copies of what is read apart."""
    layers: int = 1
    """Steps that multiply eight bits."""
    copies: int = 1
    same: bool = True
    """Whether all that the form quantizes is quantized."""


MAP = (2, 32, 9, 7)
CASES = [
    Case("one layer", "y = Conv <pads=[1,1,1,1]> (x, w, b)", MAP, {"w": (24, 32, 3, 3), "b": (24,)}, set()),
    Case(
        "two layers",
        "a = Conv (x, w, b) c = Relu(a) y = Conv <strides=[2,2], pads=[0,1,1,0]> (c, v)",
        MAP,
        {"w": (40, 32, 1, 1), "b": (40,), "v": (16, 40, 3, 3)},
        {"c"},
        2,
    ),
    Case(
        "an addition of a shortcut",
        "a = Conv (x, w) c = Relu(a) d = Conv <pads=[1,1,1,1]> (c, v) e = Add(d, c) f = Relu(e) y = Conv(f, w)",
        MAP,
        {"w": (32, 32, 1, 1), "v": (32, 32, 3, 3)},
        {"c", "f"},
        3,
    ),
    Case(
        "an addition of two layers",
        # Kernels that reach over different edges: others would become one.
        "a = Conv <pads=[0,0,2,2]> (x, u) c = Conv <pads=[2,2,0,0]> (x, v) d = Add(a, c) e = Relu(d) y = Conv(e, w)",
        MAP,
        {"w": (32, 32, 1, 1), "u": (32, 32, 3, 3), "v": (32, 32, 3, 3)},
        {"a", "e"},
        3,
    ),
    Case(
        "a pool between layers",
        "a = Conv (x, w) p = MaxPool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]> (a) y = Conv (p, w)",
        MAP,
        {"w": (32, 32, 1, 1)},
        {"a", "p"},
        2,
    ),
    Case(
        "a mean and a classifier",
        "a = Conv (x, w) c = Relu(a) p = GlobalAveragePool(c) f = Flatten(p) y = Gemm <transB=1> (f, v, b)",
        MAP,
        {"w": (32, 32, 1, 1), "v": (10, 32), "b": (10,)},
        {"p"},
        2,
    ),
    Case(
        "a float reader",
        "a = Conv (x, w) c = Relu(a) d = Sigmoid(c) e = Conv (c, w) y = Mul(d, e)",
        MAP,
        {"w": (32, 32, 1, 1)},
        set(),
        2,
        2,
        same=False,
    ),
    Case(
        "a picture",
        "a = Conv <strides=[2,2], pads=[1,1,1,1]> (x, w) c = Relu(a) y = Conv (c, v)",
        (2, 3, 12, 12),
        {"w": (32, 3, 3, 3), "v": (8, 32, 1, 1)},
        {"n0.pad", "c"},
        2,
        0,
    ),
    Case(
        "rows",
        "a = MatMul(x, w) c = Add(a, b) d = Relu(c) y = MatMul(d, v)",
        (2, 5, 48),
        {"w": (48, 64), "b": (64,), "v": (64, 8)},
        {"d"},
        2,
    ),
    Case("few channels", "y = Conv (x, w)", (2, 4, 6, 6), {"w": (24, 4, 3, 3)}, {"n0.pad"}, 1, 0),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_form_is_computed_as_onnx_runtime_computes_it(case: Case) -> None:
    weights = {
        name: normal(*shape, seed=ord(name[0])) / np.float32(np.sqrt(np.prod(shape[1:])))
        for name, shape in case.weights.items()
    }
    size = ",".join(map(str, case.shape))
    model = optimize(
        graph(f"(float[{size}] x) => (float[{'N,' * (len(case.shape) - 1)}M] y) {{ {case.text} }}", weights)
    )
    form = quantized(model.model, case.shape)
    found, tensors = lowered(form, case.shape)
    narrow = {name for name, value in found.values.items() if value.scale is not None}
    assert {name for name in narrow if not name.endswith(".int8")} == case.stored
    assert len(narrow) - len(case.stored) == case.copies
    assert sum(step.operand("scale") is not None for step in found.steps) == case.layers
    inputs = {"x": normal(*case.shape, seed=9)}
    expected, right = run(form, inputs)["y"], run(model.model, inputs)["y"]
    answer = execute(found, tensors, inputs)["y"]
    # A sum that falls between two steps may go to either: one step of one number in a few thousand.
    assert not case.same or error(answer, expected) < 2e-3
    assert error(answer, right) < 0.05


def test_a_residual_network_is_in_eight_bits_from_the_picture_to_the_end() -> None:
    model = optimize(resnet34()).model
    form = quantized(model, (1, 3, 64, 64))
    found, tensors = lowered(form, (2, 3, 64, 64))
    steps = Counter((step.kind, step.operand("scale") is not None) for step in found.steps)
    assert steps == {
        ("pad", False): 1,
        ("conv_pool", True): 1,
        ("conv", True): 35,
        ("reduce", False): 1,
        ("gemm", True): 1,
    }
    inputs = {"x": normal(2, 3, 64, 64, seed=9)}
    expected, right = run(form, inputs)["y"], run(model, inputs)["y"]
    answer = execute(found, tensors, inputs)["y"]
    # Of what rounding costs, not of what is right: after thirty layers numbers on other sides of a tie are noise.
    noise = error(expected, right)
    assert 0.01 < noise < 0.06
    assert error(answer, right) < 1.5 * noise


def test_weights_are_the_integers_of_the_form() -> None:
    model = optimize(graph("(float[1,32,4,4] x) => (float[1,8,4,4] y) { y = Conv(x, w) }", {"w": normal(8, 32, 1, 1)}))
    form = quantized(model.model, (1, 32, 4, 4))
    _, tensors = lowered(form, (1, 32, 4, 4))
    (weight,) = (array for array in tensors.values() if array.dtype == np.int8)
    (given,) = (
        value.const_value.numpy()
        for value in form.graph.initializers.values()
        if value.const_value is not None and value.const_value.numpy().shape == (8, 32, 1, 1)
    )
    assert np.array_equal(weight.transpose(0, 3, 1, 2), given)


def test_asymmetric_activations_are_refused_by_name() -> None:
    model = optimize(graph("(float[1,32,4,4] x) => (float[1,8,4,4] y) { y = Conv(x, w) }", {"w": normal(8, 32, 1, 1)}))
    form = quantized(model.model, (1, 32, 4, 4), quantize.SCHEMES["inputs"])
    with pytest.raises(Unsupported, match="zero point 0"):
        unquantized(form)


def test_layers_that_are_kept_stay_float() -> None:
    text = "(float[1,32,4,4] x) => (float[1,32,4,4] y) { a = Conv(x, w) b = Relu(a) y = Conv(b, v) }"
    model = optimize(graph(text, {"w": normal(32, 32, 1, 1), "v": normal(32, 32, 1, 1)})).model
    samples = [{"x": normal(1, 32, 4, 4, seed=seed)} for seed in range(3)]
    data = quantize.load(samples, signature(model)[0], allow_random=True)
    (recipe,) = quantize.recipes(model, data, schemes=[quantize.GPU], methods=["minmax"])
    last = model.graph.outputs[0].producer()
    assert last is not None
    found, _ = lowered(recipe.keeping([last.name or ""]).model, (1, 32, 4, 4))
    assert [step.operand("scale") is not None for step in found.steps if step.kind == "conv"] == [True, False]
    assert found.values["b"].scale is None


def test_rows_in_e4m3_need_no_form() -> None:
    text = """(float[2,5,48] x) => (float[2,5,8] y) {
    n = LayerNormalization <axis=-1> (x, g, g) a = MatMul(n, w) c = Add(a, b) d = Gelu(c) y = MatMul(d, v) }"""
    weights = {"g": normal(48), "w": normal(48, 64) / 7, "b": normal(64), "v": normal(64, 8) / 8}
    model = optimize(graph(text, weights, 20)).model
    inputs = {"x": normal(2, 5, 48, seed=9)}
    right = run(model, inputs)["y"]
    bound = optimize(model, shapes={"x": (2, 5, 48)}).model
    found, tensors = in_fp8(bound, {"n": 5.0, "d": 4.0})
    assert {name: value.datatype for name, value in found.values.items() if value.scale is not None} == {
        "n": "FP8",
        "d": "FP8",
    }
    noise = error(execute(found, dict(tensors), inputs)["y"], right)
    assert 1e-3 < noise < 0.1
    kept, _ = in_fp8(bound, {"d": 4.0})
    assert [step.operand("scale") is not None for step in kept.steps if step.kind == "gemm"] == [False, True]
