"""The cases of `cases.py` between the large products: fused mixers, attention, norms and pools."""

from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from cases import HALF, Built, Config
from kernels.attention import AttentionTile, attention_launch, attention_tiles
from kernels.epilogue import Scratch
from kernels.gated_mlp import MlpTile, gated_mlp_launch, mlp_tiles
from kernels.launching import Launch
from kernels.reductions import global_average_pool_launch, layer_norm_launch


@dataclass(frozen=True, slots=True)
class Mlp:
    """Gate, 1x1, GELU, 1x1, residual: a mixing block of the text models after its depthwise convolution."""

    group: str
    batch: int
    height: int
    width: int
    channels: int

    @property
    def name(self) -> str:
        return f"mlp {self.channels} @{self.height}x{self.width} b{self.batch}"

    @property
    def rows(self) -> int:
        return self.batch * self.height * self.width

    @property
    def macs(self) -> float:
        return 4.0 * self.rows * self.channels**2

    @property
    def bytes(self) -> float:
        return 2.0 * (3 * self.rows * self.channels + 4 * self.channels**2)

    def candidates(self, multiprocessors: int) -> list[MlpTile]:
        return mlp_tiles(self.rows, self.channels, 2 * self.channels, multiprocessors)

    def build(self, device: str, multiprocessors: int) -> Built:
        del multiprocessors
        c, h = self.channels, 2 * self.channels
        x, residual = (torch.randn(self.batch, self.height, self.width, c, device=device, dtype=HALF) for _ in range(2))
        gate = torch.rand(self.batch, c, device=device, dtype=HALF)
        first = torch.randn(h, c, device=device, dtype=HALF) / c**0.5
        second = torch.randn(c, h, device=device, dtype=HALF) / h**0.5
        first_bias, second_bias = (torch.randn(size, device=device, dtype=HALF) for size in (h, c))
        out = torch.empty_like(x)

        def launch(config: Config) -> Launch:
            if not isinstance(config, MlpTile):
                raise TypeError(f"expected an MlpTile, got {config}")
            return gated_mlp_launch(
                x, first, first_bias, second, second_bias, out=out, config=config, activation="gelu", gate=gate,
                residual=residual,
            )  # fmt: skip

        def theirs() -> torch.Tensor:
            hidden = functional.gelu(functional.linear(x * gate[:, None, None], first, first_bias))
            return functional.linear(hidden, second, second_bias).add_(residual)

        def reference() -> torch.Tensor:
            scaled = (x * gate[:, None, None]).float()
            hidden = functional.gelu(functional.linear(scaled, first.float(), first_bias.float()))
            return functional.linear(hidden, second.float(), second_bias.float()) + residual.float()

        return Built(launch, out, reference, {"torch steps": theirs})


@dataclass(frozen=True, slots=True)
class Attention:
    group: str
    batch: int
    tokens: int
    heads: int
    size: int

    @property
    def name(self) -> str:
        return f"attention b{self.batch} {self.tokens}x{self.heads}x{self.size}"

    @property
    def macs(self) -> float:
        return 2.0 * self.batch * self.heads * self.tokens**2 * self.size

    @property
    def bytes(self) -> float:
        return 2.0 * 4 * self.batch * self.tokens * self.heads * self.size

    def candidates(self, multiprocessors: int) -> list[AttentionTile]:
        del multiprocessors
        return attention_tiles(self.batch, self.heads, self.tokens, self.tokens)

    def build(self, device: str, multiprocessors: int) -> Built:
        del multiprocessors
        qkv = torch.randn(self.batch, self.tokens, 3, self.heads, self.size, device=device, dtype=HALF)
        q, k, v = qkv.unbind(2)
        out = torch.empty(self.batch, self.tokens, self.heads, self.size, device=device, dtype=HALF)
        scale = self.size**-0.5

        def launch(config: Config) -> Launch:
            if not isinstance(config, AttentionTile):
                raise TypeError(f"expected an AttentionTile, got {config}")
            return attention_launch(q, k, v, out=out, config=config, scale=scale)

        def theirs() -> torch.Tensor:
            return functional.scaled_dot_product_attention(*(each.transpose(1, 2) for each in (q, k, v)))

        def reference() -> torch.Tensor:
            scores = torch.einsum("bqhd,bkhd->bhqk", q.float(), k.float()) * scale
            return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v.float())

        return Built(launch, out, reference, {"torch sdpa": theirs})


@dataclass(frozen=True, slots=True)
class LayerNorm:
    group: str
    rows: int
    size: int

    @property
    def name(self) -> str:
        return f"layer_norm {self.rows}x{self.size}+res"

    @property
    def macs(self) -> float:
        return 4.0 * self.rows * self.size

    @property
    def bytes(self) -> float:
        return 2.0 * 4 * self.rows * self.size

    def candidates(self, multiprocessors: int) -> list[int]:
        del multiprocessors
        return [0]

    def build(self, device: str, multiprocessors: int) -> Built:
        del multiprocessors
        x, residual = (torch.randn(self.rows, self.size, device=device, dtype=HALF) for _ in range(2))
        weight, bias = (torch.randn(self.size, device=device, dtype=HALF) for _ in range(2))
        out, total = torch.empty_like(x), torch.empty_like(x)

        def launch(config: Config) -> Launch:
            del config
            return layer_norm_launch(x, weight, bias, out=out, epsilon=1e-5, residual=residual, total=total)

        def theirs() -> object:
            return functional.layer_norm(x + residual, (self.size,), weight, bias, 1e-5)

        def reference() -> torch.Tensor:
            t = x.float() + residual.float()
            return functional.layer_norm(t, (self.size,), weight.float(), bias.float(), 1e-5)

        return Built(launch, out, reference, {"torch steps": theirs})


@dataclass(frozen=True, slots=True)
class Pool:
    group: str
    batch: int
    height: int
    width: int
    channels: int

    @property
    def name(self) -> str:
        return f"average_pool {self.channels} @{self.height}x{self.width} b{self.batch}"

    @property
    def macs(self) -> float:
        return float(self.batch * self.height * self.width * self.channels)

    @property
    def bytes(self) -> float:
        return 2.0 * self.macs

    def candidates(self, multiprocessors: int) -> list[int]:
        del multiprocessors
        return [splits for splits in (1, 4, 16, 64) if splits == 1 or splits * 64 <= self.height * self.width]

    def build(self, device: str, multiprocessors: int) -> Built:
        x = torch.randn(self.batch, self.height, self.width, self.channels, device=device, dtype=HALF) + 1
        out = torch.empty(self.batch, self.channels, device=device, dtype=HALF)
        most = max(self.candidates(multiprocessors))
        scratch = Scratch(
            torch.empty(self.batch * most * self.channels, device=device),
            torch.zeros(self.batch * self.channels, dtype=torch.int32, device=device),
        )

        def launch(config: Config) -> Launch:
            if not isinstance(config, int):
                raise TypeError(f"expected a number of splits, got {config}")
            return global_average_pool_launch(x, out=out, splits=config, scratch=scratch)

        return Built(
            launch, out, lambda: x.float().mean((1, 2)), {"torch mean": lambda: x.permute(0, 3, 1, 2).mean((2, 3))}
        )
