"""A feature map in another size against torch in FP64, for every way to place pixels."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from torch.nn import functional  # noqa: E402

from penstock.engine.cuda.kernels.resize import resize_linear, resize_linear_launch  # noqa: E402


def placed(size: int, out: int, corners: bool) -> tuple[float, float]:
    """Step and shift, as torch's documentation of `align_corners` has them."""
    if corners:
        return ((size - 1) / (out - 1) if out > 1 else 0.0), 0.0
    return size / out, 0.5 * size / out - 0.5


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize(
    ("shape", "size"),
    [((2, 5, 7, 40), (10, 14)), ((1, 9, 4, 3), (4, 9)), ((3, 1, 6, 136), (3, 1)), ((1, 13, 11, 8), (29, 88))],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_maps_in_another_size(
    shape: tuple[int, ...], size: tuple[int, int], corners: bool, dtype: torch.dtype, device: str
) -> None:
    x = torch.randn(shape, device=device).to(dtype)
    planes = x.double().permute(0, 3, 1, 2)
    right = functional.interpolate(planes, size, mode="bilinear", align_corners=corners).permute(0, 2, 3, 1)
    lines = [placed(shape[1 + axis], size[axis], corners) for axis in (0, 1)]
    out = torch.full(right.shape, float("nan"), device=device, dtype=torch.float32)
    steps, shifts = (lines[0][0], lines[1][0]), (lines[0][1], lines[1][1])
    resize_linear(x, out=out, steps=steps, shifts=shifts)
    assert (out.double() - right).abs().max() < 2e-6
    wide = torch.full((*right.shape[:3], shape[3] + 8), 7.0, device=device, dtype=dtype)
    resize_linear(x, out=wide[..., : shape[3]], steps=steps, shifts=shifts)
    assert torch.allclose(wide[..., : shape[3]].float(), out, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    assert (wide[..., shape[3] :] == 7).all()  # the channels beside are others'


def test_a_number_that_is_none_spreads_to_its_neighbours_alone(device: str) -> None:
    x = torch.zeros((1, 4, 4, 1), device=device, dtype=torch.float16)
    x[0, 1, 2] = float("nan")
    out = torch.zeros((1, 8, 8, 1), device=device, dtype=torch.float16)
    resize_linear(x, out=out, steps=(0.5, 0.5), shifts=(-0.25, -0.25))
    right = functional.interpolate(x.double().permute(0, 3, 1, 2), scale_factor=2, mode="bilinear")
    assert torch.equal(out.isnan()[0, :, :, 0], right.isnan()[0, 0])


def test_shapes_that_do_not_fit_are_refused(device: str) -> None:
    x = torch.zeros((1, 4, 4, 8), device=device, dtype=torch.float16)
    with pytest.raises(ValueError, match="out: expected shape"):
        resize_linear_launch(x, out=x.new_zeros((1, 8, 8, 16)), steps=(0.5, 0.5), shifts=(0.0, 0.0))
