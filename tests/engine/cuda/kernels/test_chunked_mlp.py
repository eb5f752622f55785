"""Two layers with their channels in pieces, against torch in float64 and against the kernel that pads them."""

from dataclasses import dataclass

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from penstock.engine.cuda.kernels.chunked_mlp import chunked_mlp_launch, chunked_mlp_tiles, fits  # noqa: E402
from penstock.engine.cuda.kernels.epilogue import Epilogue  # noqa: E402
from penstock.engine.cuda.kernels.gated_mlp import MlpTile  # noqa: E402

pytestmark = pytest.mark.torch


SMALL = MlpTile(16, 32, 4, 2)


@dataclass(frozen=True)
class Case:
    width: int = 48
    hidden: int = 96
    out_width: int = 48
    pixels: int = 21
    gated: bool = True
    skip: bool = True
    last: bool = False
    tile: MlpTile = SMALL


CASES = {
    "a mixing block": Case(),
    "an image's rows fill blocks": Case(pixels=32),
    "no gate": Case(gated=False),
    "wider than it came in": Case(out_width=96, skip=False),
    "narrower, added after the activation": Case(96, 32, 16, skip=False, last=True),
    "one piece": Case(64, 64, 64),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_two_layers(name: str, device: str) -> None:
    case = CASES[name]
    x = torch.randn(2, case.pixels, case.width, device=device).half()
    gate = torch.rand(2, case.width, device=device).half() if case.gated else None
    first = (torch.randn(case.hidden, case.width, device=device) / 8).half()
    second = (torch.randn(case.out_width, case.hidden, device=device) / 8).half()
    biases = torch.randn(case.hidden, device=device), torch.randn(case.out_width, device=device)
    residual = None if case.skip else torch.randn(2, case.pixels, case.out_width, device=device).half()
    out = torch.full((2, case.pixels, case.out_width), float("nan"), device=device, dtype=torch.float16)
    chunked_mlp_launch(
        x, first, biases[0], second, biases[1], out=out, config=case.tile, activation="gelu", gate=gate,
        residual=residual, skip=case.skip, epilogue=Epilogue("relu", residual_last=case.last),
    ).run()  # fmt: skip
    scaled = x.double() if gate is None else (x.double() * gate.double()[:, None]).half().double()
    y = torch.nn.functional.gelu(scaled @ first.double().T + biases[0].double()) @ second.double().T
    y = y + biases[1].double()
    added = scaled if residual is None else residual.double()
    right = torch.relu(y) + added if case.last else torch.relu(y + added)
    assert (out.double() - right).abs().max() < 8e-3


@pytest.mark.parametrize("rows", [480, 15360, 270848])
@pytest.mark.parametrize(("width", "hidden", "out"), [(48, 96, 48), (192, 384, 192), (96, 192, 192), (192, 384, 384)])
def test_the_cuts_offered_are_ones_it_takes(rows: int, width: int, hidden: int, out: int) -> None:
    tiles = chunked_mlp_tiles(rows, width, hidden, out)
    assert 1 <= len(tiles) <= 12
    assert len({(tile.block_m, tile.num_warps) for tile in tiles}) > 1
    assert all(hidden % tile.block_h == 0 for tile in tiles)


def test_channels_that_make_no_pieces_are_refused(device: str) -> None:
    assert not fits(120, 240, 120)
    x, first, second = (torch.zeros(*shape, device=device).half() for shape in ((1, 4, 24), (32, 24), (24, 32)))
    with pytest.raises(ValueError, match="multiples of 16"):
        chunked_mlp_launch(
            x, first, None, second, None, out=torch.empty_like(x), config=MlpTile(16, 32, 4, 2), activation="relu"
        )


@pytest.mark.parametrize(("rows", "width"), [(7680, 96), (8464, 96), (33856, 48), (8464, 48)])
def test_rows_for_a_whole_warpgroup_come_first(rows: int, width: int) -> None:
    assert chunked_mlp_tiles(rows, width, 2 * width, width)[0].block_m >= 64
