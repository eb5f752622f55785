"""Products of two matrices of the data against FP64, wherever operands lie and however the work is cut."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from penstock.engine.cuda.kernels.strided_matmul import (  # noqa: E402
    MatmulTile,
    batch_axes,
    matmul_tiles,
    strided_matmul,
    strided_matmul_launch,
)

pytestmark = pytest.mark.torch


def numbers(*shape: int, device: str, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return (torch.randn(shape, device=device) / 4).to(dtype)


def product(a: torch.Tensor, b: torch.Tensor, tile: MatmulTile | None = None) -> torch.Tensor:
    out = torch.full((*a.shape[:-1], b.shape[-1]), float("nan"), dtype=torch.float32, device=a.device)
    strided_matmul_launch(a, b, out=out, config=tile).run()
    return out


def assert_right(found: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    expected = a.double() @ b.double()
    assert found.shape == expected.shape
    assert (found.double() - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_operands_lie_anywhere(dtype: torch.dtype, device: str) -> None:
    if dtype == torch.bfloat16 and device == "cpu":
        pytest.skip("Triton's interpreter multiplies the bits of BF16 as integers")
    whole = numbers(2, 19, 3, 4, 24, device=device, dtype=dtype)
    q, k, v = whole.permute(2, 0, 3, 1, 4)  # of one layer, heads behind tokens
    assert_right(product(q, k.transpose(-1, -2)), q, k.transpose(-1, -2))
    last = numbers(2, 19, 19, 4, device=device, dtype=dtype).permute(0, 3, 1, 2)  # heads last
    assert_right(product(last, v), last, v)
    assert_right(product(last.transpose(-1, -2), v), last.transpose(-1, -2), v)
    table = numbers(19, 24, device=device, dtype=dtype).expand(2, 4, 19, 24)
    assert_right(product(q, table.transpose(-1, -2)), q, table.transpose(-1, -2))
    assert_right(product(q[0, 0], k[0, 0].t()), q[0, 0], k[0, 0].t())


def test_results_lie_anywhere(device: str) -> None:
    a, b = numbers(2, 3, 17, 8, device=device), numbers(2, 3, 8, 40, device=device)
    stored = torch.full((2, 17, 3, 48), 7.0, device=device, dtype=torch.float16)
    out = stored[..., :40].transpose(1, 2)
    strided_matmul(a, b, out=out)
    assert torch.allclose(out.double(), a.double() @ b.double(), rtol=1e-3, atol=1e-3)
    assert (stored[..., 40:] == 7).all()  # what is beside is others'


@pytest.mark.parametrize(("batch", "m", "n", "k"), [(6, 50, 33, 70), (1, 5, 200, 1), (2, 130, 16, 16), (200, 3, 5, 7)])
def test_cuts_are_several_and_each_is_right(batch: int, m: int, n: int, k: int, device: str) -> None:
    tiles = matmul_tiles(batch, m, n, k)
    assert len(tiles) == len(set(tiles)) >= 2
    a, b = numbers(min(batch, 6), m, k, device=device), numbers(min(batch, 6), k, n, device=device)
    for tile in tiles if device == "cuda" else tiles[::4]:
        assert_right(product(a, b, tile), a, b)


def test_a_number_that_is_none_stays_in_its_row_and_column(device: str) -> None:
    a, b = numbers(1, 20, 20, device=device), numbers(1, 20, 20, device=device)
    a[0, 3, 5] = b[0, 2, 7] = float("nan")
    wrong = product(a, b).isnan()[0]
    assert wrong[3].all()
    assert wrong[:, 7].all()
    assert wrong.sum() == 39


def test_axes_that_lie_alike_are_one() -> None:
    assert batch_axes((2, 3, 4), (12, 4, 1), (12, 4, 1)) == [(24, 1, 1)]
    assert batch_axes((2, 1, 4), (4, 9, 1), (0, 5, 1)) == [(2, 4, 0), (4, 1, 1)]
    assert batch_axes((), ()) == []


def test_what_no_kernel_computes_is_refused(device: str) -> None:
    a = numbers(2, 4, 8, device=device)
    with pytest.raises(ValueError, match="b: expected shape"):
        strided_matmul(a, a, out=a)
    with pytest.raises(ValueError, match="out: expected shape"):
        strided_matmul(a, a.transpose(1, 2), out=a)
    with pytest.raises(ValueError, match="sixteen bits of one type"):
        strided_matmul(a.float(), a.float().transpose(1, 2), out=a.new_zeros((2, 4, 4)))
    wide = numbers(2, 2, 2, 2, 4, 8, device=device).permute(3, 2, 1, 0, 4, 5)
    with pytest.raises(ValueError, match="at most 3 axes"):
        strided_matmul(wide, wide.transpose(-1, -2), out=a.new_zeros((2, 2, 2, 2, 4, 4)))
