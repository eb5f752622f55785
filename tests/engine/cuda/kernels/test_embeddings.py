"""What stands before a transformer's blocks: embeddings in one step, masks read as they come in."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch

from penstock.engine.cuda.executor import Executor
from penstock.engine.cuda.kernels.reductions import layer_norm
from tests.engine.cuda.reference import Arrays, assert_agrees, error, lowered
from tests.graph.small import graph, normal, run

pytestmark = pytest.mark.torch

D, T, WORDS = 64, 5, 11
WEIGHTS: Arrays = {
    "words": normal(WORDS, D, seed=1),
    "places": normal(T, D, seed=2),
    "kinds": normal(2, D, seed=3),
    "g": 1 + normal(D, seed=4) / 4,
    "h": normal(D, seed=5) / 4,
    "one": np.float32(1.0),
    "lowest": np.float32(np.finfo(np.float32).min),
    "axes": np.array([1, 2]),
    "apart": np.array([0, 0, 2, D // 2]),
    "together": np.array([0, 0, D]),
    "c": np.float32((D // 2) ** -0.5),
}
NORM = "y = LayerNormalization<axis=-1, epsilon=1e-5>(s, g, h)"


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("e = Gather(words, i) s = Add(e, places)", ["layer_norm"]),
        ("e = Gather(words, i) s = Add(places, e)", ["layer_norm"]),
        ("s = Gather(words, i)", ["layer_norm"]),
        # A second table's rows are looked up first.
        ("e = Gather(words, i) k = Gather(kinds, j) f = Add(e, k) s = Add(f, places)", None),
    ],
)
def test_embeddings_are_one_step(text: str, kinds: list[str] | None, batch: int, device: str) -> None:
    model = graph(
        f"(int64[{batch},{T}] i, int64[{batch},{T}] j) => (float[{batch},{T},{D}] y, int64[{batch},{T}] z) "
        f"{{ {text} {NORM} z = Neg(j) }}",
        WEIGHTS,
        opset=20,
    )
    # A number below zero counts from the end.
    inputs = {"i": np.arange(batch * T).reshape(batch, T) % (2 * WORDS) - WORDS, "j": np.ones((batch, T), np.int64)}
    found = assert_agrees(model, model, inputs, 2e-6)
    if kinds is not None:
        assert [step.kind for step in found.steps if step.outputs[0] != "z"] == kinds
    executor = Executor(*lowered(model, inputs), device, "fp16", ("triton",))
    assert {each.implementation for each in executor.program if each.kind == "layer_norm"} == {"triton"}
    answer = executor.run({name: torch.from_numpy(each).to(device) for name, each in inputs.items()})["y"]
    assert error(answer.float().cpu().numpy(), run(model, inputs)["y"]) < 2e-3


def test_a_number_beyond_the_table_reads_nothing_beyond_it(device: str) -> None:
    table, indices = (
        torch.randn(WORDS, D, device=device).half(),
        torch.tensor([[0, 2**40, -(2**40), 10]], device=device),
    )
    out = torch.full((1, 4, D), float("nan"), device=device, dtype=torch.float16)
    layer_norm(table, torch.ones(D, device=device), None, out=out, epsilon=1e-5, indices=indices)
    right = torch.nn.functional.layer_norm(table.double(), (D,), eps=1e-5)
    assert out.isfinite().all()
    assert (out[0, [0, 3]].double() - right[[0, 10]]).abs().max() < 2e-3


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("kind", ["int64", "float"])
def test_a_mask_is_read_where_it_comes_in(kind: str, batch: int, device: str) -> None:
    cast = "m1 = Cast<to=1>(m0)" if kind == "int64" else "m1 = Identity(m0)"
    model = graph(
        f"""(float[{batch},{T},{D}] x, {kind}[{batch},{T}] m) => (float[{batch},{T},{D}] y) {{
        m0 = Unsqueeze(m, axes) {cast} m2 = Sub(one, m1) mask = Mul(m2, lowest)
        q = Reshape(x, apart) a = Transpose<perm=[0,2,1,3]>(q) b = Transpose<perm=[0,2,3,1]>(q)
        s0 = MatMul(a, b) s1 = Mul(s0, c) s2 = Add(s1, mask) p = Softmax<axis=-1>(s2) o = MatMul(p, a)
        r = Transpose<perm=[0,2,1,3]>(o) y = Reshape(r, together) }}""",
        WEIGHTS,
        opset=20,
    )
    mask = np.arange(T)[None] < np.array([T, 1, 3, 2])[:batch, None]
    inputs = {"x": normal(batch, T, D), "m": mask.astype(np.int64 if kind == "int64" else np.float32)}
    found = assert_agrees(model, model, inputs, 2e-6)
    assert [step.kind for step in found.steps] == ["attention"]
    executor = Executor(*lowered(model, inputs), device, "fp16", ("triton",))
    assert [each.implementation for each in executor.program if each.kind == "attention"] == ["triton"]
    answer = executor.run({name: torch.from_numpy(each).to(device) for name, each in inputs.items()})["y"]
    assert error(answer.float().cpu().numpy(), run(model, inputs)["y"]) < 2e-3
