"""Norms, pools, gates, attention, layers in a row and what moves numbers, against torch in float64."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from penstock.engine.cuda.kernels.apply_gate import apply_gate  # noqa: E402
from penstock.engine.cuda.kernels.attention import AttentionTile, attention, attention_tiles  # noqa: E402
from penstock.engine.cuda.kernels.epilogue import Epilogue, Scratch  # noqa: E402
from penstock.engine.cuda.kernels.gated_mlp import MlpTile, gated_mlp, mlp_tiles  # noqa: E402
from penstock.engine.cuda.kernels.moves import concat_channels, planes_to_pixels  # noqa: E402
from penstock.engine.cuda.kernels.reductions import (  # noqa: E402
    channel_sums,
    global_average_pool,
    layer_norm,
    layer_norm_launch,
    norm_tiles,
)
from penstock.engine.cuda.kernels.squeeze_excite import (  # noqa: E402
    squeeze_excite,
    squeeze_excite_gate,
    squeeze_excite_launch,
)
from penstock.engine.cuda.kernels.top_1 import WIDEST, top_1  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("size", [120, 256, 7])
@pytest.mark.parametrize("with_residual", [True, False])
def test_layer_norm(size: int, with_residual: bool, device: str) -> None:
    # A mean far above the deviation is what the one-pass variance gets wrong.
    x = (torch.randn(2, 3, size, device=device) + 30).half()
    residual = torch.randn(2, 3, size, device=device).half() if with_residual else None
    weight, bias = torch.randn(size, device=device), torch.randn(size, device=device)
    out, total = torch.full_like(x, float("nan")), torch.full_like(x, float("nan"))
    layer_norm(x, weight, bias, out=out, epsilon=1e-5, residual=residual, total=total)
    summed = x.double() + (0 if residual is None else residual.double())
    right = torch.nn.functional.layer_norm(summed, (size,), weight.double(), bias.double(), 1e-5)
    assert (out.double() - right).abs().max() < 8e-3
    assert torch.equal(total, summed.half())


def test_rows_of_a_norm_may_be_shared_out_in_many_ways(device: str) -> None:
    rows, size = 1030, 250
    x = torch.randn(rows, size, device=device).half()
    weight, bias = torch.randn(size, device=device), torch.randn(size, device=device)
    right = torch.nn.functional.layer_norm(x.double(), (size,), weight.double(), bias.double(), 1e-5)
    tiles = norm_tiles(rows, size)
    assert len(set(tiles)) == len(tiles) > 2
    for tile in tiles:
        out = torch.full_like(x, float("nan"))
        layer_norm_launch(x, weight, bias, out=out, epsilon=1e-5, config=tile).run()
        assert (out.double() - right).abs().max() < 8e-3


@pytest.mark.parametrize("splits", [1, 4])
def test_a_pool_sums_wide_values_without_overflow(splits: int, device: str) -> None:
    x = torch.randn(2, 9, 11, 40, device=device).half() + 30000  # FP16 ends at 65504, and steps by 16 here
    out = torch.full((2, 40), float("nan"), device=device, dtype=torch.float16)
    scratch = Scratch(
        torch.full((2 * splits * 40,), float("nan"), device=device),
        torch.zeros(8, dtype=torch.int32, device=device),
    )
    for _ in range(2):
        global_average_pool(x, out=out, splits=splits, scratch=scratch)
        assert torch.equal(out, x.double().mean((1, 2)).half())
        assert not scratch.counters.any()


@pytest.mark.parametrize("splits", [1, 4])
def test_a_pool_may_sum_or_take_the_length(splits: int, device: str) -> None:
    x = torch.randn(2, 9, 11, 40, device=device).half()
    x[0, 3, 4, 5] = float("nan")
    counters = torch.zeros(8, dtype=torch.int32, device=device)
    scratch = Scratch(torch.full((2 * splits * 40,), float("nan"), device=device), counters)
    for how, right in (("sum", x.double().sum((1, 2))), ("l2", torch.linalg.vector_norm(x.double(), dim=(1, 2)))):
        out = torch.full((2, 40), 7.0, device=device, dtype=torch.float32)
        global_average_pool(x, out=out, splits=splits, how=how, scratch=scratch)
        assert torch.equal(out.isnan(), right.isnan())
        assert (out.double() - right).nan_to_num().abs().max() < 2e-5
    with pytest.raises(ValueError, match="how: expected mean, sum or l2"):
        global_average_pool(x, out=out, how="max")


def test_channel_sums_cover_each_pixel_once(device: str) -> None:
    x = torch.randn(2, 5, 7, 24, device=device).half()
    out = torch.full((2, 3, 24), float("nan"), device=device)
    channel_sums(x, out=out)
    assert (out.double().sum(1) - x.double().sum((1, 2))).abs().max() < 1e-5


@pytest.mark.parametrize(("channels", "made"), [(40, 40), (40, 24), (8, 40), (600, 600)])
def test_a_gate_is_two_small_layers_of_the_mean(channels: int, made: int, device: str) -> None:
    sums = torch.randn(2, 5, channels, device=device) * 50
    squeeze, excite = (torch.randn(20, size, device=device).half() / 4 for size in (channels, made))
    squeeze_bias, excite_bias = torch.randn(20, device=device), torch.randn(made, device=device)
    out = torch.full((2, made), float("nan"), device=device, dtype=torch.float16)
    squeeze_excite_gate(
        sums, squeeze, squeeze_bias, excite, excite_bias, pixels=99, out=out, inner=Epilogue("relu"),
        outer=Epilogue("hard_sigmoid", 0.2, 0.5),
    )  # fmt: skip
    mean = sums.double().sum(1) / 99
    hidden = torch.relu(mean @ squeeze.double().T + squeeze_bias.double())
    right = (0.2 * (hidden @ excite.double() + excite_bias.double()) + 0.5).clamp(0, 1)
    assert (out.double() - right).abs().max() < 1e-3


@pytest.mark.parametrize("splits", [1, 5])
@pytest.mark.parametrize("biased", [True, False])
def test_a_gate_is_made_of_the_map_itself(splits: int, biased: bool, device: str) -> None:
    x = (torch.randn(2, 5, 7, 40, device=device) + 1).half()
    squeeze, excite = torch.randn(10, 40, device=device).half(), torch.randn(10, 40, device=device).half()
    squeeze_bias, excite_bias = torch.randn(10, device=device), torch.randn(40, device=device)
    out = torch.full((2, 40), float("nan"), device=device, dtype=torch.float16)
    counters = torch.zeros(2, dtype=torch.int32, device=device)
    scratch = Scratch(torch.full((2 * splits * 40,), float("nan"), device=device), counters)
    for _ in range(2):  # the counters are left as they were found
        squeeze_excite(
            x, squeeze, squeeze_bias if biased else None, excite, excite_bias if biased else None, out=out,
            splits=splits, inner=Epilogue("relu"), outer=Epilogue("hard_sigmoid", 0.2, 0.5), scratch=scratch,
        )  # fmt: skip
        assert not counters.any()
    hidden = torch.relu(x.double().mean((1, 2)) @ squeeze.double().T + squeeze_bias.double() * biased)
    right = (0.2 * (hidden @ excite.double() + excite_bias.double() * biased) + 0.5).clamp(0, 1)
    assert (out.double() - right).abs().max() < 1e-3


def test_a_gate_is_made_of_sums_by_several_blocks(device: str) -> None:
    sums = torch.randn(2, 11, 1, 24, device=device) * 40
    squeeze, excite = torch.randn(6, 24, device=device).half(), torch.randn(6, 40, device=device).half()
    out = torch.full((2, 40), float("nan"), device=device, dtype=torch.float16)
    scratch = Scratch(torch.zeros(2 * 3 * 24, device=device), torch.zeros(2, dtype=torch.int32, device=device))
    squeeze_excite_launch(
        sums, squeeze, None, excite, None, out=out, splits=3, inner=Epilogue("relu"), outer=Epilogue("sigmoid"),
        scratch=scratch, count=500,
    ).run()  # fmt: skip
    right = torch.sigmoid(torch.relu(sums.double().sum((1, 2)) / 500 @ squeeze.double().T) @ excite.double())
    assert (out.double() - right).abs().max() < 1e-3


@pytest.mark.parametrize("plus_x", [True, False])
@pytest.mark.parametrize("repeat", [(1, 1), (2, 3)])
def test_a_gated_map_takes_one_that_is_smaller(repeat: tuple[int, int], plus_x: bool, device: str) -> None:
    x = torch.randn(2, 4, 6, 24, device=device).half()
    high, wide = repeat
    small = torch.randn(2, 4 // high, 6 // wide, 24, device=device).half()
    gate = torch.rand(2, 24, device=device).half()
    out = torch.full_like(x, float("nan"))
    apply_gate(x, gate, out=out, residual=small, repeat=repeat, plus_x=plus_x)
    large = small.double().repeat_interleave(high, 1).repeat_interleave(wide, 2)
    right = x.double() * (gate.double()[:, None, None] + plus_x) + large
    assert (out.double() - right).abs().max() < 8e-3


@pytest.mark.parametrize("repeats", [((1, 1), (1, 1)), ((2, 3), (1, 1), (4, 2))])
def test_channels_side_by_side(repeats: tuple[tuple[int, int], ...], device: str) -> None:
    sizes = (24, 8, 17)[: len(repeats)]
    parts = [
        torch.randn(2, 4 // high, 6 // wide, size, device=device).half()
        for (high, wide), size in zip(repeats, sizes, strict=True)
    ]
    out = torch.full((2, 4, 6, sum(sizes)), float("nan"), device=device, dtype=torch.float16)
    concat_channels(parts, out=out, repeats=repeats)
    large = [
        part.repeat_interleave(high, 1).repeat_interleave(wide, 2)
        for part, (high, wide) in zip(parts, repeats, strict=True)
    ]
    assert torch.equal(out, torch.cat(large, 3))
    with pytest.raises(ValueError, match="as many channels"):
        concat_channels(parts[:-1], out=out, repeats=repeats[:-1])


@pytest.mark.parametrize("channels", [3, 4])
def test_planes_become_pixels(channels: int, device: str) -> None:
    x = torch.randn(2, 3, 5, 7, device=device)
    out = torch.full((2, 5, 7, channels), float("nan"), device=device, dtype=torch.float16)
    planes_to_pixels(x, out=out)
    assert torch.equal(out[..., :3], x.permute(0, 2, 3, 1).half())
    assert not out[..., 3:].any()


@pytest.mark.parametrize("lies", ["planes", "pixels", "within"])
@pytest.mark.parametrize(("corner", "more"), [((0, 0), (0, 1)), ((3, 3), (2, 5)), ((0, 2), (1, 0)), ((1, 0), (0, 0))])
def test_planes_get_zeros_around_them(corner: tuple[int, int], more: tuple[int, int], lies: str, device: str) -> None:
    x = torch.randn(2, 3, 23, 31, device=device)
    if lies == "pixels":
        x = x.contiguous(memory_format=torch.channels_last)
    if lies == "within":
        x = torch.randn(2, 5, 30, 40, device=device)[:, 1:4, 2:25, 3:34]
    (top, left), (below, behind) = corner, more
    out = torch.full((2, top + 23 + below, left + 31 + behind, 4), float("nan"), device=device, dtype=torch.float16)
    planes_to_pixels(x, out=out, corner=corner)
    right = torch.nn.functional.pad(x, (left, behind, top, below)).permute(0, 2, 3, 1).half()
    assert torch.equal(out, torch.nn.functional.pad(right, (0, 1)))


def test_pictures_beyond_what_is_written_are_refused(device: str) -> None:
    x, out = torch.randn(1, 3, 5, 7, device=device), torch.empty(1, 6, 8, 4, device=device)
    with pytest.raises(ValueError, match=r"from \(2, 1\) on"):
        planes_to_pixels(x, out=out, corner=(2, 1))


@pytest.mark.parametrize("residual_last", [True, False])
def test_a_gate_is_applied_to_each_pixel(residual_last: bool, device: str) -> None:
    x, residual = (torch.randn(2, 5, 7, 24, device=device).half() for _ in range(2))
    gate = torch.rand(2, 24, device=device).half()
    out = torch.full_like(x, float("nan"))
    apply_gate(x, gate, out=out, residual=residual, epilogue=Epilogue("relu", residual_last=residual_last))
    gated = x.double() * gate.double()[:, None, None]
    right = torch.relu(gated) + residual.double() if residual_last else torch.relu(gated + residual.double())
    assert (out.double() - right).abs().max() < 4e-3


# (batch, tokens, heads, size, tile)
ATTENTIONS = {
    "15 wide": (2, 10, 2, 15, AttentionTile(16, 16, 4)),
    "50 tokens in one step": (1, 50, 2, 64, AttentionTile(64, 64, 4)),
    "40 tokens in steps of 16": (1, 40, 1, 32, AttentionTile(16, 16, 4)),
    "257 tokens": (1, 257, 1, 16, AttentionTile(128, 128, 4)),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_of_packed_projections(name: str, masked: bool, device: str) -> None:
    batch, tokens, heads, size, tile = ATTENTIONS[name]
    q, k, v = torch.randn(batch, tokens, 3, heads, size, device=device).half().unbind(2)
    mask = None
    if masked:
        # All of the first step's keys may be hidden, but never all keys.
        mask = torch.zeros(batch, 1, 1, tokens, device=device)
        mask[..., : tokens - 3] = float("-inf")
    out = torch.full((batch, tokens, heads, size), float("nan"), device=device, dtype=torch.float16)
    attention(q, k, v, out=out, config=tile, scale=size**-0.5, mask=mask)
    wide = (each.double().transpose(1, 2) for each in (q, k, v))
    right = torch.nn.functional.scaled_dot_product_attention(*wide, attn_mask=None if mask is None else mask.double())
    assert (out.double() - right.transpose(1, 2)).abs().max() < 4e-3


@pytest.mark.parametrize(("size", "width"), [(16, 64), (20, 8), (32, 100)])
def test_values_may_be_wider_or_narrower_than_keys(size: int, width: int, device: str) -> None:
    q = torch.randn(2, 19, 3, size, device=device).half()
    both = torch.randn(2, 37, 3, size + width, device=device).half()
    k, v = both[..., :size], both[..., size:]
    out = torch.full((2, 19, 3, width), float("nan"), device=device, dtype=torch.float16)
    attention(q, k, v, out=out, config=AttentionTile(16, 32, 4), scale=0.2)
    wide = (each.double().transpose(1, 2) for each in (q, k, v))
    right = torch.nn.functional.scaled_dot_product_attention(*wide, scale=0.2)
    assert (out.double() - right.transpose(1, 2)).abs().max() < 4e-3


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy, behind the interpreter
def test_a_row_that_sees_no_key_is_nan(device: str) -> None:
    q, k, v = torch.randn(1, 5, 3, 1, 16, device=device).half().unbind(2)
    mask = torch.zeros(1, 1, 5, 5, device=device)
    mask[..., 2, :] = float("-inf")
    out = torch.full((1, 5, 1, 16), 77.0, device=device, dtype=torch.float16)
    attention(q, k, v, out=out, config=AttentionTile(16, 16, 4), scale=0.25, mask=mask)
    assert torch.equal(out.isnan().all(-1).flatten(), torch.tensor([False, False, True, False, False], device=device))


def test_some_cuts_are_offered_for_every_size() -> None:
    for tokens in (1, 40, 50, 128, 257):
        assert 1 <= len(attention_tiles(1, 8, tokens, tokens)) <= 12


@pytest.mark.parametrize("gated", [True, False])
def test_two_layers_in_one(gated: bool, device: str) -> None:
    x, residual = (torch.randn(3, 3, 5, 24, device=device).half() for _ in range(2))
    first = (torch.randn(40, 24, device=device) / 5).half()
    second = (torch.randn(24, 40, device=device) / 6).half()
    first_bias, second_bias = torch.randn(40, device=device), torch.randn(24, device=device)
    gate = torch.rand(3, 24, device=device).half() if gated else None
    out = torch.full_like(x, float("nan"))
    gated_mlp(
        x, first, first_bias, second, second_bias, out=out, config=MlpTile(16, 32, 4, 2), activation="gelu", gate=gate,
        residual=residual, epilogue=Epilogue("relu", residual_last=True),
    )  # fmt: skip
    scaled = x.double() if gate is None else x.double() * gate.double()[:, None, None]
    hidden = torch.nn.functional.gelu(scaled @ first.double().T + first_bias.double())
    right = torch.relu(hidden @ second.double().T + second_bias.double()) + residual.double()
    assert (out.double() - right).abs().max() < 8e-3


@pytest.mark.parametrize("residual_last", [True, False])
def test_two_layers_may_add_what_went_in_after_its_gate(residual_last: bool, device: str) -> None:
    x, gate = torch.randn(2, 5, 24, device=device).half(), torch.rand(2, 24, device=device).half()
    first, second = ((torch.randn(24, 24, device=device) / 5).half() for _ in range(2))
    out = torch.full_like(x, float("nan"))
    gated_mlp(
        x, first, None, second, None, out=out, config=MlpTile(16, 16, 4, 2), activation="leaky_relu", alpha=0.25,
        gate=gate, skip=True, epilogue=Epilogue("hard_sigmoid", 0.2, 0.5, residual_last=residual_last),
    )  # fmt: skip
    scaled = (x.double() * gate.double()[:, None]).half().double()
    y = torch.nn.functional.leaky_relu(scaled @ first.double().T, 0.25) @ second.double().T
    right = (0.2 * y + 0.5).clamp(0, 1) + scaled if residual_last else (0.2 * (y + scaled) + 0.5).clamp(0, 1)
    assert (out.double() - right).abs().max() < 8e-3


@pytest.mark.parametrize(("width", "out_width"), [(24, 40), (40, 24)])
def test_two_layers_may_change_the_width(width: int, out_width: int, device: str) -> None:
    x = torch.randn(1, 21, width, device=device).half()
    first = (torch.randn(32, width, device=device) / 5).half()
    second = (torch.randn(out_width, 32, device=device) / 6).half()
    residual = torch.randn(1, 21, out_width, device=device).half()
    out = torch.full_like(residual, float("nan"))
    gated_mlp(x, first, None, second, None, out=out, config=MlpTile(16, 16, 4, 2), activation="relu", residual=residual)
    right = torch.relu(x.double() @ first.double().T) @ second.double().T + residual.double()
    assert (out.double() - right).abs().max() < 8e-3
    with pytest.raises(ValueError, match="as many channels out as in"):
        gated_mlp(x, first, None, second, None, out=out, config=MlpTile(16, 16, 4, 2), activation="relu", skip=True)


@pytest.mark.parametrize("width", [24, 96, 192, 384])
def test_every_width_has_cuts_for_two_layers_in_one(width: int) -> None:
    assert 1 <= len(mlp_tiles(1000, width, 2 * width)) <= 12


@pytest.mark.parametrize("classes", [2, 37, 1000, 18710])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_likeliest_class_and_how_likely_it_is(classes: int, dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(4)
    x = (3 * torch.randn(5, classes, device=device)).to(dtype)
    x[1] = x[1, 0]  # all alike: the first
    x[2] = -60000
    x[2, -1] = 60000
    x[3, 1:] = float("-inf")
    index = torch.empty(5, dtype=torch.int64, device=device)
    score = torch.empty(5, device=device)
    top_1(x, index=index, score=score)
    assert index.tolist() == [int(x[0].float().argmax()), 0, classes - 1, 0, int(x[4].float().argmax())]
    expected = torch.softmax(x.double(), -1).amax(-1)
    torch.testing.assert_close(score.double(), expected, rtol=2e-6, atol=0)
    x[0, 1] = float("nan")
    top_1(x, index=index, score=score)
    assert score.isnan().tolist() == [True, False, False, False, False]


def test_more_classes_than_registers_are_refused(device: str) -> None:
    x = torch.empty(1, WIDEST + 1, device=device)
    with pytest.raises(ValueError, match="classes"):
        top_1(x, index=torch.empty(1, dtype=torch.int64, device=device), score=torch.empty(1, device=device))
