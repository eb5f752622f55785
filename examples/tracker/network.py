"""The network of a SiamRPN-like tracker as torch modules, whole and as its two branches.

AlexNet without padding as the backbone of both pictures (Li et al. 2018), depthwise cross-correlation and two heads (Li
et al. 2019), norms folded. Nothing is trained: `made` gives weights from a seed, and from what a correlation needs, so
that the scores say where the template is. Needs torch. Called by `engines`, and by the benches with other weights.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

TEMPLATE_SIZE: Final = 127
SEARCH_SIZE: Final = 255
CHANNELS: Final = 256
ANCHORS: Final = 5

_ALIKE: Final = 0.72  # cosine at which it is as likely the object as not; of most that is not, 0.45 to 0.65
_SLOPE: Final = 16.0  # logits per cosine: 0.9 is sure, 0.6 is not
_NOISE: Final = 0.02  # of what is no part of the correlation: heads answer something for every anchor
_LEAST: Final = 1e-3  # of a mean square that is divided by: features without contrast stay small
_PLACES: Final = 16  # of a kernel


def backbone(channels: int) -> nn.Sequential:
    """AlexNet's layers as SiamRPN has them, without padding: [n, 3, 127, 127] to [n, channels, 6, 6], 255 to 22."""
    return nn.Sequential(
        nn.Conv2d(3, 96, 11, 2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(96, 256, 5), nn.ReLU(),
        nn.MaxPool2d(3, 2), nn.Conv2d(256, 384, 3), nn.ReLU(), nn.Conv2d(384, 384, 3), nn.ReLU(),
        nn.Conv2d(384, channels, 3),
    )  # fmt: skip


class Tracker(nn.Module):
    """Template [n, 3, 127, 127] and search [n, 3, 255, 255] to scores [n, 10, 17, 17] and boxes [n, 20, 17, 17]."""

    def __init__(self, channels: int = CHANNELS, anchors: int = ANCHORS) -> None:
        super().__init__()
        self.backbone = backbone(channels)
        self.scores, self.boxes = Head(channels, 2 * anchors), Head(channels, 4 * anchors)

    def forward(self, template: Tensor, search: Tensor) -> tuple[Tensor, Tensor]:
        kernel, x = self.backbone(template), self.backbone(search)
        return self.scores(self.scores.kernel(kernel), x), self.boxes(self.boxes.kernel(kernel), x)


class Head(nn.Module):
    """One of the two: what a kernel [n, channels, 4, 4] finds in features [n, channels, 22, 22]."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.kernel = nn.Sequential(nn.Conv2d(channels, channels, 3), nn.ReLU(), UnitLength())
        self.search = nn.Sequential(nn.Conv2d(channels, channels, 3), nn.ReLU(), UnitLength())
        self.out = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, outputs, 1))

    def forward(self, kernel: Tensor, x: Tensor) -> Tensor:
        found: Tensor = self.out(correlation(self.search(x), kernel))
        return found


class UnitLength(nn.Module):
    """Features of mean square 1 over the channels of every place, so that a correlation of them is a mean cosine."""

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.square().mean(1, keepdim=True) + _LEAST).sqrt()


class TemplateBranch(nn.Module):
    """Template [n, 3, 127, 127] to the kernels of both heads, [n, 256, 4, 4] each: once per object."""

    def __init__(self, tracker: Tracker) -> None:
        super().__init__()
        self.tracker = tracker

    def forward(self, template: Tensor) -> tuple[Tensor, Tensor]:
        features = self.tracker.backbone(template)
        return self.tracker.scores.kernel(features), self.tracker.boxes.kernel(features)


class SearchBranch(nn.Module):
    """Search [n, 3, 255, 255] and both kernels to scores and boxes, as `Tracker`: in every frame."""

    def __init__(self, tracker: Tracker) -> None:
        super().__init__()
        self.tracker = tracker

    def forward(self, search: Tensor, scores_kernel: Tensor, boxes_kernel: Tensor) -> tuple[Tensor, Tensor]:
        features = self.tracker.backbone(search)
        return self.tracker.scores(scores_kernel, features), self.tracker.boxes(boxes_kernel, features)


def correlation(x: Tensor, kernel: Tensor) -> Tensor:
    """Each channel of each picture with its own kernel: one grouped convolution, as the family writes it.

    Exported as sums of products of slices: ONNX has no convolution whose number of groups is that of a free batch.
    """
    batch, channels, height, width = kernel.shape
    if not torch.compiler.is_exporting():
        y = functional.conv2d(
            x.reshape(1, batch * channels, *x.shape[2:]),
            kernel.reshape(batch * channels, 1, height, width),
            groups=batch * channels,
        )
        return y.reshape(batch, channels, *y.shape[2:])
    rows, columns = x.shape[2] - height + 1, x.shape[3] - width + 1
    total = None
    for top in range(height):
        for left in range(width):
            seen = x[:, :, top : top + rows, left : left + columns]
            part = seen * kernel[:, :, top : top + 1, left : left + 1]
            total = part if total is None else total + part
    assert total is not None
    return total


def made(pictures: Tensor, seed: int = 1) -> Tracker:
    """The whole network with weights that nobody trained, in evaluation mode.

    Filters are random projections, which keep inner products (Johnson and Lindenstrauss 1984); biases and scales are
    those of a norm over `pictures` [n, 3, 255, 255], two at least, as the search branch will get them. Template and
    search pass the same filters, and the head of scores sums the correlation over channels: it is high where the search
    looks like the template. The head of boxes has noise alone, so boxes stay close to their anchors.
    """
    if len(pictures) < 2:
        raise ValueError(f"expected two pictures or more to take norms over, got {len(pictures)}")
    tracker = Tracker().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    features = _through(tracker.backbone, pictures, generator)
    for head in (tracker.scores, tracker.boxes):
        _through(head.search, features, generator)
        head.kernel.load_state_dict(head.search.state_dict())
        _end(head, generator, sums=head is tracker.scores)
    return tracker


def _through(layers: nn.Sequential, x: Tensor, generator: torch.Generator) -> Tensor:
    """Fills each convolution so that what leaves it has mean 0 and deviation 1 in every channel for these pictures."""
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            layer.weight.normal_(0, layer.weight[0].numel() ** -0.5, generator=generator)
            if layer.in_channels == 3:  # the light of a picture is none of its features
                layer.weight.sub_(layer.weight.mean((1, 2, 3), keepdim=True))
            _bias(layer).zero_()
            y = layer(x)
            mean, deviation = y.mean((0, 2, 3)), y.std((0, 2, 3))
            layer.weight.div_(deviation[:, None, None, None])
            _bias(layer).copy_(-mean / deviation)
        x = layer(x)
    return x


def _end(head: Head, generator: torch.Generator, *, sums: bool) -> None:
    """1 x 1 filters behind the correlation: the mean cosine and noise, or noise alone."""
    first, _, last = head.out
    assert isinstance(first, nn.Conv2d)
    assert isinstance(last, nn.Conv2d)
    channels, half = first.in_channels, last.out_channels // 2
    first.weight.normal_(0, _NOISE, generator=generator).add_(1).div_(channels * _PLACES)
    _bias(first).zero_()
    last.weight.normal_(0, _NOISE / channels, generator=generator)
    _bias(last).zero_()
    if sums:
        last.weight[:half].sub_(_SLOPE / 2 / channels)
        last.weight[half:].add_(_SLOPE / 2 / channels)
        _bias(last)[half:].sub_(_SLOPE * _ALIKE)


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias
