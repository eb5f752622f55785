"""A torch module becomes an ONNX file that computes the same."""

import math
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import penstock as ps
from penstock.build.torch_export import export, is_module
from penstock.errors import InvalidArgument
from penstock.graph import optimize
from penstock.graph.lowering import lower

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


class Two(torch.nn.Module):  # type: ignore[misc, name-defined]  # torch may be absent
    """Two inputs, dropout that must be off, a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 4)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, left, right):  # type: ignore[no-untyped-def]
        return self.drop(self.layer(left * right)).relu()


@pytest.mark.parametrize("named", [False, True])
def test_an_exported_module_computes_the_same_at_any_batch(tmp_path: Path, named: bool) -> None:
    module = Two()
    examples = {"left": torch.randn(2, 8), "right": torch.randn(2, 8)}
    export(module, tmp_path / "m.onnx", examples if named else list(examples.values()), free_batch=True)
    assert module.training
    runtime = ps.load(tmp_path / "m.onnx")
    assert [spec.name for spec in runtime.inputs] == ["left", "right"]
    for batch in (1, 5):
        left, right = torch.randn(batch, 8), torch.randn(batch, 8)
        (found,) = runtime(left=left.numpy(), right=right.numpy()).values()
        np.testing.assert_allclose(found, module.eval()(left, right).detach().numpy(), rtol=1e-5, atol=1e-6)


class Heads(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Attention of [batch, ..., T, 8], as many axes between as it is told, and what is added to its scores."""

    def __init__(self, between: tuple[int, ...], mask: torch.Tensor | None, causal: bool) -> None:
        super().__init__()
        self.rows, self.between, self.mask, self.causal = torch.nn.Linear(8, 24), between, mask, causal

    def forward(self, x):  # type: ignore[no-untyped-def]
        q, k, v = self.rows(x).reshape(-1, *self.between, x.shape[-2], 24).chunk(3, -1)
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, value=v, attn_mask=self.mask, is_causal=self.causal, scale=0.5
        )


@pytest.mark.parametrize(
    ("between", "mask", "causal"),
    [
        ((), (), False),
        ((), (5, 5), False),
        ((), (1, 5, 5), False),
        ((), (), True),
        ((3,), (3, 5, 5), False),
        ((2, 3), (), False),
        ((2, 3), (2, 1, 5, 5), False),
        ((2, 2, 3), (5, 5), False),
    ],
    ids=str,
)
def test_attention_may_have_any_number_of_axes(
    tmp_path: Path, between: tuple[int, ...], mask: tuple[int, ...], causal: bool
) -> None:
    module = Heads(between, torch.randn(mask) if mask else None, causal).eval()
    export(module, tmp_path / "m.onnx", [torch.randn(2, *between, 5, 8)], free_batch=True)
    runtime = ps.load(tmp_path / "m.onnx")
    for batch in (1, 3):
        x = torch.randn(batch, *between, 5, 8)
        (found,) = runtime(x=x.numpy()).values()
        right = module(x).detach().numpy()
        assert found.shape == right.shape
        np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("between", "mask", "kept"),
    [((3, 2), (1, 2, 5, 5), (2, 5, 5)), ((3, 2), (2, 5, 5), (2, 5, 5)), ((3, 2), (3, 1, 5, 5), (12, 1, 5, 5))],
    ids=str,
)
def test_masks_are_not_written_out_along_what_they_do_not_know(
    tmp_path: Path, between: tuple[int, ...], mask: tuple[int, ...], kept: tuple[int, ...]
) -> None:
    module = Heads(between, torch.randn(mask), False).eval()
    export(module, tmp_path / "m.onnx", [torch.randn(4, *between, 5, 8)], free_batch=False)
    x = torch.randn(4, *between, 5, 8)
    (found,) = ps.load(tmp_path / "m.onnx")(x=x.numpy()).values()
    np.testing.assert_allclose(found, module(x).detach().numpy(), rtol=1e-5, atol=1e-6)
    largest = max(math.prod(each.dims) for each in onnx.load(tmp_path / "m.onnx").graph.initializer)
    assert largest <= max(math.prod(kept), 8 * 24)


