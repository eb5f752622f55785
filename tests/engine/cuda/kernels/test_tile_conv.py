"""Convolutions by tiles: the source compiled for the CPU against float64, and for a GPU that is not here."""

import ctypes
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from penstock.engine.cuda.kernels import nvrtc  # noqa: E402
from penstock.engine.cuda.kernels.cpp_launching import CppLaunch  # noqa: E402
from penstock.engine.cuda.kernels.epilogue import Epilogue  # noqa: E402
from penstock.engine.cuda.kernels.tile_conv import ConvCut, Window, conv_cuts, packed, tile_conv_launch  # noqa: E402
from tests.engine.cuda.kernels.test_lstm import compiled_for_the_cpu  # noqa: E402

pytestmark = pytest.mark.torch

HALF, BF16 = torch.float16, torch.bfloat16


@dataclass(frozen=True)
class Layer:
    images: int
    high: int
    wide: int
    channels: int
    filters: int
    window: Window
    cut: ConvCut
    dtype: torch.dtype = HALF
    activation: str = "relu"
    bias: bool = True
    apart: int = 0

    def __str__(self) -> str:
        return f"{self.images}x{self.high}x{self.wide}x{self.channels}-{self.filters} {self.window.stride} {self.dtype}"


LAYERS = [
    Layer(2, 7, 9, 16, 24, Window(3, 3, (1, 1), (1, 1)), ConvCut(4, 8, 2, 1)),
    Layer(1, 12, 17, 24, 16, Window(3, 3, (2, 2), (1, 1)), ConvCut(2, 16, 2, 2), apart=8),
    Layer(1, 6, 9, 40, 8, Window(3, 2, (2, 1), (0, 1)), ConvCut(4, 4, 1, 1), BF16, "none", bias=False),
]


@dataclass(frozen=True)
class Tensors:
    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    out: torch.Tensor

    def launch(self, layer: Layer) -> CppLaunch:
        return tile_conv_launch(
            self.x, packed(self.weight), out=self.out, config=layer.cut, window=layer.window, bias=self.bias,
            epilogue=Epilogue(layer.activation),
        )  # fmt: skip


def tensors(layer: Layer, device: str = "cpu") -> Tensors:
    generator = torch.Generator().manual_seed(13)

    def normal(*shape: int, size: float = 1.0, dtype: torch.dtype = layer.dtype) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * size).to(dtype).to(device)

    window = layer.window
    high, wide = (
        (size + 2 * pad - taps) // stride + 1
        for size, pad, taps, stride in zip(
            (layer.high, layer.wide), window.pads, (window.high, window.wide), window.stride, strict=True
        )
    )
    depth = window.high * window.wide * layer.channels
    return Tensors(
        normal(layer.images, layer.high, layer.wide, layer.channels + layer.apart)[..., : layer.channels],
        normal(layer.filters, window.high, window.wide, layer.channels, size=depth**-0.5),
        normal(layer.filters, dtype=torch.float32) if layer.bias else None,
        torch.full((layer.images, high, wide, layer.filters), torch.nan, dtype=layer.dtype, device=device),
    )


def expected(given: Tensors, layer: Layer) -> torch.Tensor:
    x, weight = (each.double().cpu().permute(0, 3, 1, 2) for each in (given.x, given.weight))
    bias = None if given.bias is None else given.bias.double().cpu()
    y = torch.nn.functional.conv2d(x, weight, bias, stride=layer.window.stride, padding=layer.window.pads)
    return (y.relu() if layer.activation == "relu" else y).permute(0, 2, 3, 1)


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_every_lane_of_the_source_does_its_part(layer: Layer, tmp_path: Path) -> None:
    given = tensors(layer)
    launch = given.launch(layer)
    compiled_for_the_cpu(launch, tmp_path).run((ctypes.c_void_p * len(launch.bound()))(*map(int, launch.bound())))
    right = expected(given, layer)
    assert float((given.out.double() - right).norm() / right.norm()) < (4e-3 if layer.dtype == BF16 else 5e-4)


STEMS = [(1, 184, 184, 96, 24, 1), (1, 184, 184, 48, 24, 2), (8, 184, 184, 48, 24, 2)]


@pytest.mark.skipif(not nvrtc.available(), reason="there is no NVRTC")
@pytest.mark.parametrize("sizes", STEMS, ids=str)
def test_it_compiles_without_a_gpu_and_keeps_everything_in_registers(sizes: tuple[int, ...]) -> None:
    images, high, wide, channels, filters, stride = sizes
    window = Window(3, 3, (stride, stride), (1, 1))
    cuts = conv_cuts(images, high, wide, channels, filters, window)
    assert len(set(cuts)) == len(cuts) > 2
    layer = Layer(images, high * stride, wide * stride, channels, filters, window, cuts[0])
    found = tensors(layer).launch(layer).compile()
    assert found.spilled_bytes == 0
    assert found.registers * cuts[0].warps * 32 <= 65536


def test_other_layers_have_no_cut() -> None:
    window = Window(3, 3, (1, 1), (1, 1))
    assert conv_cuts(1, 64, 64, 512, 48, window) == []  # weights for more than a multiprocessor holds
    assert conv_cuts(32, 12, 80, 96, 48, Window(3, 3, (2, 2), (1, 1))) == []  # nor one with another block beside it
    assert conv_cuts(1, 64, 64, 12, 24, window) == []
