"""A detector of three scales and a Siamese tracker, as torch modules.

The detector is of the YOLOv5s kind: cross-stage blocks with SiLU, boxes decoded. The tracker is of the SiamRPN++ kind
(Li et al. 2019) on AlexNet: template and search through one backbone, depthwise cross-correlation, two heads. Norms are
folded, as in exported models of either family. Called by `torch_models`.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.tracker.network import backbone, correlation

_ANCHORS: Final = {
    8: ((10, 13), (16, 30), (33, 23)),
    16: ((30, 61), (62, 45), (59, 119)),
    32: ((116, 90), (156, 198), (373, 326)),
}
_CLASSES: Final = 80
_PER_ANCHOR: Final = 5 + _CLASSES


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int | None = None) -> nn.Sequential:
    around = kernel // 2 if padding is None else padding
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, around), nn.SiLU())


class _Inner(nn.Module):
    def __init__(self, channels: int, shortcut: bool) -> None:
        super().__init__()
        self.both = nn.Sequential(_conv(channels, channels, 1), _conv(channels, channels, 3))
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.both(x)
        return x + found if self.shortcut else found


class _CrossStage(nn.Module):
    """Half of the channels pass the blocks, half don't (CSPNet, Wang et al. 2020)."""

    def __init__(self, inputs: int, outputs: int, blocks: int, shortcut: bool = False) -> None:
        super().__init__()
        half = outputs // 2
        self.deep = nn.Sequential(_conv(inputs, half, 1), *(_Inner(half, shortcut) for _ in range(blocks)))
        self.shallow, self.out = _conv(inputs, half, 1), _conv(outputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(torch.cat((self.deep(x), self.shallow(x)), 1))
        return found


class _Pooled(nn.Module):
    """Three maxima after each other, all kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.into, self.out = _conv(channels, channels // 2, 1), _conv(2 * channels, channels, 1)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        first = self.into(x)
        second = self.pool(first)
        third = self.pool(second)
        found: Tensor = self.out(torch.cat((first, second, third, self.pool(third)), 1))
        return found


class Detector(nn.Module):
    """3x640x640 to [25200, 85]: centre, size, objectness, classes; 8.2 GMAC."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(
            _conv(3, 32, 6, 2, 2), _conv(32, 64, 3, 2), _CrossStage(64, 64, 1, True),
            _conv(64, 128, 3, 2), _CrossStage(128, 128, 2, True),
        )  # fmt: skip
        self.middle = nn.Sequential(_conv(128, 256, 3, 2), _CrossStage(256, 256, 3, True))
        self.coarse = nn.Sequential(
            _conv(256, 512, 3, 2), _CrossStage(512, 512, 1, True), _Pooled(512), _conv(512, 256, 1)
        )
        self.top = nn.Sequential(_CrossStage(512, 256, 1), _conv(256, 128, 1))
        self.low = _CrossStage(256, 128, 1)
        self.lift, self.middle_out = _conv(128, 128, 3, 2), _CrossStage(256, 256, 1)
        self.lift_again, self.coarse_out = _conv(256, 256, 3, 2), _CrossStage(512, 512, 1)
        self.heads = nn.ModuleList(nn.Conv2d(each, 3 * _PER_ANCHOR, 1) for each in (128, 256, 512))
        for stride, anchors in _ANCHORS.items():
            size = 640 // stride
            rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
            self.register_buffer(f"grid{stride}", torch.stack((columns, rows), -1)[None, None].float() - 0.5)
            self.register_buffer(f"anchors{stride}", torch.tensor(anchors).float().reshape(1, -1, 1, 1, 2))

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        middle = self.middle(fine)
        coarse = self.coarse(middle)
        middle = self.top(torch.cat((_twice(coarse), middle), 1))
        fine = self.low(torch.cat((_twice(middle), fine), 1))
        middle = self.middle_out(torch.cat((self.lift(fine), middle), 1))
        coarse = self.coarse_out(torch.cat((self.lift_again(middle), coarse), 1))
        scales = zip(_ANCHORS, self.heads, (fine, middle, coarse), strict=True)
        return torch.cat([self._boxes(head(scale), stride) for stride, head, scale in scales], 1)

    def _boxes(self, raw: Tensor, stride: int) -> Tensor:
        batch, _, height, width = raw.shape
        chances = raw.reshape(batch, 3, _PER_ANCHOR, height, width).permute(0, 1, 3, 4, 2).sigmoid()
        centre, size, rest = chances.split((2, 2, _PER_ANCHOR - 4), 4)
        centre = (centre * 2 + self.get_buffer(f"grid{stride}")) * stride
        size = (size * 2) ** 2 * self.get_buffer(f"anchors{stride}")
        return torch.cat((centre, size, rest), 4).reshape(batch, -1, _PER_ANCHOR)


def _twice(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")


class Tracker(nn.Module):
    """Template 3x127x127 and search 3x255x255 to scores [10, 17, 17] and boxes [20, 17, 17] of five anchors."""

    def __init__(self, channels: int = 256, anchors: int = 5) -> None:
        super().__init__()
        self.backbone = backbone(channels)
        self.scores, self.boxes = _Head(channels, 2 * anchors), _Head(channels, 4 * anchors)

    def forward(self, template: Tensor, search: Tensor) -> tuple[Tensor, Tensor]:
        kernel, x = self.backbone(template), self.backbone(search)
        return self.scores(kernel, x), self.boxes(kernel, x)


class _Head(nn.Module):
    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.kernel = nn.Sequential(nn.Conv2d(channels, channels, 3), nn.ReLU())
        self.search = nn.Sequential(nn.Conv2d(channels, channels, 3), nn.ReLU())
        self.out = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, outputs, 1))

    def forward(self, kernel: Tensor, x: Tensor) -> Tensor:
        found: Tensor = self.out(correlation(self.search(x), self.kernel(kernel)))
        return found
