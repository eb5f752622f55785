"""Softmax, sums, means and extremes along one axis against torch in FP64, however lines lie and are cut."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from penstock.engine.cuda.kernels.lines import (  # noqa: E402
    KEEPING,
    REDUCING,
    LineTile,
    along_lines,
    along_lines_launch,
    line_tiles,
    lines_of,
)

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:(divide by zero|invalid value) encountered:RuntimeWarning"),  # the interpreter's
]
ENDLESS = float("inf")
SHAPES = [
    ((3, 5, 37), 2),
    ((2, 37, 4), 1),
    ((2, 9, 45), 1),
    ((1, 1, 16), 2),
    ((3, 1, 2), 1),
    ((70, 3), 0),
    ((2, 300), 1),
]


def right(x: torch.Tensor, how: str, axis: int) -> torch.Tensor:
    if how in KEEPING:
        return getattr(torch, how)(x, axis)
    return {
        "mean": x.mean,
        "sum": x.sum,
        "max": x.amax,
        "min": x.amin,
        "l2": lambda axis, keepdim: torch.linalg.vector_norm(x, dim=axis, keepdim=keepdim),
    }[how](axis, keepdim=True)


def along(x: torch.Tensor, how: str, axis: int, tile: LineTile | None = None) -> torch.Tensor:
    shape = [1 if at == axis and how in REDUCING else size for at, size in enumerate(x.shape)]
    out = torch.full(shape, 7.0, dtype=torch.float32, device=x.device)
    if tile is None:
        along_lines(x, how, axis, out=out)
    else:
        along_lines_launch(x, how, lines_of(tuple(x.shape), (axis,)), out=out, config=tile).run()
    return out


@pytest.mark.parametrize("how", [*KEEPING, *REDUCING])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_lines_of_any_layout(how: str, shape: tuple[int, ...], axis: int, device: str) -> None:
    x = (4 * torch.randn(shape, device=device)).half()
    assert torch.allclose(along(x, how, axis).double(), right(x.double(), how, axis), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", [*KEEPING, *REDUCING])
@pytest.mark.parametrize(("shape", "axis"), [((3, 100), 1), ((2, 100, 5), 1)])
def test_lines_that_are_read_in_pieces(how: str, shape: tuple[int, ...], axis: int, device: str) -> None:
    x = (4 * torch.randn(shape, device=device)).bfloat16()
    x.select(axis, 3).fill_(-ENDLESS) if how in (*KEEPING, "max") else None
    found, expected = along(x, how, axis, LineTile(2, 16, 1)).double(), right(x.double(), how, axis)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("block", [16, 64])
def test_masks_and_numbers_that_are_none(block: int, device: str) -> None:
    x = torch.randn((5, 40), device=device).half()
    x[0, :39], x[1, :], x[2, 7], x[3, :20] = -ENDLESS, -ENDLESS, float("nan"), -ENDLESS
    soft, largest, least = (along(x, how, 1, LineTile(4, block, 1)) for how in ("softmax", "max", "min"))
    assert soft[0].tolist() == [0.0] * 39 + [1.0]
    assert soft[1].isnan().all()  # as everybody has it
    assert soft[2].isnan().all()
    assert largest[:, 0].isnan().tolist() == least[:, 0].isnan().tolist() == [False, False, True, False, False]
    assert largest[1, 0] == -ENDLESS
    assert torch.allclose(soft[3].double(), torch.softmax(x[3].double(), 0), atol=1e-6)


@pytest.mark.parametrize("lines", [(4096, 196, 1), (6272, 196, 4), (32, 49, 4608), (7, 18710, 1), (1, 5, 3), (3, 1, 1)])
def test_cuts_are_several_and_each_is_right(lines: tuple[int, int, int], device: str) -> None:
    tiles = line_tiles(*lines)
    assert len(tiles) == len(set(tiles)) > (1 if lines[0] * lines[1] * lines[2] > 100 else 0)
    few = (min(lines[0], 3), min(lines[1], 2100), min(lines[2], 40))
    x = torch.randn(few, device=device).half()
    for tile in tiles if device == "cuda" else tiles[:2]:
        assert torch.allclose(along(x, "softmax", 1, tile).double(), torch.softmax(x.double(), 1), atol=1e-6)


def test_what_no_kernel_computes_is_refused(device: str) -> None:
    x = torch.zeros((4, 6), device=device, dtype=torch.float16)
    with pytest.raises(ValueError, match="how: expected one of"):
        along_lines(x, "median", 1, out=x)
    with pytest.raises(ValueError, match="contiguous"):
        along_lines(x.t(), "softmax", 1, out=x)
    with pytest.raises(ValueError, match="out: expected shape"):
        along_lines(x, "sum", 1, out=x)
    with pytest.raises(ValueError, match="axes: expected such as follow each other"):
        lines_of((2, 3, 4), (0, 2))
    assert lines_of((2, 3, 4, 5), (1, 2)) == (2, 12, 5)
