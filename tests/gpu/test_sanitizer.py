"""NVIDIA's checker finds no wrong access and no race in our kernels, launched early and from a graph."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

pytestmark = [pytest.mark.gpu, pytest.mark.torch, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
FOUND = 9
"""What the checker exits with when it found something."""

STEPS = """
import torch
from penstock.engine.cuda.choices import Choice
from penstock.engine.cuda.executor import Executor
from tests.engine.cuda.reference import error, lowered
from tests.graph.small import graph, normal, run

inputs = {"x": normal(2, 16, 12, 12)}
weights = {"w": normal(16, 16, 3, 3, seed=1) / 12, "b": normal(16, seed=2), "d": normal(16, 1, 3, 3, seed=3) / 3}
model = graph(
    "(float[2,16,12,12] x) => (float[2,16,1,1] y) { a = Conv <pads=[1,1,1,1]> (x, w, b) r = Relu(a) "
    "g = Conv <pads=[1,1,1,1], group=16> (r, d, b) c = Conv <pads=[1,1,1,1]> (g, w, b) e = Add(c, r) "
    "y = GlobalAveragePool(e) }",
    weights,
)
lowered_, numbers = lowered(model, inputs)
# One of the products is split, so that blocks of one launch share partial sums.
split = next(step.name for step in lowered_.steps if step.kind == "conv")
executor = Executor(
    lowered_, numbers, "cuda", "fp16", ("triton", "triton_depthwise"),
    {split: Choice("triton", (16, 16, 16, 4, 2, 3, 8))}, early_launch=True,
)
assert sum(site.early and site.behind for site in executor.sites) > 0
captured = executor.capture()
captured.inputs["x"].copy_(torch.from_numpy(inputs["x"]))
torch.cuda.synchronize()
for _ in range(3):
    captured.replay()
torch.cuda.synchronize()
assert error(captured.outputs["y"].cpu().numpy(), run(model, inputs)["y"]) < 3e-3
print("right")
"""


# Recurrences on clusters, and products by warpgroups: edges of every kind, clusters of two, 16 and 8 bits.
IN_CPP = """
import torch
from tests.engine.cuda.kernels import test_lstm as lstm
from tests.engine.cuda.kernels import test_warpgroup_gemm as gemm

for layer in lstm.LAYERS[1:4]:
    given = lstm.tensors(layer, "cuda")
    given.launch(layer).run()
    torch.cuda.synchronize()
    assert lstm.difference(given.out, lstm.expected(given)[0]) < 1e-3
assert torch.cuda.get_device_capability() == (9, 0)
for case in (gemm.CASES[1], gemm.CASES[3], gemm.CASES[9]):
    given = gemm.tensors(case, "cuda")
    given.launch(case).run()
    torch.cuda.synchronize()
    assert gemm.difference(given.out, gemm.expected(given, case)) < gemm.allowed(case)
print("right")
"""


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
@pytest.mark.parametrize("text", [STEPS, IN_CPP], ids=["steps", "kernels in C++"])
def test_the_checker_finds_nothing(text: str, tool: str, tmp_path: Path) -> None:
    found = shutil.which("compute-sanitizer")
    if found is None:
        pytest.skip("compute-sanitizer is not installed")
    program = tmp_path / "program.py"
    program.write_text(text)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    given = environment.get("PYTHONPATH", "").split(os.pathsep)
    environment["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(ROOT / "python"), *given))
    command = [found, "--tool", tool, "--error-exitcode", str(FOUND), "--report-api-errors", "no"]
    done = subprocess.run(
        [*command, sys.executable, str(program)], env=environment, capture_output=True, text=True, timeout=400,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert "right" in done.stdout
