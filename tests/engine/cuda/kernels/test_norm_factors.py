"""The kernels that find what norms groups of channels of a map, against float64."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from penstock.engine.cuda.kernels.norm_factors import norm_factors_launches  # noqa: E402

pytestmark = pytest.mark.torch

EPSILON = 1e-5
CASES = [
    # images, height, width, channels, groups, splits
    (2, 9, 7, 6, 3, 4),
    (1, 8, 8, 48, 1, 1),
    (2, 5, 13, 40, 40, 8),
    (1, 16, 16, 72, 8, 16),
    (1, 3, 3, 300, 2, 9),
]


def made(x: "torch.Tensor", groups: int, splits: int, device: str) -> "tuple[torch.Tensor, torch.Tensor]":
    images, _, _, channels = x.shape
    scale, offset = (torch.full((images, channels), 7.0, device=device) for _ in range(2))
    parts = torch.full((images * splits * 2 * channels,), float("nan"), device=device)
    for each in norm_factors_launches(
        x.to(device), groups=groups, epsilon=EPSILON, scale=scale, offset=offset, splits=splits, parts=parts
    ):
        each.run()
    return scale.cpu().double(), offset.cpu().double()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mean", [0.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=["fp16", "bf16", "fp32"])
def test_groups_have_mean_zero_and_variance_one(case, mean, dtype, device: str) -> None:  # type: ignore[no-untyped-def]
    images, height, width, channels, groups, splits = case
    generator = torch.Generator().manual_seed(3)
    x = (mean + 3 * torch.randn(images, height, width, channels, generator=generator)).to(dtype)
    wide = x.double().view(images, -1, groups, channels // groups)
    variance, centre = torch.var_mean(wide, (1, 3), correction=0)
    factor = (variance + EPSILON).rsqrt()
    wanted = (
        factor.repeat_interleave(channels // groups, 1),
        (-centre * factor).repeat_interleave(channels // groups, 1),
    )
    for found, right in zip(made(x, groups, splits, device), wanted, strict=True):
        assert ((found - right).abs() <= 1e-5 * right.abs() + 1e-6).all()


def test_nan_is_of_its_group_alone(device: str) -> None:
    x = torch.randn(2, 4, 4, 8)
    x[1, 2, 3, 5] = float("nan")
    for found in made(x, 4, 2, device):
        assert found.isnan().nonzero().tolist() == [[1, 4], [1, 5]]


@pytest.mark.parametrize(("groups", "splits"), [(3, 1), (4, 17), (4, 15)])
def test_what_does_not_fit_is_refused(groups: int, splits: int, device: str) -> None:
    with pytest.raises(ValueError, match="do not fit 16 pixels of 8 channels"):
        made(torch.zeros(1, 4, 4, 8), groups, splits, device)
