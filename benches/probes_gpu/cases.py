"""Layers of real models as cases for `kernels.py`: what our kernel launches, what rivals do instead, what is right.

A case builds itself on any torch device; on "meta", which holds no data, it serves to compile its candidates.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as functional

# The kernels import nothing of the package around them, so that it need not be installed where this runs. First on
# the path, since the script beside this file bears the name of their package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python/penstock/engine/cuda"))

from kernels.attention import AttentionTile
from kernels.depthwise import DepthwiseTile, depthwise_conv2d_nhwc_launch, depthwise_tiles
from kernels.epilogue import Epilogue, Scratch
from kernels.gated_mlp import MlpTile
from kernels.implicit_gemm import conv2d_nhwc_launch, conv2d_product, gemm_launch, gemm_product
from kernels.launching import Launch
from kernels.tiles import Product, Tile, tiles

Config = Tile | DepthwiseTile | AttentionTile | MlpTile | int
HALF = torch.float16


@dataclass(frozen=True, slots=True)
class Built:
    """A case on a device."""

    launch: Callable[[Config], Launch]
    out: torch.Tensor
    reference: Callable[[], torch.Tensor]
    """The right answer, computed in FP32."""
    rivals: Mapping[str, Callable[[], object]]


class Case(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def group(self) -> str: ...

    @property
    def macs(self) -> float: ...

    @property
    def bytes(self) -> float: ...

    def candidates(self, multiprocessors: int) -> Sequence[Config]: ...

    def build(self, device: str, multiprocessors: int) -> Built: ...


def _scratch(configs: Sequence[Config], product: Product, device: str) -> Scratch:
    cuts = [each for each in configs if isinstance(each, Tile)]
    floats = max((each.partial_sums(product) for each in cuts), default=0)
    counters = max((each.counters(product) for each in cuts), default=0)
    return Scratch(
        torch.empty(max(1, floats), device=device), torch.zeros(max(1, counters), dtype=torch.int32, device=device)
    )


def _activated(y: torch.Tensor, activation: str) -> torch.Tensor:
    match activation:
        case "relu":
            return functional.relu(y)
        case "silu":
            return functional.silu(y)
        case "relu6":
            return functional.relu6(y)
        case "gelu":
            return functional.gelu(y)
        case "none":
            return y
    raise ValueError(f"activation: no reference for {activation!r}")


@dataclass(frozen=True, slots=True)
class Conv:
    """Square stride and odd filter, padded to keep the size; NHWC."""

    group: str
    batch: int
    height: int
    width: int
    channels: int
    filters: int
    taps: int = 1
    stride: int = 1
    activation: str = "relu"
    residual: bool = False
    int8: bool = False
    pdl: bool = False

    @property
    def name(self) -> str:
        extra = ("+res" if self.residual else "") + (" int8" if self.int8 else "") + (" pdl" if self.pdl else "")
        return (
            f"conv {self.taps}x{self.taps}/{self.stride} {self.channels}->{self.filters} "
            f"@{self.height}x{self.width} b{self.batch}{extra}"
        )

    @property
    def out_size(self) -> tuple[int, int]:
        pad = self.taps // 2
        high, wide = ((size + 2 * pad - self.taps) // self.stride + 1 for size in (self.height, self.width))
        return high, wide

    @property
    def product(self) -> Product:
        high, wide = self.out_size
        return Product(
            self.batch * high * wide, self.filters, self.channels, self.taps**2, itemsize=1 if self.int8 else 2
        )

    @property
    def macs(self) -> float:
        return float(self.product.m * self.product.n * self.product.k)

    @property
    def bytes(self) -> float:
        pixels = self.product.m
        moved = self.batch * self.height * self.width * self.channels + self.filters * self.product.k
        return (moved + pixels * self.filters * (2 if self.residual else 1)) * (1 if self.int8 else 2)

    def candidates(self, multiprocessors: int) -> list[Tile]:
        return tiles(self.product, multiprocessors)

    def build(self, device: str, multiprocessors: int) -> Built:
        high, wide = self.out_size
        pad = self.taps // 2
        dtype = torch.int8 if self.int8 else HALF
        deviation = 30.0 if self.int8 else 1.0
        fan = self.product.k**0.5

        def made(*shape: int, by: float = deviation) -> torch.Tensor:
            return (torch.randn(*shape, device=device) * by).to(dtype)

        x = made(self.batch, self.height, self.width, self.channels)
        w = made(self.filters, self.taps, self.taps, self.channels, by=30.0 if self.int8 else 1 / fan)
        out = torch.empty(self.batch, high, wide, self.filters, dtype=dtype, device=device)
        bias = torch.randn(self.filters, device=device)
        residual = made(*out.shape) if self.residual else None
        scale = torch.full((self.filters,), 1 / (900 * fan), device=device) if self.int8 else None
        step = 0.03
        epilogue = Epilogue(self.activation, residual_scale=step, out_scale=step)
        scratch = _scratch(self.candidates(multiprocessors), conv2d_product(x, w, out), device)

        def launch(config: Config) -> Launch:
            if not isinstance(config, Tile):
                raise TypeError(f"expected a Tile, got {config}")
            return conv2d_nhwc_launch(
                x, w, out=out, config=config, bias=bias, residual=residual, scale=scale, epilogue=epilogue,
                stride=(self.stride, self.stride), padding=(pad, pad), scratch=scratch, pdl=self.pdl,
            )  # fmt: skip

        xc, wc = x.permute(0, 3, 1, 2), w.permute(0, 3, 1, 2)
        rc = None if residual is None else residual.permute(0, 3, 1, 2)

        def reference() -> torch.Tensor:
            y = functional.conv2d(xc.float(), wc.float(), None, self.stride, pad)
            if scale is not None:
                y *= scale[:, None, None]
            y += bias[:, None, None]
            if rc is not None:
                y += rc.float() * (step if self.int8 else 1)
            y = _activated(y, self.activation).permute(0, 2, 3, 1)
            return (y / step).round().clamp(-128, 127) if self.int8 else y

        if self.int8:
            # torch has no INT8 convolution on a GPU: FP16 of the same shape is what is to be beaten.
            xc, wc = xc.to(HALF), wc.to(HALF)
            rc = None if rc is None else rc.to(HALF)
        b = bias.to(HALF)

        def plain() -> object:
            return functional.conv2d(xc, wc, None, self.stride, pad)

        def steps() -> object:
            y = functional.conv2d(xc, wc, b, self.stride, pad)
            return _activated(y if rc is None else y.add_(rc), self.activation)

        rivals: dict[str, Callable[[], object]] = {"cudnn bare": plain, "cudnn steps": steps}
        if self.activation == "relu":
            pads, strides = (pad, pad), (self.stride, self.stride)
            if rc is None:
                rivals["cudnn fused"] = lambda: torch.cudnn_convolution_relu(xc, wc, b, strides, pads, (1, 1), 1)
            else:
                rivals["cudnn fused"] = lambda: torch.cudnn_convolution_add_relu(
                    xc, wc, rc, 1.0, b, strides, pads, (1, 1), 1
                )
        if self.taps == self.stride == 1 and not self.int8:
            rows, matrix = x.view(-1, self.channels), w.view(self.filters, -1)
            rivals["cublas bare"] = lambda: functional.linear(rows, matrix)
            rivals["cublas bias"] = lambda: functional.linear(rows, matrix, b)
        return Built(launch, out, reference, rivals)


@dataclass(frozen=True, slots=True)
class Gemm:
    group: str
    m: int
    n: int
    k: int
    activation: str = "none"
    residual: bool = False
    pdl: bool = False

    @property
    def name(self) -> str:
        extra = f" {self.activation}" + ("+res" if self.residual else "") + (" pdl" if self.pdl else "")
        return f"gemm {self.m}x{self.n}x{self.k}{extra}"

    @property
    def product(self) -> Product:
        return Product(self.m, self.n, self.k)

    @property
    def macs(self) -> float:
        return float(self.m * self.n * self.k)

    @property
    def bytes(self) -> float:
        return self.product.bytes + (2.0 * self.m * self.n if self.residual else 0)

    def candidates(self, multiprocessors: int) -> list[Tile]:
        return tiles(self.product, multiprocessors)

    def build(self, device: str, multiprocessors: int) -> Built:
        x = torch.randn(self.m, self.k, device=device, dtype=HALF)
        w = torch.randn(self.n, self.k, device=device, dtype=HALF) / self.k**0.5
        bias = torch.randn(self.n, device=device, dtype=HALF)
        out = torch.empty(self.m, self.n, device=device, dtype=HALF)
        residual = torch.randn_like(out) if self.residual else None
        scratch = _scratch(self.candidates(multiprocessors), gemm_product(x, out), device)

        def launch(config: Config) -> Launch:
            if not isinstance(config, Tile):
                raise TypeError(f"expected a Tile, got {config}")
            return gemm_launch(
                x, w, out=out, config=config, bias=bias, residual=residual, epilogue=Epilogue(self.activation),
                scratch=scratch, pdl=self.pdl,
            )  # fmt: skip

        def reference() -> torch.Tensor:
            y = functional.linear(x.float(), w.float(), bias.float())
            return _activated(y if residual is None else y + residual.float(), self.activation)

        def steps() -> object:
            y = functional.linear(x, w, bias)
            return _activated(y if residual is None else y.add_(residual), self.activation)

        rivals: dict[str, Callable[[], object]] = {
            "cublas bare": lambda: functional.linear(x, w),
            "cublas bias": lambda: functional.linear(x, w, bias),
        }
        if residual is not None or self.activation != "none":
            rivals["cublas steps"] = steps
        return Built(launch, out, reference, rivals)


@dataclass(frozen=True, slots=True)
class Depthwise:
    group: str
    batch: int
    height: int
    width: int
    channels: int
    taps: int = 3
    stride: int = 1
    activation: str = "relu6"
    sums: bool = False

    @property
    def name(self) -> str:
        extra = "+sums" if self.sums else ""
        return (
            f"depthwise {self.taps}x{self.taps}/{self.stride} {self.channels} "
            f"@{self.height}x{self.width} b{self.batch}{extra}"
        )

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        high, wide = ((size - 1) // self.stride + 1 for size in (self.height, self.width))
        return self.batch, high, wide, self.channels

    @property
    def macs(self) -> float:
        batch, high, wide, channels = self.out_shape
        return float(batch * high * wide * channels * self.taps**2)

    @property
    def bytes(self) -> float:
        batch, high, wide, channels = self.out_shape
        return 2.0 * batch * channels * (high * wide + self.height * self.width)

    def candidates(self, multiprocessors: int) -> list[DepthwiseTile]:
        return depthwise_tiles(self.out_shape, self.taps, self.stride, multiprocessors)

    def build(self, device: str, multiprocessors: int) -> Built:
        x = torch.randn(self.batch, self.height, self.width, self.channels, device=device, dtype=HALF)
        w = torch.randn(self.taps, self.taps, self.channels, device=device, dtype=HALF) / self.taps
        bias = torch.randn(self.channels, device=device)
        out = torch.empty(self.out_shape, device=device, dtype=HALF)
        pad = self.taps // 2

        def launch(config: Config) -> Launch:
            if not isinstance(config, DepthwiseTile):
                raise TypeError(f"expected a DepthwiseTile, got {config}")
            blocks = config.blocks(*self.out_shape[1:3])
            sums = torch.empty(self.batch, blocks, self.channels, device=device) if self.sums else None
            return depthwise_conv2d_nhwc_launch(
                x, w, out=out, config=config, bias=bias, sums=sums, epilogue=Epilogue(self.activation),
                stride=(self.stride, self.stride), padding=(pad, pad),
            )  # fmt: skip

        xc = x.permute(0, 3, 1, 2)
        wc = w.permute(2, 0, 1)[:, None].contiguous(memory_format=torch.channels_last)
        half_bias = bias.to(HALF)

        def reference() -> torch.Tensor:
            y = functional.conv2d(xc.float(), wc.float(), bias, self.stride, pad, groups=self.channels)
            return _activated(y, self.activation).permute(0, 2, 3, 1)

        def bare() -> object:
            return functional.conv2d(xc, wc, None, self.stride, pad, groups=self.channels)

        def steps() -> object:
            y = functional.conv2d(xc, wc, half_bias, self.stride, pad, groups=self.channels)
            y = _activated(y, self.activation)
            return y.mean((2, 3)) if self.sums else y

        return Built(launch, out, reference, {"torch bare": bare, "torch steps": steps})
