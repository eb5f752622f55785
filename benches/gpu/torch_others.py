"""Networks as other libraries define them, and a U-Net with norms of groups: what nothing here was shaped for.

Their weights come from a seed like those of `torch_models`, which calls this. Needs torch and the library of the name:
timm, or transformers.
"""

import importlib
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor, nn

from benches.gpu.subjects import OF_TIMM


class _Twice(nn.Module):
    """Two convolutions, each with a norm of groups of 8 channels behind it, or of each channel by itself."""

    def __init__(self, inputs: int, outputs: int, alone: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (inputs, outputs):
            norm = nn.InstanceNorm2d(outputs, affine=True) if alone else nn.GroupNorm(outputs // 8, outputs)
            layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), norm, nn.SiLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x)
        return found


class UNet(nn.Module):
    """Ronneberger et al. 2015, four scales; norms of groups on the way down, of each channel on the way up."""

    def __init__(self, width: int = 64, classes: int = 4) -> None:
        super().__init__()
        widths = [width * 2**scale for scale in range(4)]
        pairs = list(pairwise(widths))
        self.into = _Twice(3, width, False)
        self.down = nn.ModuleList(_Twice(less, more, False) for less, more in pairs)
        self.grown = nn.ModuleList(nn.ConvTranspose2d(more, less, 2, 2) for less, more in reversed(pairs))
        self.up = nn.ModuleList(_Twice(2 * less, less, True) for less, _ in reversed(pairs))
        self.smaller, self.head = nn.MaxPool2d(2), nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.into(x)]
        for down in self.down:
            maps.append(down(self.smaller(maps[-1])))
        found = maps.pop()
        for grown, up in zip(self.grown, self.up, strict=True):
            found = up(torch.cat((maps.pop(), grown(found)), 1))
        answer: Tensor = self.head(found)
        return answer


class _Part(nn.Module):
    """One of the named outputs of a model of transformers."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, *given: Tensor) -> Tensor:
        found: Tensor = getattr(self.model(*given), self.name)
        return found


def _segformer() -> nn.Module:
    of = _library("transformers")
    return _Part(of.SegformerForSemanticSegmentation(of.SegformerConfig(num_labels=150)), "logits")


def _library(name: str) -> Any:
    return importlib.import_module(name)


def _of_timm(name: str) -> Callable[[], nn.Module]:
    return lambda: _library("timm").create_model(name, num_classes=1000)


MODULES: Final[Mapping[str, Callable[[], nn.Module]]] = {
    "unet": UNet,
    "segformer_b0": _segformer,
    **{name: _of_timm(name) for name in OF_TIMM},
}
