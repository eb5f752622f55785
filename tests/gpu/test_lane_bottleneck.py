"""A residual block in one kernel: right for every cut at a picture's size, and the same bits played back."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from penstock.engine.cuda.kernels.driver import LoadedKernel, LoadedModule  # noqa: E402
from penstock.engine.cuda.kernels.lane_bottleneck import block_cuts  # noqa: E402
from tests.engine.cuda.kernels.test_lane_bottleneck import BLOCKS, HALF, Block, Made  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.torch]

WHOLE = [
    Block(3, 56, 56, 256, cut, out, source, not source, dtype)
    for dtype in (torch.int8, HALF)
    for source, out in ((False, True), (True, True), (False, False))
    for cut in block_cuts(56, 56, dtype.itemsize)
]


@pytest.mark.parametrize("block", [*BLOCKS, *WHOLE], ids=str)
def test_it_is_right_and_plays_back_to_the_same_bits(block: Block) -> None:
    try:
        made = Made(block, "cuda")
    except ValueError as error:
        pytest.skip(str(error))
    made.launch.run()
    torch.cuda.synchronize()
    made.check()
    first = [each.clone() for each in made.found]
    sealed = replace(made.launch, pdl=True).seal()
    kernel = LoadedKernel(sealed, LoadedModule(sealed.cubin))
    for each in made.found:
        each.zero_()
    for _ in range(3):
        kernel.launch(made.launch.bound(), torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    assert all(torch.equal(found, right) for found, right in zip(made.found, first, strict=True))
