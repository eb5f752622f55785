"""Products of long rows: alone, between layer norms, and as the blocks of a transformer that they are made for."""

from dataclasses import dataclass

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch
from torch.nn import functional

from penstock.engine.cuda.choices import Choice
from penstock.engine.cuda.executor import Executor
from penstock.engine.cuda.kernels.dense import Affine, Normed, dense_launch, dense_tiles
from penstock.engine.cuda.kernels.epilogue import Epilogue, Scratch
from penstock.engine.cuda.kernels.tiles import Product, Tile
from penstock.graph.lowering.norms import MOST_ROWS
from tests.engine.cuda.reference import Arrays, assert_agrees, error, execute, lowered
from tests.graph.small import graph, normal, run

pytestmark = pytest.mark.torch


def moments_of(rows: torch.Tensor, parts: int) -> torch.Tensor:
    cut = rows.double().view(rows.shape[0], parts, -1)
    means = cut.mean(-1)
    return torch.stack((means, (cut - means[..., None]).square().sum(-1)), -1).float()


@dataclass(frozen=True)
class Case:
    m: int
    n: int
    k: int
    tile: Tile
    activation: str = "none"
    residual: str = ""
    """`before`, `after` or `normed`."""
    normed: bool = False
    tells: int = 0
    """Columns of a part whose moments are written."""


CASES = [
    Case(70, 96, 72, Tile(64, 64, 64, 4, 3)),
    Case(130, 64, 200, Tile(128, 32, 64, 4, 3), "gelu", normed=True),
    Case(65, 96, 64, Tile(64, 32, 64, 4, 3), residual="before", tells=32),
    Case(50, 96, 136, Tile(64, 64, 64, 4, 3), residual="normed", tells=32, normed=True),
    Case(20, 64, 256, Tile(64, 64, 64, 4, 3, 3), residual="normed", tells=64),
    Case(66, 40, 64, Tile(64, 64, 64, 4, 3), "gelu", residual="after"),
]