class Blocks(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Heads ahead of windows, whose channels lie across (NesT), or behind them."""

    def __init__(self, order: tuple[int, ...], mask: torch.Tensor | None) -> None:
        super().__init__()
        self.rows, self.order, self.mask = torch.nn.Linear(12, 36), order, mask

    def forward(self, x):  # type: ignore[no-untyped-def]
        batch, windows, tokens, _ = x.shape
        rows = self.rows(x).reshape(batch, windows, tokens, 3, 2, 6).permute(3, *self.order)
        found = torch.nn.functional.scaled_dot_product_attention(*rows.unbind(0), attn_mask=self.mask)
        return found + found.amax(-1, keepdim=True)


@pytest.mark.parametrize("kept", [None, (), (2,), (1,), (0, 2)], ids=str)
@pytest.mark.parametrize("order", [(0, 4, 1, 2, 5), (0, 1, 4, 2, 5), (1, 4, 0, 2, 5)], ids=str)
def test_heads_may_lie_anywhere_among_the_axes_ahead(
    tmp_path: Path, order: tuple[int, ...], kept: tuple[int, ...] | None
) -> None:
    """`kept`: those axes ahead along which the mask differs; no mask without."""
    sizes = {0: 4, 1: 3, 4: 2}
    ahead = [sizes[axis] if kept is not None and at in kept else 1 for at, axis in enumerate(order[:3])]
    module = Blocks(order, torch.randn(*ahead, 5, 5) if kept is not None else None).eval()
    free = order[0] == 0 and 0 not in (kept or ())
    export(module, tmp_path / "m.onnx", [torch.randn(4, 3, 5, 12)], free_batch=free)
    runtime = ps.load(tmp_path / "m.onnx")
    for batch in (4, 1) if free else (4,):
        x = torch.randn(batch, 3, 5, 12)
        (found,) = runtime(x=x.numpy()).values()
        np.testing.assert_allclose(found, module(x).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_windows_beside_their_pictures_are_not_copied(tmp_path: Path) -> None:
    """Attention reads q, k and v where the layer wrote them."""
    export(Blocks((0, 4, 1, 2, 5), None).eval(), tmp_path / "m.onnx", [torch.randn(4, 3, 5, 12)], free_batch=False)
    graph, _ = lower(optimize(ir.load(tmp_path / "m.onnx")).model)
    (step,) = [step for step in graph.steps if step.kind == "attention"]
    (layer,) = [step for step in graph.steps if step.kind == "gemm"]
    assert {operand.value for operand in step.inputs} == set(layer.outputs)


class Shared(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Queries that are learnt, and keys that all windows share."""

    def __init__(self, queries: tuple[int, ...]) -> None:
        super().__init__()
        self.queries = torch.nn.Parameter(torch.randn(queries))

    def forward(self, x):  # type: ignore[no-untyped-def]
        return torch.nn.functional.scaled_dot_product_attention(self.queries, x, x)


@pytest.mark.parametrize(
    ("queries", "keys"),
    [((1, 5, 8), (4, 7, 8)), ((1, 1, 2, 5, 8), (4, 3, 2, 7, 8)), ((1, 2, 3, 5, 8), (4, 2, 1, 7, 8))],
    ids=str,
)
def test_axes_ahead_repeat_as_elsewhere(tmp_path: Path, queries: tuple[int, ...], keys: tuple[int, ...]) -> None:
    module = Shared(queries).eval()
    export(module, tmp_path / "m.onnx", [torch.randn(keys)], free_batch=False)
    x = torch.randn(keys)
    (found,) = ps.load(tmp_path / "m.onnx")(x=x.numpy()).values()
    np.testing.assert_allclose(found, module(x).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_examples_are_needed(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="example_inputs"):
        export(Two(), tmp_path / "m.onnx", None, free_batch=True)


def test_what_is_a_module() -> None:
    assert is_module(Two())
    assert not is_module("model.onnx")
