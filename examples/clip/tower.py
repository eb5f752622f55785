"""CLIP's image tower (Radford et al. 2021) in torch, layer by layer and name by name as open_clip has it.

Promises: the defaults are open_clip's `ViT-B-32-quickgelu`, the shape of the first published weights: 32x32 patches of
224x224, a class token, a norm before the layers, 12 layers of 768 with QuickGELU, a norm of the class token and a
projection to 512 without bias. A `visual` state dict of it loads as it is. `seeded` fills it with numbers that tell
pictures apart. Needs torch. Called by `making`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a tower; the defaults are ViT-B/32."""

    size: int = 224
    patch: int = 32
    width: int = 768
    layers: int = 12
    heads: int = 12
    outputs: int = 512


class Attention(nn.Module):
    """Parameters are named as `nn.MultiheadAttention` names them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        joined = functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        query, key, value = joined.reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        found: Tensor = self.out_proj(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return found


class Perceptron(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.c_fc(x)
        found: Tensor = self.c_proj(hidden * torch.sigmoid(1.702 * hidden))  # QuickGELU
        return found


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = Attention(width, heads), Perceptron(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        found: Tensor = x + self.mlp(self.ln_2(x))
        return found


class Transformer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(Block(shape.width, shape.heads) for _ in range(shape.layers)))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.resblocks(x)
        return found


class Tower(nn.Module):
    """FP32 [n, 3, size, size], mean and deviation taken out, to embeddings [n, outputs], not normalised."""

    def __init__(self, shape: Shape = Shape()) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, shape.width, shape.patch, shape.patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(shape.width))
        self.positional_embedding = nn.Parameter(torch.zeros((shape.size // shape.patch) ** 2 + 1, shape.width))
        self.ln_pre, self.ln_post = nn.LayerNorm(shape.width), nn.LayerNorm(shape.width)
        self.transformer = Transformer(shape)
        self.proj = nn.Parameter(torch.zeros(shape.width, shape.outputs))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.ln_post(self.tokens(x)[:, 0]) @ self.proj
        return found

    def tokens(self, x: Tensor) -> Tensor:
        """What the layers make of the class token and the patches: [n, tokens, width]."""
        patches = self.conv1(x).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(x.shape[0], 1, -1)
        x = torch.cat((first, patches), dim=1) + self.positional_embedding
        found: Tensor = self.transformer(self.ln_pre(x))
        return found


def seeded(pictures: Tensor, shape: Shape = Shape(), seed: int = 0) -> Tower:
    """A tower for inference whose answers to unlike pictures point in unlike directions.

    Weights are normal numbers, each parameter's from its own name and the seed. Random layers answer nearly the same
    to everything; so queries and keys are wide enough that attention looks at some patches and not at all, and the
    bias of the last norm takes out the mean over `pictures`, as training does.
    """
    tower = Tower(shape).eval().requires_grad_(False)
    norms = {each for each, _ in tower.named_modules() if each.rpartition(".")[2].startswith("ln_")}
    for name, parameter in tower.named_parameters():
        if name.rpartition(".")[0] in norms:
            continue
        numbers = torch.Generator().manual_seed(crc32(name.encode()) ^ seed)
        parameter.normal_(0, _deviation(name, parameter.shape), generator=numbers)
    last = tower.tokens(pictures)[:, 0]
    normed = functional.layer_norm(last, last.shape[1:])
    tower.ln_post.bias.copy_(-normed.mean(dim=0))
    return tower


def _deviation(name: str, shape: Sequence[int]) -> float:
    if "embedding" in name:
        return 0.1  # beside patches of about 1
    if len(shape) == 1:
        return 0.02
    fan = shape[0] if name == "proj" else torch.Size(shape[1:]).numel()
    gain = 1.5 if name.endswith("in_proj_weight") else 1.0
    return float(gain * fan**-0.5)
