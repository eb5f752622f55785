"""Every operator that can be lowered, on the device, against ONNX Runtime in FP32 on the CPU: all kinds of steps."""

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")

import torch

from penstock.engine.cuda.executor import Executor
from penstock.engine.lowered import KINDS
from tests.engine.cuda.reference import error, lowered
from tests.engine.cuda.test_operators import CASES, Case, declared, drawn
from tests.gpu.conftest import DEVICE
from tests.graph.small import Arrays, graph, run

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
ALL = [*CASES, ATTENTION]


def model_of(case: Case) -> tuple[ir.Model, Arrays]:
    inputs = {name: drawn(name, given) for name, given in case.inputs.items()}
    weights = {name: drawn(name, given) for name, given in case.weights.items()}
    outputs = case.outputs.format(",".join(map(str, case.out or ())))
    given = ", ".join(declared(name, array) for name, array in inputs.items())
    return graph(f"({given}) => ({outputs}) {{ {case.text} }}", weights, case.opset), inputs


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("case", ALL, ids=lambda case: f"{case.text} {next(iter(case.inputs.values()))}"[:90])
def test_an_operator_agrees_with_onnx_runtime_on_the_device(case: Case, precision: str) -> None:
    model, inputs = model_of(case)
    lowered_, weights = lowered(model, inputs)
    executor = Executor(lowered_, weights, DEVICE, precision)
    outputs = executor.run({name: torch.from_numpy(np.array(each)).to(DEVICE) for name, each in inputs.items()})
    for name, right in run(model, inputs).items():
        found = outputs[name].cpu().numpy()
        assert found.dtype == right.dtype, name
        if right.dtype.kind == "f":
            assert error(found, right) < TOLERANCES[precision], name
        else:
            assert np.array_equal(found, right), name


def test_every_kind_of_step_is_among_the_cases() -> None:
    kinds = {step.kind for case in ALL for step in lowered(*model_of(case))[0].steps}
    assert kinds == KINDS.keys()
