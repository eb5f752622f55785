"""What would be launched is asked on tensors without memory: shapes alone, and no compiler of torch's is imported."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch

from penstock.engine.cuda import lane_blocks, recurrent, triton_dense, warpgroup_steps
from penstock.engine.cuda.executor import Executor
from penstock.engine.cuda.kernels.depthwise_walk import steady
from penstock.engine.cuda.kernels.epilogue import added, fold
from penstock.engine.cuda.triton_steps import WAYS, launch
from tests.engine.cuda.reference import lowered
from tests.graph.small import graph, normal

pytestmark = pytest.mark.torch

Made = dict[str, "torch.Tensor"]


def _fold(tensors: Made) -> Made:
    scale, bias = fold(tensors["scale"], tensors["bias"], 0.5, 1 << 20)
    without_bias = fold(tensors["scale"], None, 0.5, 0)
    return {"scale": scale, "bias": bias, "other scale": without_bias[0], "other bias": without_bias[1]}


def _added(tensors: Made) -> Made:
    return {"one": added([tensors["bias"]]), "two": added([tensors["bias"], tensors["scale"]])}


def _steady(tensors: Made) -> Made:
    return dict(zip(("weights", "factors"), steady(tensors["taps"]), strict=True))


def _sums(tensors: Made) -> Made:
    return {"sums": triton_dense.DENSE["gemm_norm", "triton_dense"].forms["column_sums"](tensors["matrix"])}


TENSORS = {
    "scale": (8,),
    "bias": (8,),
    "taps": (3, 3, 8),
    "weight": (8, 3, 3, 8),
    "second": (8, 1, 1, 8),
    "matrix": (8, 16),
}
CASES: dict[str, Callable[[Made], Made]] = {"fold": _fold, "added": _added, "steady": _steady, "sums": _sums}
for _name, _combined in (
    ("blocks", lane_blocks.LANE_BLOCKS["bottleneck", "cuda_lanes"].combined),
    ("two products", warpgroup_steps.WINDOWS["conv_shortcut", "cuda_windows"].combined),
    ("lstm", recurrent.RECURRENT["lstm", "cuda_cluster"].combined),
):
    CASES[_name] = partial(
        lambda combined, tensors: dict(
            combined(
                {
                    **{role: tensors[role] for role in ("weight", "second", "bias")},
                    "shortcut_bias": tensors["scale"],
                    "recurrence_bias": tensors["scale"],
                }
            )
        ),
        _combined,
    )


@pytest.mark.parametrize("name", CASES)
def test_shapes_and_types_are_those_of_real_tensors(name: str) -> None:
    real = CASES[name]({role: torch.rand(shape) + 0.5 for role, shape in TENSORS.items()})
    without = CASES[name]({role: torch.empty(shape, device="meta") for role, shape in TENSORS.items()})
    assert {key: (each.shape, each.stride(), each.dtype) for key, each in without.items()} == {
        key: (each.shape, each.stride(), each.dtype) for key, each in real.items()
    }
    assert all(each.is_meta for each in without.values())


def ask_for_every_launch() -> None:
    """Of a step of each of two kinds."""
    text = "(float[4,8] x) => (float[4,16] y) { a = Mul (x, s) b = Neg (a) y = Gemm (b, w) }"
    made = graph(text, {"s": normal(4, 8), "w": normal(8, 16)})
    for site in Executor(*lowered(made, {"x": normal(4, 8)}), "cpu", "fp16").sites:
        launch(site, "triton", WAYS[site.step.kind, "triton"].configs(site)[0])


ASKING = """
import sys
import torch
from tests.engine.cuda.kernels import test_on_meta as here
meta = {role: torch.empty(shape, device="meta") for role, shape in here.TENSORS.items()}
for case in here.CASES.values():
    case(meta)
here.ask_for_every_launch()
print("torch._dynamo" in sys.modules, "torch.fx.experimental.symbolic_shapes" in sys.modules)
meta["scale"] * 2  # what is not to be done
print("torch._dynamo" in sys.modules)
"""


def test_nothing_imports_torchs_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", ASKING], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "False", "True"]
