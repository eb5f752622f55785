"""Our kernels for steps that only move numbers: concatenated channels, and a picture's planes made pixels."""

from typing import Final

import torch

from penstock.engine.cuda.kernels.epilogue import Scratch
from penstock.engine.cuda.kernels.launching import Launch
from penstock.engine.cuda.kernels.moves import MOST_PARTS, concat_channels_launch, planes_to_pixels_launch
from penstock.engine.cuda.sites import Site
from penstock.engine.cuda.ways import Ready, Tensors, Way, dtype_of

_FLOATS: Final = (torch.float16, torch.bfloat16, torch.float32)


def _concat(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launch:
    del scratch
    parts: list[torch.Tensor] = []
    repeats: list[tuple[int, int]] = []
    for each in operands:
        runs = each.dim() == 6  # rows and columns are runs of the same pixel
        parts.append(each[:, :, 0, :, 0, :] if runs else each)
        repeats.append((each.shape[2], each.shape[4]) if runs else (1, 1))
    return concat_channels_launch(parts, out=outputs[0], repeats=repeats, pdl=ready.site.early)


def _suits_concat(site: Site) -> bool:
    if len(site.out_shape()) != 4 or site.integer("axis") != 3 or len(site.step.inputs) > MOST_PARTS:
        return False
    views = [each.view for each in site.step.inputs]
    return all(view is None or len(view.shape) == 4 or _repeats(view.strides) for view in views)


def _repeats(strides: tuple[int, ...]) -> bool:
    return len(strides) == 6 and (strides[2], strides[4]) == (0, 0)


def _planes(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launch:
    """A map [N, H, W, C] that lies as [N, C, H, W], maybe with zeros around it."""
    del scratch
    padding = ready.site.step.kind == "pad"
    top, left = ready.site.integers("begin")[1:3] if padding else (0, 0)
    x = operands[0].permute(0, 3, 1, 2)
    return planes_to_pixels_launch(x, out=outputs[0], corner=(top, left), pdl=ready.site.early)


def _suits_planes(site: Site) -> bool:
    """A copy keeps the shape that it sees."""
    return len(site.out_shape()) == 4 and site.graph.shape(site.step.inputs[0]) == site.out_shape()


def _suits_padding(site: Site) -> bool:
    """Zeros around the picture, and more channels behind."""
    begin, end = site.integers("begin"), site.integers("end")
    images = len(begin) == 4 and (begin[0], end[0], begin[3]) == (0, 0, 0)
    return images and min(*begin, *end) >= 0 and site.number("value") == 0.0


def _floats(site: Site) -> bool:
    kinds = {dtype_of(site, index) for index in range(len(site.step.inputs))} | {site.out_dtype()}
    return kinds <= set(_FLOATS)


MOVES: Final[dict[tuple[str, str], Way]] = {
    ("concat", "triton"): Way(_concat, suits=_suits_concat, types=_floats),
    ("copy", "triton"): Way(_planes, suits=_suits_planes, types=_floats),
    ("pad", "triton"): Way(_planes, suits=_suits_padding, types=_floats),
}
"""Kind and name -> kernel."""
