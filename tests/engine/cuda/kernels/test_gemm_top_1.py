"""The largest of a product's rows without the product, against torch in float64."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from penstock.engine.cuda.kernels.gemm_top_1 import TopTile, gemm_top_1_launches, top_tiles  # noqa: E402

pytestmark = pytest.mark.torch


def found(
    x: "torch.Tensor", w: "torch.Tensor", bias: "torch.Tensor | None", tile: TopTile
) -> "tuple[torch.Tensor, ...]":
    index = torch.full((len(x),), -1, dtype=torch.int64, device=x.device)
    score = torch.full((len(x),), float("nan"), device=x.device)
    parts = torch.full((3, len(x), tile.splits), float("nan"), device=x.device)
    for launch in gemm_top_1_launches(x, w, bias, index=index, score=score, parts=parts, config=tile):
        launch.run()
    return index, score


@pytest.mark.parametrize("splits", [1, 3, 5])
@pytest.mark.parametrize(("rows", "columns", "deep"), [(5, 100, 24), (20, 37, 40), (3, 16, 16)])
def test_it_finds_the_largest_and_its_share(splits: int, rows: int, columns: int, deep: int, device: str) -> None:
    x, w = torch.randn(rows, deep, device=device).half(), torch.randn(columns, deep, device=device).half()
    bias = torch.randn(columns, device=device)
    index, score = found(x, w, bias, TopTile(16, 16, splits, 4, 2))
    right = torch.softmax(x.double() @ w.double().T + bias.double(), 1).max(1)
    assert torch.equal(index, right.indices)
    assert (score.double() - right.values).abs().max() < 1e-5


def test_of_equals_it_finds_the_first_and_nan_is_seen(device: str) -> None:
    x, w = torch.ones(2, 16, device=device).half(), torch.zeros(70, 16, device=device).half()
    w[[20, 41, 60]] = 1
    index, score = found(x, w, None, TopTile(16, 16, 3, 4, 2))
    assert int(index[0]) == 20
    assert abs(float(score[0]) - 1 / 3) < 1e-4
    bias = torch.zeros(70, device=device)
    bias[33] = float("nan")
    assert bool(found(x, w, bias, TopTile(16, 16, 3, 4, 2))[1].isnan().all())


def test_large_blocks_are_not_for_a_few_rows() -> None:
    assert all(tile.block_m <= 64 for tile in top_tiles(8, 18710))
    assert {tile.block_m for tile in top_tiles(1280, 18710)} >= {64, 128}
