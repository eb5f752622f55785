"""Our kernels for steps that only move numbers: concatenated channels, and a picture's planes made pixels."""

from typing import Final

import torch

from penstock.engine.cuda.kernels.cuts import are_side_by_side, cut_patches_launch
from penstock.engine.cuda.kernels.epilogue import Scratch
from penstock.engine.cuda.kernels.launching import Launch
from penstock.engine.cuda.kernels.moves import (
    MOST_PARTS,
    OPERATORS,
    concat_channels_launch,
    planes_to_pixels_launch,
)
from penstock.engine.cuda.kernels.quantize import quantize_launch
from penstock.engine.cuda.sites import Site, eight_bits
from penstock.engine.cuda.ways import Ready, Tensors, Way, dtype_of, eight_or_narrow, operand_number

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


def planes(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launch:
    """A map [N, H, W, C] that lies as [N, C, H, W], maybe with zeros around it."""
    del scratch
    padding = ready.site.step.kind == "pad"
    top, left = ready.site.integers("begin")[1:3] if padding else (0, 0)
    x = operands[ready.site.index("x") or 0].permute(0, 3, 1, 2)
    arithmetic = [
        (name, number if isinstance(number, float) else operands[number][0, 0, 0])
        for name, number in _arithmetic(ready.site) or ()
    ]
    return planes_to_pixels_launch(
        x,
        out=outputs[0],
        corner=(top, left),
        arithmetic=arithmetic,
        out_scale=ready.site.out_scale(),
        pdl=ready.site.early,
    )


def _cuts(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launch:
    del scratch
    return cut_patches_launch(operands[0], out=outputs[0], pdl=ready.site.early)


def _suits_cuts(site: Site) -> bool:
    view = site.step.inputs[0].view
    return view is not None and are_side_by_side(view.shape, view.strides)


def _arithmetic(site: Site) -> list[tuple[str, int | float]] | None:
    """A program that changes x by numbers, as operators with a number or an operand; None for any other."""
    found: list[tuple[str, int | float]] = []
    current = f"i{site.index('x')}"
    for number, line in enumerate(site.step.program):
        if line.name in OPERATORS:
            first, other = line.arguments
            if other == current and line.name in ("add", "mul"):
                first, other = other, first
            operand = operand_number(other)
            if first != current or other == current or (operand is None and isinstance(other, str)):
                return None
            found.append((line.name, float(other) if operand is None else operand))
        elif line.name != "to_float" or line.arguments != (current,):
            return None
        current = f"t{number}"
    return found if len(found) <= 2 else None


def _suits_planes(site: Site) -> bool:
    """A copy keeps the shape that it sees."""
    return len(site.out_shape()) == 4 and site.graph.shape(site.step.inputs[0]) == site.out_shape()


def suits_padding(site: Site) -> bool:
    """Zeros around the picture, and more channels behind."""
    begin, end = site.integers("begin"), site.integers("end")
    images = len(begin) == 4 and (begin[0], end[0], begin[3]) == (0, 0, 0)
    plain = images and min(*begin, *end) >= 0 and site.number("value") == 0.0
    found = _arithmetic(site)
    return plain and found is not None and all(_is_row(site, at) for _, at in found if isinstance(at, int))


def _is_row(site: Site, index: int) -> bool:
    """One number for each channel, the same for every pixel."""
    view = site.step.inputs[index].view
    return view is not None and len(view.shape) == 4 and view.strides == (0, 0, 0, 1)


def _floats_or_bytes(site: Site) -> bool:
    """Bytes only where they are computed with: elsewhere they are no picture."""
    kinds = {dtype_of(site, index) for index in range(len(site.step.inputs))}
    writes = site.out_dtype() in _FLOATS or site.out_scale() is not None
    return writes and kinds <= {*_FLOATS, *((torch.uint8,) if site.step.program else ())}


def _floats(site: Site) -> bool:
    kinds = {dtype_of(site, index) for index in range(len(site.step.inputs))} | {site.out_dtype()}
    return kinds <= set(_FLOATS)


def _quantize(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launch:
    del scratch
    return quantize_launch(operands[0], out=outputs[0], scale=ready.out_scale, pdl=ready.site.early)


def _suits_quantize(site: Site) -> bool:
    """An eight-bit copy, and nothing else."""
    copies = [(line.name, *line.arguments) for line in site.step.program] == [("identity", "i0")]
    return copies and len(site.step.inputs) == 1 and site.out_scale() is not None and not eight_bits(dtype_of(site, 0))


MOVES: Final[dict[tuple[str, str], Way]] = {
    ("pointwise", "triton_quantize"): Way(_quantize, suits=_suits_quantize, types=eight_or_narrow, scales=True),
    ("concat", "triton"): Way(_concat, suits=_suits_concat, types=_floats),
    ("copy", "triton"): Way(planes, suits=_suits_planes, types=_floats),
    ("copy", "triton_patches"): Way(_cuts, suits=_suits_cuts, types=_floats),
    ("pad", "triton"): Way(planes, suits=suits_padding, types=_floats_or_bytes, scales=True),
}
"""Kind and name -> kernel."""
