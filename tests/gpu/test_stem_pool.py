"""A stem and its pool in one kernel: right for every cut at a picture's size, the same bits each time, played back."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from penstock.engine.cuda.kernels.driver import LoadedKernel, LoadedModule  # noqa: E402
from penstock.engine.cuda.kernels.stem_pool import stem_cuts  # noqa: E402
from tests.engine.cuda.kernels.test_stem_pool import BF16, INT8, STEMS, Stem, expected, tensors  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.torch]

WHOLE = [
    Stem(images, 56, 56, 64, cut, dtype, out)
    for dtype, out in ((torch.float16, torch.float16), (BF16, BF16), (INT8, INT8), (INT8, torch.float16))
    for images in (1, 5)
    for cut in stem_cuts(images, 56)
]


@pytest.mark.parametrize("stem", [*STEMS, *WHOLE], ids=str)
def test_it_is_right_and_plays_back_to_the_same_bits(stem: Stem) -> None:
    given = tensors(stem, "cuda")
    launch = given.launch(stem)
    launch.run()
    torch.cuda.synchronize()
    first, right = given.out.clone(), expected(given, stem)
    off = (first.double().cpu() - right).abs()
    if stem.out == INT8:
        assert off.max() <= 1
        assert (off > 0).double().mean() < 1e-2
    else:
        assert float(off.norm() / right.norm()) < (4e-3 if BF16 in (stem.dtype, stem.out) else 5e-4)
    sealed = replace(launch, pdl=True).seal()
    kernel = LoadedKernel(sealed, LoadedModule(sealed.cubin))
    given.out.zero_()
    stream = torch.cuda.current_stream()
    for _ in range(3):
        kernel.launch(launch.bound(), stream.cuda_stream)
    torch.cuda.synchronize()
    assert torch.equal(given.out, first)