# Triton's interpreter takes BF16 that is read by blocks for whole numbers.
BF16 = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.bfloat16, marks=BF16)])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_product_with_what_is_around_it(case: Case, dtype: torch.dtype, device: str) -> None:
    m, n, k = case.m, case.n, case.k
    x = (torch.randn(m, k, device=device) * 2 + 3).to(dtype)  # a mean that the norm has to take away
    w = (torch.randn(n, k, device=device) / k**0.5).to(dtype)
    bias = torch.randn(n, device=device)
    residual = (torch.randn(m, n, device=device) - 2).to(dtype) if case.residual else None
    scale, shift = torch.randn(n, device=device), torch.randn(n, device=device)
    out = torch.full((m, n), float("nan"), device=device, dtype=dtype)
    told = torch.full((m, n // (case.tells or n), 2), float("nan"), device=device)
    product = Product(m, n, k)
    scratch = Scratch(
        torch.full((case.tile.partial_sums(product),), float("nan"), device=device),
        torch.zeros(case.tile.counters(product), dtype=torch.int32, device=device),
    )
    again = case.residual == "normed" and residual is not None
    for _ in range(2):  # counters are left as they were found
        dense_launch(
            x, w, out=out, config=case.tile, bias=bias, residual=residual,
            epilogue=Epilogue(case.activation, residual_last=case.residual == "after"),
            x_norm=Normed(moments_of(x, 4), 1e-5) if case.normed else None,
            column_sums=w.float().sum(1) if case.normed else None,
            residual_norm=Normed(moments_of(residual, 2), 1e-5) if again and residual is not None else None,
            residual_affine=Affine(scale, shift) if again else None,
            out_moments=told if case.tells else None, scratch=scratch,
        ).run()  # fmt: skip
    wide = functional.layer_norm(x.double(), (k,), None, None, 1e-5) if case.normed else x.double()
    y = wide @ w.double().T + bias.double()
    added: torch.Tensor | float = 0.0
    if residual is not None:
        added = residual.double()
        if again:
            added = functional.layer_norm(added, (n,), scale.double(), shift.double(), 1e-5)
    activated = functional.gelu if case.activation == "gelu" else lambda each: each
    right = activated(y) + added if case.residual == "after" else activated(y + added)
    step = 2.0**-11 if dtype == torch.float16 else 2.0**-8
    assert (out.double() - right).abs().max() <= 1.01 * step * right.abs().max() + 1e-4
    if case.tells:
        expected = moments_of(out, n // case.tells)
        assert (told - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("shape", [(128, 384, 1536), (4096, 1536, 384), (16448, 1024, 4096), (50, 2304, 768)])
@pytest.mark.parametrize("part", [1, 32, 64])
def test_cuts_hold_whole_parts_and_fit(shape: tuple[int, int, int], part: int) -> None:
    found = dense_tiles(Product(*shape), 132, part)
    assert 4 <= len(found) <= 12
    assert len(set(found)) == len(found)
    assert all(tile.block_n % part == 0 and tile.block_m >= 64 for tile in found)


D, HEADS, T = 64, 2, 5
WEIGHTS: Arrays = {
    **{name: normal(D, D, seed=seed) / 8 for seed, name in enumerate(("wq", "wk", "wv", "wo"), 1)},
    "wqkv": normal(D, 3 * D, seed=9) / 8,
    "bqkv": normal(3 * D, seed=10),
    "w1": normal(D, 2 * D, seed=5) / 8,
    "w2": normal(2 * D, D, seed=6) / 11,
    "b1": normal(2 * D, seed=7),
    "b2": normal(D, seed=8),
    **{f"g{each}": 1 + normal(D, seed=20 + each) / 4 for each in range(3)},
    **{f"h{each}": normal(D, seed=30 + each) / 4 for each in range(3)},
    "apart": np.array([0, 0, HEADS, D // HEADS]),
    "together": np.array([0, 0, D]),
    "packed": np.array([0, 0, 3, HEADS, D // HEADS]),
    "c": np.float32((D // HEADS) ** -0.5),
    "zero": np.array([0]),
    "axis": np.array([0]),
}

HEAD = {
    # As Hugging Face's BERT is exported: three products, each transposed on its own.
    "bert": """q0 = MatMul(n, wq) q1 = Reshape(q0, apart) q = Transpose<perm=[0,2,1,3]>(q1)
        k0 = MatMul(n, wk) k1 = Reshape(k0, apart) k = Transpose<perm=[0,2,3,1]>(k1)
        v0 = MatMul(n, wv) v1 = Reshape(v0, apart) v = Transpose<perm=[0,2,1,3]>(v1)
        s0 = MatMul(q, k) s1 = Mul(s0, c)""",
    # As timm's blocks are: one product, packed as [batch, T, 3, heads, D].
    "timm": """p0 = MatMul(n, wqkv) p1 = Add(p0, bqkv) p2 = Reshape(p1, packed) p3 = Transpose<perm=[2,0,3,1,4]>(p2)
        q0, k0, v0 = Split<axis=0, num_outputs=3>(p3) q = Squeeze(q0, axis) k1 = Squeeze(k0, axis)
        v = Squeeze(v0, axis) k = Transpose<perm=[0,1,3,2]>(k1) s0 = MatMul(q, k) s1 = Mul(s0, c)""",
    # As torch.export writes attention: batch and heads of the keys are one axis while it is transposed.
    "torch": """p0 = MatMul(n, wqkv) p1 = Add(p0, bqkv) p2 = Reshape(p1, packed) p3 = Transpose<perm=[2,0,3,1,4]>(p2)
        q0, k0, v0 = Split<axis=0, num_outputs=3>(p3) q = Squeeze(q0, axis) k1 = Squeeze(k0, axis)
        v = Squeeze(v0, axis) k2 = Reshape(k1, flat) k3 = Transpose<perm=[0,2,1]>(k2) k = Reshape(k3, keys)
        s0 = MatMul(q, k) s1 = Mul(s0, c)""",
}
REST = """s3 = Softmax<axis=-1>(s2) o0 = MatMul(s3, v) o1 = Transpose<perm=[0,2,1,3]>(o0) o2 = Reshape(o1, together)
    o = MatMul(o2, wo)"""
MLP = "f0 = MatMul(m, w1) f1 = Add(f0, b1) f2 = Gelu(f1) f3 = MatMul(f2, w2) f = Add(f3, b2)"


def norm(out: str, x: str, number: int) -> str:
    return f"{out} = LayerNormalization<axis=-1, epsilon=1e-5>({x}, g{number}, h{number})"


def block(form: str, before: bool, batch: int, masked: bool = False) -> str:
    """Two halves, normalised before each as in ViT or behind each as in BERT, behind one product and before another."""
    mask = "s2 = Add(s1, mask)" if masked else "s2 = Identity(s1)"
    extra = f", float[{batch},1,1,{T}] mask" if masked else ""
    head = f"(float[{batch},{T},{D}] i{extra}) => (float[{batch},{T},{D}] y) {{ x = MatMul(i, wq)"
    if before:
        return f"""{head} {norm("n", "x", 0)} {HEAD[form]} {mask} {REST} r = Add(x, o) {norm("m", "r", 1)} {MLP}
            z = Add(r, f) {norm("e", "z", 2)} y = MatMul(e, wo) }}"""
    return f"""{head} {norm("n", "x", 0)} {HEAD[form]} {mask} {REST} r = Add(o, n) {norm("m", "r", 1)} {MLP}
        z = Add(f, m) {norm("e", "z", 2)} y = MatMul(e, wo) }}"""


def weights(batch: int) -> Arrays:
    wide = D // HEADS
    return WEIGHTS | {"flat": np.array([-1, T, wide]), "keys": np.array([batch, HEADS, wide, T])}


def masked(batch: int) -> np.ndarray:
    """Rows of different lengths, the rest hidden by the lowest number there is."""
    lengths = np.arange(batch) % T + 1
    hidden = np.arange(T)[None, :] >= lengths[:, None]
    return (hidden * np.finfo(np.float32).min).astype(np.float32)[:, None, None, :]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("before", [True, False], ids=["norm before", "norm behind"])
@pytest.mark.parametrize("form", HEAD)
def test_a_block_is_products_and_one_attention(form: str, before: bool, batch: int) -> None:
    model, inputs = graph(block(form, before, batch), weights(batch), opset=20), {"i": normal(batch, T, D)}
    found = assert_agrees(model, model, inputs, 3e-6)
    kinds = [step.kind for step in found.steps]
    assert set(kinds) == {"gemm_norm", "attention"}
    assert kinds.count("attention") == 1
    assert len(kinds) == 7  # three products for queries, keys and values are one, too
    assert error(execute(*lowered(model, inputs), inputs, "fp16")["y"], run(model, inputs)["y"]) < 4e-3


@pytest.mark.parametrize("split", [1, 2])
@pytest.mark.parametrize("precision", ["fp16", pytest.param("bf16", marks=BF16)])
@pytest.mark.parametrize("before", [True, False], ids=["norm before", "norm behind"])
def test_our_products_compute_a_block(before: bool, precision: str, split: int, device: str) -> None:
    batch = 3
    model = graph(block("torch", before, batch, masked=True), weights(batch), opset=20)
    inputs = {"i": normal(batch, T, D), "mask": masked(batch)}
    steps, numbers = lowered(model, inputs)
    choices = {
        step.name: Choice("triton_dense", (64, 64, 64 // split, 4, 3, split if "2" not in step.name else 1, 8))
        for step in steps.steps
        if step.kind == "gemm_norm"
    }
    executor = Executor(steps, numbers, device, precision, ("triton",), choices)
    ours = {bound.implementation for bound in executor.program if bound.kind != "pointwise"}  # what comes in is cast
    assert ours == {"triton", "triton_dense"}
    found = executor.run({name: torch.from_numpy(each).to(device) for name, each in inputs.items()})["y"]
    tolerance = 4e-3 if precision == "fp16" else 3e-2
    assert error(found.float().cpu().numpy(), run(model, inputs)["y"]) < tolerance


@pytest.mark.parametrize(
    ("text", "norms"),
    [
        ("a = MatMul(i, wq) {n} y = MatMul(n, w1) z = Relu(n)", 1),  # somebody else reads it
        ("a = Relu(i) {n} y = MatMul(n, w1) z = MatMul(n, wk)", 1),  # no product makes what it reads
        ("a = MatMul(i, wq) {n} y = MatMul(n, w1) z = MatMul(n, wk)", 0),
    ],
)
def test_a_norm_stays_where_more_than_products_need_it(text: str, norms: int) -> None:
    normed = text.format(n=norm("n", "a", 0))
    whole = f"(float[2,{T},{D}] i) => (float[2,{T},{2 * D}] y, float[2,{T},{D}] z) {{ {normed} }}"
    model = graph(whole, WEIGHTS, opset=20)
    found = assert_agrees(model, model, {"i": normal(2, T, D)}, 3e-6)
    assert [step.kind for step in found.steps].count("layer_norm") == norms


@pytest.mark.parametrize("before", [True, False], ids=["norm before", "norm behind"])
@pytest.mark.parametrize("form", HEAD)
def test_of_many_rows_norms_stay_and_add(form: str, before: bool) -> None:
    batch = MOST_ROWS // T + 1
    model, inputs = graph(block(form, before, batch), weights(batch), opset=20), {"i": normal(batch, T, D)}
    found = assert_agrees(model, model, inputs, 3e-6)
    kinds = [step.kind for step in found.steps]  # both layers behind the second norm are short enough to be one step
    assert [kind for kind in kinds if kind != "layer_norm"] == ["gemm", "gemm", "attention", "gemm", "mlp", "gemm"]
    norms = [step for step in found.steps if step.kind == "layer_norm"]
    assert [len(step.outputs) for step in norms] == ([1, 2, 1] if before else [1, 1, 1])
    assert all(step.operand("residual") is None for step in found.steps if step.kind == "gemm")
    assert error(execute(*lowered(model, inputs), inputs, "fp16")["y"], run(model, inputs)["y"]) < 4e-3


def test_our_norm_writes_the_sum_too(device: str) -> None:
    text = f"""a = MatMul(i, wq) s = Add(a, i) {norm("n", "s", 0)} t = MatMul(n, wk) y = Add(t, s)"""
    model = graph(
        f"(float[1,{MOST_ROWS + 1},{D}] i) => (float[1,{MOST_ROWS + 1},{D}] y) {{ {text} }}", WEIGHTS, opset=20
    )
    inputs = {"i": normal(1, MOST_ROWS + 1, D)}
    steps, numbers = lowered(model, inputs)
    (normed,) = (step for step in steps.steps if step.kind == "layer_norm")
    assert len(normed.outputs) == 2
    executor = Executor(steps, numbers, device, "fp16", choices={normed.name: Choice("triton")})
    answer = executor.run({"i": torch.from_numpy(inputs["i"]).to(device)})["y"]
    assert error(answer.float().cpu().numpy(), run(model, inputs)["y"]) < 4e-3


def test_a_sum_with_two_norms_is_carried_once() -> None:
    rows = MOST_ROWS + 1
    text = f"a = MatMul(i, wq) s = Add(a, i) {norm('n', 's', 0)} {norm('m', 's', 1)} y = Sub(n, m)"
    model = graph(f"(float[1,{rows},{D}] i) => (float[1,{rows},{D}] y) {{ {text} }}", WEIGHTS, opset=20)
    assert_agrees(model, model, {"i": normal(1, rows, D)}, 3e-6)


def test_a_sum_that_is_needed_before_its_norm_stays_where_it_is() -> None:
    rows = MOST_ROWS + 1
    text = f"a = MatMul(i, wq) s = Add(a, i) t = MatMul(s, wk) u = Add(t, s) {norm('n', 's', 0)} y = Add(n, u)"
    model = graph(f"(float[1,{rows},{D}] i) => (float[1,{rows},{D}] y) {{ {text} }}", WEIGHTS, opset=20)
    found = assert_agrees(model, model, {"i": normal(1, rows, D)}, 3e-6)
    assert all(step.operand("residual") is None for step in found.steps if step.kind == "layer_norm")
