"""Every operator that can be lowered, on the device, against ONNX Runtime in FP32 on the CPU: all kinds of steps."""

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")

import torch

from penstock.engine.cuda.executor import Executor
from penstock.engine.lowered import KINDS
from tests.engine.cuda import test_joined as joined
from tests.engine.cuda.reference import error, lowered
from tests.engine.cuda.test_operators import CASES, Case, model_of
from tests.gpu.conftest import DEVICE
from tests.graph.small import Arrays, graph, normal, run

pytestmark = [pytest.mark.gpu, pytest.mark.torch]

# FP32 has 24 bits, but cuDNN may take a fast algorithm; 11 and 8 bits are good for 5e-4 and 4e-3 of each sum, and
# layers without a norm behind them add up a few.
TOLERANCES = {"fp32": 1e-5, "fp16": 3e-3, "bf16": 2e-2}

# What no single operator becomes.
ATTENTION = Case(
    "q = Reshape(x, s) a = Transpose<perm=[0,2,1,3]>(q) b = Transpose<perm=[0,2,3,1]>(q) m = MatMul(a, b) "
    "t = Mul(m, c) p = Softmax<axis=-1>(t) o = MatMul(p, a) r = Transpose<perm=[0,2,1,3]>(o) y = Reshape(r, f)",
    {"x": (2, 5, 32)},
    (2, 5, 32),
    {"s": np.array([2, 5, 2, 16]), "f": np.array([2, 5, 32]), "c": np.array(0.25, np.float32)},
    kinds=("attention",),
)
CHANNELS = Case(
    "q = Reshape(x, s) a = Transpose<perm=[0,2,3,1]>(q) b = Transpose<perm=[0,2,1,3]>(q) m = MatMul(a, b) "
    "t = Mul(m, c) p = Softmax<axis=-1>(t) o = MatMul(p, a) r = Transpose<perm=[0,3,1,2]>(o) y = Reshape(r, f)",
    {"x": (2, 20, 32)},
    (2, 20, 32),
    {"s": np.array([2, 20, 2, 16]), "f": np.array([2, 20, 32]), "c": np.array(0.25, np.float32)},
    kinds=("channel_attention",),
)
ALL = [*CASES, ATTENTION, CHANNELS]


@pytest.mark.parametrize("preferred", [(), ("triton", "triton_tiles")], ids=["torch", "ours"])
@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("case", ALL, ids=lambda case: f"{case.text} {next(iter(case.inputs.values()))}"[:90])
def test_an_operator_agrees_with_onnx_runtime_on_the_device(
    case: Case, precision: str, preferred: tuple[str, ...]
) -> None:
    model, inputs = model_of(case)
    lowered_, weights = lowered(model, inputs)
    executor = Executor(lowered_, weights, DEVICE, precision, preferred)
    outputs = executor.run({name: torch.from_numpy(np.array(each)).to(DEVICE) for name, each in inputs.items()})
    for name, right in run(model, inputs).items():
        found = outputs[name].cpu().numpy()
        assert found.dtype == right.dtype, name
        if right.dtype.kind == "f":
            assert error(found, right) < TOLERANCES[precision], name
        else:
            assert np.array_equal(found, right), name


GATED = (
    "(float[2,8,6,7] i) => (float[2,8,6,7] y) { "
    f"x = Conv <group=8, pads=[1,1,1,1]> (i, o) {joined.SQUEEZED} y = Mul(x, g) }}"
)
LIKELIEST = """(float[2,5,700] i) => (int64[2,5] index, float[2,5] score) { x = Mul(i, three)
    s = Softmax <axis=-1> (x) index = ArgMax <axis=2, keepdims=0> (s) score = ReduceMax <keepdims=0> (s, axis) }"""


def joined_models() -> list[tuple[ir.Model, Arrays]]:
    """Layers that become one step, and what they are given."""
    given = {"i": normal(2, 8, 6, 7)}
    texts = [f"(float[2,8,6,7] i) => (float[2,8,6,7] y) {{ {joined.BEFORE} {case.text} }}" for case in joined.CASES]
    found = [(graph(text, joined.WEIGHTS, opset=20), given) for text in texts]
    found.append((graph(GATED, {**joined.WEIGHTS, "o": normal(8, 1, 3, 3) / 3}), given))
    numbers = {"three": np.array(3, np.float32), "axis": np.array([2])}
    found.append((graph(LIKELIEST, numbers, opset=20), {"i": normal(2, 5, 700)}))
    return found


@pytest.mark.parametrize("preferred", [(), ("triton", "triton_depthwise", "triton_gate"), ("triton_pair",)], ids=str)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("number", range(len(joined.CASES) + 2))
def test_joined_layers_agree_with_onnx_runtime(number: int, precision: str, preferred: tuple[str, ...]) -> None:
    model, inputs = joined_models()[number]
    executor = Executor(*lowered(model, inputs), DEVICE, precision, preferred)
    if preferred:
        assert {bound.implementation for bound in executor.program} & set(preferred) or preferred == ("triton_pair",)
    outputs = executor.run({name: torch.from_numpy(np.array(each)).to(DEVICE) for name, each in inputs.items()})
    for name, right in run(model, inputs).items():
        if right.dtype.kind == "f":
            assert error(outputs[name].cpu().numpy(), right) < TOLERANCES[precision]
        else:
            assert np.mean(outputs[name].cpu().numpy() == right) > 0.8  # close ones change places in sixteen bits


# Whose cases are in tests/engine/cuda/kernels, which run on a GPU where there is one.
OF_KERNELS = frozenset({
    "bottleneck", "bottleneck_next", "conv_pool", "conv_shortcut", "expand_depthwise", "fork", "gated_layers",
    "gemm_norm", "gemm_top_1", "picture_pool", "pieces",
})  # fmt: skip


def test_every_kind_of_step_is_among_the_cases() -> None:
    models = [*(model_of(case) for case in ALL), *joined_models()]
    kinds = {step.kind for model, inputs in models for step in lowered(model, inputs)[0].steps}
    assert kinds | OF_KERNELS == KINDS.keys()
