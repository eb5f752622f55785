"""A residual block in INT8 lane by lane: the source compiled for the CPU against integers, and for a GPU."""

import ctypes
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from penstock.engine.cuda.kernels import nvrtc  # noqa: E402
from penstock.engine.cuda.kernels.bottleneck import Steps  # noqa: E402
from penstock.engine.cuda.kernels.bottleneck_eight import BlockCut, block_cuts, bottleneck_eight_launch  # noqa: E402
from penstock.engine.cuda.kernels.cpp_launching import CppLaunch  # noqa: E402
from penstock.engine.cuda.kernels.epilogue import Epilogue, fold  # noqa: E402
from tests.engine.cuda.kernels.test_blocks_eight import Layer, off, rounded  # noqa: E402
from tests.engine.cuda.kernels.test_lstm import compiled_for_the_cpu  # noqa: E402

pytestmark = pytest.mark.torch

RELU = Epilogue("relu")
STEPS = (0.02, 0.03, 0.025, 0.013)  # of middle, wide, out and the residual


@dataclass(frozen=True)
class Block:
    images: int
    high: int
    across: int
    wide: int
    cut: BlockCut
    out: bool = False
    source: bool = False
    residual: bool = False


BLOCKS = [
    Block(2, 5, 9, 64, BlockCut(2, 2), residual=True),
    Block(1, 4, 8, 96, BlockCut(4, 1), out=True, residual=True),
    Block(2, 3, 11, 64, BlockCut(3, 1), out=True, source=True),
    Block(1, 2, 20, 32, BlockCut(2, 2)),
]


class Made:
    """Tensors of a block, its launch, and what is right."""

    def __init__(self, block: Block, device: str = "cpu", walkers: int = 132) -> None:
        torch.manual_seed(2)
        shape = (block.images, block.high, block.across)

        def integers(channels: int) -> torch.Tensor:
            return torch.randint(-128, 128, (*shape, channels), dtype=torch.int8).to(device)

        x, residual = integers(64), integers(block.wide) if block.residual else None
        source = integers(64) if block.source else None
        first, second = Layer.random(device, 64, 3, 3, 64), Layer.random(device, block.wide, 64)
        shortcut = Layer.random(device, block.wide, 64) if block.source else None
        third = Layer.random(device, 64, block.wide) if block.out else None
        wide = second.sums(rounded(first.sums(x, 1, 1), STEPS[0]))
        if residual is not None:
            wide = wide + residual.double() * STEPS[3]
        if source is not None and shortcut is not None:
            wide = wide + shortcut.sums(source)
        self.right = [rounded(wide, STEPS[1])]
        if third is not None:
            self.right.append(rounded(third.sums(self.right[0]), STEPS[2]))
        self.found = [torch.full(each.shape, -77, dtype=torch.int8, device=device) for each in self.right]
        bias = second.bias if shortcut is None else second.bias + shortcut.bias
        scales, biases = fold(first.scale, first.bias, STEPS[0], 0), fold(second.scale, bias, STEPS[1], 0)
        last = (None, None) if third is None else fold(third.scale, third.bias, STEPS[2], 0)
        aside = None if shortcut is None else fold(shortcut.scale, None, STEPS[1], 0)[0]
        worth = STEPS[3] / STEPS[1]
        self.launch: CppLaunch = bottleneck_eight_launch(
            x, first.weight, scales[1], second.weight, biases[1], wide=self.found[0], config=block.cut,
            steps=Steps(scales[0], biases[0], last[0], aside, worth), inner=RELU, epilogue=RELU, outer=RELU,
            residual=residual, worth=torch.tensor([worth], device=device) if block.residual else None, source=source,
            shortcut=None if shortcut is None else shortcut.weight, third=None if third is None else third.weight,
            third_bias=last[1], out=self.found[1] if third is not None else None, multiprocessors=walkers,
        )  # fmt: skip

    def check(self) -> None:
        for found, right in zip(self.found, self.right, strict=True):
            largest, share = off(found, right)
            assert largest <= 3  # a middle that FP32 rounds the other way moves what is behind it
            assert share < 5e-2
            assert right.unique().numel() > 40


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_lane_of_the_source_does_its_part(block: Block, tmp_path: Path) -> None:
    made = Made(block, walkers=1)
    launch = made.launch
    library = compiled_for_the_cpu(launch, tmp_path)
    library.run((ctypes.c_void_p * len(launch.bound()))(*map(int, launch.bound())))
    made.check()


@pytest.mark.skipif(not nvrtc.available(), reason="there is no NVRTC")
@pytest.mark.parametrize("source", [False, True])
def test_it_compiles_without_a_gpu_and_keeps_everything_in_registers(source: bool) -> None:
    cut = BlockCut(4, 1 if source else 2)
    assert cut in block_cuts(56, 56)
    block = Block(1, 56, 56, 256, cut, out=True, source=source, residual=not source)
    found = Made(block).launch.compile()
    assert found.spilled_bytes <= (0 if source else 300)
    assert found.registers * 224 * cut.resident <= 65536
